"""The bytes that the engine states are those that it takes."""

import pytest
import torch

from interp_gpt2.causal import engine
from interp_gpt2.causal.engine import run_patches
from interp_gpt2.causal.metrics import logit_difference, probability
from interp_gpt2.causal.patch import Patch
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError
from interp_gpt2.memory import peak_memory

CONFIG = GPT2Config(n_layers=3, n_heads=4, d_model=64, d_vocab=500, n_ctx=256)


def plain(logits: torch.Tensor) -> torch.Tensor:
    """A function of whole logits that copies them, as most do."""
    return logits.log_softmax(-1)[:, -1, 3]


METRICS = {"two tokens": logit_difference(1, 2), "whole vocabulary": probability(3), "whole logits": plain}
SHAPES = {"short": (2, 9), "long": (1, 200), "many pairs": (48, 12)}


def each(point: str, **axis: range | list[int]) -> list[list[Patch]]:
    ((name, places),) = axis.items()
    return [[Patch(point, layer, **{name: at})] for layer in range(3) for at in places]


SWEEPS = {
    "stream by position": lambda n_pos: each("resid_pre", positions=range(0, n_pos, 1 + n_pos // 40)),
    "heads": lambda n_pos: each("z", heads=range(4)),
    "keys": lambda n_pos: each("k", heads=range(4)),
    "patterns": lambda n_pos: each("pattern", heads=range(4)),
    "neurons": lambda n_pos: each("post", neurons=[0, 5, 9]),
    "scores, in whole blocks": lambda n_pos: each("attn_scores", heads=range(4)),
    "two at once": lambda n_pos: [[Patch("z", 0, heads=1), Patch("mlp_out", 1, positions=at)] for at in range(9)],
    "behind the last layer": lambda n_pos: [[Patch("ln_final.normalized", positions=at)] for at in range(9)],
}


@pytest.fixture
def lens(make_gpt2):
    def runs(n_pairs: int, n_pos: int) -> tuple:
        model = make_gpt2(CONFIG)
        tokens = torch.randint(0, 500, (n_pairs, n_pos), generator=torch.Generator().manual_seed(0))
        return model, tokens, model.run_with_cache((tokens + 1) % 500)[1]

    return runs


@pytest.fixture
def peaks(monkeypatch) -> list[int]:
    """The most bytes that each batch of interventions took, over what the base run holds."""
    found, real = [], engine._Sweep.run
    measured = lambda *given: found.append(peak_memory(lambda: real(*given)))  # noqa: E731
    monkeypatch.setattr(engine._Sweep, "run", measured)
    return found


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())
@pytest.mark.parametrize("sweep", SWEEPS.values(), ids=SWEEPS.keys())
def test_what_is_stated_is_what_the_largest_batch_takes_and_at_most_four_times_it(lens, peaks, sweep, metric, shape):
    model, tokens, source = lens(*shape)
    stated = run_patches(model, tokens, sweep(shape[1]), metric, source).bytes_used
    assert max(peaks) <= stated <= 4 * max(peaks)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())
def test_a_small_budget_is_kept_to_the_byte_and_changes_no_value(lens, peaks, metric):
    model, tokens, source = lens(2, 9)
    cells = SWEEPS["heads"](9) + SWEEPS["stream by position"](9)
    whole = run_patches(model, tokens, cells, metric, source)
    n_batches, most = len(peaks), whole.bytes_used
    for budget in (most // 2, most // 4):
        peaks.clear()
        split = run_patches(model, tokens, cells, metric, source, budget=budget)
        assert max(peaks) <= split.bytes_used <= budget
        assert len(peaks) > n_batches
        torch.testing.assert_close(split.values, whole.values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())
def test_the_smallest_budget_holds_one_intervention_and_a_byte_less_is_refused_before_any_runs(lens, peaks, metric):
    model, tokens, source = lens(2, 9)
    least = max(run_patches(model, tokens, [cell], metric, source).bytes_used for cell in SWEEPS["heads"](9))
    if metric is not plain:  # of a metric for each pair, a case is one pair
        least = max(run_patches(model, tokens[:1], [cell], metric, {k: v[:1] for k, v in source.items()}).bytes_used
                    for cell in SWEEPS["heads"](9))  # fmt: skip
    peaks.clear()
    assert run_patches(model, tokens, SWEEPS["heads"](9), metric, source, budget=least).bytes_used == least
    assert max(peaks) <= least
    peaks.clear()
    with pytest.raises(AnalysisError, match=r"one intervention takes about 0.\d MiB, which the budget of 0.\d MiB does not hold"):
        run_patches(model, tokens, SWEEPS["heads"](9), metric, source, budget=least - 1)
    assert not peaks
