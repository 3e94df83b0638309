"""Edits that take a part out of a model, for `model.with_edits`."""

import threading

from torch import Tensor

from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError, EditError
from interp_gpt2.hooks import Edits, Site


def without_residual(config: GPT2Config) -> Edits:
    """Edits under which every block's attention and MLP replace the stream instead of adding to it.

    `resid_mid` becomes `attn_out`, and `resid_post` becomes `mlp_out` (`attn_out` where there is no MLP): a network without
    skip connections, made of the same weights. Other edits of these parts come before, and count. Raises AnalysisError for
    a model without layers, which has none to skip.
    """
    if config.n_layers == 0:
        raise AnalysisError("a model without layers has no residual connection to take out")
    attention, mlp = _Replacing(), _Replacing()
    ends = "*.resid_post" if config.attn_only else "*.resid_mid"
    edits = {"*.attn_out": attention.remember, ends: attention.recall}
    return edits if config.attn_only else edits | {"*.mlp_out": mlp.remember, "*.resid_post": mlp.recall}


class _Replacing:
    """What a sub-layer wrote last, to be put in the place of its sum with the stream; one for each thread."""

    def __init__(self) -> None:
        self.written = threading.local()

    def remember(self, value: Tensor, site: Site) -> Tensor:
        self.written.value = value
        return value

    remember.comes_last = True  # what other edits make of it is what is written

    def recall(self, value: Tensor, site: Site) -> Tensor:
        if not hasattr(self.written, "value"):
            raise EditError(f"what replaces {site.name!r} was not remembered: another edit stands in place of without_residual's")
        written = self.written.value
        del self.written.value  # or the graph of a pass would live until the next one
        return written

    def __reduce__(self) -> tuple:
        return type(self), ()  # between passes it holds nothing
