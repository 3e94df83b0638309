"""Samples near a point by stochastic gradient Langevin dynamics, with what says whether they can be believed.

From w* a chain draws from the tempered, localised posterior exp(-U(w)), U(w) = n_beta L(w) + (gamma / 2) |w - w*|^2:

    w <- w - (epsilon / 2) (n_beta grad L_batch(w) + gamma (w - w*)) + sqrt(epsilon) normal noise

Welling and Teh 2011, "Bayesian Learning via Stochastic Gradient Langevin Dynamics"; Lau et al. 2023. There is no accept step,
so the step size biases the draws: `acceptance` says by how much a Metropolis step would object.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp_gpt2.analysis.rows import standard_error
from interp_gpt2.errors import ConfigError

_CHUNK = 2**22  # numbers in float64 at once

Loss = Callable[[Float[Tensor, "d"], torch.Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Langevin:
    """How chains are run. `step_size` is epsilon, `localisation` gamma; every `acceptance_every`-th draw is looked at.

    `n_burn_in` steps come before the draws of each chain and are not counted. Chains differ by their noise and batches.
    """

    step_size: float = 1e-5
    localisation: float = 1000.0
    n_chains: int = 4
    n_draws: int = 200
    n_burn_in: int = 200
    acceptance_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if self.step_size <= 0 or self.localisation < 0 or min(self.n_chains, self.acceptance_every) < 1:
            raise ConfigError(f"Langevin needs step_size > 0, localisation >= 0, and one chain or more: {self}")
        if self.n_draws < 4 or self.n_burn_in < 0:
            raise ConfigError(f"Langevin needs 4 draws or more of each chain, after 0 steps or more: {self}")


@dataclass(frozen=True, eq=False)
class Chains:
    """What chains saw: `trace[chain, step]` = L(w) - L(w*) on the step's own batch, NaN from where a chain diverged.

    `acceptance`: with which probability a Metropolis step would accept both a move and its reverse, mean over the looked-at
    steps. 1 where the step size does no harm; in models of many weights it falls long before the loss is much in error.
    `distance` is |w - w*| at the end.
    """

    trace: Float[Tensor, "chain step"]
    n_burn_in: int
    acceptance: Float[Tensor, "chain"]
    distance: Float[Tensor, "chain"]

    @property
    def excess(self) -> Float[Tensor, "chain draw"]:
        """The trace after burn-in."""
        return self.trace[:, self.n_burn_in :]

    @property
    def diverged(self) -> int:
        """How many chains left: their loss or weights became infinite, or the loss rose above the ceiling."""
        return int(self.trace.isnan().any(1).sum())

    @property
    def r_hat(self) -> float:
        """Gelman and Rubin's potential scale reduction of the loss, chains split in halves; 1 when they agree.

        Above about 1.1 the chains disagree. Gelman et al. 2013, "Bayesian Data Analysis", 11.4. NaN if a chain diverged.
        """
        draws = self.excess
        half = draws.shape[1] // 2
        split = torch.cat([draws[:, :half], draws[:, -half:]])
        within, between = split.var(1).mean(), half * split.mean(1).var()
        return float((((half - 1) / half * within + between / half) / within).sqrt())

    @property
    def drift(self) -> float:
        """The mean excess of the second half of the draws less that of the first half, as a share of the whole's.

        0 in equilibrium. All chains share a drift, which `r_hat` hardly sees under the noise of single draws.
        """
        return float(self._drifts().mean() / self.excess.mean().abs())

    @property
    def drifts(self) -> bool:
        """Whether that is more than a tenth, and more than twice its standard error over chains, where there are several."""
        steps = self._drifts()
        noise = 2 * standard_error(steps) if len(steps) > 1 else 0.0
        return abs(self.drift) > 0.1 and abs(float(steps.mean())) > noise

    def _drifts(self) -> Float[Tensor, "chain"]:
        half = self.excess.shape[1] // 2
        return self.excess[:, -half:].mean(1) - self.excess[:, :half].mean(1)

    @property
    def below_start(self) -> float:
        """Share of draws whose loss is below that of w*. More than chance says that w* is not the minimum around here."""
        return float((self.excess < 0).double().mean())


def sample_near(start: Float[Tensor, "d"], loss: Loss, n_beta: float, settings: Langevin, ceiling: float = math.inf) -> Chains:
    """Chains from `start`. `loss(w, draw)` gives (L, L(w*)) on a batch that it draws from the generator, with a gradient in w.

    A chain ends when its loss is not finite or above `ceiling`.
    """
    traces, accepted, distances = [], [], []
    for chain in range(settings.n_chains):
        trace, rates, distance = _chain(start.detach(), loss, n_beta, settings, ceiling, chain)
        traces.append(trace)
        accepted.append(sum(rates) / len(rates) if rates else math.nan)
        distances.append(distance)
    return Chains(
        torch.tensor(traces, dtype=torch.float64),
        settings.n_burn_in,
        torch.tensor(accepted, dtype=torch.float64),
        torch.tensor(distances, dtype=torch.float64),
    )


def _chain(
    start: Tensor, loss: Loss, n_beta: float, settings: Langevin, ceiling: float, chain: int
) -> tuple[list[float], list[float], float]:
    n_steps = settings.n_burn_in + settings.n_draws
    batches = torch.Generator().manual_seed(2 * (settings.seed * 1_000_003 + chain))
    noise = torch.Generator(start.device).manual_seed(2 * (settings.seed * 1_000_003 + chain) + 1)
    epsilon, w = settings.step_size, start.clone()
    trace, rates = [], []
    for step in range(n_steps):
        state = batches.get_state()
        value, at_start, force = _potential(w, start, loss, n_beta, settings.localisation, batches)
        if not math.isfinite(value) or value > ceiling:
            return trace + [math.nan] * (n_steps - step), rates, float((w - start).norm())
        trace.append(value - at_start)
        jump = torch.randn(w.shape, generator=noise, device=w.device, dtype=w.dtype)
        new = w - epsilon / 2 * force + math.sqrt(epsilon) * jump
        if step >= settings.n_burn_in and (step - settings.n_burn_in) % settings.acceptance_every == 0:
            again = torch.Generator().set_state(state)  # the same batch: the potential must be the same function
            rates.append(_acceptance(w, new, (value, force), _potential(new, start, loss, n_beta, settings.localisation, again),
                                     start, n_beta, settings))  # fmt: skip
        w = new
    return trace, rates, float((w - start).norm())


def _potential(
    w: Tensor, start: Tensor, loss: Loss, n_beta: float, localisation: float, batches: torch.Generator
) -> tuple[float, float, Tensor]:
    """L, L(w*), and the gradient of U."""
    w = w.detach().requires_grad_()
    with torch.enable_grad():
        value, at_start = loss(w, batches)
        (gradient,) = torch.autograd.grad(value, w)
    return float(value.detach()), float(at_start), n_beta * gradient + localisation * (w.detach() - start)


def _acceptance(
    w: Tensor,
    new: Tensor,
    here: tuple[float, Tensor],
    there: tuple[float, float, Tensor],
    start: Tensor,
    n_beta: float,
    settings: Langevin,
) -> float:
    """exp(-|ln r|), r = exp(-U(new)) q(w | new) / (exp(-U(w)) q(new | w)), with q the Langevin step and U of its batch.

    A Metropolis step would accept the move with min(1, r) (Roberts and Tweedie 1996), its reverse with min(1, 1 / r). The
    smaller of the two is what the step size spoils: each batch pulls its own way, so that moves alone look acceptable.
    """
    epsilon, gamma = settings.step_size, settings.localisation
    value, force = here
    new_value, _, new_force = there
    rise, back, forth = n_beta * (new_value - value), 0.0, 0.0
    for parts in zip(*(vector.split(_CHUNK) for vector in (w, new, start, force, new_force)), strict=True):
        here_w, there_w, centre, here_force, there_force = (part.double() for part in parts)
        rise += gamma / 2 * float((there_w - centre).square().sum() - (here_w - centre).square().sum())
        back += float((here_w - there_w + epsilon / 2 * there_force).square().sum())
        forth += float((there_w - here_w + epsilon / 2 * here_force).square().sum())
    log_ratio = -rise - (back - forth) / (2 * epsilon)
    return math.exp(-abs(log_ratio)) if math.isfinite(log_ratio) else 0.0
