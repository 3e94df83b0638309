"""How well each neuron of a layer by itself tells labels: AUROC of all neurons at once.

`exact_aurocs` sorts every neuron's activations once, whatever the number of labels; equal activations share the average
of their ranks (Mann-Whitney). `streamed_aurocs` keeps counts in place of activations, and a bound on what that costs:
the order of tokens that share a bin is unknown, so that a label's AUROC is off by at most half the share of
(positive, negative) pairs that do.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from interp_gpt2.analysis.windows import Batch, Columns
from interp_gpt2.errors import AnalysisError

_BLOCK = 2**21  # values sorted at once by a thread: 16 MiB of keys
_CALIBRATION = 16  # tokens for each bin, from which the bins' edges are taken


@dataclass(frozen=True, eq=False)
class BinaryLabels:
    """For every token, in the order in which activations come, whether each label holds; what is not `counted` is left out.

    Raises AnalysisError when made for a label that is the same at all counted tokens, naming it.
    """

    names: tuple[str, ...]
    positive: Bool[np.ndarray, "token label"]
    counted: Bool[np.ndarray, "token"]

    def __post_init__(self) -> None:
        if self.positive.shape != (len(self.counted), len(self.names)) or not self.names:
            raise AnalysisError(
                f"labels of shape {self.positive.shape} do not fit {len(self.counted)} tokens and {len(self.names)} names"
            )
        for name, n_positive, n_negative in zip(self.names, self.n_positive, self.n_negative, strict=True):
            if not n_positive or not n_negative:
                raise AnalysisError(
                    f"label {name!r} has one class only: {n_positive} of {n_positive + n_negative} counted tokens are positive; "
                    "AUROC needs both, so take more text or another label"
                )

    @classmethod
    def of(cls, positive: Sequence[bool] | Bool[np.ndarray, "token"], name: str = "label") -> "BinaryLabels":
        """One label of every token."""
        values = np.asarray(positive, dtype=bool)
        return cls((name,), values[:, None], np.ones(len(values), dtype=bool))

    @property
    def n_positive(self) -> Int[np.ndarray, "label"]:
        return self.positive[self.counted].sum(0)

    @property
    def n_negative(self) -> Int[np.ndarray, "label"]:
        return (~self.positive[self.counted]).sum(0)


@dataclass(frozen=True, eq=False)
class NeuronAurocs:
    """AUROC of every neuron for every label; the exact value lies within `error` of it, which is 0 where it was computed exactly.

    Below 0.5 the neuron is less active where the label holds.
    """

    names: tuple[str, ...]
    auroc: Float[np.ndarray, "label neuron"]
    error: Float[np.ndarray, "label neuron"]
    n_positive: Int[np.ndarray, "label"]
    n_negative: Int[np.ndarray, "label"]

    @property
    def best(self) -> Int[np.ndarray, "label"]:
        """For each label the neuron whose AUROC is farthest from 0.5, the first of equals."""
        return np.abs(self.auroc - 0.5).argmax(1)


def exact_aurocs(columns: Columns, labels: BinaryLabels) -> NeuronAurocs:
    """AUROC of every column for every label at its counted tokens, exactly, by average ranks.

    One sort a neuron, in float32, on as many threads as torch uses; beside the columns it takes some 32 MiB a thread.
    Raises AnalysisError for columns of another length than the labels, or a value that is not finite.
    """
    if columns.shape[1:] != labels.counted.shape:
        raise AnalysisError(f"columns {columns.shape} are not (neuron, token) of {len(labels.counted)} labelled tokens")
    patterns, codes = _patterns(labels)
    everything = labels.counted.all()
    size = max(1, _BLOCK // max(1, len(codes)))

    def of_block(start: int) -> Float[np.ndarray, "neuron label"]:
        block = columns[start : start + size]
        keys = _keys(block if everything else block[:, labels.counted], codes)
        keys.sort(axis=1)
        sums = [np.bincount(_codes(row), _average_ranks(row), len(patterns)) for row in keys]
        return np.stack(sums) @ patterns

    with ThreadPoolExecutor(torch.get_num_threads()) as executor:
        rank_sums = np.concatenate(list(executor.map(of_block, range(0, len(columns), size)))).T
    n_positive, n_negative = labels.n_positive[:, None], labels.n_negative[:, None]
    values = (rank_sums - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)
    return NeuronAurocs(labels.names, values, np.zeros_like(values), labels.n_positive, labels.n_negative)


def _patterns(labels: BinaryLabels) -> tuple[Float[np.ndarray, "pattern label"], Int[np.ndarray, "token"]]:
    """The combinations of labels that occur, and which of them each counted token has: ranks are summed once for each."""
    patterns, codes = np.unique(labels.positive[labels.counted], axis=0, return_inverse=True)
    return patterns.astype(np.float64), codes.reshape(-1).astype(np.uint64)


def _keys(values: Float[np.ndarray, "neuron token"], codes: Int[np.ndarray, "token"]) -> Int[np.ndarray, "neuron token"]:
    """Whole numbers in the order of the values, whose lower half is the token's code: sorting them moves both at once."""
    values = values.astype(np.float32, copy=False) + np.float32(0)  # -0.0 becomes 0.0, its equal
    if not np.isfinite(values).all():
        raise AnalysisError("an activation is not finite, so that it has no rank; has the model diverged?")
    bits = values.view(np.uint32)
    # Positive floats are ordered as their bits are, negative ones the other way round.
    ordered = bits ^ np.where(bits >> np.uint32(31), np.uint32(2**32 - 1), np.uint32(2**31))
    return (ordered.astype(np.uint64) << np.uint64(32)) | codes


def _codes(keys: Int[np.ndarray, "token"]) -> Int[np.ndarray, "token"]:
    return (keys & np.uint64(2**32 - 1)).astype(np.int64)


def _average_ranks(keys: Int[np.ndarray, "token"]) -> Float[np.ndarray, "token"]:
    """Ranks from 1 of sorted keys, equal values sharing the mean of theirs."""
    values = keys >> np.uint64(32)
    changes = np.flatnonzero(values[1:] != values[:-1])
    starts = np.concatenate([[0], changes + 1])
    sizes = np.diff(starts, append=len(keys))
    return np.repeat(starts + (sizes + 1) / 2, sizes)


# ---------------------------------------------------------------------------------------------------------------------
# Without keeping activations.


def streamed_aurocs(batches: Iterable[Batch], labels: BinaryLabels, n_bins: int = 512) -> NeuronAurocs:
    """AUROC of every neuron for every label from one reading of the batches, with its error bound.

    Bins are between quantiles of the first 16 x n_bins tokens, which are kept until there are so many; what comes later
    may fill them unevenly, which the bound, taken from the final counts, then says. A bin of equal values costs nothing:
    they tie. About 1 / (2 n_bins) in practice; memory is 4 bytes x neurons x bins x (labels + 3).

    Raises AnalysisError for batches of another number of tokens than labels, or a value that is not finite.
    """
    if n_bins < 2:
        raise AnalysisError(f"n_bins={n_bins}; AUROC needs at least 2 bins")
    counts = None
    for values, rows in _calibrated(batches, labels.counted, n_bins * _CALIBRATION):
        if counts is None:
            counts = _Counts.empty(values, n_bins, len(labels.names))
        counts.add(values, labels.positive[rows])
    if counts is None:
        raise AnalysisError("there are no batches of activations to read")
    return counts.aurocs(labels)


def _calibrated(
    batches: Iterable[Batch], counted: Bool[np.ndarray, "token"], n_first: int
) -> Iterator[tuple[Float[np.ndarray, "neuron token"], Int[np.ndarray, "token"]]]:
    """Activations of the counted tokens, and which tokens they are; the first yield holds at least `n_first`, if there are."""
    held: list[tuple[np.ndarray, np.ndarray]] = []
    n_held, at, begun = 0, 0, False
    for _, activations in batches:
        rows = np.arange(at, at + activations.shape[:-1].numel())
        at += len(rows)
        if at > len(counted):
            break
        kept = counted[rows]
        held.append((activations.flatten(0, -2).float().numpy()[kept].T, rows[kept]))
        n_held += int(kept.sum())
        if n_held and (begun or n_held >= n_first):
            yield np.concatenate([part for part, _ in held], axis=1), np.concatenate([part for _, part in held])
            held, n_held, begun = [], 0, True
    if at != len(counted):
        raise AnalysisError(f"the batches hold {at} tokens or more, the labels {len(counted)}; pass as many labels as tokens")
    if n_held:
        yield np.concatenate([part for part, _ in held], axis=1), np.concatenate([part for _, part in held])


@dataclass(frozen=True, eq=False)
class _Counts:
    """How many tokens, and positives of each label, fell between the edges; one value of each bin, and whether it has others."""

    edges: Float[torch.Tensor, "neuron edge"]
    total: Int[np.ndarray, "neuron bin"]
    positive: Int[np.ndarray, "label neuron bin"]
    one: Float[torch.Tensor, "neuron bin"]
    mixed: Bool[torch.Tensor, "neuron bin"]

    @classmethod
    def empty(cls, first: Float[np.ndarray, "neuron token"], n_bins: int, n_labels: int) -> "_Counts":
        ordered = np.sort(first, axis=1)
        edges = ordered[:, (np.arange(1, n_bins) * ordered.shape[1]) // n_bins]
        # Many equal values (a ReLU's zeros) repeat an edge: the next one up then closes a bin that holds nothing else.
        again = np.zeros(edges.shape, dtype=bool)
        again[:, 1:] = edges[:, 1:] == edges[:, :-1]
        edges = np.sort(np.where(again, np.nextafter(edges, np.float32(np.inf)), edges), axis=1)
        shape = len(first), n_bins
        counts = np.zeros(shape, np.int32), np.zeros((n_labels, *shape), np.int32)
        return cls(torch.from_numpy(edges), *counts, torch.full(shape, torch.nan), torch.zeros(shape, dtype=torch.bool))

    def add(self, values: Float[np.ndarray, "neuron token"], positive: Bool[np.ndarray, "token label"]) -> None:
        if not np.isfinite(values).all():
            raise AnalysisError("an activation is not finite, so that it has no rank; has the model diverged?")
        of_label = [torch.from_numpy(np.flatnonzero(column)) for column in positive.T]
        size = max(1, _BLOCK // max(1, values.shape[1]))
        for start in range(0, len(values), size):
            block = slice(start, start + size)
            self._add(block, torch.from_numpy(np.ascontiguousarray(values[block])), of_label)

    def _add(self, block: slice, values: Float[torch.Tensor, "neuron token"], of_label: list[torch.Tensor]) -> None:
        n_bins = self.total.shape[1]
        at = torch.searchsorted(self.edges[block], values, right=True)  # the bin, (neuron, token)
        mixed, one = self.mixed[block], self.one[block]
        if not mixed.all():  # of what is no ReLU the first batch shows it, as a rule
            fresh = one.isnan()
            one[fresh] = torch.full_like(one, torch.nan).scatter_(1, at, values)[fresh]
            differs = values != one.gather(1, at)
            rows, columns = differs.nonzero(as_tuple=True)
            mixed[rows, at[rows, columns]] = True
        flat = at + n_bins * torch.arange(len(at))[:, None]
        shape = len(at), n_bins
        self.total[block] += torch.bincount(flat.flatten(), minlength=flat.shape[0] * n_bins).view(shape).numpy()
        for label, columns in enumerate(of_label):
            its = flat.index_select(1, columns).flatten()
            self.positive[label, block] += torch.bincount(its, minlength=flat.shape[0] * n_bins).view(shape).numpy()

    def aurocs(self, labels: BinaryLabels) -> NeuronAurocs:
        alike = ~self.mixed.numpy()
        found, errors = [], []
        for label in range(len(labels.names)):
            positive = self.positive[label].astype(np.float64)
            negative = self.total - positive
            pairs = float(labels.n_positive[label]) * float(labels.n_negative[label])
            below = np.cumsum(negative, axis=1) - negative / 2
            found.append((positive * below).sum(1) / pairs)
            errors.append(np.where(alike, 0, positive * negative).sum(1) / (2 * pairs))
        return NeuronAurocs(labels.names, np.stack(found), np.stack(errors), labels.n_positive, labels.n_negative)
