"""The local learning coefficient: how degenerate the loss is around a model's weights, by sampling near them.

    lambda = n_beta (E[L(w)] - L(w*)),    w near w* with probability exp(-n_beta L(w) - (gamma / 2) |w - w*|^2)

Half the number of directions in which the loss rises as a square; directions in which it is flat, or rises as a higher
power, count less. A regular model has half its number of parameters. Lau et al. 2023, "The Local Learning Coefficient: A
Singularity-Aware Complexity Measure"; Hoogland et al. 2024, "The Developmental Landscape of In-Context Learning", for curves
over training; Watanabe 2013, "A Widely Applicable Bayesian Information Criterion", for n beta = n / ln n.

What to keep in mind:
- The theory speaks of a minimum. A checkpoint is none: where `below_start` is well above 0 the chain goes downhill and the
  number, which can then be negative, says how far there is to go, not how degenerate anything is.
- The value depends on the step size, n_beta, gamma and the chain's length, and gamma > 0 hides directions flatter than
  gamma / n_beta. Compare numbers of the same settings alone, and their order rather than their size: at the last step of
  the induction demo gamma of 1000, 300 and 100 gave 133, 342 and (with steps of 1e-4) 917, always between the values
  before the phase change and right after it.
- Chains of a few hundred steps do not reach equilibrium in the flatter directions. `r_hat` above 1.1 and a `drift` of more
  than a tenth say so where the loss shows it. Acceptance well below 1 says that the step is too long, and is strict: at
  that last step it was 0.53 and 0.004 for steps of 1e-5 and 3e-5, the values 133 and 137; right after the phase change
  0.006 and 0, the values 175 and 228.
- It has been checked where the coefficient is known, on toy models and deep linear networks (Lau et al. 2023); for
  transformers it is not known. Hitchcock and Hoogland 2025, "From Global to Local: A Scalable Benchmark for
  Local Posterior Sampling", on how samplers differ.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call

from interp_gpt2.analysis.loss import token_losses
from interp_gpt2.analysis.rows import Analysis, Row, interval, require_eval, standard_error
from interp_gpt2.analysis.sgld import Chains, Langevin, Loss, sample_near
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2

SETTLED = 1.1  # r_hat: above it, chains disagree
STANDARD = Langevin()
LEAST_ACCEPTED = 0.5


@dataclass(frozen=True, eq=False)
class LearningCoefficient:
    """`value` with its standard error over chains (NaN of one), None where a chain diverged; and what to judge it by.

    `regular` = n_params / 2 is the value of a model whose loss rises as a square in every direction.
    """

    value: float | None
    stderr: float
    regular: float
    n_beta: float
    chains: Chains

    @property
    def verdict(self) -> str:
        """The number, or why there is none, and every reason to doubt it."""
        chains = self.chains
        if self.value is None:
            return f"no estimate: {chains.diverged} of {len(chains.trace)} chains diverged; take a smaller step_size"
        doubts = []
        if not chains.r_hat <= SETTLED:
            doubts.append(f"chains disagree (r_hat {chains.r_hat:.2f}): more steps")
        if chains.drifts:
            doubts.append(
                f"the loss still drifts ({chains.drift:+.0%} from the first to the second half of the draws): more steps"
            )
        if (rate := float(chains.acceptance.mean())) < LEAST_ACCEPTED:
            doubts.append(f"the step is too long (acceptance {rate:.2f}): a smaller step_size")
        if self.value <= 0:
            doubts.append(f"not a minimum ({chains.below_start:.0%} of draws lie below the start)")
        told = f"{self.value:.4g} +- {self.stderr:.2g} of {self.regular:.0f} for a regular model"
        return told + (f"; to be doubted: {'; '.join(doubts)}" if doubts else "")


def learning_coefficient(
    start: Float[Tensor, "d"], loss: Loss, n_beta: float, settings: Langevin = STANDARD, ceiling: float = math.inf
) -> LearningCoefficient:
    """The local learning coefficient of any loss at `start`; `loss` as in `sample_near`."""
    chains = sample_near(start, loss, n_beta, settings, ceiling)
    regular = len(start) / 2
    if chains.diverged:
        return LearningCoefficient(None, math.nan, regular, n_beta, chains)
    by_chain = n_beta * chains.excess.mean(1)
    return LearningCoefficient(float(by_chain.mean()), standard_error(by_chain), regular, n_beta, chains)


def model_learning_coefficient(
    model: GPT2,
    tokens: Int[Tensor, "batch pos+1"],
    settings: Langevin = STANDARD,
    batch_size: int = 16,
    n_beta: float | None = None,
) -> LearningCoefficient:
    """That of a model's loss on `tokens`, which should be its training data.

    A sample is a sequence and its loss the sum over its tokens, so that n_beta, which multiplies the mean loss per token, is
    n_tokens / ln(n_sequences) unless given. Batches are `batch_size` sequences; the excess of each is measured against the
    same batch's loss at the start. A chain whose loss passes ln d_vocab and the start's own has left and counts as diverged.

    Raises AnalysisError for fewer than 2 sequences, or weights that are not in float32 or wider.
    """
    require_eval(model)
    if len(tokens) < 2:
        raise AnalysisError("one sequence is no sample to be near to; pass 2 or more")
    names = [name for name, _ in model.named_parameters()]
    weights = [weight.detach() for weight in model.parameters()]
    if any(weight.dtype not in (torch.float32, torch.float64) for weight in weights):
        raise AnalysisError("steps this small vanish in 16 bits; pass model.float()")
    start = torch.cat([weight.reshape(-1) for weight in weights])
    sizes, shapes = [weight.numel() for weight in weights], [weight.shape for weight in weights]
    at_start = token_losses(model, tokens, batch_size).mean(1)  # (batch,)

    def loss(w: Float[Tensor, "d"], draw: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(tokens), (min(batch_size, len(tokens)),), generator=draw)
        some = tokens[chosen].to(w.device)
        state = {name: part.view(shape) for name, part, shape in zip(names, w.split(sizes), shapes, strict=True)}
        logits = functional_call(model, state, (some[:, :-1],))
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), some[:, 1:].flatten().long()), at_start[
            chosen
        ].mean()

    n_beta = tokens[:, 1:].numel() / math.log(len(tokens)) if n_beta is None else n_beta
    ceiling = 1.5 * max(math.log(model.config.d_vocab), float(at_start.max()))
    return learning_coefficient(start, loss, n_beta, settings, ceiling)


@dataclass(frozen=True, eq=False)
class LocalLearningCoefficient(Analysis):
    """`model_learning_coefficient` for a sweep.

    "llc" with a 95 % interval over chains, without a value (null) where a chain diverged; its diagnostics "llc_r_hat",
    "llc_drift", "llc_acceptance", "llc_below_start" and "llc_diverged" (chains); its yardstick "llc_regular" = n_params / 2; and
    "llc_trace", the mean over chains of n_beta times the excess loss, in ten parts of the steps from the first (`position`
    0 to 9): it must be flat towards the end.
    """

    tokens: Int[Tensor, "batch pos+1"]
    settings: Langevin = STANDARD
    batch_size: int = 16
    n_beta: float | None = None
    name: str = "learning_coefficient"

    def __call__(self, model: GPT2) -> list[Row]:
        found = model_learning_coefficient(model, self.tokens, self.settings, self.batch_size, self.n_beta)
        chains, n = found.chains, found.chains.excess.numel()
        spread = {} if found.value is None else interval(found.value, found.stderr, len(chains.trace))
        trace = (found.n_beta * chains.trace).mean(0).tensor_split(10)
        known = {
            "llc_r_hat": chains.r_hat,
            "llc_acceptance": float(chains.acceptance.mean()),
            "llc_drift": chains.drift,
            "llc_below_start": chains.below_start,
        }
        return [
            {"metric": "llc", "value": found.value, "n": n, **spread},
            {"metric": "llc_regular", "value": found.regular},
            {"metric": "llc_diverged", "value": chains.diverged, "n": len(chains.trace)},
            *({"metric": metric, "value": None if math.isnan(value) else value} for metric, value in known.items()),
            *(
                {"metric": "llc_trace", "position": i, "value": float(part.mean()), "n": part.numel() * len(chains.trace)}
                for i, part in enumerate(trace)
                if not part.isnan().any()
            ),
        ]
