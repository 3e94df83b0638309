"""Features of a dictionary are looked at as neurons are; where the dictionary is the identity, they are the neurons."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from interp_gpt2.analysis.neuron_history import neuron_histories
from interp_gpt2.analysis.windows import Windows
from interp_gpt2.causal.feature_history import feature_histories, strongest_features, written_directions
from interp_gpt2.causal.splice import splice
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2
from interp_gpt2.views import neuron_view, save_neuron_pages
from tests.causal.test_splice import SAE

AT = "blocks.0.resid_post"
LABELS = [f"t{token}" for token in range(50)]
LENGTHS = torch.tensor([16, 3, 16, 1, 9, 16, 16, 12])
WINDOWS = Windows(torch.randint(0, 50, (8, 16), generator=torch.Generator().manual_seed(0)), LENGTHS, torch.arange(8) // 2)


class Identity:
    def encode(self, activation: Tensor) -> Tensor:
        return activation

    def decode(self, features: Tensor) -> Tensor:
        return features


def test_features_of_the_identity_are_the_neurons(model: GPT2) -> None:
    spliced = splice(model, Identity(), ("mlp.post", 1))
    features = feature_histories({7: spliced}.__getitem__, [7], WINDOWS, [5, 90], n_contexts=3, width=8)
    neurons = neuron_histories({7: model}.__getitem__, [7], WINDOWS, [(1, 5), (1, 90)], n_contexts=3, width=8)
    assert [(one.label, one.kind, one.place) for one in features] == [
        ("L1F5", "feature", "Features of blocks.1.mlp.post"),
        ("L1F90", "feature", "Features of blocks.1.mlp.post"),
    ]
    for feature, neuron in zip(features, neurons, strict=True):
        assert feature.d_model == neuron.d_model == 32
        found, expected = feature.last, neuron.last
        assert math.isnan(found.input_cosine)
        assert found.output_cosine == pytest.approx(1, abs=1e-6)
        assert [context.tokens for context in found.top] == [context.tokens for context in expected.top]
        assert (found.n, found.frequency) == (expected.n, expected.frequency)
        assert (found.mean, found.std, found.highest) == pytest.approx((expected.mean, expected.std, expected.highest), abs=1e-5)
        for side in ("promoted", "suppressed"):
            ours, theirs = (dict(getattr(record.effect, side)) for record in (found, expected))
            assert list(ours) == list(theirs)
            assert list(ours.values()) == pytest.approx(list(theirs.values()), abs=1e-5)


def test_adding_to_a_feature_moves_the_stream_as_it_says(model: GPT2) -> None:
    tokens = WINDOWS.tokens[:1]
    places = {
        AT: AT,
        "blocks.1.attn.z": "blocks.1.attn_out",
        "blocks.1.mlp.post": "blocks.1.mlp_out",
        "embed": "blocks.0.resid_pre",
    }
    for point, after in places.items():
        sae = SAE(128 if "mlp.post" in point else 32)
        spliced = splice(model, sae, point)
        (direction,) = written_directions(spliced, [11])
        more = torch.zeros(80).index_fill(0, torch.tensor([11]), 0.5)
        with torch.no_grad():
            _, before = spliced.run_with_cache(tokens, after)
            _, moved = spliced.run_with_cache(tokens, after, {spliced.splice.features: lambda f, site, by=more: f + by})
        torch.testing.assert_close(moved[after] - before[after], (0.5 * direction).expand(1, 16, 32), atol=2e-5, rtol=1e-3)


def test_the_strongest_features_are_those_that_write_most(model: GPT2) -> None:
    sae = SAE(32)
    with torch.no_grad():
        sae.W_dec[[3, 60]] *= 50
    spliced = splice(model, sae, AT)
    assert strongest_features(spliced, WINDOWS, 2) == [3, 60]


def test_what_cannot_be_shown_is_refused(model: GPT2) -> None:
    spliced = splice(model, SAE(32), AT)
    load = {0: spliced}.__getitem__
    with pytest.raises(AnalysisError, match=r"no feature 80 at blocks\.0\.resid_post: the dictionary has 80, from 0"):
        feature_histories(load, [0], WINDOWS, [80])
    with pytest.raises(AnalysisError, match="at least one of each"):
        feature_histories(load, [], WINDOWS, [1])
    with pytest.raises(AnalysisError, match=r"'blocks\.0\.attn\.q' does not go straight into the residual stream"):
        feature_histories(lambda step: splice(model, SAE(32), ("q", 0)), [0], WINDOWS, [1])


def test_pages_of_features_are_those_of_neurons_with_their_own_words(model: GPT2, make_gpt2, config, tmp_path: Path) -> None:
    models = {step: splice(make_gpt2(config, step), SAE(32), AT) for step in (0, 100)}
    histories = feature_histories(models.__getitem__, [0, 100], WINDOWS, [60, 3])
    index = save_neuron_pages(histories, LABELS, tmp_path, "a run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["L0F3.html", "L0F60.html", "index.html"]
    text = {path.name: re.sub(r"(?s)<(style|script).*?</\1>", "", path.read_text("utf-8")) for path in tmp_path.iterdir()}
    assert "Features of blocks.0.resid_post" in text[index.name]
    for page in text.values():
        assert "neuron" not in re.sub(r"<[^>]*>", "", page).lower()
    assert "s feature it was: activations" in text["L0F3.html"]
    assert "output weights (cosine" in text["L0F3.html"]
    assert "input and output" not in text["L0F3.html"]
    assert neuron_view(replace(histories[0], records=histories[0].records[1:]), LABELS).title == "Feature L0F60"
