"""Analyses by name, on a run's own data: what training can log while it runs, and a sweep finds again afterwards."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

from interp_gpt2.analysis.attention_patterns import HeadScores
from interp_gpt2.analysis.head_weights import HeadComposition, HeadCopying
from interp_gpt2.analysis.in_context import InContextLearningScore
from interp_gpt2.analysis.learning_coefficient import LocalLearningCoefficient
from interp_gpt2.analysis.logit_lens import LensByLayer
from interp_gpt2.analysis.loss import LossByPosition
from interp_gpt2.analysis.neuron_activity import NeuronActivity
from interp_gpt2.analysis.ngram_agreement import NGramAgreement
from interp_gpt2.analysis.references import reference_losses, strongest_reference
from interp_gpt2.analysis.representations import LayerSimilarity
from interp_gpt2.analysis.rows import Analysis
from interp_gpt2.analysis.sequences import HEAD_SEQUENCES, Sequences, held_out, training_windows
from interp_gpt2.analysis.sgld import Langevin
from interp_gpt2.analysis.token_classes import LossByTokenClass
from interp_gpt2.analysis.tuned_lens import SettlingDepth, TunedLensByLayer
from interp_gpt2.analysis.weight_spectra import WeightSpectra
from interp_gpt2.analysis.windows import Windows
from interp_gpt2.data.source import Source
from interp_gpt2.errors import AnalysisError


@dataclass(frozen=True)
class Registered:
    """An analysis that needs nothing but held-out sequences: what it measures, on how many, and how it is made."""

    measures: str
    n_sequences: int
    make: Callable[[Sequences], Analysis]


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
    if name not in REGISTRY:
        near = get_close_matches(name, REGISTRY, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(REGISTRY)}"
        raise AnalysisError(f"there is no analysis {name!r}; {hint}")
    registered = REGISTRY[name]
    return registered.make(held_out(source, n_ctx, registered.n_sequences))
