"""From the rows of a sweep to panels: which curves of an analysis are drawn, beside which yardstick, and what they are called."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interp_gpt2.analysis.development import best_head_curve
from interp_gpt2.analysis.in_context import SHORTEST
from interp_gpt2.errors import AnalysisError
from interp_gpt2.report.schema import Panel, PanelLine

if TYPE_CHECKING:
    from pandas import DataFrame, Series

CLASSES = (("predictable", "unpredictable"), ("word start", "word inside", "repeated bigram", "new bigram"))
BEST_HEADS = {
    "induction": "induction",
    "previous_token": "previous token",
    "duplicate_token": "duplicate token",
    "first_token": "first token",
}


@dataclass(frozen=True)
class Measured:
    """The rows of one analysis over training, and the steps that a panel has: where there is no row a curve has a gap."""

    table: "DataFrame"
    steps: Sequence[int]

    def of(self, metric: str) -> "DataFrame":
        return self.table[self.table["metric"] == metric]

    def by(self, column: str, metric: str) -> list[tuple[Any, "DataFrame"]]:
        """The rows of each label, or of each layer (None where there is none), in the order of the table."""
        rows = self.of(metric)
        known = [(value, rows[rows[column] == value]) for value in rows[column].dropna().unique()]
        unplaced = rows[rows[column].isna()]
        return known if unplaced.empty else [(None, unplaced), *known]

    def line(self, rows: "DataFrame", label: str, is_yardstick: bool = False) -> PanelLine:
        """One curve: the mean of its rows at each step, with their interval if it is one row. Raises AnalysisError for none."""
        if rows["value"].isna().all():
            raise AnalysisError(f"{label} has no value at any step")
        at = rows.groupby("step")[["value", "low", "high"]].agg(["mean", "size"]).reindex(self.steps)
        values, low, high = (_plain(at[column, "mean"]) for column in ("value", "low", "high"))
        alone = at["value", "size"].max() == 1 and any(value is not None for value in low)
        has_interval = alone and not is_yardstick
        return PanelLine(label, values, low if has_interval else None, high if has_interval else None, is_yardstick)

    def highest(self, metric: str, label: str, is_yardstick: bool = False) -> PanelLine:
        """At each step the largest value of any head, which need not be the same one throughout."""
        largest = self.of(metric).groupby("step")["value"].max().reindex(self.steps)
        return PanelLine(label, _plain(largest), is_yardstick=is_yardstick)

    def beside(self, metric: str) -> list[PanelLine]:
        """The yardsticks of a metric: "mean_loss_trigram" is the trigram's."""
        names = [name for name in dict.fromkeys(self.table["metric"]) if name.startswith(f"{metric}_")]
        return [self.line(self.of(name), _predictor(name.removeprefix(f"{metric}_")), is_yardstick=True) for name in names]


def _predictor(suffix: str) -> str:
    return {"bayes_bigram": "Bayes bigram", "in_context_unigram": "in-context unigram"}.get(suffix, suffix.replace("_", " "))


def _plain(column: "Series") -> list[float | None]:
    return [None if math.isnan(value) else float(value) for value in column.to_numpy(dtype=float, na_value=math.nan)]


# ---------------------------------------------------------------------------------------------------------------------
# A function for each analysis.


def loss(found: Measured) -> Panel:
    lines = [found.line(found.of("mean_loss"), "the model"), *found.beside("mean_loss")]
    measures = "Mean loss over all positions, with 95 % intervals over sequences; dashed: what other predictors lose there."
    return Panel("loss_by_position", "Loss", measures, "nats", False, lines)


def in_context_learning(found: Measured) -> Panel:
    if found.of("in_context_learning")["value"].isna().all():
        raise AnalysisError(f"contexts of fewer than {SHORTEST} tokens are too short to tell early from late")
    lines = [found.line(found.of("in_context_learning"), "the model"), *found.beside("in_context_learning")]
    measures = (
        "Loss over the last eighth of the context less that over its second sixteenth: below 0 for a model that makes use of "
        "what it has read. Dashed: what another predictor gains on the same windows."
    )
    return Panel("in_context_learning", "In-context learning", measures, "nats", False, lines)


def token_classes(found: Measured) -> Panel:
    classes = dict(found.by("label", "class_loss"))
    chosen = next((names for names in CLASSES if set(names) & set(classes)), tuple(classes)[:4])
    lines = [found.line(classes[name], name) for name in chosen if name in classes]
    measures = (
        "States: predictable where the present one has stood in the window before. Repeated tokens: from the first copy on. "
        "Text: by what is predicted; a bigram is repeated if it has stood in the window before."
    )
    return Panel("loss_by_token_class", "Loss by kind of token", measures, "nats", False, lines)


def ngram_agreement(found: Measured) -> Panel:
    lines = [found.line(rows, label) for label, rows in found.by("label", "agreement_kl")]
    nothing = [(label, float(rows["value"].iloc[0])) for label, rows in found.by("label", "agreement_kl_uniform")]
    said = ", ".join(f"{value:.2f} to {label}" for label, value in nothing)
    measures = (
        "KL(model || predictor): 0 where the model predicts as that one does. Even odds over all tokens have "
        f"{said}; an untrained model need not."
    )
    return Panel("ngram_agreement", "Distance from simple predictors", measures, "nats", False, lines)


def heads(found: Measured) -> Panel:
    lines, leaders = [], []
    for metric, name in BEST_HEADS.items():
        curve = best_head_curve(found.table, metric)
        excess = {at: value - even for at, value, even in zip(curve.steps, curve.values, curve.uniform, strict=True)}
        lines.append(PanelLine(name, [excess.get(step) for step in found.steps]))
        leaders.append(f"{curve.heads[-1]} ({name})")
    lines.append(PanelLine("uniform head", [0.0] * len(found.steps), is_yardstick=True))
    measures = (
        "The highest score of any head, which need not be the same one throughout, less a head's that attends evenly. "
        f"At the end it is that of {', '.join(leaders)}."
    )
    return Panel("head_scores", "Heads", measures, "attention", False, lines)


def copying(found: Measured) -> Panel:
    lines = [
        found.highest("copying", "the most of any head"),
        found.line(found.of("copying_highest_random"), "of as many random heads", True),
    ]
    measures = (
        "By weights alone: how much does a head raise the logit of what it attends to, more than of other tokens? From -1 to 1. "
        "Dashed: the most of as many heads with random weights, between the same embeddings."
    )
    return Panel("head_copying", "Copying", measures, "score", False, lines)


def composition(found: Measured) -> Panel:
    if found.of("k_composition_max").empty:
        raise AnalysisError("heads of one layer alone read of no other's")
    ways = {"k": "keys", "q": "queries", "v": "values"}
    lines = [found.highest(f"{way}_composition_max", name) for way, name in ways.items()]
    lines.append(found.highest("composition_highest_untrained", "the most of any, untrained", is_yardstick=True))
    measures = (
        "By weights alone: the largest share that any head's keys, queries or values read of what one earlier head writes. "
        "Dashed: the largest of the three in an untrained model."
    )
    return Panel("head_composition", "Composition", measures, "score", False, lines)


def lens(found: Measured) -> Panel:
    layers = found.by("label", "lens_kl")[:-1]  # the last is what the others are compared with
    measures = "KL(output || what the logit lens reads) at each layer, the embedding first: 0 where all is settled."
    return Panel("lens_by_layer", "Logit lens", measures, "nats", True, [found.line(rows, label) for label, rows in layers])


def settling_depth(found: Measured) -> Panel:
    end = found.line(found.of("settling_depth_last"), "the end", True)
    lines = [found.line(found.of("lens_settling_depth"), "mean depth"), end]
    measures = "After how many layers the logit lens's first guess is, from there on, the model's own; mean over positions."
    return Panel("settling_depth", "Where the prediction settles", measures, "layers", False, lines)


def similarity(found: Measured) -> Panel:
    lines = [found.line(rows, label.split("~")[0]) for label, rows in found.by("label", "cka")]
    lines.append(found.line(found.of("cka_shuffled"), "shuffled", is_yardstick=True))
    measures = (
        "Debiased CKA of each residual stream with the same stream at the last step: 1 where it is, up to rotation and scale, "
        "what it ends as. Dashed: with the tokens of one in another order."
    )
    return Panel("similarity_to", "Likeness to the end", measures, "CKA", True, lines)


def weight_distance(found: Measured) -> Panel:
    parts = found.by("layer", "weight_distance")
    lines = [found.line(rows, "embeddings" if layer is None else f"L{layer}") for layer, rows in parts]
    lines.append(found.line(found.of("weight_distance_unrelated"), "unrelated", is_yardstick=True))
    measures = (
        "|W - W at step 0| / |W at step 0|, the mean over a layer's matrices. Dashed: of matrices as large that have nothing "
        "to do with those of step 0, the mean over all."
    )
    return Panel("weight_distance", "Distance from the start", measures, "relative", True, lines)


def neurons(found: Measured) -> Panel:
    lines = [found.line(rows, f"L{layer}") for layer, rows in found.by("layer", "dead_neurons")]
    lines.append(found.line(found.of("dead_neurons_untrained"), "untrained", is_yardstick=True))
    n = int(found.table["n"].max())
    measures = f"Share of a layer's neurons that fire (are above 0) on none of {n:,} tokens."
    return Panel("neuron_activity", "Dead neurons", measures, "share", True, lines)


def tuned_lens(found: Measured) -> Panel:
    layers = found.by("label", "tuned_kl")[:-1]
    measures = "As the logit lens, but each layer read by an affine map that was trained for it at that step."
    return Panel("tuned_lens", "Tuned lens", measures, "nats", True, [found.line(rows, label) for label, rows in layers])


def learning_coefficient(found: Measured) -> Panel:
    regular = float(found.of("llc_regular")["value"].iloc[0])
    measures = (
        "Local learning coefficient on training windows, by sampling near the weights; a regular model of this size has "
        f"{regular:,.0f}."
    )
    return Panel("learning_coefficient", "Learning coefficient", measures, "", False, [found.line(found.of("llc"), "LLC")])
