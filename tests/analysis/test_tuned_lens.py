"""The tuned lens starts as the logit lens, undoes a planted affine map, and says where it is no better."""

import json
import math

import pytest
import torch

from interp_gpt2.analysis.lens_files import lens_folder, trained_lens
from interp_gpt2.analysis.logit_lens import logit_lens, residual_streams
from interp_gpt2.analysis.registry import analysis_named
from interp_gpt2.analysis.tuned_lens import (
    LensComparison,
    LensTraining,
    SettlingDepth,
    TunedLens,
    compare_lenses,
    fit_tuned_lens,
    lens_rows,
    settling_depth,
    tuned_lens,
)
from interp_gpt2.config import GPT2Config
from interp_gpt2.data.synthetic_sources import MarkovSource
from interp_gpt2.errors import AnalysisError, ConfigError
from interp_gpt2.model import GPT2

SHORT = LensTraining(n_steps=60, n_positions=256, lr=3e-3)


@pytest.fixture(scope="module")
def windows():
    return torch.randint(0, 50, (64, 16), generator=torch.Generator().manual_seed(3))


def identity(config) -> TunedLens:
    return TunedLens(torch.zeros(config.n_layers, config.d_model, config.d_model), torch.zeros(config.n_layers, config.d_model))


def test_a_lens_of_zeros_is_the_logit_lens(model, tokens):
    logit, tuned = logit_lens(model, tokens), tuned_lens(model, identity(model.config), tokens)
    assert torch.equal(logit.kl, tuned.kl)
    assert torch.equal(logit.top_tokens, tuned.top_tokens)


def test_training_brings_every_layer_nearer_to_the_output_on_tokens_it_has_not_seen(model, windows):
    lens = fit_tuned_lens(model, windows[:48], SHORT)
    found = compare_lenses(logit_lens(model, windows[48:]), tuned_lens(model, lens, windows[48:]))
    assert found.not_better == ()
    assert (found.tuned_kl < 0.8 * found.logit_kl).all()
    assert found.verdict.endswith("at every layer")


def test_a_planted_rotation_of_the_stream_is_undone(config, windows):
    """One layer that rotates the stream: the affine map exists, so that the KL can go to 0, and the logit lens is lost."""
    rotation = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(1))).Q
    model = GPT2(GPT2Config(**config.to_dict() | {"n_layers": 1, "layer_norm": False})).eval()
    with torch.no_grad():
        model.wte.weight.normal_(generator=torch.Generator().manual_seed(2)).mul_(0.5)
    before = model.run_blocks
    model.run_blocks = lambda resid, start=0, stop=None: (
        resid @ rotation if (start, stop) == (0, 1) else before(resid, start, stop)
    )
    lens = fit_tuned_lens(model, windows, LensTraining(n_steps=300, n_positions=512, lr=1e-2))
    found = compare_lenses(logit_lens(model, windows), tuned_lens(model, lens, windows))
    assert found.logit_kl[0] > 1
    assert found.tuned_kl[0] < 0.05


def test_the_same_seed_gives_the_same_lens_also_where_gradients_are_off(model, windows):
    once = fit_tuned_lens(model, windows, LensTraining(5, 64))
    with torch.no_grad():
        again = fit_tuned_lens(model, windows, LensTraining(5, 64))
    assert torch.equal(once.A, again.A)
    assert not torch.equal(once.A, fit_tuned_lens(model, windows, LensTraining(5, 64, seed=1)).A)
    assert all(weight.grad is None for weight in model.parameters())


def test_the_verdict_names_layers_where_it_is_no_better():
    found = LensComparison(("embed", "L0"), torch.tensor([1.0, 0.5]), torch.tensor([0.5, 0.49]), torch.tensor([0.01, 0.02]))
    assert found.not_better == ("L0",)
    assert "NOT nearer to the output at L0 (0.4900 nats, logit lens 0.5000)" in found.verdict
    few = LensComparison(("embed",), torch.tensor([1.0]), torch.tensor([0.9]), torch.tensor([0.03]), n_sequences=2)
    assert few.not_better == ("embed",), "two sequences reach 12.7 standard errors, 1.96 would do"
    unknown = LensComparison(("embed",), torch.tensor([1.0]), torch.tensor([0.5]), torch.tensor([math.nan]))
    assert unknown.not_better == ("embed",), "one sequence has no spread to judge by"


def test_a_prediction_settles_where_it_is_the_outputs_from_then_on():
    top = torch.tensor([[7, 7, 1, 7], [7, 2, 2, 7], [7, 7, 3, 5], [7, 7, 4, 7]])[:, None]
    assert settling_depth(top).tolist() == [[0, 2, 3, 3]]


def test_rows_hold_both_lenses_and_count_the_layers_that_are_no_better(model, windows):
    rows = lens_rows(model, identity(model.config), windows[:6], batch_size=4)
    found = {(row["metric"], row.get("label")): row for row in rows}
    assert found["tuned_kl", "L0"] == found["lens_kl", "L0"] | {"metric": "tuned_kl"}
    assert found["tuned_minus_lens_kl", "embed"]["value"] == 0
    assert found["tuned_not_better", None]["value"] == 2
    assert found["settling_depth_last", None]["value"] == 2
    depths = settling_depth(logit_lens(model, windows[:6]).top_tokens[..., 0])
    assert found["lens_settling_depth", None]["value"] == pytest.approx(float(depths.double().mean()))
    shares = [row["value"] for row in SettlingDepth(windows[:6])(model) if row["metric"] == "lens_settled"]
    assert shares == pytest.approx([float((depths <= i).double().mean()) for i in range(3)])
    assert shares[-1] == 1


def test_the_registered_lens_is_trained_on_other_windows_than_it_is_judged_on():
    analysis = analysis_named("tuned_lens", MarkovSource(), 8)
    seen = {tuple(line) for line in analysis.training_tokens.tolist()}
    assert len(seen) > 1000
    assert not seen & {tuple(line) for line in analysis.tokens.tolist()}


def test_a_kept_lens_is_found_again_and_a_damaged_one_refused(markov_run):
    training = LensTraining(n_steps=4, n_positions=64)
    lens = trained_lens(markov_run, 3, training)
    folder = lens_folder(markov_run, 3, training)
    about = json.loads((folder / "lens.json").read_text())
    assert (about["step"], about["checkpoint"]) == (3, markov_run.checkpoint_hash(3))
    assert about["training"]["n_steps"] == 4
    assert about["data"]["sha256"] == markov_run.settings["data"]["sha256"]
    written = (folder / "lens.safetensors").stat().st_mtime_ns
    again = trained_lens(markov_run, 3, training)
    assert torch.equal(lens.A, again.A)
    assert (folder / "lens.safetensors").stat().st_mtime_ns == written
    assert lens_folder(markov_run, 4, training) != folder != lens_folder(markov_run, 3, LensTraining(4, 65))
    assert markov_run.steps == list(range(10)), "a kept lens is no checkpoint"
    (folder / "lens.safetensors").write_bytes(b"x")
    with pytest.raises(AnalysisError, match="not as it was written"):
        trained_lens(markov_run, 3, training)


def test_what_cannot_be_tuned_is_refused(model, tokens):
    with pytest.raises(AnalysisError, match="no layers"):
        fit_tuned_lens(GPT2(GPT2Config(n_layers=0, n_heads=1, d_model=8, d_vocab=50, n_ctx=16)).eval(), tokens)
    with pytest.raises(AnalysisError, match="do not fit a lens"):
        identity(model.config).translated(residual_streams(model, tokens)[1:])
    with pytest.raises(ConfigError, match="lr > 0"):
        LensTraining(lr=0)
