"""A standard error for an AUROC, without resampling, for tokens of one document that are not independent.

DeLong, DeLong and Clarke-Pearson 1988, "Comparing the areas under two or more correlated receiver operating
characteristic curves"; Obuchowski 1997, "Nonparametric analysis of clustered ROC curve data", whose clusters are documents
here. With every token its own cluster the second is the first.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from interp_gpt2.analysis.classification import average_ranks, share_interval
from interp_gpt2.errors import AnalysisError


@dataclass(frozen=True)
class AurocInterval:
    """An AUROC with its standard error, and a 95 % interval that is symmetric in its logit and so stays within 0 and 1.

    NaN, but for the AUROC, where there are too few documents for them.
    """

    auroc: float
    stderr: float
    low: float
    high: float
    n: int


def delong(
    values: Float[np.ndarray, "n"], positive: Bool[np.ndarray, "n"], documents: Int[np.ndarray, "n"] | None = None
) -> AurocInterval:
    """AUROC of `values` for `positive`, its standard error over documents (None: over tokens, as if they were independent).

    The interval is `share_interval`'s, of as many documents as have positives, or negatives where these are fewer.

    Without two documents that hold positives and two that hold negatives there is no interval. Raises AnalysisError without a
    positive and a negative, or for a value that is not finite.
    """
    clusters = np.arange(len(values)) if documents is None else np.unique(documents, return_inverse=True)[1]
    kinds = [clusters[positive], clusters[~positive]]
    n_with = [len(np.unique(kind)) for kind in kinds]
    if not min(n_with):
        raise AnalysisError(f"AUROC needs positives and negatives; there are {len(kinds[0])} and {len(kinds[1])}")
    n_positive, n_negative = (len(kind) for kind in kinds)
    ranks = average_ranks(values[:, None])[:, 0]
    above = (ranks[positive] - average_ranks(values[positive, None])[:, 0]) / n_negative  # of negatives, for each positive
    below = 1 - (ranks[~positive] - average_ranks(values[~positive, None])[:, 0]) / n_positive
    auroc = float(above.mean())
    if min(n_with) < 2:
        return AurocInterval(auroc, math.nan, math.nan, math.nan, len(values))
    n_clusters = int(clusters.max()) + 1
    of_positives, of_negatives = (  # a document's sum, less what it would be if its tokens were like all others
        np.bincount(kind, parts - auroc, n_clusters) for kind, parts in zip(kinds, (above, below), strict=True)
    )
    variance = n_with[0] / (n_with[0] - 1) * float(of_positives @ of_positives) / n_positive**2
    variance += n_with[1] / (n_with[1] - 1) * float(of_negatives @ of_negatives) / n_negative**2
    variance += 2 * n_clusters / (n_clusters - 1) * float(of_positives @ of_negatives) / (n_positive * n_negative)
    stderr = math.sqrt(max(variance, 0.0))
    return AurocInterval(auroc, stderr, *share_interval(auroc, stderr, min(n_with)), len(values))
