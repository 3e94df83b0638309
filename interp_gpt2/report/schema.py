"""report.json, as dataclasses: every number that report.html shows, and nothing the page would have to compute.

`Report.to_json` is the file, `from_json.report_from_json` reads it back, and a page rendered from either is the same to the byte.
Losses are in nats per token. Lists named (step, layer) are nested in that order. A number that does not exist, or is
not finite, is None; a section that was not computed is None, with the reason in `Report.omitted`.
Every section carries the `command` that makes its figure again.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from interp_gpt2.views.attention import AttentionData
from interp_gpt2.views.html import plain
from interp_gpt2.views.lens import LensData

FORMAT = "interp_gpt2 report 2"


@dataclass(frozen=True)
class RunFacts:
    """What was trained. `config` is GPT2Config.to_dict(), `training` the resolved training config, both shown as they are.

    Of models that others trained, `seed` and `tokens_seen` are None and `training` is empty.
    """

    name: str
    seed: int | None
    last_step: int
    tokens_seen: int | None
    n_params: int
    checkpoints: list[int]
    config: dict[str, Any]
    training: dict[str, Any]
    command: str


@dataclass(frozen=True)
class DataFacts:
    """What it was trained on. `facts` (counts, hashes, smoothing ...) are shown as they are, in order."""

    name: str
    tokenizer: str
    unit: str  # what a token is to the reader: "character", "state", "token"
    facts: dict[str, Any]


@dataclass(frozen=True)
class PhaseChange:
    """A logistic rise, in step, of the strongest head's induction score less the uniform head's.

    score(step) = low + (high - low) / (1 + exp(-(step - midpoint) / scale)): `step` is the midpoint, `width` the steps
    from 10 to 90 %, 2 ln(9) scale, neither known more finely than `resolution`, the distance between the checkpoints
    around it; `step_interval` and `width_interval` hold 95 % of refits to resampled curves. `rise` is the fitted curve's,
    first checkpoint to last; `bic_margin` the BIC by which it beats the better of a line and a power law; `p_walk` the share
    of random walks as rough that look as much like it; `steps` and `values` are what was fitted.
    `analysis.phase_changes.detect` finds it.
    """

    step: float
    width: float
    rise: float
    low: float
    high: float
    resolution: float
    step_interval: list[float]
    width_interval: list[float]
    bic_margin: float
    p_walk: float
    steps: list[int]
    values: list[float]
    command: str


@dataclass(frozen=True)
class HeadFinding:
    """The head with the highest score of a kind at the last checkpoint, and what a uniform head scores on the same tokens."""

    label: str  # "L1H0"
    score: float
    uniform: float


@dataclass(frozen=True)
class Curve:
    """A loss over training. `label` says of what in a word or two: "validation", "training batch (all positions)"."""

    label: str
    steps: list[int]
    loss: list[float | None]
    stderr: list[float | None] | None = None


@dataclass(frozen=True)
class Reference:
    """A loss to compare with, in nats per token on the same tokens; `note` says how it was computed (the smoothing)."""

    name: str
    loss: float
    stderr: float | None = None
    n: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Loss:
    """Loss over training. `measured_on` names the tokens behind the validation curve and the references."""

    command: str
    measured_on: str
    validation: Curve
    train: Curve | None
    references: list[Reference]


@dataclass(frozen=True)
class PositionReference:
    """A reference's loss at each of the same positions."""

    name: str
    loss: list[float | None]


@dataclass(frozen=True)
class LossByPosition:
    """Mean validation loss of predicting the token after each of `positions`; `loss` is (step, position)."""

    command: str
    measured_on: str
    steps: list[int]
    positions: list[int]
    loss: list[list[float | None]]
    references: list[PositionReference] = field(default_factory=list)


@dataclass(frozen=True)
class PanelLine:
    """One curve of a panel. `is_yardstick`: what the others are held against, drawn dashed. None in `values` is a gap."""

    label: str
    values: list[float | None]
    low: list[float | None] | None = None
    high: list[float | None] | None = None
    is_yardstick: bool = False


@dataclass(frozen=True)
class Panel:
    """One measure over training. `measures` says in a sentence what, on what, and beside which yardstick.

    `ordered`: the curves are layers, coloured from dark to bright. Each of `lines` has a value for each of the steps.
    """

    name: str
    title: str
    measures: str
    unit: str
    ordered: bool
    lines: list[PanelLine]


@dataclass(frozen=True)
class Change:
    """Whether one curve of a panel changed phase, by `analysis.phase_changes.detect`: `step` and its 95 % interval, or None
    and the `reason` why not. `rise` is in the curve's own unit, below 0 for a fall."""

    panel: str
    curve: str
    step: float | None
    interval: list[float] | None
    width: float | None
    rise: float | None
    reason: str


@dataclass(frozen=True)
class Development:
    """What was measured over training, panel above panel on one axis of `steps`, and when each curve changed phase.

    `skipped` maps the name of a panel that this run cannot have to the reason.
    """

    command: str
    measured_on: str
    steps: list[int]
    panels: list[Panel]
    changes: list[Change]
    skipped: dict[str, str]


@dataclass(frozen=True)
class HeadScore:
    """One score of every head over training. `values`, `low` and `high` (an interval, if there is one) are (head, step).

    `uniform` is the score's yardstick: what a head that attends evenly has, or, of scores of the weights, what `yardstick`
    names instead, at the last step; `beside` is that at each step. A head that cannot have the score has None.
    """

    name: str  # the key in Report.heads: "induction", "previous_token", ...
    title: str
    measures: str  # one sentence: what is averaged over which queries
    unit: str  # "attention" (an axis from 0 to 1), "nats", or "weights"
    uniform: float
    n: int | None
    values: list[list[float | None]]
    low: list[list[float | None]] | None = None
    high: list[list[float | None]] | None = None
    yardstick: str = "uniform"
    beside: list[float] | None = None


@dataclass(frozen=True)
class HeadScores:
    """Head scores by step, all heads on the same tokens."""

    command: str
    measured_on: str
    steps: list[int]
    heads: list[str]  # "L0H0", ...
    scores: list[HeadScore]


@dataclass(frozen=True)
class Lens:
    """The logit lens of one prompt across training."""

    command: str
    prompt: str
    lens: LensData


@dataclass(frozen=True)
class Attention:
    """Every head's attention on one sequence, at one or more steps."""

    command: str
    prompt: str
    attention: AttentionData


@dataclass(frozen=True)
class Probe:
    """A linear probe for one label. `auroc` and `shuffled` (the same probe on shuffled labels) are (step, layer).

    AUROC, because a label that is rare makes every accuracy high; of several classes, the mean over them against the
    rest. `majority` (0.5), `current_token` and `last_two_tokens` are those of always saying the commonest label and of
    the best predictors from the current token and from the last two; None where not computed. `low` and `high` are the
    ends of an interval, (step, layer). `accuracy` is the best layer's at the last step, beside `majority_accuracy`.
    """

    name: str
    measures: str
    n_train: int
    n_test: int
    accuracy: float
    majority_accuracy: float
    auroc: list[list[float | None]]
    shuffled: list[list[float | None]] | None
    majority: float
    current_token: float | None
    last_two_tokens: float | None
    low: list[list[float | None]] | None = None
    high: list[list[float | None]] | None = None


@dataclass(frozen=True)
class Probes:
    """Probes by step and layer, trained and tested on different documents. `layers` names what each one reads."""

    command: str
    measured_on: str
    steps: list[int]
    layers: list[str]  # "embed", "layer 0", ...
    probes: list[Probe]


@dataclass(frozen=True)
class Context:
    """A stretch of text on which a neuron is strongly active: its tokens, the activation at each, the position of the peak."""

    tokens: list[str]
    activations: list[float]
    peak: int
    source: str = ""


@dataclass(frozen=True)
class Neuron:
    """The neuron that best tells a label by itself, and where it is most active.

    `auroc` is of sign x activation on text that had no part in choosing it, [`low`, `high`] its interval, and `shuffled` what
    a neuron chosen in the same way for shuffled labels reaches.
    """

    label: str  # "L2N137"
    tells: str  # the probe's name
    auroc: float
    n: int
    contexts: list[Context]
    sign: int = 1  # -1: less active where the label is
    low: float | None = None
    high: float | None = None
    shuffled: float | None = None


@dataclass(frozen=True)
class Neurons:
    """Best single neurons by AUROC, at one step; `chosen_on` says which text chose them and which measured them."""

    command: str
    step: int
    chosen_on: str
    neurons: list[Neuron]


@dataclass(frozen=True)
class NeuronPage:
    """A neuron that has a page of its own, neurons/LABEL.html, beside the report.

    `fires`: the share of tokens on which it is above 0; `kurtosis` of its effect on the logits, over the vocabulary (0 for a
    random direction).
    """

    label: str
    fires: float
    highest: float
    kurtosis: float
    promotes: list[str]
    suppresses: list[str]


@dataclass(frozen=True)
class NeuronPages:
    """The neurons of each layer that move the residual stream most, and those that tell a label, each with a page."""

    command: str
    measured_on: str
    step: int
    history: list[int]  # the steps of each page's history
    pages: list[NeuronPage]


@dataclass(frozen=True)
class Sample:
    """What the model at a step wrote after the prompt."""

    step: int
    text: str


@dataclass(frozen=True)
class Samples:
    """Samples at several checkpoints, all with the same prompt, temperature and seed."""

    command: str
    prompt: str
    temperature: float
    seed: int
    samples: list[Sample]


@dataclass(frozen=True)
class Report:
    """All of report.json.

    `phase_change` is None when none was found, and `phase_change_note` then says why not, as the end of the sentence
    "Phase change: none; ..." (else it may be empty).
    `inspected` are the steps at which the page shows the lens, patterns and samples, and between which it moves.
    `heads` maps a score's name to the head that has most of it; `omitted` maps the name of an absent section to the
    reason; `versions` and `hashes` make the footer. `format` names this layout.
    """

    run: RunFacts
    data: DataFacts
    phase_change: PhaseChange | None
    phase_change_note: str
    heads: dict[str, HeadFinding]
    inspected: list[int]
    development: Development | None
    loss: Loss | None
    loss_by_position: LossByPosition | None
    head_scores: HeadScores | None
    lens: Lens | None
    attention: Attention | None
    probes: Probes | None
    neurons: Neurons | None
    neuron_pages: NeuronPages | None
    samples: Samples | None
    omitted: dict[str, str]
    versions: dict[str, str]
    hashes: dict[str, str]
    format: str = FORMAT

    def to_json(self) -> str:
        """The text of report.json, one section a line; numbers that are not finite are null."""
        lines = [f"{json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in plain(asdict(self)).items()]
        return "{\n" + ",\n".join(lines) + "\n}\n"
