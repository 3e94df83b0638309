"""Analyses by name, on a run's own data: what training can log while it runs, and a sweep finds again afterwards.

Those of RUN_REGISTRY hold a run's checkpoints against one of them, or follow its neurons, so that only a sweep has them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

from interp_gpt2.analysis.attention_patterns import HeadScores
from interp_gpt2.analysis.control_tasks import with_control_tasks
from interp_gpt2.analysis.head_weights import HeadComposition, HeadCopying
from interp_gpt2.analysis.in_context import InContextLearningScore
from interp_gpt2.analysis.learning_coefficient import LocalLearningCoefficient
from interp_gpt2.analysis.logit_lens import LensByLayer
from interp_gpt2.analysis.loss import LossByPosition
from interp_gpt2.analysis.model_diff import DiffFromStep
from interp_gpt2.analysis.neuron_activity import NeuronActivity, strongest_writers
from interp_gpt2.analysis.neuron_history import NeuronStatistics
from interp_gpt2.analysis.neuron_probes import NeuronProbes
from interp_gpt2.analysis.neuron_probing import Probes
from interp_gpt2.analysis.ngram_agreement import NGramAgreement
from interp_gpt2.analysis.probe_sets import ProbeSet, probe_set
from interp_gpt2.analysis.references import reference_losses, strongest_reference
from interp_gpt2.analysis.representations import LayerSimilarity, SimilarityTo
from interp_gpt2.analysis.rows import Analysis
from interp_gpt2.analysis.sequences import HEAD_SEQUENCES, Sequences, held_out, training_windows
from interp_gpt2.analysis.sgld import Langevin
from interp_gpt2.analysis.sparse_probes import SparseProbes
from interp_gpt2.analysis.token_classes import LossByTokenClass
from interp_gpt2.analysis.tuned_lens import SettlingDepth, TunedLensByLayer
from interp_gpt2.analysis.weight_spectra import WeightDistance, WeightSpectra
from interp_gpt2.analysis.windows import Windows
from interp_gpt2.data.source import Source
from interp_gpt2.errors import AnalysisError
from interp_gpt2.runs.run import Run


@dataclass(frozen=True)
class Registered:
    """An analysis that needs nothing but held-out sequences: what it measures, on how many, and how it is made."""

    measures: str
    n_sequences: int
    make: Callable[[Sequences], Analysis]


def labelled(found: Sequences) -> ProbeSet:
    """The held-out text of the sequences' source with its labels. Raises AnalysisError for data that is no text."""
    documents = [] if found.source is None else found.source.validation_documents()
    if not documents:
        raise AnalysisError("this data is no text: its tokens have no labels, such as inside quotes, for a probe to find")
    return probe_set(documents, found.source.tokenizer, found.inputs.shape[1])


REGISTRY = {
    "head_scores": Registered("every score of every head", HEAD_SEQUENCES, lambda found: HeadScores(found.inputs)),
    "induction_heads": Registered(
        "the induction score of every head",
        HEAD_SEQUENCES,
        lambda found: HeadScores(found.inputs, ("induction",), name="induction_heads"),
    ),
    "head_copying": Registered("does each head raise what it attends to? by its weights", 1, lambda found: HeadCopying()),
    "head_composition": Registered(
        "how much each head's queries, keys and values read of earlier heads, by their weights",
        1,
        lambda found: HeadComposition(),
    ),
    "in_context_learning": Registered(
        "late loss minus early loss, beside the trigram's or the Bayes bigram's",
        64,
        lambda found: InContextLearningScore(found.tokens, reference=strongest_reference(found.source, found.tokens)),
    ),
    "loss_by_position": Registered(
        "the loss at each position, beside those of n-grams or the best possible",
        64,
        lambda found: LossByPosition(found.tokens, references=reference_losses(found.source, found.tokens)),
    ),
    "loss_by_token_class": Registered(
        "the loss on letters, digits, word starts, repeated bigrams, ...; on predictable and other states",
        64,
        lambda found: LossByTokenClass.of(found.source, found.tokens),
    ),
    "ngram_agreement": Registered(
        "the KL divergence from unigram, bigram and trigram, or from the best possible",
        32,
        lambda found: NGramAgreement.of(found.source, found.tokens),
    ),
    "lens_by_layer": Registered("the logit lens of every layer", 16, lambda found: LensByLayer(found.inputs)),
    "layer_similarity": Registered(
        "CKA and shared directions of the residual streams", 16, lambda found: LayerSimilarity(found.inputs)
    ),
    "learning_coefficient": Registered(
        "the local learning coefficient, by sampling near the weights: a minute for a small model",
        1,
        lambda found: LocalLearningCoefficient(
            training_windows(found.source, found.inputs.shape[1], 512), Langevin(n_chains=2, n_draws=100, n_burn_in=100)
        ),
    ),
    "neuron_activity": Registered("dead and always-on neurons", 64, lambda found: NeuronActivity(Windows.of(found.inputs))),
    "probes": Registered(
        "text only: which facts about the text can be read off each residual stream",
        1,
        lambda found: Probes(labelled(found)),
    ),
    "neuron_probes": Registered(
        "text only: how well the best neuron of each layer tells each label, beside control tasks",
        1,
        lambda found: NeuronProbes(with_control_tasks(labelled(found))),
    ),
    "sparse_probes": Registered(
        "text only: how many neurons of a layer it takes to tell each label, beside control tasks",
        1,
        lambda found: SparseProbes(with_control_tasks(labelled(found))),
    ),
    "weight_spectra": Registered("norms and ranks of every weight matrix", 1, lambda found: WeightSpectra()),
    "settling_depth": Registered(
        "the layer from which on the logit lens's first guess is the model's", 16, lambda found: SettlingDepth(found.inputs)
    ),
    "tuned_lens": Registered(
        "a tuned lens of every layer, trained at each checkpoint: seconds each",
        16,
        lambda found: TunedLensByLayer.of(found.source, found.inputs),
    ),
}


def analysis_named(name: str, source: Source, n_ctx: int) -> Analysis:
    """The analysis registered as `name`, on sequences evenly spaced over the source's held-out split.

    The same name, source and context give the same analysis, so that a sweep over the checkpoints of a run repeats what
    its training logged: `sweep(run, analysis_named(name, run.source(), run.config.n_ctx))`.
    Raises AnalysisError for a name that is not registered, naming the nearest.
    """
    if name in RUN_REGISTRY:
        raise AnalysisError(f"{name} looks at several checkpoints of a run; sweep it when there are some, not while training")
    if name not in REGISTRY:
        known = (*REGISTRY, *RUN_REGISTRY)
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise AnalysisError(f"there is no analysis {name!r}; {hint}")
    registered = REGISTRY[name]
    return registered.make(held_out(source, n_ctx, registered.n_sequences))


# ---------------------------------------------------------------------------------------------------------------------
# Of a run as a whole


@dataclass(frozen=True)
class RegisteredOfRun:
    """An analysis that needs the checkpoints of a run beside held-out sequences."""

    measures: str
    n_sequences: int
    make: Callable[[Run, Sequences], Analysis]


def _strongest(run: Run, found: Sequences) -> NeuronStatistics:
    windows = Windows.of(found.inputs)
    return NeuronStatistics(windows, tuple(strongest_writers(run.model(), windows, STRONGEST)))


STRONGEST = 8  # neurons of each layer whose history is followed

RUN_REGISTRY = {
    "weight_distance": RegisteredOfRun(
        "how far every weight matrix is from where the run began",
        1,
        lambda run, found: WeightDistance.from_step(run, run.steps[0]),
    ),
    "similarity_to": RegisteredOfRun(
        "CKA and shared directions of each residual stream with what it is at the last checkpoint",
        16,
        lambda run, found: SimilarityTo.step(run, run.steps[-1], found.inputs),
    ),
    "diff_from_step": RegisteredOfRun(
        "how far predictions, weights, heads and neurons are from where the run began",
        16,
        lambda run, found: DiffFromStep.of(run, run.steps[0], Windows.of(found.inputs)),
    ),
    "neuron_statistics": RegisteredOfRun(
        "how often the neurons that move the last checkpoint's stream most fire, and what they promote", 64, _strongest
    ),
}


def analysis_of_run(name: str, run: Run, source: Source, n_ctx: int) -> Analysis:
    """`analysis_named`, also for the names of RUN_REGISTRY, which look at the run's first or last checkpoint."""
    if name not in RUN_REGISTRY:
        return analysis_named(name, source, n_ctx)
    registered = RUN_REGISTRY[name]
    return registered.make(run, held_out(source, n_ctx, registered.n_sequences))
