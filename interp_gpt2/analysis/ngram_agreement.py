"""Does the model predict as an n-gram model would? Distances to simple predictors, by checkpoint.

Early in training a language model comes close to the unigram model of its data, then to the bigram model, and leaves each
for a better one. Choshen et al. 2022, "The Grammar-Learning Trajectories of Neural Language Models", for
text; Edelman et al. 2024, "The Evolution of Statistical Induction Heads", for in-context Markov chains.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_gpt2.analysis.logit_lens import lens_log_probabilities, logit_chunks, residual_streams
from interp_gpt2.analysis.references import Predictor, predictors
from interp_gpt2.analysis.rows import Analysis, Row, mean_of
from interp_gpt2.data.source import Source
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2


@dataclass(frozen=True, eq=False)
class Agreement:
    """How far a model is from each of some predictors at each position. KL in nats, in float64.

    `kl` = KL(model || predictor) = sum_v p(v) (ln p(v) - ln q(v)): 0 where the two agree. `kl_uniform` is the same for a
    model that knows nothing, p = 1 / d_vocab: what an untrained model has. `same_top`: both have the same most probable
    token (of equals the lowest id).
    """

    names: tuple[str, ...]
    kl: Float[Tensor, "predictor batch pos"]
    kl_uniform: Float[Tensor, "predictor batch pos"]
    same_top: Float[Tensor, "predictor batch pos"]


@torch.no_grad()
def agreement(model: GPT2, tokens: Int[Tensor, "batch pos"], others: tuple[Predictor, ...], batch_size: int = 16) -> Agreement:
    """Distances of the model's predictions on `tokens` from those of predictors made for the same windows.

    At most 2^22 logits exist at a time. Raises AnalysisError if there are no predictors or the model has diverged.
    """
    if not others:
        raise AnalysisError("there is no predictor to compare with: this kind of data has none")
    n_batch, n_pos = tokens.shape
    kl, kl_uniform, same_top = (torch.empty(len(others), n_batch, n_pos, dtype=torch.float64) for _ in range(3))
    for first in range(0, n_batch, batch_size):
        some = tokens[first : first + batch_size]
        stream = residual_streams(model, some)[-1]
        for batch, pos in logit_chunks(len(some), n_pos, model.config.d_vocab):
            ours = lens_log_probabilities(model, stream[batch, pos]).cpu()
            where = (slice(first + batch.start, first + min(batch.stop, len(some))), pos)
            for i, other in enumerate(others):
                theirs = other.log_probabilities(where)
                if theirs.shape != ours.shape:
                    raise AnalysisError(f"{other.name} predicts {tuple(theirs.shape)}, the model {tuple(ours.shape)}")
                kl[i][where] = (ours.exp() * (ours - theirs)).sum(-1)
                kl_uniform[i][where] = -theirs.mean(-1) - math.log(ours.shape[-1])
                same_top[i][where] = (ours.argmax(-1) == theirs.argmax(-1)).double()
    return Agreement(tuple(other.name for other in others), kl, kl_uniform, same_top)


@dataclass(frozen=True, eq=False)
class NGramAgreement(Analysis):
    """`agreement` for a sweep: means over all positions, a row for each predictor, which is the `label`.

    Metrics: "agreement_kl" with a 95 % interval over sequences, "agreement_kl_uniform" (its yardstick: a model that knows
    nothing) and "agreement_top1" (share of positions with the same most probable token). Of the predictor that a model is
    nearest to at a step one may say that it has learned about as much.
    """

    tokens: Int[Tensor, "batch pos"]
    predictors: tuple[Predictor, ...]
    batch_size: int = 16
    name: str = "ngram_agreement"

    @classmethod
    def of(cls, source: Source | None, tokens: Int[Tensor, "batch pos+1"]) -> "NGramAgreement":
        """On windows of a source, with the predictors that its kind of data has."""
        return cls(tokens[:, :-1], predictors(source, tokens))

    def __call__(self, model: GPT2) -> list[Row]:
        found = agreement(model, self.tokens, self.predictors, self.batch_size)
        rows: list[Row] = []
        for metric, values in (("agreement_kl", found.kl), ("agreement_top1", found.same_top)):
            for name, of_one in zip(found.names, values, strict=True):
                rows.append({"metric": metric, "label": name, **mean_of(of_one)})
        for name, of_one in zip(found.names, found.kl_uniform, strict=True):
            rows.append({"metric": "agreement_kl_uniform", "label": name, "value": float(of_one.mean()), "n": of_one.numel()})
        return rows
