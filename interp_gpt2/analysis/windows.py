"""Windows of tokens to look at neurons on, and the neurons' activations on them, one layer at a time.

What reads neurons takes batches of (tokens, activations), wherever they come from: `neuron_layers` computes them, a store
on disk yields them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp_gpt2.activations.store import ActivationStore
from interp_gpt2.analysis.probe_sets import ProbeSet
from interp_gpt2.analysis.rows import require_eval
from interp_gpt2.errors import AnalysisError
from interp_gpt2.hooks import Hooks
from interp_gpt2.model import GPT2

Batch = tuple[Int[Tensor, "*where"], Float[Tensor, "*where neuron"]]
Columns = Float[np.ndarray, "neuron token"]

_BATCH_TOKENS = 4096


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of tokens, the first `lengths` of each real and the rest padding; `documents` says which belong together."""

    tokens: Int[Tensor, "window pos"]
    lengths: Int[Tensor, "window"]
    documents: Int[Tensor, "window"]

    def __post_init__(self) -> None:
        shapes = tuple(self.tokens.shape), tuple(self.lengths.shape), tuple(self.documents.shape)
        if self.tokens.ndim != 2 or shapes[1:] != ((len(self.tokens),), (len(self.tokens),)) or not self.tokens.numel():
            raise AnalysisError("tokens, lengths and documents of shapes {}, {} and {} are not (window, pos), (window,) and "
                                "(window,) of at least one token".format(*shapes))  # fmt: skip
        if not ((self.lengths >= 1) & (self.lengths <= self.tokens.shape[1])).all():
            raise AnalysisError(f"lengths run from {self.lengths.min()} to {self.lengths.max()}; a window of "
                                f"{self.tokens.shape[1]} positions has 1 to {self.tokens.shape[1]} real ones")  # fmt: skip

    @classmethod
    def of(cls, tokens: Int[Tensor, "window pos"]) -> "Windows":
        """Whole windows, each a document of its own."""
        return cls(tokens, torch.full((len(tokens),), tokens.shape[-1]), torch.arange(len(tokens)))

    @classmethod
    def of_probe_set(cls, data: ProbeSet) -> "Windows":
        return cls(data.tokens, data.lengths, data.documents)

    @classmethod
    def of_store(cls, store: ActivationStore) -> "Windows":
        """A store's texts, so that these are its rows, in order. A window counts as its first token's document."""
        texts = store.texts
        return cls(texts.tokens, texts.lengths, texts.documents[:, 0])

    @property
    def real(self) -> Bool[Tensor, "window pos"]:
        """Where there is a token and no padding. Everything measured is in the order of these places, window by window."""
        return torch.arange(self.tokens.shape[1]) < self.lengths[:, None]

    @property
    def n_tokens(self) -> int:
        return int(self.lengths.sum())

    @property
    def token_documents(self) -> Int[Tensor, "token"]:
        """The document of every real token."""
        return self.documents.repeat_interleave(self.lengths)


@torch.no_grad()
def neuron_layers(model: GPT2, windows: Windows) -> Iterator[tuple[int, Iterator[Batch]]]:
    """Each layer with an iterator over its neurons' activations (`mlp.post`) at the real tokens, in order.

    Every block runs once: between layers the residual streams of all tokens are kept, n_tokens x d_model floats, and of
    the neurons one batch of about 4,096 tokens at a time. A layer's batches may be left unread.

    Raises AnalysisError for a model without MLPs or with dropout in training mode.
    """
    require_eval(model)
    if model.config.attn_only or model.config.n_layers == 0:
        raise AnalysisError("the model has no MLP, and so no neurons")
    size = max(1, _BATCH_TOKENS // windows.tokens.shape[1])
    parts = windows.tokens.split(size)
    streams = [model.embed(part.to(model.device)).cpu() for part in parts]
    real = windows.real.split(size)
    for layer in range(model.config.n_layers):
        batches = _layer(model, layer, streams, parts, real)
        yield layer, batches
        for _ in batches:  # what was not read must still pass through the block
            pass


def _layer(model: GPT2, layer: int, streams: list[Tensor], parts: Iterable[Tensor], real: Iterable[Tensor]) -> Iterator[Batch]:
    """One layer's batches; `streams` are moved on to the next layer as they are read."""
    name = f"blocks.{layer}.mlp.post"
    for index, (tokens, there) in enumerate(zip(parts, real, strict=True)):
        with torch.no_grad():  # a generator does not inherit its caller's
            hooks = Hooks(frozenset((name,)))
            streams[index] = model.run_blocks(streams[index].to(model.device), layer, layer + 1, hooks).cpu()
            batch = tokens[there], hooks.cache[name].cpu()[there]
        yield batch


def of_these_tokens(batches: Iterable[Batch], tokens: Int[Tensor, "token"]) -> Iterator[Batch]:
    """The batches, each looked at: labels of other tokens than a store holds would be wrong without a sign.

    Raises AnalysisError for a batch of other tokens than those at its place.
    """
    at = 0
    for its, activations in batches:
        expected = tokens[at : at + its.numel()]
        if len(expected) == its.numel() and not torch.equal(expected.long(), its.flatten().cpu().long()):
            raise AnalysisError(
                f"the activations from token {at:,} on are of other tokens than the labels; store the probe set's own: "
                "Texts.of(data.tokens, data.lengths, data.documents)"
            )
        at += its.numel()
        yield its, activations


def columns_of(batches: Iterable[Batch], n_tokens: int) -> Columns:
    """All activations of a layer with a neuron's side by side, in float32: 4 bytes x neurons x tokens.

    Raises AnalysisError if the batches hold another number of tokens, or disagree in their neurons.
    """
    columns, at = None, 0
    for _, activations in batches:
        rows = activations.flatten(0, -2).float().numpy()  # numpy has no bfloat16
        if columns is None:
            columns = np.empty((rows.shape[1], n_tokens), dtype=np.float32)
        if rows.shape[1] != len(columns) or at + len(rows) > n_tokens:
            raise AnalysisError(
                f"a batch of {len(rows)} tokens x {rows.shape[1]} neurons after {at} tokens does not fit {n_tokens} tokens x "
                f"{len(columns)} neurons; pass as many labels as there are tokens"
            )
        columns[:, at : at + len(rows)] = rows.T
        at += len(rows)
    if columns is None or at != n_tokens:
        raise AnalysisError(f"the batches hold {at} tokens and {n_tokens} were expected; pass as many labels as there are tokens")
    return columns
