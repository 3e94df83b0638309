"""How far an estimate of effects agrees with the effects."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from interp_gpt2.errors import AnalysisError


@dataclass(frozen=True)
class Correlation:
    """Over `n` effects, as attributed and as patched: Pearson's r, and Spearman's, which is that of their ranks; in [-1, 1]."""

    pearson: float
    spearman: float
    n: int


def correlate(estimates: Float[Tensor, "n"], effects: Float[Tensor, "n"]) -> Correlation:
    """Raises AnalysisError for fewer than three of them, if all are equal, and for estimates of others than the effects."""
    if estimates.shape != effects.shape or estimates.ndim != 1:
        shapes = f"{tuple(estimates.shape)} and {tuple(effects.shape)}"
        raise AnalysisError(f"estimates and effects of the same cells or edges correlate, one of each; got {shapes}")
    both = [values.detach().double().cpu().numpy() for values in (estimates, effects)]
    if len(both[0]) < 3 or any(values.min() == values.max() for values in both):
        raise AnalysisError(f"{len(both[0])} effects, of which there must be three or more that differ, have no correlation")
    from scipy.stats import pearsonr, spearmanr

    return Correlation(float(pearsonr(*both)[0]), float(spearmanr(*both)[0]), len(both[0]))
