"""The learning coefficient of losses for which it is known, and the diagnostics of chains that must not be believed."""

import math

import pytest
import torch

from interp_gpt2.analysis.learning_coefficient import LocalLearningCoefficient, learning_coefficient, model_learning_coefficient
from interp_gpt2.analysis.sgld import Chains, Langevin, sample_near
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError, ConfigError
from interp_gpt2.model import GPT2

N_BETA = 1000.0


def exact(function):
    """A loss without batches, 0 at the start."""
    return lambda w, draw: (function(w), torch.tensor(0.0))


def zeros(d):
    return torch.zeros(d, dtype=torch.float64)


def long(step_size, localisation=0.0, **more):
    return Langevin(step_size, localisation, **{"n_chains": 4, "n_draws": 2000, "n_burn_in": 300, "acceptance_every": 50} | more)


def test_a_quadratic_has_what_its_own_closed_form_says():
    """With precision P = n_beta a + gamma in a direction, unadjusted Langevin steps have variance 1 / (P (1 - epsilon P / 4))."""
    a, gamma, epsilon = torch.tensor([0.5, 1.0, 2.0, 0.0], dtype=torch.float64), 200.0, 4e-4
    found = learning_coefficient(zeros(4), exact(lambda w: (a * w * w).sum() / 2), N_BETA, long(epsilon, gamma))
    P = N_BETA * a + gamma
    expected = float((N_BETA * a / 2 / (P * (1 - epsilon * P / 4))).sum())
    assert found.value == pytest.approx(expected, abs=4 * found.stderr + 0.02)
    assert expected == pytest.approx(1.5, rel=0.25), "half the number of directions that are not flat, less what gamma hides"
    assert found.regular == 2
    assert found.verdict.startswith(f"{found.value:.4g} +- ")


@pytest.mark.parametrize(
    ("d", "function", "coefficient", "step_size"),
    [
        pytest.param(2, lambda w: w[0] ** 2, 1 / 2, 1e-4, id="one direction of two"),
        pytest.param(1, lambda w: w[0] ** 4, 1 / 4, 1e-3, id="fourth power"),
        pytest.param(3, lambda w: (w * w).sum() ** 2, 3 / 4, 1e-3, id="fourth power of a length"),
    ],
)
def test_degenerate_losses_count_less_than_half_their_directions(d, function, coefficient, step_size):
    """Of a loss homogeneous of degree p in k directions n_beta E[L] = k / p, at every n_beta (equipartition)."""
    found = learning_coefficient(zeros(d), exact(function), N_BETA, long(step_size))
    assert found.value == pytest.approx(coefficient, abs=4 * found.stderr + 0.03)
    assert found.value < d / 2
    assert found.chains.r_hat < 1.1


def test_a_deep_linear_network_has_its_posteriors_own_coefficient():
    """|AB|^2 / 2 of two 2 x 2 matrices at 0, of 8 parameters: 3 / 2 where all is small (Aoyagi and Watanabe 2005).

    With gamma what the chain must find is exact: B integrates out, E[n_beta L] = E_A[w tr(n_beta A'A P^-1)] / E_A[w] with
    P = n_beta A'A + gamma and w = 1 / det P, over A of precision gamma.
    """
    gamma = 10.0
    found = learning_coefficient(
        zeros(8), exact(lambda w: (w[:4].view(2, 2) @ w[4:].view(2, 2)).square().sum() / 2), N_BETA, long(3e-4, gamma)
    )
    A = torch.randn(100_000, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / gamma**0.5
    P = N_BETA * A.mT @ A + gamma * torch.eye(2, dtype=torch.float64)
    w = 1 / torch.linalg.det(P)
    expected = float((w * (2 - gamma * torch.linalg.inv(P).diagonal(dim1=1, dim2=2).sum(1))).sum() / w.sum())
    assert expected == pytest.approx(1.155, abs=0.01)
    assert found.value == pytest.approx(expected, abs=4 * found.stderr + 0.05)
    assert found.value < 0.4 * found.regular


def test_minibatches_are_measured_against_the_same_batch_at_the_start():
    """Samples whose loss at w* differs widely: without pairing, their spread would drown the excess."""
    offsets = 100 * torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss(w, draw):
        chosen = offsets[torch.randint(50, (2,), generator=draw)].mean()
        return chosen + (w * w).sum() / 2, chosen

    found = learning_coefficient(zeros(2), loss, N_BETA, long(4e-4, n_draws=1000))
    assert found.value == pytest.approx(1, abs=4 * found.stderr + 0.15)


def test_a_step_that_is_too_long_is_not_accepted_and_one_far_too_long_diverges():
    def quadratic(w):
        return (w * w).sum() / 2

    rates = [
        float(sample_near(zeros(20), exact(quadratic), N_BETA, long(epsilon, n_draws=200, acceptance_every=5)).acceptance.mean())
        for epsilon in (1e-4, 1e-3, 3.5e-3)
    ]
    assert rates[0] > 0.9
    assert rates[0] > rates[1] > rates[2]
    assert rates[2] < 0.2
    found = learning_coefficient(zeros(20), exact(quadratic), N_BETA, long(1e-2, n_draws=200), ceiling=10.0)
    assert found.value is None
    assert "4 of 4 chains diverged; take a smaller step_size" in found.verdict
    assert math.isnan(found.chains.r_hat)


def test_a_start_that_is_no_minimum_is_said_to_be_none():
    start = torch.ones(3, dtype=torch.float64)
    found = learning_coefficient(
        start, lambda w, draw: ((w * w).sum(), torch.tensor(3.0)), N_BETA, long(1e-5, 100.0, n_draws=300)
    )
    assert found.value < 0
    assert found.chains.below_start > 0.9
    assert "not a minimum" in found.verdict


def test_chains_that_disagree_or_drift_have_not_settled():
    draws = torch.randn(4, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 10
    agreeing = Chains(draws, 0, torch.ones(4), torch.ones(4))
    assert agreeing.r_hat == pytest.approx(1, abs=0.05)
    assert abs(agreeing.drift) < 0.05
    apart = Chains(draws + 3 * torch.arange(4)[:, None], 0, torch.ones(4), torch.ones(4))
    assert apart.r_hat > 1.5
    drifting = Chains(draws + torch.linspace(0, 6, 100), 0, torch.ones(4), torch.ones(4))
    assert drifting.drifts
    assert not agreeing.drifts
    assert drifting.drift == pytest.approx(3 / 13, abs=0.03)


def test_a_models_start_is_its_own_loss_and_nothing_of_it_changes(model):
    tokens = torch.randint(0, 50, (8, 13), generator=torch.Generator().manual_seed(0))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    settings = Langevin(1e-12, 0.0, n_chains=2, n_draws=4, n_burn_in=0)
    with torch.no_grad():
        found = model_learning_coefficient(model, tokens, settings, batch_size=4)
    assert found.chains.trace.abs().max() < 1e-4, "steps this small stay where the batch's own loss was"
    assert found.n_beta == pytest.approx(8 * 12 / math.log(8))
    assert found.regular == sum(weight.numel() for weight in model.parameters()) / 2
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    again = model_learning_coefficient(model, tokens, settings, batch_size=4)
    assert torch.equal(found.chains.trace, again.chains.trace)


def test_rows_have_the_diagnostics_and_no_value_where_chains_left():
    model = GPT2(GPT2Config(n_layers=1, n_heads=1, d_model=8, d_vocab=12, n_ctx=8)).eval()
    tokens = torch.randint(0, 12, (8, 9), generator=torch.Generator().manual_seed(0))
    short = {"n_chains": 2, "n_draws": 20, "n_burn_in": 20}
    rows = {row["metric"]: row for row in LocalLearningCoefficient(tokens, Langevin(1e-5, **short))(model)}
    assert rows["llc"]["low"] < rows["llc"]["value"] < rows["llc"]["high"]
    found = model_learning_coefficient(model, tokens, Langevin(1e-5, **short))
    assert rows["llc"]["high"] - found.value == pytest.approx(12.706 * found.stderr, rel=1e-3), "two chains: t, 1 degree"
    assert {"llc_r_hat", "llc_acceptance", "llc_below_start", "llc_drift", "llc_regular", "llc_trace"} <= set(rows)
    assert rows["llc_diverged"]["value"] == 0
    rows = {row["metric"]: row for row in LocalLearningCoefficient(tokens, Langevin(10.0, **short))(model)}
    assert rows["llc"]["value"] is None
    assert rows["llc_diverged"]["value"] == 2


def test_what_cannot_be_sampled_is_refused(model):
    with pytest.raises(AnalysisError, match="2 or more"):
        model_learning_coefficient(model, torch.zeros(1, 9, dtype=torch.long))
    with pytest.raises(AnalysisError, match="16 bits"):
        model_learning_coefficient(model.bfloat16(), torch.zeros(2, 9, dtype=torch.long))
    with pytest.raises(ConfigError, match="step_size > 0"):
        Langevin(step_size=0)
