"""The script that looks for the IOI circuit runs on a model with GPT-2's heads, and finds none in random weights."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from interp_gpt2.config import GPT2Config
from interp_gpt2.model import GPT2

SCRIPT = Path(__file__).parents[2] / "analyses/ioi.py"


@pytest.fixture(scope="module")
def script() -> dict:
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def heads_of_gpt2() -> GPT2:
    """12 layers of 12 heads and the whole vocabulary, but narrow."""
    return GPT2(GPT2Config(d_model=48, n_ctx=32), seed=1)


def test_it_measures_every_published_head_and_a_random_model_has_no_such_circuit(script, heads_of_gpt2, gpt2):
    found = script["study"](heads_of_gpt2, gpt2, 4)
    rows = script["table"](found)
    assert [row["head"] for row in rows[:3]] == ["L9H9", "L10H0", "L9H6"]
    assert len(rows) == 3 + 3 + 2 + 2 + 4
    assert sum(row["rank"] <= 6 for row in rows) < 5
    assert abs(found["logit difference"]) < 1
    assert len(found["direct"]) == 144


def test_the_heads_shares_are_those_of_their_outputs(script, heads_of_gpt2, gpt2):
    pairs = script["eight_prompts"](gpt2)
    assert pairs.clean.shape[0] == 8
    shares = script["head_attribution"](heads_of_gpt2, pairs)
    _, cache = heads_of_gpt2.run_with_cache(pairs.clean, ["*result", "ln_final.scale"])
    result = cache["result", 9][:, -1, 9]
    scaled = (result - result.mean(-1, keepdim=True)) / cache["ln_final.scale"][:, -1] * heads_of_gpt2.ln_final.weight
    direction = heads_of_gpt2.W_U.T[pairs.correct[:, 0]] - heads_of_gpt2.W_U.T[pairs.incorrect[:, 0]]
    assert shares["L9H9"] == pytest.approx((scaled * direction).sum(-1).mean().item(), abs=1e-5)


def test_the_script_writes_its_numbers_and_figures(script, heads_of_gpt2, gpt2, tmp_path, monkeypatch, capsys):
    main = script["main"]
    monkeypatch.setitem(main.__globals__, "tokenizer_named", lambda name: gpt2)
    monkeypatch.setattr(GPT2, "from_pretrained", lambda name: heads_of_gpt2)
    monkeypatch.setattr(sys, "argv", ["ioi.py", "gpt2", "--pairs", "2", "--out", str(tmp_path)])
    main()
    printed = capsys.readouterr().out
    assert "not this circuit" in printed
    numbers = json.loads((tmp_path / "ioi.json").read_text())
    assert f"{numbers['logit_difference']:.2f}" in printed
    assert len(list(tmp_path.glob("*.pdf"))) == 2
