"""Interchange interventions: does a part of the stream stand for a variable of an algorithm?

A base prompt is run with a part of its activation taken from a source prompt. If that part stands for the variable, the model
answers as the algorithm does with the source's value of it and everything else from the base. Geiger et al. 2021, "Causal
Abstractions of Neural Networks". The part may be a subspace, found by gradient descent over rotations: distributed alignment
search (DAS), Geiger et al. 2023, "Finding Alignments Between Interpretable Causal Variables and Distributed Neural
Representations". A subspace that was searched for proves little by itself, so that controls are searched beside it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp_gpt2.analysis.rows import require_eval
from interp_gpt2.causal.positions import stream_point
from interp_gpt2.errors import AnalysisError, TokenError
from interp_gpt2.hooks import Hooks, Names, Site, resolve_edits
from interp_gpt2.inputs import check_tokens
from interp_gpt2.model import GPT2
from interp_gpt2.passes import EditedGPT2

At = int | Int[Tensor, "triple"]  # a position of every prompt, or of each


@dataclass(frozen=True, eq=False)
class Triples:
    """Base prompts, source prompts, and the token that the algorithm answers with the source's value of the variable.

    `answer_at`: the position whose logits are the answer, in the base. Prompts of different lengths are padded on the right,
    with positions given for each: nothing after the last of these is read.
    """

    base: Int[Tensor, "triple pos"]
    source: Int[Tensor, "triple pos"]
    labels: Int[Tensor, "triple"]
    answer_at: At = -1

    def __post_init__(self) -> None:
        for name in ("base", "source", "labels"):
            value = getattr(self, name)
            if not isinstance(value, Tensor) or value.dtype not in (torch.int64, torch.int32):
                kind = str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else type(value).__name__
                raise TokenError(f"{name} is a tensor of ids, int64 (or int32), not {kind}")
        n = len(self.base)
        if not n or len(self.source) != n or tuple(self.labels.shape) != (n,):
            shapes = ", ".join(f"{name} {tuple(getattr(self, name).shape)}" for name in ("base", "source", "labels"))
            raise AnalysisError(f"one triple or more is base (triple, pos), source (triple, pos), labels (triple,); got {shapes}")

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: slice | Tensor) -> "Triples":
        """Some of them."""
        answer_at = self.answer_at[index] if isinstance(self.answer_at, Tensor) else self.answer_at
        return Triples(self.base[index], self.source[index], self.labels[index], answer_at)

    def with_labels(self, labels: Int[Tensor, "triple"]) -> "Triples":
        return Triples(self.base, self.source, labels, self.answer_at)


@dataclass(frozen=True, eq=False)
class Location:
    """One hook point at one position of the base, and of the source (None: the same one)."""

    names: Names
    base_at: At = -1
    source_at: At | None = None

    def hook_point(self, model: GPT2) -> str:
        """Its name. Raises AnalysisError unless it is one inside a block, of shape (batch, pos, d)."""
        name = stream_point(model.config, self.names)
        if not name.startswith("blocks."):
            raise AnalysisError(f"{name!r} is in no layer; the stream there is ('resid_pre', 0) or ('resid_post', -1)")
        return name


@dataclass(frozen=True, eq=False)
class Accuracy:
    """Interchange intervention accuracy: how often, of `n` triples, the most probable token is the algorithm's answer."""

    hits: Bool[Tensor, "triple"]

    @property
    def value(self) -> float:
        return float(self.hits.double().mean())

    @property
    def n(self) -> int:
        return len(self.hits)

    @property
    def stderr(self) -> float:
        """Standard error over triples: sqrt(p (1 - p) / n)."""
        return (self.value * (1 - self.value) / self.n) ** 0.5


def interchange(
    model: GPT2,
    triples: Triples,
    at: Location,
    subspace: Float[Tensor, "d k"] | None = None,
    batch_size: int = 64,
) -> Float[Tensor, "triple d_vocab"]:
    """The answer's logits, with the source's activation put into the base run: all of it, or its part in a subspace.

    `subspace` has orthonormal columns R: base + (source - base) R R^T. Raises AnalysisError for columns that are not, and
    positions that are not there.
    """
    with torch.no_grad():
        return torch.cat([part.logits(subspace) for part in prepared(model, triples, at, batch_size)])


def interchange_accuracy(
    model: GPT2,
    triples: Triples,
    at: Location,
    subspace: Float[Tensor, "d k"] | None = None,
    batch_size: int = 64,
) -> Accuracy:
    """How often `interchange` gives the algorithm's answer, among all tokens of the vocabulary."""
    answers = interchange(model, triples, at, subspace, batch_size).argmax(-1)
    return Accuracy(answers.cpu() == triples.labels.cpu())


def unchanged_accuracy(model: GPT2, triples: Triples, batch_size: int = 64) -> Accuracy:
    """How often the base prompt's own answer is already the counterfactual one: what no intervention scores."""
    with torch.no_grad():
        answers = []
        for part in torch.arange(len(triples)).split(batch_size):
            some = triples[part]
            logits = model(some.base.to(model.device))
            answers.append(logits[torch.arange(len(some)), positions_of(some.answer_at, some.base)].argmax(-1).cpu())
    return Accuracy(torch.cat(answers) == triples.labels.cpu())


def positions_of(at: At, tokens: Int[Tensor, "triple pos"]) -> Int[Tensor, "triple"]:
    """The column of each prompt. Raises AnalysisError for one that is not there."""
    n, n_pos = tokens.shape
    found = torch.as_tensor(at).cpu()
    if found.dtype not in (torch.int64, torch.int32) or found.ndim > 1 or (found.ndim == 1 and len(found) != n):
        came = f"{str(found.dtype).removeprefix('torch.')} of shape {tuple(found.shape)}"
        raise AnalysisError(f"positions are one whole number, or one for each of {n} triples; got {came}")
    found = found.expand(n)
    if wrong := [pos for pos in found.tolist() if not -n_pos <= pos < n_pos]:
        raise AnalysisError(f"there is no position {wrong[0]} in prompts of {n_pos} tokens")
    return found % n_pos


@dataclass(frozen=True, eq=False)
class Prepared:
    """What does not depend on the subspace, of some triples: the base's stream before the layer, the source's activation."""

    model: GPT2
    name: str
    stream: Float[Tensor, "triple pos d_model"]
    source: Float[Tensor, "triple d"]
    base_at: Int[Tensor, "triple"]
    answer_at: Int[Tensor, "triple"]
    labels: Int[Tensor, "triple"]

    def logits(self, subspace: Float[Tensor, "d k"] | None) -> Float[Tensor, "triple d_vocab"]:
        """The answer's logits after the interchange; differentiable by the subspace."""
        if subspace is not None:
            check_subspace(subspace, self.source.shape[-1])
            subspace = subspace.to(self.source)
        rows, config = torch.arange(len(self.stream)), self.model.config

        def swap(value: Tensor, site: Site) -> Tensor:
            base = value[rows, self.base_at]
            change = self.source - base
            new = self.source if subspace is None else base + change @ subspace @ subspace.T
            value[rows, self.base_at] = new
            return value

        layer = int(self.name.split(".")[1])
        hooks = Hooks(edits=resolve_edits({self.name: swap}, config))
        hooks = hooks.for_positions(torch.arange(self.stream.shape[1], device=self.stream.device))
        stream = self.model.run_blocks(self.stream, layer, None, hooks)
        if isinstance(self.model, EditedGPT2):
            return self.model.unembed(stream, hooks)[rows, self.answer_at]
        return self.model.unembed(stream[rows, self.answer_at])

    def __getitem__(self, index: Tensor) -> "Prepared":
        parts = (self.stream[index], self.source[index], self.base_at[index], self.answer_at[index], self.labels[index])
        return Prepared(self.model, self.name, *parts)


def prepared(model: GPT2, triples: Triples, at: Location, batch_size: int) -> Iterator[Prepared]:
    """Triples `batch_size` at a time, with the passes that every intervention on them starts from."""
    require_eval(model)
    if batch_size < 1:
        raise AnalysisError(f"batch_size={batch_size} holds no triple; it must be at least 1")
    name, layer = at.hook_point(model), int(at.hook_point(model).split(".")[1])
    labels = triples.labels
    if wrong := [token for token in labels.tolist() if not 0 <= token < model.config.d_vocab]:
        raise TokenError(f"label {wrong[0]} is not in the vocabulary: ids are 0 to {model.config.d_vocab - 1}")
    base_at, answer_at = positions_of(at.base_at, triples.base), positions_of(triples.answer_at, triples.base)
    if bool((base_at > answer_at).any()):
        late = int((base_at > answer_at).nonzero()[0])
        changed, read = int(base_at[late]), int(answer_at[late])
        raise AnalysisError(f"triple {late}: what is changed at position {changed} cannot reach the answer at {read}")
    source_at = positions_of(at.base_at if at.source_at is None else at.source_at, triples.source)
    for of in torch.arange(len(triples)).split(batch_size):
        base, source = triples.base[of].to(model.device), triples.source[of].to(model.device)
        check_tokens(base, model.config)
        check_tokens(source, model.config)
        with torch.no_grad():
            stream = model.run_until(base, layer, ())[0]
            found = model.run_until(source, layer + 1, name)[1][name][torch.arange(len(of)), source_at[of]]
        yield Prepared(model, name, stream, found, base_at[of], answer_at[of], labels[of].to(model.device))


def check_subspace(subspace: Float[Tensor, "d k"], d: int) -> None:
    """Raises AnalysisError unless its columns are orthonormal vectors of `d` numbers."""
    if subspace.ndim != 2 or subspace.shape[0] != d or not 1 <= subspace.shape[1] <= d:
        raise AnalysisError(f"a subspace is (d, k) with d={d} and at most d columns; got {tuple(subspace.shape)}")
    gram = (subspace.T @ subspace).detach()
    if not torch.allclose(gram, torch.eye(len(gram)).to(gram), atol=1e-3):
        raise AnalysisError("the subspace's columns are not orthonormal; torch.linalg.qr(subspace).Q makes them so")
