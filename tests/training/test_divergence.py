"""Where a loss that is no number comes from: planted, and found."""

import json
import math
from dataclasses import replace

import pytest
import torch

from interp_gpt2.config import GPT2Config
from interp_gpt2.data.source import load_source
from interp_gpt2.errors import DivergenceError
from interp_gpt2.runs.run import Run
from interp_gpt2.training import loop, update
from interp_gpt2.training.config import Checkpoints, TrainConfig
from interp_gpt2.training.divergence import FirstNonFinite, finite_weights, first_nonfinite
from interp_gpt2.training.events import Saved
from interp_gpt2.training.loop import train
from interp_gpt2.training.machine import Machine
from interp_gpt2.training.update import Updates, new_updates

CONFIG = TrainConfig(
    data="repeated-random",
    model=GPT2Config(n_layers=2, n_heads=2, d_model=16, n_ctx=8, d_vocab=64),
    n_steps=20,
    batch_size=4,
    warmup_steps=3,
    log_every=10,
    eval_every=100,
    threads=1,
    precision="fp32",
    checkpoints=Checkpoints(per_doubling=0, resume_every=4, anchors=0),
)


@pytest.fixture
def updates() -> Updates:
    return new_updates(CONFIG, load_source(CONFIG.data), Machine.for_config(CONFIG))


HUGE = 3e38  # float32 ends at 3.4e38


@pytest.mark.parametrize(
    ("weight", "hook_point"),
    [
        ("blocks.0.ln1.weight", "blocks.0.attn.q"),
        ("blocks.1.attn.qkv.weight", "blocks.1.attn.q"),
        ("blocks.1.attn.proj.weight", "blocks.1.ln2.scale"),  # z is small; the layer norm squares
        ("blocks.0.mlp.fc.weight", "blocks.0.mlp.pre"),
        ("blocks.1.mlp.proj.weight", "ln_final.scale"),
        ("lm_head.weight", "unembed.out"),
    ],
)
def test_a_weight_that_is_too_large_is_found_where_its_values_leave_the_range(weight, hook_point):
    config = replace(CONFIG, model=replace(CONFIG.model, tied=False))
    updates = new_updates(config, load_source(CONFIG.data), Machine.for_config(config))
    with torch.no_grad():
        dict(updates.model.named_parameters())[weight].fill_(HUGE)
    found = first_nonfinite(updates, 1)
    assert (found.weight, found.hook_point, found.gradient) == (None, hook_point, None)
    assert found.nan + found.inf > 0


def test_only_the_sequences_with_the_bad_token_are_named(updates):
    tokens = updates.batch_of(4).tokens[:, :-1]
    token = int(tokens[2, 0])
    with torch.no_grad():
        updates.model.wte.weight[token] = HUGE
    found = first_nonfinite(updates, 5)
    assert found.hook_point == "blocks.0.ln1.scale"
    assert found.sequences == tuple((tokens == token).any(1).nonzero().flatten().tolist())
    assert found.inf == int((tokens == token).sum())


def test_masked_scores_are_infinite_in_every_sound_pass(updates):
    assert first_nonfinite(updates, 1) == FirstNonFinite(None, None, None)


def test_a_weight_that_is_no_number_is_named_itself(updates):
    with torch.no_grad():
        updates.model.blocks[1].mlp.fc.bias[3] = math.nan
    assert str(first_nonfinite(updates, 1)) == "the weights of blocks.1.mlp.fc.bias"
    assert not finite_weights(updates.model)


def test_where_only_the_gradient_is_not_finite_the_weight_nearest_to_the_output_is_named(updates):
    block = updates.model.blocks[1]
    with torch.no_grad():
        block.mlp.fc.weight.zero_()
        block.mlp.fc.bias.fill_(-100)  # GELU and its slope are 0 there: nothing passes forwards
        block.mlp.proj.weight.fill_(HUGE)  # and infinity times 0 comes back
        updates.model.ln_final.weight.fill_(1e4)
    found = first_nonfinite(updates, 1)
    assert (found.weight, found.hook_point) == (None, None)
    assert found.gradient == "blocks.1.mlp.fc.bias"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_changes_no_weight_then_or_later(tmp_path, monkeypatch, optimizer, bad):
    config = replace(CONFIG, optimizer=optimizer)
    sound, calls, seen = update.NextTokenLoss.forward, [], {}

    def poisoned(self, tokens, documents):
        calls.append(tokens)
        return sound(self, tokens, documents) * (bad if len(calls) == 6 else 1)

    def looking(run, updates, step, *measured):
        seen.update({name: value.clone() for name, value in updates.model.state_dict().items()})
        return real(run, updates, step, *measured)

    real = loop.diverged
    monkeypatch.setattr(update.NextTokenLoss, "forward", poisoned)
    monkeypatch.setattr(loop, "diverged", looking)
    events = []
    with pytest.raises(DivergenceError, match=r"diverged at step 6: loss (nan|inf).*the last checkpoint, of step 4"):
        train(config, tmp_path / "run", progress=events.append)
    assert len(calls) >= 8, "seen only at the next checkpoint, two updates later"
    monkeypatch.undo()
    monkeypatch.setenv("INTERP_GPT2_CACHE", str(tmp_path / "cache"))
    run = Run(tmp_path / "run")
    for name, value in run.recompute(5).state_dict().items():
        assert torch.equal(seen[name], value), name
    assert [event.step for event in events if isinstance(event, Saved)] == run.steps == [0, 4]
    assert run.metrics()[-1]["nonfinite"]["loss"] == str(bad)
    record = json.loads((run.path / "divergence.json").read_text())
    assert (record["step"], record["loss"], record["last_checkpoint"]) == (6, str(bad), 4)
    assert record["batch"]["of_step"] == 5
    train(config, run.path, resume=True)  # not poisoned this time
    assert not (run.path / "divergence.json").exists()
    assert run.steps[-1] == 20


def test_weights_that_leave_the_range_after_a_finite_gradient_are_not_saved(tmp_path):
    config = replace(CONFIG, lr=1e39, warmup_steps=0, min_lr=0, checkpoints=Checkpoints(anchors=0))
    with pytest.raises(DivergenceError, match=r"diverged at step 1: loss 4\.\d+.*first not finite: the weights of wte\.weight"):
        train(config, tmp_path / "run")
    assert Run(tmp_path / "run").steps == [0]
