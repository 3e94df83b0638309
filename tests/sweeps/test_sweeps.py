"""A sweep is the analysis at every checkpoint: nothing lost, nothing stale, whatever the workers."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pandas
import pytest
import torch
from torch import Tensor

from interp_gpt2.analysis.attention_patterns import HeadScores
from interp_gpt2.analysis.rows import ROW_KEYS, Analysis, Row
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError, CheckpointError, RunError
from interp_gpt2.model import GPT2
from interp_gpt2.runs.checkpoint import save_checkpoint
from interp_gpt2.runs.run import Run
from interp_gpt2.runs.writing import create_run
from interp_gpt2.sweeps import COLUMNS, executors, load_rows, save_rows, sweep

CONFIG = GPT2Config(n_layers=2, n_heads=2, d_model=8, d_vocab=11, n_ctx=8)
STEPS = (0, 1, 2, 4, 8)
TOKENS = torch.randint(11, (4, 8), generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True, eq=False)
class Norms(Analysis):
    """The norm of W_E, or a refusal for a model whose first weight is the given one."""

    refuse: float | None = None
    calls: str | None = None
    name: str = "norms"

    def __call__(self, model: GPT2) -> list[Row]:
        first = float(model.wte.weight[0, 0])
        if self.calls is not None:
            with open(self.calls, "a") as file:
                file.write("called\n")
        if first == self.refuse:
            raise AnalysisError("this model is refused")
        return [{"metric": "norm", "value": model.wte.weight.norm(), "n": 88}, {"metric": "first", "value": first, "label": "NA"}]


@dataclass(frozen=True, eq=False)
class Broken(Analysis):
    name: str = "broken"

    def __call__(self, model: GPT2) -> list[Row]:
        return [{"metric": "x", "value": 1 / 0}]


@dataclass(frozen=True, eq=False)
class Misspelt(Analysis):
    name: str = "misspelt"

    def __call__(self, model: GPT2) -> list[Row]:
        return [{"metric": "x", "vale": 1.0}]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = create_run(tmp_path / "tiny", {"config": {"seed": 3}})
    for step in STEPS:
        save_checkpoint(run.path, step, GPT2(CONFIG, seed=step).state_dict(), CONFIG, tokens_seen=100 * step)
    return run


def calls(analysis: Norms) -> int:
    return len(Path(analysis.calls).read_text().splitlines()) if Path(analysis.calls).exists() else 0


def first_weight(step: int) -> float:
    return float(GPT2(CONFIG, seed=step).W_E[0, 0].detach())


def test_a_sweep_is_the_analysis_of_every_checkpoint_in_a_tidy_table(run):
    analysis = HeadScores(TOKENS)
    frame = sweep(run, analysis, workers=1)
    assert tuple(frame.columns) == COLUMNS
    assert COLUMNS == ("run", "seed", "step", "tokens", "analysis", "metric", "hook_point", "layer", "head", "neuron",
                       "position", "label", "value", "n", "low", "high")  # fmt: skip
    expected = [(step, row) for step in STEPS for row in analysis(GPT2(CONFIG, seed=step))]
    assert len(frame) == len(expected)
    for (step, row), got in zip(expected, frame.to_dict("records"), strict=True):
        where = {"run": "tiny", "seed": 3, "step": step, "tokens": 100 * step, "analysis": "head_scores"}
        assert {key: got[key] for key in where} == where
        for key in ROW_KEYS:
            assert got[key] == row[key] if key in row else pandas.isna(got[key])


def test_processes_give_the_same_table_as_this_process(run, tmp_path):
    analyses = [HeadScores(TOKENS), Norms()]
    alone = sweep(run, analyses, workers=1, store=tmp_path / "a")
    together = sweep(run, analyses, workers=2, store=tmp_path / "b")
    pandas.testing.assert_frame_equal(alone, together, check_exact=True)  # both with one thread
    assert set(alone["analysis"]) == {"head_scores", "norms"}


def test_a_refusal_in_another_process_is_the_same_refusal(run):
    refusing = Norms(refuse=first_weight(4))
    with pytest.raises(AnalysisError, match=r"1 of 2 checkpoints failed, 1 finished.* step 4: norms: this model is refused"):
        sweep(run, refusing, steps=[0, 4], workers=2)
    assert list(sweep(run, refusing, steps=[0], workers=1).value) == list(sweep(run, Norms(), steps=[0], workers=1).value)


def test_any_executor_will_do(run):
    with ThreadPoolExecutor(3) as executor:
        frame = sweep(run, Norms(), workers=executor)
    pandas.testing.assert_frame_equal(frame, sweep(run, Norms(), workers=1))


def test_a_repeated_sweep_reads_what_is_there_and_an_interrupted_one_goes_on(run, tmp_path):
    analysis = Norms(calls=str(tmp_path / "calls"))
    first = sweep(run, analysis, steps=[0, 4], workers=1)
    assert calls(analysis) == 2
    whole = sweep(run, analysis, workers=1)
    assert calls(analysis) == len(STEPS)
    pandas.testing.assert_frame_equal(sweep(run, analysis, workers=1), whole)
    assert calls(analysis) == len(STEPS)
    pandas.testing.assert_frame_equal(whole[whole.step.isin([0, 4])].reset_index(drop=True), first)


def test_another_question_or_another_checkpoint_is_not_answered_from_what_is_stored(run):
    before = sweep(run, HeadScores(TOKENS, metrics=("entropy",)), workers=1)
    other = sweep(run, HeadScores(TOKENS.flip(0)[:2], metrics=("entropy",)), workers=1)
    assert not before.value.equals(other.value)
    weights = GPT2(CONFIG, seed=99)
    replaced = create_run(run.path.parent / "replaced" / "tiny", {"config": {"seed": 3}})
    for step in STEPS:
        save_checkpoint(replaced.path, step, weights.state_dict(), CONFIG, tokens_seen=100 * step)
    after = sweep(replaced, HeadScores(TOKENS, metrics=("entropy",)), workers=1, store=run.path / "sweeps")
    assert list(after.value[after.step == 0]) == list(after.value[after.step == 8])
    assert not before.value.equals(after.value)


def test_a_damaged_result_is_computed_again(run, tmp_path):
    analysis = Norms(calls=str(tmp_path / "calls"))
    whole = sweep(run, analysis, workers=1)
    stored = sorted((run.path / "sweeps").rglob("*.json"))
    assert len(stored) == len(STEPS)
    stored[0].write_bytes(stored[0].read_bytes()[:-40])
    content = json.loads(stored[1].read_text())
    content["rows"][0]["value"] += 1
    stored[1].write_text(json.dumps(content))
    pandas.testing.assert_frame_equal(sweep(run, analysis, workers=1), whole)
    assert calls(analysis) == len(STEPS) + 2


def test_a_corrupt_checkpoint_is_named_after_the_others_are_kept(run):
    weights = run.checkpoint(2) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"1 of 5 checkpoints failed, 4 finished.*step 2: .*model\.safetensors"):
        sweep(run, Norms(), workers=1)
    assert len(list((run.path / "sweeps").rglob("*.json"))) == 4
    assert set(sweep(run, Norms(), steps=[0, 1, 4, 8], workers=1).step) == {0, 1, 4, 8}


def test_an_analysis_that_refuses_one_step_does_not_take_the_others_with_it(run):
    refusing = Norms(refuse=first_weight(4))
    with pytest.raises(AnalysisError, match=r"1 of 5 .* step 4: norms: this model is refused"):
        sweep(run, [refusing, HeadScores(TOKENS)], workers=1)
    assert len(sweep(run, HeadScores(TOKENS), workers=1)) > 0
    assert len(list((run.path / "sweeps").rglob("norms-*/*.json"))) == 4
    assert len(list((run.path / "sweeps").rglob("head_scores-*/*.json"))) == 5


def test_a_bug_in_an_analysis_keeps_its_cause(run):
    with pytest.raises(AnalysisError, match=r"5 of 5 checkpoints failed.*step 0: broken: ZeroDivisionError") as caught:
        sweep(run, Broken(), workers=1)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_what_cannot_be_swept_is_refused_before_any_compute(run, tmp_path):
    analysis = Norms(calls=str(tmp_path / "calls"))
    with pytest.raises(RunError, match="no checkpoint at step 3; it has 0, 1, 2, 4, 8"):
        sweep(run, analysis, steps=[0, 3])
    with pytest.raises(AnalysisError, match="workers=0"):
        sweep(run, analysis, workers=0)
    with pytest.raises(AnalysisError, match=r"takes an Analysis, .* not a function"):
        sweep(run, lambda model: [])
    with pytest.raises(AnalysisError, match=r"unknown keys \['vale'\]"):
        sweep(run, Misspelt(), workers=1)
    with pytest.raises(RunError, match="no checkpoints"):
        sweep(create_run(tmp_path / "empty", {"config": {"seed": 0}}), analysis)
    assert calls(analysis) == 0


def test_values_come_back_to_the_last_bit(run):
    frame = sweep(run, Norms(), workers=1)
    assert list(frame.value[frame.metric == "first"]) == [first_weight(step) for step in STEPS]


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_a_table_survives_being_saved(run, tmp_path, suffix):
    frame = sweep(run, [HeadScores(TOKENS), Norms()], workers=1)
    path = save_rows(frame, tmp_path / f"rows.{suffix}")
    pandas.testing.assert_frame_equal(load_rows(path), frame, check_exact=True)  # the label "NA" is a word, not a null
    with pytest.raises(AnalysisError, match=r"\.csv or \.json"):
        save_rows(frame, tmp_path / "rows.parquet")


def test_processes_start_only_where_they_save_time(monkeypatch):
    monkeypatch.setattr(executors, "n_cores", lambda: 4)
    assert executors.worth(seconds=0.01, n_tasks=100) == 1
    assert executors.worth(seconds=1.0, n_tasks=3) == 1
    assert executors.worth(seconds=1.0, n_tasks=100) == 4
    assert executors.worth(seconds=60.0, n_tasks=2) == 2
    assert executors.worth(seconds=60.0, n_tasks=0) == 1


def run_script(tmp_path, text: str) -> subprocess.CompletedProcess:
    script = tmp_path / "script.py"
    script.write_text(text)
    root = Path(executors.__file__).parents[2]
    return subprocess.run([sys.executable, script], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(root)})


UNGUARDED = """
import torch
from interp_gpt2 import Run, sweep
from interp_gpt2.analysis.attention_patterns import HeadScores
{definition}
frame = sweep(Run({path!r}), {name}(torch.zeros(1, 4, dtype=torch.int64)), workers=2)
print(len(frame), "rows")
"""


def test_a_script_needs_no_main_guard(run, tmp_path):
    done = run_script(tmp_path, UNGUARDED.format(definition="", path=str(run.path), name="HeadScores"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("rows\n")
    assert done.stdout.count("rows") == 1


def test_a_script_that_holds_its_analysis_is_told_of_the_guard_it_lacks(run, tmp_path):
    definition = "class Mine(HeadScores): pass"
    done = run_script(tmp_path, UNGUARDED.format(definition=definition, path=str(run.path), name="Mine"))
    assert done.returncode == 1
    assert "__name__ == '__main__'" in done.stderr.splitlines()[-1]


def test_gradients_are_off_and_the_caller_keeps_his(run):
    class Watch(Norms):
        def __call__(self, model: GPT2) -> list[Row]:
            value: Tensor = model(TOKENS).sum()
            return [{"metric": "grad", "value": float(value.requires_grad)}]

    assert list(sweep(run, Watch(), workers=1).value) == [0.0] * len(STEPS)
    assert torch.is_grad_enabled()


def test_an_edit_to_another_analysis_leaves_stored_rows_valid(tmp_path, monkeypatch):
    from interp_gpt2.sweeps import results

    package = tmp_path / "interp_gpt2"
    for name, text in {
        "model.py": "",
        "analysis/heads.py": "from interp_gpt2.analysis.rows import Row",
        "analysis/rows.py": "import interp_gpt2.analysis.base",
        "analysis/base.py": "",
        "analysis/other.py": "",
        "convert/names.py": "",
        "sweeps/results.py": "",
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    monkeypatch.setattr(results, "__file__", str(package / "sweeps" / "results.py"))

    def edited(name: str) -> bool:
        results.code_hash.cache_clear()
        before = results.code_hash("interp_gpt2.analysis.heads")
        with (package / name).open("a") as file:
            file.write("\nx = 1\n")
        results.code_hash.cache_clear()
        return results.code_hash("interp_gpt2.analysis.heads") != before

    try:
        changed = {name: edited(name) for name in ("model.py", "analysis/heads.py", "analysis/rows.py", "analysis/base.py",
                                                   "convert/names.py", "analysis/other.py", "sweeps/results.py")}  # fmt: skip
    finally:
        results.code_hash.cache_clear()
    assert [name for name, stale in changed.items() if not stale] == ["analysis/other.py", "sweeps/results.py"]
