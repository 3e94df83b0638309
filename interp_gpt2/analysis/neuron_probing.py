"""What can be read off activations: linear probes of the residual stream, single neurons, and where a neuron is most active.

A probe's number says little alone. Beside each stand, on the same test tokens: the commonest class, the best predictors
from the current token and from the last two tokens, and the same probe trained on shuffled labels. That a label can be
read does not say that the model uses it. Alain and Bengio 2016, "Understanding intermediate layers using linear
classifier probes"; Hewitt and Liang 2019, "Designing and Interpreting Probes with Control Tasks".
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp_gpt2.analysis.classification import Score, auroc, score
from interp_gpt2.analysis.logit_lens import stream_hook_points
from interp_gpt2.analysis.probe_sets import UNLABELLED, LabelledTokens, ProbeSet
from interp_gpt2.analysis.rows import Analysis, Row, require_eval
from interp_gpt2.analysis.windows import Windows
from interp_gpt2.errors import AnalysisError
from interp_gpt2.hooks import Hooks
from interp_gpt2.model import GPT2

_C = 0.1  # inverse of the L2 penalty: a tenth of scikit-learn's, for a few thousand tokens that are not independent
_MAX_ITER = 2000
_N_SHUFFLINGS = 20


@dataclass(frozen=True)
class LinearProbe:
    """A linear probe of one activation for one label: scores on test documents, and of its twin trained on shuffled labels."""

    label: str
    contextual: bool
    score: Score
    shuffled: Score
    n_train: int


@dataclass(frozen=True)
class Baselines:
    """What can be said of a label without any activation, on the tokens that probes are tested on.

    `majority` always says the commonest class of the training tokens (AUROC 0.5); the other two are lookup tables
    counted on all training documents.
    """

    majority: Score
    current_token: Score
    last_two_tokens: Score


def linear_probe(activations: Float[Tensor, "window pos d"], data: ProbeSet, label: str) -> LinearProbe:
    """Logistic regression on standardised activations, trained on the training documents, scored on the test documents.

    Mean and standard deviation are the training tokens'; L2 penalty, C = 0.1; several classes are multinomial. The
    control's training labels are permuted among the training tokens (the same permutation always).

    Raises AnalysisError for a label the set does not hold or that has one class only, or activations that are not finite.
    """
    from threadpoolctl import threadpool_limits  # scikit-learn's own

    of = data.label(label)
    train_x, train_y, test_x, test_y, documents = labelled_halves(activations, data, label)
    shuffled_y = np.random.default_rng(0).permutation(train_y)
    n_classes = of.current_token.shape[1]
    # These products are so small that handing them to other threads costs more than they do: on two busy cores, 7 s a probe
    # in place of 0.07.
    with threadpool_limits(1):
        said = (fitted_probe(train_x, y).probabilities(test_x, n_classes) for y in (train_y, shuffled_y))
        real, shuffled = (score(scores, test_y, documents) for scores in said)
    return LinearProbe(label, of.contextual, real, shuffled, len(train_y))


def baselines(data: ProbeSet, label: str) -> Baselines:
    """The scores a probe has to beat. Raises AnalysisError for a label the set does not hold."""
    of = data.label(label)
    n_classes = of.current_token.shape[1]
    _, train_y, _, test_y, documents = _split(of.labels[..., None], data, of)
    shares = np.bincount(train_y, minlength=n_classes) / len(train_y)
    said = (np.tile(shares, (len(test_y), 1)), of.current_token.numpy(), of.last_two_tokens.numpy())
    return Baselines(*(score(scores, test_y, documents) for scores in said))


def _split(activations: Tensor, data: ProbeSet, of: LabelledTokens) -> tuple[np.ndarray, ...]:
    """Activations and labels of the labelled training tokens, those of the test tokens, and the latter's documents."""
    if activations.shape[:2] != data.tokens.shape:
        raise AnalysisError(
            f"activations {tuple(activations.shape)} are not (window, pos, ...) of tokens {tuple(data.tokens.shape)}"
        )
    labelled = of.labels != UNLABELLED
    train, test = labelled & ~data.is_test[:, None], labelled & data.is_test[:, None]
    documents = data.documents[:, None].expand_as(test)[test].numpy()
    activations = activations.cpu().float()  # numpy has no bfloat16
    return activations[train].numpy(), of.labels[train].numpy(), activations[test].numpy(), of.labels[test].numpy(), documents


def labelled_halves(activations: Float[Tensor, "window pos d"], data: ProbeSet, label: str) -> tuple[np.ndarray, ...]:
    """Of the labelled tokens: training activations and classes, test activations and classes, and the latter's documents.

    Activations are standardised by the training tokens' mean and standard deviation. Raises AnalysisError for a label the
    set does not hold or that has one class only, or activations that are not finite.
    """
    train_x, train_y, test_x, test_y, documents = _split(activations, data, data.label(label))
    if not np.isfinite(train_x).all() or not np.isfinite(test_x).all():
        raise AnalysisError("the activations are not finite, so that no probe can be fitted; has the model diverged?")
    for half, classes in (("training", train_y), ("test", test_y)):
        if len(np.unique(classes)) < 2:
            raise AnalysisError(
                f"label {label!r} has one class only in the {len(classes)} {half} tokens; take more text or another label"
            )
    mean, spread = train_x.mean(0), train_x.std(0)
    spread[spread == 0] = 1  # a constant tells nothing, and stays nothing
    return (train_x - mean) / spread, train_y, (test_x - mean) / spread, test_y, documents


@dataclass(frozen=True, eq=False)
class FittedProbe:
    """A logistic regression: what it gives each class that it was trained on."""

    classes: Int[np.ndarray, "class"]
    weights: Float[np.ndarray, "class d"]  # one row for two classes
    predict: Callable[[Float[np.ndarray, "n d"]], Float[np.ndarray, "n class"]]

    def probabilities(self, x: Float[np.ndarray, "n d"], n_classes: int) -> Float[np.ndarray, "n class"]:
        scores = np.zeros((len(x), n_classes))
        scores[:, self.classes] = self.predict(x)
        return scores


def fitted_probe(x: Float[np.ndarray, "n d"], y: Int[np.ndarray, "n"]) -> FittedProbe:
    """The probe of standardised activations for these classes."""
    from sklearn.linear_model import LogisticRegression

    probe = LogisticRegression(C=_C, max_iter=_MAX_ITER).fit(x, y)
    return FittedProbe(probe.classes_, probe.coef_, probe.predict_proba)


@dataclass(frozen=True, eq=False)
class Probes(Analysis):
    """Linear probes of every residual stream, for a sweep.

    For each label: "probe_accuracy" and "probe_auroc" by hook point, the same of the control as
    "probe_accuracy_shuffled" and "probe_auroc_shuffled", and once, without hook point, "..._majority",
    "..._current_token" and "..._last_two_tokens". Rows have label, n (test tokens) and a 95 % interval over documents.
    """

    data: ProbeSet
    labels: tuple[str, ...] | None = None  # None: all of the set
    name: str = "probes"

    def __call__(self, model: GPT2) -> list[Row]:
        names = self.data.names if self.labels is None else self.labels
        rows = []
        for name in names:
            for kind, found in vars(baselines(self.data, name)).items():
                rows += score_rows(f"_{kind}", found, {"label": name})
        for where, stream in _streams(model, self.data.tokens):
            for name in names:
                probe = linear_probe(stream, self.data, name)
                rows += score_rows("", probe.score, {"label": name, **where})
                rows += score_rows("_shuffled", probe.shuffled, {"label": name, **where})
        return rows


def score_rows(kind: str, found: Score, where: Row, probe: str = "probe") -> list[Row]:
    """A row each for accuracy and AUROC, with intervals: "probe_accuracy" and so on, `kind` at the end."""
    values = asdict(found)
    return [
        {"metric": f"{probe}_{metric}{kind}", **where, "value": values[metric], "n": found.n}
        | {"low": values[f"{metric}_low"], "high": values[f"{metric}_high"]}
        for metric in ("accuracy", "auroc")
    ]


@torch.no_grad()
def _streams(model: GPT2, tokens: Int[Tensor, "window pos"]) -> Iterator[tuple[Row, Float[Tensor, "window pos d_model"]]]:
    """Each residual stream with its row keys, one at a time: at GPT-2's size all of them together are large."""
    require_eval(model)
    stream = model.embed(tokens.to(model.device))
    for layer, hook_point in enumerate(stream_hook_points(model.config.n_layers), start=-1):
        if layer >= 0:
            stream = model.run_blocks(stream, layer, layer + 1)
        yield {"hook_point": hook_point} | ({"layer": layer} if layer >= 0 else {}), stream


# ---------------------------------------------------------------------------------------------------------------------
# Single neurons.


@dataclass(frozen=True)
class BestNeuron:
    """The neuron of a layer that best tells a label by itself, chosen on training documents, scored on test documents.

    `auroc` is of sign x activation, so that above 0.5 means as in training. `shuffled` is the mean test AUROC of the
    neurons chosen in the same way for 20 shufflings of the training labels: what the choice among so many is worth.
    """

    label: str
    neuron: int
    sign: int  # -1: the neuron is less active where the label is
    auroc: float
    low: float
    high: float
    auroc_train: float
    shuffled: float
    n: int


def best_neurons(
    activations: Float[Tensor, "window pos neuron"], data: ProbeSet, labels: Sequence[str] | None = None
) -> list[BestNeuron]:
    """For each label, the neuron whose AUROC on the training tokens is farthest from 0.5. All neurons, exactly, by ranks.

    A label of several classes counts as its being above 0. Intervals are over documents.

    Raises AnalysisError for a label the set does not hold or that is constant, or activations that are not finite.
    """
    names = data.names if labels is None else tuple(labels)
    chosen = [data.label(name) for name in names]
    everywhere = torch.stack([of.labels != UNLABELLED for of in chosen]).all(0)
    positive = torch.stack([of.labels > 0 for of in chosen], -1)
    train, test = everywhere & ~data.is_test[:, None], everywhere & data.is_test[:, None]
    activations = activations.cpu().float()  # numpy has no bfloat16
    train_x, train_y, test_x, test_y = (part.numpy() for half in (train, test) for part in (activations[half], positive[half]))
    documents = data.documents[:, None].expand_as(test)[test].numpy()
    draw = np.random.default_rng(0)
    shufflings = [draw.permutation(train_y) for _ in range(_N_SHUFFLINGS)]
    areas = auroc(train_x, np.concatenate([train_y, *shufflings], axis=1)).reshape(1 + _N_SHUFFLINGS, len(names), -1)
    neurons = np.abs(areas - 0.5).argmax(-1)  # (shuffling, label), the first for the labels as they are
    areas = np.take_along_axis(areas, neurons[..., None], axis=-1)[..., 0]
    signs = np.where(areas >= 0.5, 1, -1)
    found = []
    for i, name in enumerate(names):
        tested = signs[:, i] * test_x[:, neurons[:, i]]  # (n, shuffling)
        real = score(np.stack([-tested[:, 0], tested[:, 0]], 1), test_y[:, i].astype(int), documents)
        shuffled = float(auroc(tested[:, 1:], test_y[:, [i]]).mean())
        on_train = float(max(areas[0, i], 1 - areas[0, i]))
        measured = (real.auroc, real.auroc_low, real.auroc_high, on_train, shuffled, real.n)
        found.append(BestNeuron(name, int(neurons[0, i]), int(signs[0, i]), *measured))
    return found


@dataclass(frozen=True, eq=False)
class BestNeurons(Analysis):
    """`best_neurons` of every layer's MLP, for a sweep.

    Rows by label, layer and neuron: "neuron_auroc" (with its interval), "neuron_auroc_train", "neuron_auroc_shuffled"
    and "neuron_sign".
    """

    data: ProbeSet
    labels: tuple[str, ...] | None = None
    name: str = "best_neurons"

    def __call__(self, model: GPT2) -> list[Row]:
        rows = []
        for layer, activations in mlp_activations(model, self.data.tokens):
            for best in best_neurons(activations, self.data, self.labels):
                where = {"hook_point": f"blocks.{layer}.mlp.post", "layer": layer, "neuron": best.neuron, "label": best.label}
                rows += [
                    {"metric": "neuron_auroc", **where, "value": best.auroc, "n": best.n, "low": best.low, "high": best.high},
                    {"metric": "neuron_auroc_train", **where, "value": best.auroc_train},
                    {"metric": "neuron_auroc_shuffled", **where, "value": best.shuffled, "n": best.n},
                    {"metric": "neuron_sign", **where, "value": best.sign},
                ]
        return rows


@torch.no_grad()
def mlp_activations(model: GPT2, tokens: Int[Tensor, "window pos"]) -> Iterator[tuple[int, Float[Tensor, "window pos neuron"]]]:
    """Each layer's neurons in turn, of all tokens at once. Raises AnalysisError for a model without MLPs."""
    require_eval(model)
    if model.config.attn_only or model.config.n_layers == 0:
        raise AnalysisError("the model has no MLP, and so no neurons")
    stream = model.embed(tokens.to(model.device))
    for layer in range(model.config.n_layers):
        hooks = Hooks(frozenset((f"blocks.{layer}.mlp.post",)))
        stream = model.run_blocks(stream, layer, layer + 1, hooks)
        yield layer, hooks.cache[f"blocks.{layer}.mlp.post"]


# ---------------------------------------------------------------------------------------------------------------------
# Where a neuron is most active.


@dataclass(frozen=True)
class Context:
    """A stretch of one window of text around a neuron's peak. `tokens[peak]` is where it is most active."""

    document: int
    position: int  # of the peak, in its window
    tokens: tuple[int, ...]
    activations: tuple[float, ...]
    peak: int


@dataclass(frozen=True)
class NeuronContexts:
    """The most active places of a neuron, beside its mean and standard deviation over all `n` tokens looked at."""

    label: str  # L2N17
    contexts: tuple[Context, ...]
    mean: float
    std: float
    n: int


def max_activating_contexts(model: GPT2, data: ProbeSet, layer: int, neuron: int, k: int = 5, width: int = 32) -> NeuronContexts:
    """The `k` documents on which an MLP neuron is most active, each with `width` tokens around its highest place.

    Raises AnalysisError for a layer or neuron the model does not have.
    """
    if not (0 <= layer < model.config.n_layers and 0 <= neuron < model.config.d_mlp) or model.config.attn_only:
        raise AnalysisError(
            f"there is no neuron {neuron} in layer {layer}: the model has {model.config.n_layers} layers of "
            f"{0 if model.config.attn_only else model.config.d_mlp} neurons"
        )
    activations = next(values for at, values in mlp_activations(model, data.tokens) if at == layer)[..., neuron].cpu()
    real = torch.arange(data.tokens.shape[1]) < data.lengths[:, None]
    values = activations[real].double()
    contexts = top_contexts(activations, data, k, width)
    return NeuronContexts(f"L{layer}N{neuron}", contexts, float(values.mean()), float(values.std()), len(values))


def top_contexts(activations: Float[Tensor, "window pos"], data: ProbeSet | Windows, k: int, width: int) -> tuple[Context, ...]:
    """The highest place of each of the `k` documents with the highest ones, in descending order (then by place)."""
    real: Bool[Tensor, "window pos"] = torch.arange(data.tokens.shape[1]) < data.lengths[:, None]
    order = activations.masked_fill(~real, -torch.inf).flatten().sort(descending=True, stable=True).indices
    contexts: dict[int, Context] = {}
    for at in order[: int(real.sum())].tolist():
        window, position = divmod(at, data.tokens.shape[1])
        document = int(data.documents[window])
        if document in contexts:
            continue
        if len(contexts) == k:
            break
        contexts[document] = context_at(activations, data, window, position, width)
    return tuple(contexts.values())


def context_at(
    activations: Float[Tensor, "window pos"], data: ProbeSet | Windows, window: int, position: int, width: int
) -> Context:
    """`width` tokens of a window around a position, fewer where the window has no more."""
    length = int(data.lengths[window])
    start = max(0, min(position - width // 2, length - width))
    part = slice(start, min(start + width, length))
    shown = (tuple(data.tokens[window, part].tolist()), tuple(activations[window, part].tolist()))
    return Context(int(data.documents[window]), position, *shown, position - start)
