"""Heads read token by token from their weights: what each raises and lowers (OV), and what it looks for (QK).

    readings = ov_readings(model, tokens=tokenizer.encode(" the cat"), heads=[(9, 6)])
    readings.to_frame(tokenizer.labels)

The full circuits have d_vocab x d_vocab entries for each head, 2.5 billion at GPT-2's vocabulary; only rows asked for are
computed, some at a time, and their extremes kept. They are of the weights as they stand: without biases, positions and
other layers, and with the gains of layer norms only after `folding.fold_layer_norm`. What comes out is a hypothesis about
the head, to be tested on real passes. Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; Wang et al.
2022, "Interpretability in the Wild", for embeddings as they are behind the first MLP.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp_gpt2.analysis.attention_patterns import head_label
from interp_gpt2.errors import AnalysisError, TokenError
from interp_gpt2.model import GPT2

if TYPE_CHECKING:
    from pandas import DataFrame

Head = tuple[int, int]  # layer, head
Embedding = Literal["token", "effective"]

_CHUNK = 2**22  # numbers held at once: 16 MiB in float32


@dataclass(frozen=True, eq=False)
class CircuitReadings:
    """The k largest and k smallest entries of some rows of full circuits: of `circuit`, "OV" or "QK", for `tokens`.

    `mean` and `std` are over the whole row, `d_vocab` entries: the yardstick. Were a row normal noise, its largest entry
    would lie about sqrt(2 ln d_vocab) std above the mean, 4.65 at GPT-2's vocabulary. `own_values` are the entries of the
    rows' own tokens, `own_rank` says how many other tokens lie as high or higher: 0 if the head copies (OV) or looks for the
    same token (QK).
    """

    circuit: Literal["OV", "QK"]
    heads: tuple[Head, ...]
    tokens: Int[Tensor, "token"]
    top_tokens: Int[Tensor, "head token k"]
    top_values: Float[Tensor, "head token k"]
    bottom_tokens: Int[Tensor, "head token k"]
    bottom_values: Float[Tensor, "head token k"]
    mean: Float[Tensor, "head token"]
    std: Float[Tensor, "head token"]
    own_values: Float[Tensor, "head token"]
    own_rank: Int[Tensor, "head token"]
    d_vocab: int

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(head_label(*head) for head in self.heads)

    @property
    def own_z(self) -> Float[Tensor, "head"]:
        """How many std the rows' own entries lie above their rows' means, on average: 0 by chance, within about
        1 / sqrt(tokens). NaN for a head of zeros."""
        return ((self.own_values - self.mean) / self.std).mean(-1)

    def own_among(self, k: int) -> Float[Tensor, "head"]:
        """Share of the rows whose own token is among the k largest, in [0, 1]; k / d_vocab by chance. Of OV, a copying score."""
        return (self.own_rank < k).double().mean(-1)

    def to_frame(self, token_labels: Sequence[str] | None = None) -> "DataFrame":
        """A row for each entry: label, layer, head, token, token_label, end ("top" or "bottom"), rank (0 is the extreme),
        other, other_label, value, mean, std. `token_labels` are the vocabulary's (a tokenizer's `labels`), else the ids."""
        import pandas

        records = []
        names = token_labels or range(self.d_vocab)
        ends = {"top": (self.top_tokens, self.top_values), "bottom": (self.bottom_tokens, self.bottom_values)}
        for i, (layer, head) in enumerate(self.heads):
            for j, token in enumerate(self.tokens.tolist()):
                row = {"label": head_label(layer, head), "layer": layer, "head": head}
                row |= {"token": token, "token_label": str(names[token])}
                spread = {"mean": float(self.mean[i, j]), "std": float(self.std[i, j])}
                for end, (ids, values) in ends.items():
                    entries = zip(ids[i, j].tolist(), values[i, j].tolist(), strict=True)
                    for rank, (other, value) in enumerate(entries):
                        found = {"other": other, "other_label": str(names[other]), "value": value}
                        records.append({**row, "end": end, "rank": rank, **found, **spread})
        return pandas.DataFrame(records)


@torch.no_grad()
def ov_readings(
    model: GPT2,
    tokens: Sequence[int] | Int[Tensor, "token"],
    heads: Sequence[Head] | None = None,
    k: int = 10,
    embedding: Embedding = "token",
) -> CircuitReadings:
    """For each of `tokens`, those that heads (None: all) raise and lower most when they attend to it.

    Rows of embedding @ W_V @ W_O @ W_U, in logits where the final layer norm's scale is 1: its and the head's own layer
    norm's would scale a row as a whole, so comparisons are within rows. `embedding`: "token" is W_E, "effective" what
    `effective_embedding` says. Raises TokenError for tokens outside the vocabulary, AnalysisError for heads that are not there.
    """
    chosen, ids = _checked(model, tokens, heads, k)
    rows = embedding_rows(model, embedding, ids)
    W_V, W_O, W_U = _full(model.W_V), _full(model.W_O), _full(model.W_U)
    factors = (_thin(rows @ W_V[head], W_O[head], W_U) for head in chosen)
    return _readings("OV", chosen, ids, factors, k)


@torch.no_grad()
def qk_readings(
    model: GPT2,
    tokens: Sequence[int] | Int[Tensor, "token"],
    heads: Sequence[Head] | None = None,
    k: int = 10,
    embedding: Embedding = "token",
) -> CircuitReadings:
    """For each of `tokens` as the query, the keys that heads (None: all) attend to most and least.

    Rows of embedding @ W_Q @ W_K.T @ embedding.T times the head's own scale, 1 / sqrt(d_head): attention scores where
    layer norms' scales are 1. As in `ov_readings` otherwise. A row says which tokens would share the attention, not how
    sharply: that depends on the layer norm and on what else there is.
    """
    chosen, ids = _checked(model, tokens, heads, k)
    every = embedding_rows(model, embedding)
    W_Q, W_K = _full(model.W_Q), _full(model.W_K)
    rows = every[ids]
    factors = (_thin(rows @ W_Q[head] * model.blocks[head[0]].attn.scale, W_K[head].T, every.T) for head in chosen)
    return _readings("QK", chosen, ids, factors, k)


@torch.no_grad()
def effective_embedding(model: GPT2, tokens: Int[Tensor, "token"] | None = None) -> Float[Tensor, "token d_model"]:
    """Tokens (None: all) as later layers find them: W_E + MLP_0(ln2(W_E)), the first MLP with all its biases.

    The first MLP sees each token almost alone, and in GPT-2, whose embedding is also its unembedding, much of what later
    layers read of a token is what it writes. Positions and the first attention layer are left out. Raises AnalysisError
    for a model without MLPs.
    """
    if model.config.attn_only or not model.config.n_layers:
        raise AnalysisError('this model has no first MLP to extend its embedding by; pass embedding="token"')
    rows = model.W_E if tokens is None else model.W_E[tokens]
    block, step = model.blocks[0], max(1, _CHUNK // model.config.d_mlp)
    mlp = block.mlp
    return torch.cat([part + mlp.proj(mlp.act(mlp.fc(block.ln2(part)))) for part in rows.split(step)])


def embedding_rows(
    model: GPT2, embedding: Embedding, tokens: Int[Tensor, "token"] | None = None
) -> Float[Tensor, "token d_model"]:
    """Rows of W_E or of the effective embedding, in float32 at least. Raises AnalysisError for another name."""
    if embedding not in ("token", "effective"):
        raise AnalysisError(f"embedding={embedding!r} is not one of 'token', 'effective'")
    if embedding == "effective":
        return _full(effective_embedding(model, tokens))
    return _full(model.W_E if tokens is None else model.W_E[tokens])


def _thin(
    rows: Float[Tensor, "token d_head"], middle: Float[Tensor, "d_head d_model"], right: Float[Tensor, "d_model d_vocab"]
) -> tuple[Tensor, Tensor]:
    """The product of three as a product of two, whichever way costs less."""
    return (rows @ middle, right) if len(rows) < rows.shape[1] else (rows, middle @ right)


def _readings(
    circuit: Literal["OV", "QK"],
    heads: tuple[Head, ...],
    ids: Int[Tensor, "token"],
    factors: Iterator[tuple[Float[Tensor, "token mid"], Float[Tensor, "mid d_vocab"]]],
    k: int,
) -> CircuitReadings:
    """The extremes of the products of two, one of each head."""
    found, d_vocab = [], 0
    for left, right in factors:
        d_vocab = right.shape[1]
        step = max(1, _CHUNK // d_vocab)
        parts = [_extremes(some @ right, own, k) for some, own in zip(left.split(step), ids.split(step), strict=True)]
        found.append([torch.cat(column) for column in zip(*parts, strict=True)])
    return CircuitReadings(circuit, heads, ids, *(torch.stack(column) for column in zip(*found, strict=True)), d_vocab)


def _extremes(rows: Float[Tensor, "token d_vocab"], own: Int[Tensor, "token"], k: int) -> tuple[Tensor, ...]:
    top, bottom = rows.topk(k), rows.topk(k, largest=False)
    own_values = rows.gather(1, own[:, None])
    above: Bool[Tensor, "token d_vocab"] = rows >= own_values  # ties count: a head of zeros copies nothing
    return top.indices, top.values, bottom.indices, bottom.values, rows.mean(1), rows.std(1), own_values[:, 0], above.sum(1) - 1


def _checked(
    model: GPT2, tokens: Sequence[int] | Tensor, heads: Sequence[Head] | None, k: int
) -> tuple[tuple[Head, ...], Int[Tensor, "token"]]:
    config = model.config
    every = tuple((layer, head) for layer in range(config.n_layers) for head in range(config.n_heads))
    chosen = every if heads is None else tuple(tuple(head) if isinstance(head, list) else head for head in heads)
    if not chosen or (wrong := [head for head in chosen if head not in every]):
        what = f"{wrong[0]!r} is" if chosen else "no heads are"
        raise AnalysisError(f"{what} not among the heads to read: (layer, head) of {config.n_layers} x {config.n_heads}")
    if isinstance(tokens, str):
        raise TokenError(f"tokens are {tokens!r}; expected a list of ids, as a tokenizer's encode gives")
    ids = torch.as_tensor(tokens, device=model.device)
    if ids.ndim != 1 or not len(ids) or ids.dtype not in (torch.int64, torch.int32):
        raise TokenError(
            f"tokens are {ids.dtype} of shape {tuple(ids.shape)}; expected a list of ids, as a tokenizer's encode gives"
        )
    if wrong := [token for token in ids.tolist() if not 0 <= token < config.d_vocab]:
        raise TokenError(f"token {wrong[0]} is not in the vocabulary: ids are 0 to {config.d_vocab - 1}")
    if type(k) is not int or not 1 <= k <= config.d_vocab:
        raise AnalysisError(f"k={k} must be 1 to the {config.d_vocab} tokens of the vocabulary")
    return chosen, ids.long()


def _full(weight: Tensor) -> Tensor:
    """In float32 at least: bfloat16 has too few digits to rank by."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32))
