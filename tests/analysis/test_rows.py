import math
import pickle
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from interp_gpt2.analysis.attention_patterns import HeadScores
from interp_gpt2.analysis.rows import Z_95, Analysis, fingerprint, interval, mean_of, reach_95, standard_error
from interp_gpt2.errors import AnalysisError


@dataclass(frozen=True, eq=False)
class Counts(Analysis):
    tokens: Tensor
    name: str = "counts"
    options: tuple = (1, "a", None, 0.5)
    table: dict = field(default_factory=dict)


TOKENS = torch.arange(6).reshape(2, 3)


def test_equal_fields_are_the_same_analysis_also_after_pickling():
    one = Counts(TOKENS)
    assert one == Counts(TOKENS.clone())
    assert len({one, Counts(TOKENS.clone())}) == 1
    assert pickle.loads(pickle.dumps(one)).fingerprint == one.fingerprint


@pytest.mark.parametrize(
    "other",
    [
        Counts(TOKENS + 1),
        Counts(TOKENS.reshape(3, 2)),
        Counts(TOKENS.int()),
        Counts(TOKENS, name="other"),
        Counts(TOKENS, options=(1, "a", None)),
        Counts(TOKENS, options=(1, "a", None, 0.5, None)),
        Counts(TOKENS, options=(True, "a", None, 0.5)),
        Counts(TOKENS, options=(1, ("a",), None, 0.5)),
        Counts(TOKENS, table={"a": 1}),
    ],
)
def test_a_change_in_any_field_is_another_analysis(other):
    assert other != Counts(TOKENS)


def test_a_view_and_its_copy_have_the_same_fingerprint():
    wide = torch.arange(20).reshape(4, 5)
    assert fingerprint(wide[:, ::2]) == fingerprint(wide[:, ::2].clone())


def test_bfloat16_and_bool_tensors_have_fingerprints():
    assert fingerprint(torch.ones(3, dtype=torch.bfloat16)) != fingerprint(torch.zeros(3, dtype=torch.bfloat16))
    assert fingerprint(torch.tensor(True)) != fingerprint(torch.tensor(False))


def test_the_fingerprint_is_the_same_in_another_process():
    code = (
        "import torch; from interp_gpt2.analysis.attention_patterns import HeadScores;"
        "print(HeadScores(torch.arange(6).reshape(2, 3)).fingerprint)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == HeadScores(TOKENS).fingerprint


def test_a_field_without_fixed_bytes_is_refused():
    with pytest.raises(AnalysisError, match="function"):
        _ = Counts(TOKENS, options=(lambda: 1,)).fingerprint


@pytest.mark.parametrize("units", [2, 3, 16, 200])
def test_intervals_reach_as_far_as_students_t_says(units):
    from scipy.stats import t

    assert reach_95(units) == pytest.approx(t.ppf(0.975, units - 1))
    assert reach_95(math.inf) == Z_95
    assert math.isnan(reach_95(1))


@pytest.mark.parametrize("units", [2, 4, 16])
def test_an_interval_over_few_sequences_holds_the_mean_as_often_as_it_says(units):
    draws = torch.randn(4000, units, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = [interval(float(draw.mean()), standard_error(draw), units) for draw in draws]
    held = sum(one["low"] < 0 < one["high"] for one in found) / len(found)
    assert held == pytest.approx(0.95, abs=0.014)  # four standard errors of a share of 4,000


def test_a_mean_has_sequences_as_its_units():
    values = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 6.0]])
    found = mean_of(values)
    assert (found["value"], found["n"]) == (2.5, 6)
    assert found["high"] - 2.5 == pytest.approx(reach_95(3) * float(torch.tensor([1, 2, 4.5]).std()) / 3**0.5)
    assert mean_of(values[:1]) == {"value": 1, "n": 2}, "one sequence has no spread"
    assert mean_of(values[:, :0]) == {"n": 0}
