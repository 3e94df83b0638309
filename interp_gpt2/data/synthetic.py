"""Tasks with a known answer: in-context Markov chains and repeated random tokens, with the best losses possible on them.

In the Markov task every sequence has transition probabilities of its own, so that nothing but the sequence itself helps to
predict it: a model must find the earlier occurrences of the current state and see what followed them, as an induction head
does. Edelman et al. 2024, "The Evolution of Statistical Induction Heads: In-Context Learning Markov Chains".
"""

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_gpt2.data.batches import HELD_OUT, rng_at
from interp_gpt2.errors import DataError

N_STATES = 16
ALPHA = 0.1  # rows this sparse have about one likely successor per state, and an entropy worth learning
N_HELD_OUT = 4096
STATE_NAMES = "ABCDEFGHIJKLMNOP"


def markov_chains(rng: np.random.Generator, n_sequences: int, length: int) -> Int[np.ndarray, "sequence pos"]:
    """Chains over 16 states, one per sequence, whose 16 rows of transition probabilities are drawn from Dirichlet(0.1).

    The first state is uniform, not drawn from the chain's stationary distribution.
    """
    # Gamma variables divided by their sum are a Dirichlet draw; here only the running sum of a row is needed.
    cumulative = rng.standard_gamma(ALPHA, (n_sequences, N_STATES, N_STATES)).cumsum(-1)
    cumulative /= cumulative[..., -1:]
    draws = rng.random((length, n_sequences))
    states = np.empty((n_sequences, length), dtype=np.int64)
    states[:, 0] = draws[0] * N_STATES
    sequence = np.arange(n_sequences)
    for pos in range(1, length):
        row = cumulative[sequence, states[:, pos - 1]]  # (sequence, N_STATES)
        states[:, pos] = (row <= draws[pos, :, None]).sum(-1)
    return states


@lru_cache(maxsize=4)
def held_out_chains(n_ctx: int) -> Int[Tensor, "4096 pos"]:
    """The 4,096 chains of n_ctx + 1 states that every run is judged on, whatever its seed. Treat as read-only."""
    return torch.from_numpy(markov_chains(rng_at(seed=0, step=n_ctx, stream=HELD_OUT), N_HELD_OUT, n_ctx + 1))


def repeated_tokens(
    rng: np.random.Generator, n_sequences: int, length: int, d_vocab: int, period: int
) -> Int[np.ndarray, "sequence pos"]:
    """`period` tokens drawn uniformly from the vocabulary, then the same again until `length` tokens are there.

    Raises DataError for a period of less than 1.
    """
    if period < 1:
        raise DataError(f"period={period} must be at least 1")
    block = rng.integers(d_vocab, size=(n_sequences, period))
    return np.tile(block, -(-length // period))[:, :length]


def bayes_bigram(
    states: Int[Tensor, "sequence pos_plus_1"], alpha: float = ALPHA, n_states: int = N_STATES
) -> Float[Tensor, "sequence pos n_states"]:
    """Log-probability of each next state under the exact posterior over chains: no predictor has a lower expected loss.

    At position p, with n_ij transitions from i to j among states 0 .. p and i the state at p, the posterior mean
    (n_ij + alpha) / (n_i + n_states alpha), which is exact because rows are independent Dirichlet(alpha) draws. Float64.
    """
    sequence = torch.arange(len(states))
    counts = torch.zeros(len(states), n_states, n_states, dtype=torch.float64)
    log_probs = []
    for pos in range(states.shape[1] - 1):
        state = states[:, pos]
        seen = counts[sequence, state]  # (sequence, n_states)
        log_probs.append(((seen + alpha) / (seen.sum(-1, keepdim=True) + n_states * alpha)).log())
        counts[sequence, state, states[:, pos + 1]] += 1
    return torch.stack(log_probs, dim=1)


def in_context_unigram(
    states: Int[Tensor, "sequence pos_plus_1"], n_states: int = N_STATES
) -> Float[Tensor, "sequence pos n_states"]:
    """Log-probability of each next state from how often each occurred so far: (n_j + 1) / (p + 1 + n_states) at position p.

    What a model can know that ignores order; a reference to pass, not a bound. Float64.
    """
    occurred = torch.nn.functional.one_hot(states[:, :-1], n_states).double().cumsum(1)
    return ((occurred + 1) / (occurred.sum(-1, keepdim=True) + n_states)).log()


def losses_of(
    log_probs: Float[Tensor, "sequence pos d_vocab"], tokens: Int[Tensor, "sequence pos_plus_1"]
) -> Float[Tensor, "sequence pos"]:
    """Loss in nats of the prediction made at each position p of the input tokens[:, :-1]: -log P(tokens[:, p + 1])."""
    return -log_probs.gather(-1, tokens[:, 1:, None]).squeeze(-1)


def mean_and_stderr(losses: Float[Tensor, "sequence pos"]) -> tuple[float, float]:
    """Mean over everything, and its standard error taking each sequence's mean as one independent observation."""
    per_sequence = losses.double().mean(1)
    return per_sequence.mean().item(), (per_sequence.std() / len(per_sequence) ** 0.5).item()
