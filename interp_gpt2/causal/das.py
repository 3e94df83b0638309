"""Distributed alignment search: the subspace of a hook point that best stands for a variable, beside its controls.

See interchange.py. Searched are k orthonormal directions such that swapping them alone between two prompts gives the
algorithm's answer. The model is never changed; its parameters gather no gradients.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp_gpt2.analysis.rows import require_eval
from interp_gpt2.causal.interchange import (
    Accuracy,
    Location,
    Prepared,
    Triples,
    interchange_accuracy,
    prepared,
    unchanged_accuracy,
)
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2

if TYPE_CHECKING:
    from pandas import DataFrame

CONTROLS = ("shuffled labels", "random weights")


@dataclass(frozen=True)
class Search:
    """How a subspace is searched: Adam on a parametrised rotation, its rate falling linearly to 0, on random batches."""

    n_steps: int = 200
    batch_size: int = 64
    lr: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        if (
            any(type(n) is not int for n in (self.n_steps, self.batch_size))
            or self.n_steps < 1
            or self.batch_size < 1
            or not 0 < self.lr < float("inf")
        ):
            raise AnalysisError(f"{self} searches nothing: steps and batch are at least 1, the rate is positive")


@dataclass(frozen=True, eq=False)
class Subspace:
    """`basis` has orthonormal columns; `losses` are the cross-entropy of the answers at each step of its search, in nats."""

    basis: Float[Tensor, "d k"]
    hook_point: str
    losses: tuple[float, ...]

    def overlap(self, directions: Float[Tensor, "d"] | Float[Tensor, "d m"]) -> float:
        """How much of these directions' span lies within: the smallest cosine of their principal angles, in [0, 1].

        1 if the subspace contains them all; about sqrt(k / d) for a random subspace and one direction. Raises AnalysisError
        for more directions than the subspace has, or dependent ones.
        """
        spanned = directions.reshape(len(directions), -1).to(self.basis)
        if len(spanned) != len(self.basis) or spanned.shape[1] > self.basis.shape[1]:
            raise AnalysisError(f"directions {tuple(directions.shape)} do not fit in a subspace {tuple(self.basis.shape)}")
        if torch.linalg.matrix_rank(spanned) < spanned.shape[1]:
            raise AnalysisError("these directions are zero or depend on each other")
        return float(torch.linalg.svdvals(self.basis.T @ torch.linalg.qr(spanned).Q).min().clamp(max=1))


def find_subspace(model: GPT2, triples: Triples, at: Location, k: int, search: Search | None = None) -> Subspace:
    """The `k` directions whose interchange best gives the algorithm's answers on these triples.

    Minimises the cross-entropy of the answer among all tokens, from a random rotation drawn by `search.seed`. Streams and
    source activations of all triples are kept meanwhile. Raises AnalysisError as `interchange`, for a `k` that does not fit,
    and for a search whose loss is no longer finite.
    """
    require_eval(model)
    search = Search() if search is None else search
    parts = list(prepared(model, triples, at, 64))
    data = Prepared(model, parts[0].name, *(torch.cat([getattr(p, name) for p in parts]) for name in _TENSORS))
    rotation = _Rotation(data.source.shape[-1], k, search.seed).to(model.device)
    weights = list(rotation.parameters())
    adam = torch.optim.Adam(weights, lr=search.lr)
    draw, losses = torch.Generator().manual_seed(search.seed), []
    for step in range(search.n_steps):
        adam.param_groups[0]["lr"] = search.lr * (1 - step / search.n_steps)
        batch = data[torch.randint(len(triples), (min(search.batch_size, len(triples)),), generator=draw)]
        with torch.enable_grad():
            loss = F.cross_entropy(batch.logits(rotation.basis).float(), batch.labels)
            gradients = torch.autograd.grad(loss, weights)  # not backward(), which would leave gradients on the model
        losses.append(float(loss.detach()))
        if not losses[-1] < float("inf"):
            raise AnalysisError(f"the search's loss is {losses[-1]} at step {step}; try a lower rate than {search.lr}")
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        adam.step()
    return Subspace(rotation.basis.detach().cpu(), data.name, tuple(losses))


_TENSORS = ("stream", "source", "base_at", "answer_at", "labels")


class _Rotation(nn.Module):
    """k orthonormal rows, whatever their parameters become."""

    def __init__(self, d: int, k: int, seed: int) -> None:
        super().__init__()
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= d:
            raise AnalysisError(f"k={k!r} directions do not fit: there are 1 to {d} at this hook point")
        self.rows = nn.Parameter(torch.randn(k, d, generator=torch.Generator().manual_seed(seed)))
        # k x d numbers are trained; the default would complete them to d x d, with torch's own generator.
        nn.utils.parametrizations.orthogonal(self, "rows", "householder", use_trivialization=False)

    @property
    def basis(self) -> Float[Tensor, "d k"]:
        return self.rows.T


@dataclass(frozen=True, eq=False)
class Alignment:
    """Interchange intervention accuracies on held-out triples: of the subspace that was found, and its yardsticks.

    "das" is the subspace's; "full swap" takes the whole activation, "random subspace" one as large, "unchanged" nothing, and
    "commonest label" is that of always giving the commonest answer. "shuffled labels" and "random weights" are searched
    in the same way, for labels permuted among the triples and in a newly initialised model: what the search itself can do.
    """

    subspace: Subspace
    accuracies: dict[str, Accuracy]
    n_train: int

    @property
    def iia(self) -> float:
        return self.accuracies["das"].value

    def to_frame(self) -> "DataFrame":
        """A row for each accuracy, with its standard error over held-out triples."""
        import pandas

        name = self.subspace.hook_point
        where = {"hook_point": name, "layer": int(name.split(".")[1]), "k": self.subspace.basis.shape[1]}
        rows = [
            {**where, "subspace": kind, "iia": found.value, "stderr": found.stderr, "n": found.n, "n_train": self.n_train}
            for kind, found in self.accuracies.items()
        ]
        return pandas.DataFrame(rows)


def align(
    model: GPT2,
    train: Triples,
    test: Triples,
    at: Location,
    k: int,
    search: Search | None = None,
    controls: Sequence[str] = CONTROLS,
) -> Alignment:
    """Search a subspace on `train`, score it on `test`, and do the same for the controls.

    Raises AnalysisError for controls that are unknown, a test triple that is among the training ones, and as
    `find_subspace`.
    """
    search = Search() if search is None else search
    if unknown := [control for control in controls if control not in CONTROLS]:
        raise AnalysisError(f"there is no control {unknown[0]!r}; there are {', '.join(map(repr, CONTROLS))}")
    _refuse_overlap(train, test)
    found = find_subspace(model, train, at, k, search)
    accuracies = {
        "das": interchange_accuracy(model, test, at, found.basis),
        "full swap": interchange_accuracy(model, test, at),
        "random subspace": interchange_accuracy(model, test, at, random_subspace(len(found.basis), k, search.seed)),
        "unchanged": unchanged_accuracy(model, test),
        "commonest label": Accuracy(test.labels.cpu() == train.labels.cpu().mode().values),
    }
    if "shuffled labels" in controls:
        shuffled = [part.with_labels(_shuffled(part.labels, search.seed + i)) for i, part in enumerate((train, test))]
        control = find_subspace(model, shuffled[0], at, k, search)
        accuracies["shuffled labels"] = interchange_accuracy(model, shuffled[1], at, control.basis)
    if "random weights" in controls:
        other = GPT2(model.config, search.seed, model.device).eval()
        accuracies["random weights"] = interchange_accuracy(other, test, at, find_subspace(other, train, at, k, search).basis)
    return Alignment(found, accuracies, len(train))


def random_subspace(d: int, k: int, seed: int) -> Float[Tensor, "d k"]:
    """`k` orthonormal directions, uniformly at random."""
    return torch.linalg.qr(torch.randn(d, k, generator=torch.Generator().manual_seed(seed))).Q


def _shuffled(labels: Int[Tensor, "triple"], seed: int) -> Int[Tensor, "triple"]:
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


def _refuse_overlap(train: Triples, test: Triples) -> None:
    seen = {(tuple(base), tuple(source)) for base, source in zip(train.base.tolist(), train.source.tolist(), strict=True)}
    same = [pair in seen for pair in zip(map(tuple, test.base.tolist()), map(tuple, test.source.tolist()), strict=True)]
    if any(same):
        raise AnalysisError(
            f"{sum(same)} of {len(same)} test triples are training triples too, such as number {same.index(True)}; hold them out"
        )
