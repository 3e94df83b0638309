"""Keys and values of the tokens so far, for a pass over the next ones."""

import torch
from torch import Tensor


class KVCache:
    """The keys and values of the tokens so far, for a pass over the next ones: `model(new_tokens, past=past)`.

    `past.keys[layer]` and `past.values[layer]` are plain tensors (batch, pos, head, d_head), to be read, changed in place or
    replaced: `past.values[3][:, 4, 2] = 0` takes away what later tokens read from position 4 through head L3H2. Each pass
    makes new ones, so that a tensor taken from here stays as it is.
    """

    def __init__(self) -> None:
        self.n_pos = 0  # counted when a pass has succeeded
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append the new tokens' keys and values of a layer, and return those of all tokens."""
        if self.n_pos:
            k = torch.cat([self.keys[layer][:, : self.n_pos], k], dim=1)
            v = torch.cat([self.values[layer][:, : self.n_pos], v], dim=1)
        else:  # not views of what may be recorded too, which a change in place would reach
            k, v = k.clone(), v.clone()
        self.keys[layer], self.values[layer] = k, v
        return k, v
