"""What is logged while training is what a later sweep finds, once, at a cost that is stated."""

import signal
from dataclasses import replace

import pytest
import torch

from interp_gpt2.analysis.registry import analysis_named
from interp_gpt2.config import GPT2Config
from interp_gpt2.data.batches import rng_at
from interp_gpt2.errors import AnalysisError, TokenizerError
from interp_gpt2.generation import generate
from interp_gpt2.runs.metrics import ONLINE, SAMPLES, read_metrics
from interp_gpt2.runs.run import Run
from interp_gpt2.sweeps import sweep
from interp_gpt2.training.config import Checkpoints, TrainConfig
from interp_gpt2.training.events import Analysed, Finished, Logged
from interp_gpt2.training.loop import train
from interp_gpt2.training.online import SAMPLING, online_table
from interp_gpt2.training.signals import Interrupted

CONFIG = TrainConfig(
    data="markov",
    model=GPT2Config(n_layers=2, n_heads=2, d_model=16, n_ctx=64, dropout=0.1),
    n_steps=9,
    batch_size=4,
    lr=1e-2,
    warmup_steps=0,
    log_every=2,
    eval_every=100,
    threads=1,
    device="cpu",
    online=("induction_heads", "in_context_learning"),
    online_every=4,
    sample_tokens=12,
    sample_prompt="ABAB",
    checkpoints=Checkpoints(per_doubling=0, every=3, at=(4,), resume_every=4, anchors=0),
)


@pytest.fixture(scope="module", autouse=True)
def _cache_of_its_own(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTERP_GPT2_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def told() -> list:
    """What the uninterrupted run said."""
    return []


@pytest.fixture(scope="module")
def whole(tmp_path_factory, told) -> Run:
    """The uninterrupted run."""
    return train(CONFIG, tmp_path_factory.mktemp("whole") / "run", progress=told.append)


def without_seconds(run: Run) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in read_metrics(run.path, ONLINE)]


def test_online_rows_are_those_of_a_sweep_over_the_checkpoints(whole, told):
    run, events = whole, told
    logged = read_metrics(run.path, ONLINE)
    assert [(row["step"], row["analysis"]) for row in logged] == [(s, name) for s in (0, 4, 8, 9) for name in CONFIG.online]
    assert [(e.step, e.analysis, e.seconds) for e in events if isinstance(e, Analysed)] == [
        (row["step"], row["analysis"], row["seconds"]) for row in logged
    ]
    assert events[-1] == Finished(9, events[-1].seconds, pytest.approx(sum(row["seconds"] for row in logged)))
    analyses = [analysis_named(name, run.source(), 64) for name in CONFIG.online]
    steps = [0, 4, 9]
    table = online_table(run)
    torch.set_num_threads(1)
    later = sweep(run, analyses, steps=steps, workers=1)
    assert table[table.step.isin(steps)].reset_index(drop=True).equals(later)
    assert (table[table.metric == "induction"].groupby("step").size() == 4).all()


def test_what_is_measured_leaves_the_training_as_it_would_be_without(tmp_path, whole):
    plain = train(replace(CONFIG, online=(), sample_tokens=0), tmp_path / "plain")
    assert whole.checkpoint_hash(9) == plain.checkpoint_hash(9)
    assert not (plain.path / ONLINE).exists()
    assert not (plain.path / SAMPLES).exists()


def test_a_sample_is_what_its_checkpoint_generates_by_seed_and_step(tmp_path, whole):
    samples = {row["step"]: row for row in read_metrics(whole.path, SAMPLES)}
    assert list(samples) == [0, 3, 4, 6, 9]  # the schedule; step 8 is there to be resumed from
    assert all(len(row["text"]) == 12 and row["prompt"] == "ABAB" for row in samples.values())
    assert len({row["text"] for row in samples.values()}) > 1
    prompt = torch.tensor([whole.tokenizer().encode("ABAB")])
    for step, row in samples.items():
        seed = int(rng_at(CONFIG.seed, step, SAMPLING).integers(2**63))
        drawn = generate(whole.model(step), prompt, 12, row["temperature"], seed=seed)[0, 4:]
        assert whole.tokenizer().decode(drawn.tolist()) == row["text"]


@pytest.mark.parametrize("step", [4, 6])
def test_a_run_that_goes_on_has_every_row_once(tmp_path, whole, step):
    def stop(event):
        if isinstance(event, Logged) and event.step == step:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        train(CONFIG, tmp_path / "parts", progress=stop)
    parts = train(CONFIG, tmp_path / "parts", resume=True)
    assert without_seconds(parts) == without_seconds(whole)
    assert read_metrics(parts.path, SAMPLES) == read_metrics(whole.path, SAMPLES)


def test_a_killed_run_forgets_what_came_after_the_checkpoint_it_goes_on_from(tmp_path, whole):
    def vanish(event):
        if isinstance(event, Analysed) and (event.step, event.analysis) == (8, "induction_heads"):
            raise MemoryError

    with pytest.raises(MemoryError):
        train(CONFIG, tmp_path / "parts", progress=vanish)
    assert read_metrics(tmp_path / "parts", ONLINE)[-1]["step"] == 8
    parts = train(CONFIG, tmp_path / "parts", resume=True)
    assert without_seconds(parts) == without_seconds(whole)
    assert read_metrics(parts.path, SAMPLES) == read_metrics(whole.path, SAMPLES)


def test_without_a_prompt_a_sample_continues_the_held_out_split(tmp_path, text_file):
    config = replace(CONFIG, data=str(text_file), sample_prompt="", online=(), n_steps=1)
    run = train(config, tmp_path / "run")
    prompt = read_metrics(run.path, SAMPLES)[0]["prompt"]
    held_out = run.tokenizer().decode([token for document in run.source().validation_documents() for token in document.tolist()])
    assert len(prompt) > 10
    assert prompt in held_out


def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(AnalysisError, match="did you mean 'induction_heads'"):
        train(replace(CONFIG, online=("induction_haeds",)), tmp_path / "run")
    with pytest.raises(TokenizerError):
        train(replace(CONFIG, sample_prompt="lower case"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
