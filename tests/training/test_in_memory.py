"""Training in memory is training, less the directory."""

from dataclasses import replace

import pytest
import torch

from interp_gpt2.causal.ablation import without_residual
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import ConfigError, DivergenceError, EditError
from interp_gpt2.training.config import TrainConfig
from interp_gpt2.training.in_memory import train_in_memory
from interp_gpt2.training.loop import train

CONFIG = TrainConfig(
    data="markov", n_steps=6, batch_size=4, eval_every=3, warmup_steps=0, threads=1, precision="fp32",
    model=GPT2Config(n_layers=2, n_heads=2, d_model=16, n_ctx=16, dropout=0.1),
)  # fmt: skip


def test_weights_and_losses_are_those_of_a_run(tmp_path):
    run = train(CONFIG, tmp_path / "run")
    trained = train_in_memory(CONFIG)
    for name, weight in run.model().state_dict().items():
        assert torch.equal(weight, trained.model.state_dict()[name]), name
    assert [row["val_loss"] for row in trained.rows] == [row["val_loss"] for row in run.metrics() if "val_loss" in row]


def test_a_model_is_trained_under_its_edits_and_cannot_be_saved_without_them(tmp_path):
    trained = train_in_memory(CONFIG, without_residual(CONFIG.model))
    plain = train_in_memory(CONFIG)
    assert trained.rows[-1]["val_loss"] != plain.rows[-1]["val_loss"]
    with pytest.raises(EditError, match="cannot be saved"):
        trained.model.save(str(tmp_path / "model"))


def test_divergence_is_an_error():
    with pytest.raises(DivergenceError, match="learning rate"):
        train_in_memory(replace(CONFIG, lr=1e30, grad_clip=0.0, n_steps=60, min_lr=1e29))


def test_a_compiled_pass_under_edits_is_refused():
    with pytest.raises(ConfigError, match="compile"):
        train_in_memory(replace(CONFIG, compile=True), without_residual(CONFIG.model))
