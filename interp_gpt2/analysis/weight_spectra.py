"""How large weights are, over how many directions they spread, and how far they have come: by matrix, over training.

No token is read. Beside sizes and ranks stands what a matrix of independent normal entries of the same shape and root mean
square has, beside distances what unrelated matrices of the same norms have.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from interp_gpt2.analysis.rows import Analysis, Row
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2

if TYPE_CHECKING:
    from interp_gpt2.runs.run import Run

_GRID = 4096


@torch.no_grad()
def weight_matrices(model: GPT2) -> dict[str, Float[Tensor, "out in"]]:
    """Every matrix of the model by its name in the literature: "W_E", "W_pos", "blocks.0.W_Q", ... (heads side by side).

    A tied unembedding is W_E and not named twice. Float32 at least.
    """
    found = {"W_E": model.W_E, "W_pos": model.W_pos}
    for layer, block in enumerate(model.blocks):
        found |= {f"blocks.{layer}.W_{name}": part for name, part in zip("QKV", block.attn.qkv.weight.chunk(3), strict=True)}
        found[f"blocks.{layer}.W_O"] = block.attn.proj.weight
        if not model.config.attn_only:
            found |= {f"blocks.{layer}.W_in": block.mlp.fc.weight, f"blocks.{layer}.W_out": block.mlp.proj.weight}
    if not model.config.tied:
        found["W_U"] = model.lm_head.weight
    return {name: weight.detach().to(torch.promote_types(weight.dtype, torch.float32)) for name, weight in found.items()}


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of a matrix of some shape, descending, and what they sum up to."""

    values: Float[Tensor, "k"]
    shape: tuple[int, int]

    @property
    def norm(self) -> float:
        """Frobenius norm, sqrt(sum s^2)."""
        return float(self.values.norm())

    @property
    def largest(self) -> float:
        """Spectral norm: by how much it can lengthen a vector."""
        return float(self.values[0])

    @property
    def stable_rank(self) -> float:
        """sum s^2 / s_1^2, from 1 to min(shape); NaN of zeros. Rudelson and Vershynin 2007."""
        return float(self.values.square().sum() / self.values[0].square())

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of s / sum(s), from 1 to min(shape); NaN of zeros. Roy and Vetterli 2007, "The Effective Rank"."""
        share = self.values / self.values.sum()
        return float(torch.special.entr(share).sum().exp())

    @property
    def random_stable_rank(self) -> float:
        """The stable rank of a large matrix of independent normal entries: m n / (sqrt m + sqrt n)^2 (Marchenko and Pastur)."""
        m, n = self.shape
        return max(1.0, m * n / (math.sqrt(m) + math.sqrt(n)) ** 2)

    @property
    def random_largest(self) -> float:
        """The largest singular value of such a matrix of this norm: norm / sqrt(random_stable_rank)."""
        return self.norm / math.sqrt(self.random_stable_rank)

    @property
    def random_effective_rank(self) -> float:
        """The effective rank of such a matrix, from the density of its singular values (Marchenko and Pastur 1967)."""
        k, most = sorted(self.shape)
        ratio, angle = k / most, (torch.arange(_GRID, dtype=torch.float64) + 0.5) * (math.pi / _GRID)
        squared = 1 + ratio + 2 * math.sqrt(ratio) * angle.cos()
        density = angle.sin().square() / squared
        s, density = squared.sqrt(), density / density.sum()
        mean = (density * s).sum()
        return k * float((mean.log() - (density * s * s.log()).sum() / mean).exp()) if k > 1 else 1.0


def spectrum(weight: Float[Tensor, "out in"]) -> Spectrum:
    """The singular values of a matrix, computed in float32 at least. Raises AnalysisError if it is not finite."""
    if not weight.isfinite().all():
        raise AnalysisError(f"a weight of shape {tuple(weight.shape)} is not finite: the model has diverged")
    m, n = weight.shape
    # A tall matrix, such as W_E, has the singular values of its triangle.
    core = torch.linalg.qr(weight if m >= n else weight.T, mode="r").R
    return Spectrum(torch.linalg.svdvals(core).cpu().double(), (m, n))


@dataclass(frozen=True, eq=False)
class WeightSpectra(Analysis):
    """`spectrum` of every matrix for a sweep; `label` is the matrix's name, and `layer` its block's.

    Metrics: "weight_norm" (Frobenius), "weight_rms" (the root mean square entry), "weight_largest" (the largest singular
    value), "weight_stable_rank" and "weight_effective_rank"; beside the last three, "..._random": what normal entries of the
    same root mean square have.
    """

    name: str = "weight_spectra"

    def __call__(self, model: GPT2) -> list[Row]:
        rows: list[Row] = []
        for name, weight in weight_matrices(model).items():
            found = spectrum(weight)
            measured = {
                "weight_norm": found.norm,
                "weight_rms": found.norm / math.sqrt(weight.numel()),
                "weight_largest": found.largest,
                "weight_largest_random": found.random_largest,
                "weight_stable_rank": found.stable_rank,
                "weight_stable_rank_random": found.random_stable_rank,
                "weight_effective_rank": found.effective_rank,
                "weight_effective_rank_random": found.random_effective_rank,
            }
            rows += _rows(name, measured, weight.numel())
        return rows


@dataclass(frozen=True, eq=False)
class WeightDistance(Analysis):
    """How far each matrix is from the same one at another checkpoint (its initialisation), for a sweep.

    "weight_distance" = |W - W0| / |W0|, Frobenius, beside "weight_distance_unrelated" = sqrt(1 + |W|^2 / |W0|^2), what a W of
    the same norm that has nothing left of W0 has; "weight_cosine" = <W, W0> / (|W| |W0|), within about "weight_cosine_random"
    = 1 / sqrt(entries) of 0 for unrelated matrices. The other weights are held in full.
    """

    reference: dict[str, Float[Tensor, "out in"]]
    of: str
    name: str = "weight_distance"

    @classmethod
    def from_initialisation(cls, run: "Run") -> "WeightDistance":
        """From a run's checkpoint at step 0. Raises RunError if it has none."""
        return cls.from_step(run, 0)

    @classmethod
    def from_step(cls, run: "Run", step: int) -> "WeightDistance":
        """From a run's checkpoint."""
        return cls(weight_matrices(run.model(step)), f"step {step}")

    def __call__(self, model: GPT2) -> list[Row]:
        rows: list[Row] = []
        for name, weight in weight_matrices(model).items():
            start = self.reference.get(name)
            if start is None or start.shape != weight.shape:
                raise AnalysisError(f"{self.of} has no {name} of shape {tuple(weight.shape)} to measure a distance from")
            start, weight = start.cpu().double(), weight.cpu().double()
            product, norms = (start * weight).sum(), start.norm() * weight.norm()
            size = float(weight.norm() / start.norm()) if start.any() else math.nan
            measured = {
                "weight_distance": float((weight - start).norm() / start.norm()) if start.any() else math.nan,
                "weight_distance_unrelated": math.sqrt(1 + size**2),
                "weight_cosine": float(product / norms) if norms else math.nan,
                "weight_cosine_random": 1 / math.sqrt(weight.numel()),
            }
            rows += _rows(name, measured, weight.numel())
        return rows


def _rows(name: str, measured: dict[str, float], n: int) -> list[Row]:
    where = {"label": name} | ({"layer": int(name.split(".")[1])} if name.startswith("blocks.") else {})
    return [
        {"metric": metric, **where, "value": None if math.isnan(value) else value, "n": n} for metric, value in measured.items()
    ]
