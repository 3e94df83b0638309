"""The ladder script's recipes are what its text says, each one part more than the last."""

from itertools import pairwise
from pathlib import Path

import pytest

from interp_gpt2.config import GPT2Config
from interp_gpt2.training.config import load_recipe
from interp_gpt2.views import figures

RECIPES = sorted((Path(__file__).parents[2] / "analyses/ladder").glob("*.toml"))


def test_rungs_differ_from_the_last_one_in_their_part_alone():
    models = [load_recipe(str(path)).model.to_dict() for path in RECIPES]
    changes = [{name for name in new if new[name] != old[name]} for old, new in pairwise(models)]
    assert len(RECIPES) == 7
    assert changes[1] == {"n_heads", "d_head"}
    assert changes[2] == {"attn_only"}
    assert changes[3] == {"n_layers"}
    assert changes[4] == set(), "the residual stream is no part of the config: an edit takes it out"
    assert changes[5] == {"layer_norm"}
    assert GPT2Config.from_dict(models[0]).n_layers == 0


def test_all_rungs_are_trained_alike():
    configs = [load_recipe(str(path)).to_dict() | {"model": None} for path in RECIPES]
    assert all(config == configs[0] for config in configs)


def test_the_figure_has_every_curve_and_its_last_loss(tmp_path):
    curves = {"bigram": ([0, 10, 100], [4.0, 3.0, 2.5]), "GPT": ([0, 10, 100], [4.0, 2.5, 1.5])}
    figure = figures.ladder(curves, {"trigram": 2.0})
    written = {text.get_text() for text in figure.axes[0].texts}
    assert written == {"bigram 2.50", "GPT 1.50", "trigram (counted) 2.00"}
    _, numbers = figures.save(figure, tmp_path / "ladder.svg")
    assert "GPT,100,1.5" in numbers.read_text()
    with pytest.raises(ValueError, match="bigram"):
        figures.ladder({"bigram": ([0], [4.0])})
