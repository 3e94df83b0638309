"""A training config says what it means, refuses what it does not, and every recipe is one."""

import json
import subprocess
import sys
from dataclasses import replace
from importlib.resources import files

import pytest

from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import ConfigError
from interp_gpt2.training.config import RECIPES, Checkpoints, TrainConfig, load_recipe
from interp_gpt2.training.schedule import checkpoint_steps, resume_steps


def test_a_config_survives_json():
    config = TrainConfig(
        seed=7, betas=(0.8, 0.9), checkpoints=Checkpoints(per_doubling=2, at=(3, 5)), model=GPT2Config(bias=False)
    )
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"steps": 5}, "did you mean 'n_steps'"),
        ({"model": {"n_layer": 2}}, "did you mean 'n_layers'"),
        ({"checkpoints": {"evry": 2}}, "did you mean 'every'"),
        ({"n_steps": 0}, "n_steps=0 must be at least 1"),
        ({"lr": "fast"}, "lr='fast' is not of type float"),
        ({"lr": 0}, "lr=0 must be greater than 0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"min_lr": 1.0}, "min_lr=1.0 is greater than lr"),
        ({"betas": [0.9]}, "betas=(0.9,) must be two numbers"),
        ({"betas": [0.9, 1.0]}, "betas=(0.9, 1.0) must be two numbers"),
        ({"betas": ["a", "b"]}, "betas=('a', 'b') must be two numbers"),
        ({"compile": 1}, "compile=1 is not of type bool"),
        ({"seed": True}, "seed=True is not of type int"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**64}, "must be below 2^64"),
        ({"threads": 0}, "threads=0"),
        ({"tokenizer": "bpe"}, "tokenizer='bpe' is not char, byte, gpt2 or bpe:N"),
        ({"precision": "fp16"}, "precision='fp16' is not one of auto, fp32, bf16"),
        ({"micro_batch": 0}, "micro_batch=0 must be a number of sequences from 1, or 'auto'"),
        ({"micro_batch": "all"}, "micro_batch='all' must be"),
        ({"micro_batch": 2.5}, "micro_batch=2.5 is not of type"),
        ({"schedule": "wsd", "min_lr": 1.0}, "min_lr=1.0 is greater than lr=0.001; wsd falls"),
        ({"decay_fraction": 1.5}, "decay_fraction=1.5 must be from 0 to 1"),
        ({"optimizer": "sgd"}, "optimizer='sgd' is not one of adamw, muon"),
        ({"guard_z": -1}, "guard_z=-1"),
        ({"guard_window": 1}, "guard_window=1 must be at least 2"),
        ({"guard_action": "stop"}, "guard_action='stop' is not one of skip, note"),
        ({"online": [1]}, "online holds 1"),
        ({"tracking": "mlflow"}, "tracking='mlflow' is not one of none, tensorboard, wandb"),
        ({"model": 3}, "model=3 is not of type GPT2Config"),
        ({"checkpoints": {"at": [1, 2.5]}}, "checkpoints.at holds 2.5"),
        ({"checkpoints": {"resume_every": 0}}, "checkpoints.resume_every=0"),
    ],
)
def test_a_value_that_describes_no_run_is_refused_by_name(values, said):
    with pytest.raises(ConfigError) as refusal:
        TrainConfig.from_dict(values)
    assert said in str(refusal.value)


def test_every_recipe_loads_and_every_recipe_file_is_listed():
    folder = files("interp_gpt2.training") / "recipes"
    assert {path.name.removesuffix(".toml") for path in folder.iterdir()} == set(RECIPES)
    for name in RECIPES:
        assert isinstance(load_recipe(name), TrainConfig)


def test_the_recipes_that_follow_others_are_what_those_are():
    gpt2, pythia = load_recipe("fineweb-edu-124m"), load_recipe("pythia-like")
    assert gpt2.model == GPT2Config()
    assert (gpt2.tokens_per_step, gpt2.n_steps) == (524_288, 10_000_000_000 // 524_288)
    assert pythia.tokens_per_step == 2_097_152
    steps = checkpoint_steps(pythia.checkpoints, pythia.n_steps)
    assert sorted(steps) == [0, *(2**i for i in range(10)), *range(1000, 143_001, 1000)]
    assert len(steps) == 154
    assert resume_steps(pythia.checkpoints, pythia.n_steps) <= steps  # no other is kept to resume from
    stories = load_recipe("tinystories")
    assert stories.n_steps * stories.tokens_per_step == 327_680_000
    for name, parameters in (("tiny-shakespeare", 10.7e6), ("tiny-shakespeare-cpu", 0.8e6)):
        model = replace(load_recipe(name).model, d_vocab=65)
        assert model.n_params == pytest.approx(parameters, rel=0.02)


def test_the_controls_differ_from_the_induction_demo_in_what_they_control_for_and_nothing_else():
    demo = load_recipe("demo-induction").to_dict()
    for name, fields in (
        ("demo-induction-ordinary-positions", {"pos_init", "pos_std"}),
        ("demo-induction-one-layer", {"n_layers"}),
    ):
        control = load_recipe(name).to_dict()
        assert {field for field in demo["model"] if demo["model"][field] != control["model"][field]} == fields
        assert {field for field in demo if demo[field] != control[field]} == {"model"}


def test_a_recipe_may_be_a_file_and_an_unknown_one_is_told_its_nearest(tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text('data = "notes.txt"\nn_steps = 7\n[model]\nn_layers = 1\nd_model = 32\nn_heads = 2\n')
    assert load_recipe(str(mine)).n_steps == 7
    with pytest.raises(ConfigError, match="did you mean 'demo-induction'"):
        load_recipe("demo-inductoin")
    mine.write_text("n_steps = = 7")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_recipe(str(mine))


def test_configs_need_no_torch():
    code = "import sys, interp_gpt2.training.config as c; c.load_recipe('text'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
