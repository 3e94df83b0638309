"""Are two sets of activations the same up to a rotation? CKA and shared subspaces, between layers and between checkpoints.

Rows are the same tokens in the same order in both; columns are directions, which need not correspond. Kornblith et al. 2019,
"Similarity of Neural Network Representations Revisited"; Raghu et al. 2017, "SVCCA", on why subspaces. A high CKA can
come from a few directions of large variance alone (Davari et al. 2023, "Reliability of CKA as a Similarity Measure in Deep
Learning"), which the streams of language models have; so the overlap of subspaces stands beside it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_gpt2.analysis.logit_lens import residual_streams, stream_hook_points, stream_labels
from interp_gpt2.analysis.rows import Analysis, Row
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2

if TYPE_CHECKING:
    from interp_gpt2.runs.run import Run

N_DIRECTIONS = 8
LEAST_ROWS = 4  # the debiased estimator divides by n - 3
MOST_ROWS = 4096  # activations kept of each stream: several times the 768 directions of a 124M model

Rows = Float[Tensor, "n d"]


def linear_cka(x: Rows, y: Float[Tensor, "n e"], debiased: bool = True) -> float:
    """Centred kernel alignment with linear kernels: HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)).

    1 for the same rows up to rotation, scale and shift. The plain estimator (`debiased=False`), |X'Y|^2 / (|X'X| |Y'Y|) of
    centred columns, lies in [0, 1] and is far above 0 even for unrelated rows unless there are many more of them than
    columns; the debiased one is about 0 for unrelated rows, and can fall a little below. Debiased HSIC: Song et al. 2012,
    "Feature Selection via Dependence Maximization"; Nguyen et al. 2021, "Do Wide and Deep Networks Learn the Same Things?".
    It takes rows as independent; tokens of one sequence are not quite, hence the shuffled control of the analyses below.
    Never forms the n x n kernels. NaN if either is constant.

    Raises AnalysisError for different numbers of rows or fewer than 4.
    """
    x, y = _checked(x, y)
    hsic = _debiased_hsic if debiased else _hsic
    scale = hsic(x, x) * hsic(y, y)
    return float(hsic(x, y) / scale.sqrt()) if scale > 0 else math.nan


def _hsic(x: Rows, y: Rows) -> Float[Tensor, ""]:
    return (x.T @ y).square().sum()


def _debiased_hsic(x: Rows, y: Rows) -> Float[Tensor, ""]:
    """The U-statistic: kernels without their diagonals, tr(KL) + 1'K1 1'L1 / ((n - 1)(n - 2)) - 2 1'KL1 / (n - 2)."""
    n = len(x)
    k, l = x.square().sum(1), y.square().sum(1)  # noqa: E741  (the diagonals of K and L)
    trace = (x.T @ y).square().sum() - k @ l
    k_sums, l_sums = x @ x.sum(0) - k, y @ y.sum(0) - l
    return (trace + k_sums.sum() * l_sums.sum() / ((n - 1) * (n - 2)) - 2 * (k_sums @ l_sums) / (n - 2)) / (n * (n - 3))


def _checked(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < LEAST_ROWS:
        raise AnalysisError(
            f"activations {tuple(x.shape)} and {tuple(y.shape)}; pass (token, direction), 4 or more of the same tokens"
        )
    x, y = x.cpu().double(), y.cpu().double()
    return x - x.mean(0), y - y.mean(0)


@dataclass(frozen=True, eq=False)
class SubspaceOverlap:
    """How two subspaces of k dimensions lie in d: `cosines` of their k principal angles, descending, in [0, 1].

    `overlap` = mean of the cosines' squares, |U'V|^2 / k: 1 for the same subspace, 0 for orthogonal ones. `unrelated` = k / d
    is what random subspaces have on average, exactly. `explained`: share of each one's variance within its own subspace.
    """

    cosines: Float[Tensor, "k"]
    unrelated: float
    explained: tuple[float, float]

    @property
    def overlap(self) -> float:
        return float(self.cosines.square().mean())


def subspace_overlap(x: Rows, y: Rows, k: int = N_DIRECTIONS) -> SubspaceOverlap:
    """Principal angles between the k principal directions of x and those of y, in the same space.

    Björck and Golub 1973, "Numerical Methods for Computing Angles Between Linear Subspaces". Unlike CKA this depends on
    which directions are used, so it says whether a stream's basis stayed, not whether its geometry did.

    Raises AnalysisError if the spaces differ, or k is not 1 to their dimensions and the tokens less 1.
    """
    x, y = _checked(x, y)
    if x.shape[1] != y.shape[1] or not 1 <= k <= min(x.shape[1], len(x) - 1):
        raise AnalysisError(f"k={k} directions in spaces of {x.shape[1]} and {y.shape[1]} dimensions, from {len(x)} tokens")
    (U, of_x), (V, of_y) = (_principal(rows, k) for rows in (x, y))
    cosines = torch.linalg.svdvals(U.T @ V).clamp(max=1)
    return SubspaceOverlap(cosines, k / x.shape[1], (of_x, of_y))


def _principal(rows: Rows, k: int) -> tuple[Float[Tensor, "d k"], float]:
    variances, directions = torch.linalg.eigh(rows.T @ rows)  # ascending
    return directions[:, -k:], float(variances[-k:].sum() / variances.sum())


# ---------------------------------------------------------------------------------------------------------------------
# The residual streams of checkpoints


@torch.no_grad()
def stream_rows(model: GPT2, tokens: Int[Tensor, "batch pos"], batch_size: int = 16) -> Float[Tensor, "layer n d_model"]:
    """Every residual stream on all positions of `tokens`, or on 4,096 of them, evenly spaced. Float32 on the CPU."""
    chosen = torch.arange(min(tokens.numel(), MOST_ROWS)) * tokens.numel() // min(tokens.numel(), MOST_ROWS)
    kept = []
    for i, part in enumerate(tokens.split(batch_size)):
        first = i * batch_size * tokens.shape[1]
        here = chosen[(chosen >= first) & (chosen < first + part.numel())] - first
        kept.append(residual_streams(model, part).flatten(1, 2)[:, here.to(model.device)].float().cpu())
    return torch.cat(kept, 1)


def shuffled(rows: Rows, seed: int = 0) -> Rows:
    """The same rows in another order, so that nothing corresponds: a control that any similarity must exceed."""
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]


@dataclass(frozen=True, eq=False)
class LayerSimilarity(Analysis):
    """Debiased CKA and subspace overlap between the streams of one model, for a sweep.

    Rows "cka" and "subspace_overlap" for each pair, labelled "embed~L0", with the later stream's hook point and layer, and
    `n` tokens; "cka_shuffled" beside each is the CKA with the tokens of one of the two in another order, and
    "subspace_overlap_unrelated" = k / d_model.
    """

    tokens: Int[Tensor, "batch pos"]
    k: int = N_DIRECTIONS
    name: str = "layer_similarity"

    def __call__(self, model: GPT2) -> list[Row]:
        streams = stream_rows(model, self.tokens)
        labels, k = stream_labels(model.config.n_layers), _at_most(self.k, streams)
        rows: list[Row] = [{"metric": "subspace_overlap_unrelated", "value": k / model.config.d_model}]
        for i in range(len(streams)):
            for j in range(i + 1, len(streams)):
                rows += _similarity(streams[i], streams[j], k, _place(j, model) | {"label": f"{labels[i]}~{labels[j]}"})
        return rows


@dataclass(frozen=True, eq=False)
class SimilarityTo(Analysis):
    """Debiased CKA and subspace overlap between each stream and the same stream of one checkpoint, `reference`.

    With the last checkpoint as the reference: when did each layer become what it ended as? Rows "cka", "cka_shuffled" and
    "subspace_overlap", labelled "L0~L0 of step 2000" by `of`; "subspace_overlap_unrelated" = k / d_model.
    """

    tokens: Int[Tensor, "batch pos"]
    reference: Float[Tensor, "layer n d_model"]
    of: str
    k: int = N_DIRECTIONS
    name: str = "similarity_to"

    @classmethod
    def step(cls, run: "Run", step: int, tokens: Int[Tensor, "batch pos"], k: int = N_DIRECTIONS) -> "SimilarityTo":
        """To the streams of a run's checkpoint."""
        return cls(tokens, stream_rows(run.model(step), tokens), f"step {step}", k)

    def __call__(self, model: GPT2) -> list[Row]:
        streams = stream_rows(model, self.tokens)
        if len(streams) != len(self.reference):
            raise AnalysisError(f"the reference has {len(self.reference)} streams, this model {len(streams)}")
        k = _at_most(self.k, streams)
        rows: list[Row] = [{"metric": "subspace_overlap_unrelated", "value": k / model.config.d_model}]
        for i, label in enumerate(stream_labels(model.config.n_layers)):
            rows += _similarity(self.reference[i], streams[i], k, _place(i, model) | {"label": f"{label}~{label} of {self.of}"})
        return rows


def _at_most(k: int, streams: Float[Tensor, "layer n d_model"]) -> int:
    """So few tokens, or so narrow a stream, have fewer principal directions."""
    return min(k, streams.shape[-1], streams.shape[1] - 1)


def _place(stream: int, model: GPT2) -> Row:
    return {"hook_point": stream_hook_points(model.config.n_layers)[stream]} | ({"layer": stream - 1} if stream else {})


def _similarity(x: Rows, y: Rows, k: int, where: Row) -> list[Row]:
    measured = {
        "cka": linear_cka(x, y),
        "cka_shuffled": linear_cka(shuffled(x), y),
        "subspace_overlap": subspace_overlap(x, y, k).overlap,
    }
    found = {metric: None if math.isnan(value) else value for metric, value in measured.items()}
    return [{"metric": metric, **where, "value": value, "n": len(x)} for metric, value in found.items()]


def cka_between_steps(
    run: "Run", steps: Sequence[int], tokens: Int[Tensor, "batch pos"], stream: int = -1
) -> Float[Tensor, "step step"]:
    """Debiased CKA of one residual stream (0 is the embedding, -1 the last) between all pairs of checkpoints of a run."""
    rows = [stream_rows(run.model(step), tokens)[stream] for step in steps]
    found = torch.ones(len(rows), len(rows), dtype=torch.float64)
    for i in range(len(rows)):
        for j in range(i):
            found[i, j] = found[j, i] = linear_cka(rows[i], rows[j])
    return found
