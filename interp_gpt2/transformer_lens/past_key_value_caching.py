"""HookedTransformerKeyValueCache: keys and values of the tokens so far, over our own KV cache."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_gpt2.errors import TokenError
from interp_gpt2.hooks import Hooks
from interp_gpt2.kv_cache import KVCache
from interp_gpt2.model import GPT2

if TYPE_CHECKING:
    from interp_gpt2.transformer_lens.config import HookedTransformerConfig


class HookedTransformerKeyValueCache:
    """What `model(tokens, past_kv_cache=cache)` continues, and then holds too, unless it is frozen.

    `cache[layer].past_keys` and `.past_values` are (batch, pos so far, head, d_head), to be read, changed in place or
    replaced by others of their shape. `cache.past` is our KVCache. The mask is remembered: padding stays padding.
    """

    def __init__(self, cfg: "HookedTransformerConfig", device: torch.device | str | None, batch_size: int = 1) -> None:
        self.past, self.frozen = KVCache(), False
        self.previous_attention_mask = torch.ones(batch_size, 0, dtype=torch.long, device=device)
        self._empty = torch.empty(batch_size, 0, cfg.n_heads, cfg.d_head, device=device, dtype=cfg.dtype)
        self.entries = [HookedTransformerKeyValueCacheEntry(self, layer) for layer in range(cfg.n_layers)]

    @classmethod
    def init_cache(
        cls, cfg: "HookedTransformerConfig", device: torch.device | str | None, batch_size: int = 1
    ) -> "HookedTransformerKeyValueCache":
        """A cache that has seen nothing, for `batch_size` sequences."""
        return cls(cfg, device, batch_size)

    def freeze(self) -> None:
        """From here on calls continue what is held, and leave it as it is: many inputs behind one prefix."""
        self.frozen = True

    def unfreeze(self) -> None:
        self.frozen = False

    def __getitem__(self, layer: int) -> "HookedTransformerKeyValueCacheEntry":
        return self.entries[layer]

    def logits(
        self, model: GPT2, tokens: Int[Tensor, "batch pos"], hooks: Hooks, attention_mask: Int[Tensor, "batch pos"] | None
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits of tokens that continue those seen; `attention_mask` is of these tokens alone. Raises as `model` does."""
        n_held = len(self.previous_attention_mask)
        if len(tokens) != n_held:
            raise TokenError(f"past_kv_cache holds {n_held} sequences, {len(tokens)} are given; pass batch_size to init_cache")
        new = torch.ones_like(tokens) if attention_mask is None else attention_mask
        mask = torch.cat([self.previous_attention_mask.to(tokens.device), new.long()], 1)
        past = _copy(self.past) if self.frozen else self.past
        logits = model(tokens, hooks, None if mask.all() else mask, past)
        if not self.frozen:
            self.previous_attention_mask = mask
        return logits


class HookedTransformerKeyValueCacheEntry:
    """One layer of the cache."""

    def __init__(self, cache: HookedTransformerKeyValueCache, layer: int) -> None:
        self._cache, self._layer = cache, layer

    @property
    def past_keys(self) -> Float[Tensor, "batch pos_so_far head d_head"]:
        return self._held(self._cache.past.keys)

    @past_keys.setter
    def past_keys(self, keys: Float[Tensor, "batch pos_so_far head d_head"]) -> None:
        self._replace(self._cache.past.keys, keys)

    @property
    def past_values(self) -> Float[Tensor, "batch pos_so_far head d_head"]:
        return self._held(self._cache.past.values)

    @past_values.setter
    def past_values(self, values: Float[Tensor, "batch pos_so_far head d_head"]) -> None:
        self._replace(self._cache.past.values, values)

    @property
    def frozen(self) -> bool:
        return self._cache.frozen

    def _held(self, layers: dict[int, Tensor]) -> Tensor:
        return layers[self._layer] if self._cache.past.n_pos else self._cache._empty

    def _replace(self, layers: dict[int, Tensor], new: Tensor) -> None:
        expected = tuple(self._held(layers).shape)
        if tuple(new.shape) != expected:
            raise TokenError(f"what replaces keys or values of layer {self._layer} has shape {tuple(new.shape)}, not {expected}")
        if self._cache.past.n_pos:
            layers[self._layer] = new


def _copy(past: KVCache) -> KVCache:
    """What a pass may extend while the first stays as it is."""
    copied = KVCache()
    if past.n_pos:
        for layer in past.keys:
            copied.extend(layer, past.keys[layer][:, : past.n_pos], past.values[layer][:, : past.n_pos])
    copied.n_pos = past.n_pos
    return copied
