"""Training: what it writes, that it learns, and what it refuses."""

import gc
import math
import signal
from dataclasses import replace

import pytest
import torch

from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import ConfigError, DataError, DivergenceError, RunError
from interp_gpt2.runs.checkpoint import verify_checkpoint
from interp_gpt2.runs.manifest import read_manifest
from interp_gpt2.runs.run import Run
from interp_gpt2.training.config import Checkpoints, TrainConfig
from interp_gpt2.training.events import Finished, Logged, Notice, Saved, Started
from interp_gpt2.training.loop import train
from interp_gpt2.training.speed import MEASURED
from interp_gpt2.training.update import NextTokenLoss, Updates

TINY = TrainConfig(
    data="repeated-random",
    model=GPT2Config(n_layers=1, n_heads=2, d_model=16, n_ctx=8),
    n_steps=12,
    batch_size=4,
    lr=1e-2,
    warmup_steps=3,
    log_every=1,
    eval_every=100,
    threads=1,
    checkpoints=Checkpoints(resume_every=5, anchors=0),
)


def test_a_run_has_its_checkpoints_its_metrics_and_everything_needed_to_repeat_it(tmp_path):
    run = train(TINY, tmp_path / "run")
    assert run.steps == [0, 1, 2, 4, 5, 8, 10, 12]
    assert [step for step in run.steps if read_manifest(run.checkpoint(step)).can_resume] == [10, 12]
    rows = run.metrics()
    assert [row["step"] for row in rows] == list(range(13))
    assert [row["tokens"] for row in rows] == [step * 4 * 8 for step in range(13)]
    assert set(rows[0]) == {"step", "tokens", "val_loss"}
    assert set(rows[6]) - set(MEASURED) == {"step", "tokens", "loss", "lr", "grad_norm"}
    assert set(rows[6]) & set(MEASURED) == set(MEASURED) - {"mfu_palm"}  # for which this processor has no datasheet
    assert all(rows[6][name] > 0 for name in ("tokens_per_s", "mfu_causal", "peak_memory_bytes"))
    assert 0 <= rows[6]["data_share"] <= 1
    assert set(rows[12]) == set(rows[6]) | {"val_loss"}
    settings = run.settings
    assert TrainConfig.from_dict(settings["config"]) == replace(TINY, model=replace(TINY.model, d_vocab=64))
    assert settings["n_params"] == run.model().config.n_params == sum(p.numel() for p in run.model().parameters())
    assert settings["data"] == run.source().fingerprint()
    assert settings["fingerprint"]["torch"] == torch.__version__
    assert settings["fingerprint"]["threads"] == 1
    assert run.tokens_seen(12) == 12 * 4 * 8
    assert run.tokenizer().sha256 == settings["tokenizer"]["sha256"]


def test_the_first_loss_is_that_of_the_model_at_initialisation_on_the_first_batch(tmp_path):
    run = train(TINY, tmp_path / "run")
    tokens = run.source().batch(0, 4, 8, TINY.seed)
    log_probs = run.model(0)(tokens[:, :-1]).log_softmax(-1)
    by_hand = -log_probs.gather(-1, tokens[:, 1:, None]).mean()
    assert run.metrics()[1]["loss"] == pytest.approx(by_hand.item(), abs=1e-6)


def test_a_text_that_is_shorter_than_a_window_is_refused_before_there_is_a_run(tmp_path):
    text = tmp_path / "short.txt"
    text.write_text("to be or not to be\n\n" * 50)
    for n_ctx, part in ((500, "validation"), (5000, "train")):
        with pytest.raises(DataError, match=f"the {part} text has .* n_ctx={n_ctx} needs"):
            train(replace(TINY, data=str(text), model=replace(TINY.model, n_ctx=n_ctx)), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_the_same_config_gives_the_same_weights_and_another_seed_others(tmp_path):
    hashes = [
        train(replace(TINY, seed=seed), tmp_path / name).checkpoint_hash(12) for name, seed in (("a", 3), ("b", 3), ("c", 4))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_training_learns_a_text_that_repeats_and_remembers_where_it_is(tmp_path, monkeypatch):
    (tmp_path / "abc.txt").write_text("abcd\n" * 2000)
    monkeypatch.chdir(tmp_path)
    run = train(replace(TINY, data="abc.txt", n_steps=60), tmp_path / "run")
    monkeypatch.chdir("/")
    first, last = run.metrics()[0], run.metrics()[-1]
    assert first["val_loss"] == pytest.approx(math.log(5), abs=0.1)
    assert last["val_loss"] < 0.05
    assert run.source().name == "abc.txt"


def test_progress_tells_what_happens_in_order(tmp_path):
    events = []
    run = train(replace(TINY, log_every=4), tmp_path / "run", progress=events.append)
    assert isinstance(events[0], Started)
    assert events[0].n_params == run.settings["n_params"]
    assert isinstance(events[-1], Finished)
    assert [event.row for event in events if isinstance(event, Logged)] == run.metrics()
    saved = [event for event in events if isinstance(event, Saved)]
    assert [event.step for event in saved] == run.steps
    assert [event.step for event in saved if event.resumable] == [0, 5, 10, 12]
    assert all(events.index(event) > 1 for event in saved), "a row is written before the checkpoint that it belongs to"


def test_weight_decay_pulls_on_matrices_and_embeddings_only(tmp_path):
    without, with_decay = (
        train(replace(TINY, n_steps=1, weight_decay=decay, warmup_steps=0), tmp_path / str(decay)).model(1).state_dict()
        for decay in (0.0, 1.0)
    )
    changed = {name for name in without if not torch.equal(without[name], with_decay[name])}
    assert changed == {name for name in without if without[name].ndim == 2}


def test_clipping_bounds_the_step_and_logs_the_norm_it_had(tmp_path):
    free, clipped = (train(replace(TINY, grad_clip=clip), tmp_path / str(clip)).metrics() for clip in (0.0, 1e-3))
    assert free[1]["grad_norm"] == clipped[1]["grad_norm"] > 1e-3
    assert free[5]["loss"] != clipped[5]["loss"]


def test_training_leaves_the_callers_random_numbers_threads_and_signals_alone(tmp_path):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    threads, handlers = torch.get_num_threads(), [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    train(replace(TINY, model=replace(TINY.model, dropout=0.5)), tmp_path / "run")
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_directory_that_exists_is_refused_unless_it_is_to_be_overwritten(tmp_path):
    train(replace(TINY, n_steps=3), tmp_path / "run")
    with pytest.raises(RunError, match="already exists"):
        train(TINY, tmp_path / "run")
    assert train(replace(TINY, n_steps=2), tmp_path / "run", overwrite=True).steps == [0, 1, 2]
    with pytest.raises(RunError, match="exclude each other"):
        train(TINY, tmp_path / "run", resume=True, overwrite=True)


def test_a_loss_that_is_not_finite_stops_training_and_leaves_the_last_good_checkpoint(tmp_path):
    events = []
    with pytest.raises(
        DivergenceError, match=r"diverged at step \d+: loss .*nan.*the last checkpoint, of step \d+, is from before"
    ):
        train(replace(TINY, lr=1e30, warmup_steps=0, min_lr=0, log_every=50), tmp_path / "run", progress=events.append)
    saved = [event for event in events if isinstance(event, Saved)]
    verify_checkpoint(saved[-1].path)
    weights = Run(tmp_path / "run").model(saved[-1].step).state_dict().values()
    assert all(torch.isfinite(weight).all() for weight in weights)
    assert "nonfinite" in Run(tmp_path / "run").metrics()[-1]


def test_a_device_that_is_not_here_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="device='cuda:77' cannot be used here"):
        train(replace(TINY, device="cuda:77"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_compiled_in_place_trains_to_the_same_weights_under_the_same_names(tmp_path, monkeypatch):
    compiled = []

    def compile_quickly(loss, dynamic):  # dynamo without a C++ compiler behind it
        compiled.append(loss)
        torch.nn.Module.compile(loss, backend="eager", dynamic=dynamic)

    monkeypatch.setattr(NextTokenLoss, "compile", compile_quickly)
    plain = train(replace(TINY, n_steps=3), tmp_path / "plain").model(3).state_dict()
    traced = train(replace(TINY, n_steps=3, compile=True), tmp_path / "compiled").model(3).state_dict()
    assert len(compiled) == 1
    assert plain.keys() == traced.keys()
    for name, weight in plain.items():
        assert torch.allclose(weight, traced[name], atol=1e-6), name


def test_notices_are_only_for_what_a_user_should_know(tmp_path):
    events = []
    train(TINY, tmp_path / "run", progress=events.append)
    assert not [event for event in events if isinstance(event, Notice)]


def test_a_micro_batch_that_fits_is_found_before_the_first_step_and_recorded(tmp_path, monkeypatch):
    backward = Updates.backward

    def small_memory(self, batch, *averaged):
        if len(batch.tokens) > 2 and self.machine.micro_batch is None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return backward(self, batch, *averaged)

    events = []
    with monkeypatch.context() as patch:
        patch.setattr(Updates, "backward", lambda self, batch, averaged=True: small_memory(self, batch, averaged))
        found = train(replace(TINY, micro_batch="auto"), tmp_path / "auto", progress=events.append)
    assert events[0].micro_batch == 2
    assert found.settings["config"]["micro_batch"] == "auto"
    assert found.settings["fingerprint"]["micro_batch"] == 2
    given = train(replace(TINY, micro_batch=2), tmp_path / "given")
    assert found.checkpoint_hash(12) == given.checkpoint_hash(12)
    ample = train(replace(TINY, micro_batch="auto"), tmp_path / "ample")
    assert ample.checkpoint_hash(12) == train(TINY, tmp_path / "plain").checkpoint_hash(12)
    assert "micro_batch" not in ample.settings["fingerprint"]


def test_another_micro_batch_may_go_on_and_is_said(tmp_path):
    train(replace(TINY, n_steps=6, schedule="constant"), tmp_path / "run")
    events = []
    train(replace(TINY, schedule="constant", micro_batch=3), tmp_path / "run", resume=True, progress=events.append)
    assert Notice("not bit for bit what the uninterrupted run would be: micro_batch None, now 3") in events


def test_no_garbage_is_collected_during_training_and_all_is_as_before_afterwards(tmp_path):
    seen = set()
    assert gc.isenabled()
    train(TINY, tmp_path / "run", progress=lambda event: seen.add((gc.isenabled(), gc.get_freeze_count() > 0)))
    assert (False, True) in seen
    assert (gc.isenabled(), gc.get_freeze_count()) == (True, 0)
    gc.disable()
    try:
        train(replace(TINY, n_steps=1), tmp_path / "other")
        assert not gc.isenabled()
    finally:
        gc.enable()
