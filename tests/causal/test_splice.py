"""A dictionary in the way of an activation: nothing changes while its error is kept, and its features are neurons."""

import copy

import pytest
import torch
from torch import Tensor, nn

from interp_gpt2.analysis.loss import token_losses
from interp_gpt2.causal.engine import run_patches
from interp_gpt2.causal.means import activation_means
from interp_gpt2.causal.patch import Patch
from interp_gpt2.causal.splice import SpliceScores, splice, splice_scores
from interp_gpt2.errors import AnalysisError, EditError, HookNameError, ShapeError
from interp_gpt2.hooks import Part
from interp_gpt2.model import GPT2

POINTS = ["embed", "blocks.0.resid_pre", "blocks.1.attn.z", "blocks.0.mlp.post", "blocks.1.resid_post", "ln_final.normalized"]
AT = "blocks.0.resid_post"
FEATURES, ERROR = f"{AT}.sae_acts_post", f"{AT}.sae_error"


class SAE(nn.Module):
    """A random sparse autoencoder, which reconstructs next to nothing."""

    def __init__(self, d: int, d_sae: int = 80, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(d)
        self.W_enc = nn.Parameter(torch.randn(d, d_sae, generator=draw).to(dtype) / d**0.5)
        self.W_dec = nn.Parameter(torch.randn(d_sae, d, generator=draw).to(dtype) / d_sae**0.5)
        self.b_dec = nn.Parameter(torch.randn(d, generator=draw).to(dtype))

    def encode(self, activation: Tensor) -> Tensor:
        return (activation @ self.W_enc - 0.5).relu()

    def decode(self, features: Tensor) -> Tensor:
        return features @ self.W_dec + self.b_dec


class Plain:
    """No module: what it is given is a feature, up to a factor."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def encode(self, activation: Tensor) -> Tensor:
        return activation * 2

    def decode(self, features: Tensor) -> Tensor:
        return features / 2 * self.factor


@pytest.fixture
def sae() -> SAE:
    return SAE(32)


@pytest.mark.parametrize("point", POINTS)
def test_with_its_error_kept_the_model_computes_what_it_did(model: GPT2, tokens: Tensor, point: str) -> None:
    spliced = splice(model, SAE(torch.Size(model.hook_points()[point][2:]).numel()), point)
    expected, cache = model.run_with_cache(tokens)
    found, seen = spliced.run_with_cache(tokens)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    assert set(seen) - set(cache) == {f"{point}.sae_acts_post", f"{point}.sae_error"}
    for name in cache:
        torch.testing.assert_close(seen[name], cache[name], atol=2e-5, rtol=1e-5)


def test_without_it_the_model_sees_the_reconstruction_alone(model: GPT2, tokens: Tensor, sae: SAE) -> None:
    spliced = splice(model, sae, ("resid_post", 0), keep_error=False)
    expected = model.run_with_edits(tokens, {AT: lambda value, site: sae.decode(sae.encode(value))})
    found, cache = spliced.run_with_cache(tokens)
    torch.testing.assert_close(found, expected)
    assert torch.equal(cache[AT], sae.decode(cache[FEATURES]))
    assert ERROR not in cache
    assert not torch.allclose(found, model(tokens))


def test_features_and_error_are_read_by_name_and_add_up(model: GPT2, tokens: Tensor, sae: SAE) -> None:
    spliced = splice(model, sae, AT)
    value = model.run_with_cache(tokens, AT)[1][AT]
    _, cache = spliced.run_with_cache(tokens, ["*sae_acts_post", ("resid_post.sae_error", 0)])
    assert list(cache) == [FEATURES, ERROR]
    assert torch.equal(cache[FEATURES], sae.encode(value))
    assert torch.equal(cache["blocks.0.hook_resid_post.hook_sae_acts_post"], cache[FEATURES])  # TransformerLens's spelling
    torch.testing.assert_close(sae.decode(cache[FEATURES]) + cache[ERROR], value)
    assert spliced.hook_points(2, 12)[FEATURES] == (2, 12, 80)
    assert spliced.hook_points(2, 12)[ERROR] == (2, 12, 32)
    _, last = spliced.run_with_cache(tokens, FEATURES, keep=Part(pos_slice=-1, dtype=torch.float16))
    assert torch.equal(last[FEATURES], cache[FEATURES][:, -1:].half())
    with pytest.raises(HookNameError, match=r"no hook point is named 'sae_acts_pots'. Nearest"):
        spliced.run_with_cache(tokens, "sae_acts_pots")
    with pytest.raises(HookNameError):
        model.run_with_cache(tokens, FEATURES)  # the model itself is as it was


def test_an_edited_feature_moves_the_activation_along_its_decoder_direction_only(model: GPT2, tokens: Tensor, sae: SAE) -> None:
    spliced = splice(model, sae, AT)

    def up(features: Tensor, site) -> Tensor:
        assert (site.name, site.layer, site.positions.tolist()) == (FEATURES, 0, list(range(12)))
        features[:, 3, 7] += 2.0
        return features

    before = spliced.run_with_cache(tokens)[1]
    logits, after = spliced.run_with_cache(tokens, edits={FEATURES: up})
    moved = torch.zeros(2, 12, 32)
    moved[:, 3] = 2 * sae.W_dec[7]
    torch.testing.assert_close(after[AT] - before[AT], moved, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(after[FEATURES][:, 3, 7], before[FEATURES][:, 3, 7] + 2)
    assert torch.equal(after[ERROR], before[ERROR])
    torch.testing.assert_close(logits[:, :3], spliced(tokens)[:, :3])  # the past does not know
    assert not torch.allclose(logits[:, 3:], spliced(tokens)[:, 3:])
    standing = spliced.with_edits({FEATURES: up})
    torch.testing.assert_close(standing(tokens), logits)
    torch.testing.assert_close(standing.run_with_cache(tokens, FEATURES)[1][FEATURES], after[FEATURES])


def test_setting_features_and_error_to_another_texts_patches_the_activation(model: GPT2, tokens: Tensor, sae: SAE) -> None:
    spliced = splice(model, sae, AT)
    other = spliced.run_with_cache(tokens.flip(1))[1]
    patched = spliced.run_with_edits(tokens, {FEATURES: lambda v, s: other[FEATURES], ERROR: lambda v, s: other[ERROR]})
    expected = model.run_with_edits(tokens, {AT: lambda v, s: other[AT]})
    torch.testing.assert_close(patched, expected, atol=2e-5, rtol=1e-5)


def test_the_patching_engine_takes_features_for_neurons(model: GPT2, tokens: Tensor, sae: SAE) -> None:
    spliced = splice(model, sae, AT)
    source = spliced.run_with_cache(tokens.flip(1), FEATURES)[1]
    cells = [[Patch("resid_post.sae_acts_post", 0, positions=5, neurons=feature)] for feature in (0, 7, 79)]
    found = run_patches(spliced, tokens, cells, lambda logits: logits[:, -1, 0], source)

    def edit(feature: int):
        def patch(value: Tensor, site) -> Tensor:
            value[:, 5, feature] = source[FEATURES][:, 5, feature]
            return value

        return patch

    for cell, feature in enumerate((0, 7, 79)):
        expected = spliced.run_with_edits(tokens, {FEATURES: edit(feature)})[:, -1, 0]
        torch.testing.assert_close(found.values[cell].float(), expected)
    with pytest.raises(AnalysisError, match="neuron 80"):
        run_patches(spliced, tokens, [[Patch(FEATURES, neurons=80)]], lambda logits: logits[:, -1, 0], source)


def test_features_have_derivatives(model: GPT2, tokens: Tensor, sae: SAE) -> None:
    spliced = splice(model, sae, AT)
    _, cache, gradients = spliced.run_with_gradients(tokens, lambda logits: logits[:, -1, 3].sum(), [FEATURES, ERROR, AT])
    torch.testing.assert_close(gradients[FEATURES], gradients[AT] @ sae.W_dec.T, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradients[ERROR], gradients[AT])
    assert cache[FEATURES].shape == (2, 12, 80)


def test_upstream_of_a_dictionary_derivatives_are_the_models(model: GPT2, tokens: Tensor, sae: SAE) -> None:
    metric = lambda logits: logits[:, -1, 3].sum()  # noqa: E731
    expected = model.run_with_gradients(tokens, metric, "embed")[2]["embed"]
    found = splice(model, sae, AT).run_with_gradients(tokens, metric, "embed")[2]["embed"]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_two_dictionaries_stand_one_behind_the_other(model: GPT2, tokens: Tensor, sae: SAE) -> None:
    once = splice(model, sae, AT, keep_error=False)
    twice = splice(once, SAE(128), ("mlp.post", 1), keep_error=False)
    _, cache = twice.run_with_cache(tokens, "*sae_acts_post")
    assert list(cache) == [FEATURES, "blocks.1.mlp.post.sae_acts_post"]
    assert torch.equal(cache[FEATURES], once.run_with_cache(tokens, FEATURES)[1][FEATURES])
    assert twice.run_with_cache(tokens, FEATURES, edits={FEATURES: lambda v, s: v * 0})[1][FEATURES].abs().sum() == 0
    assert twice.hook_points()[FEATURES] == (1, 16, 80)


def test_a_spliced_model_has_all_the_ways_of_a_model(model: GPT2, tokens: Tensor, sae: SAE) -> None:
    spliced = splice(model, sae, AT, keep_error=False)
    logits, cache = spliced.run_with_cache(tokens)
    resid, first = spliced.run_until(tokens, 1, FEATURES)
    torch.testing.assert_close(first[FEATURES], cache[FEATURES])
    torch.testing.assert_close(spliced.run_from(resid, 1)[0], logits)
    generated = spliced.generate(tokens[:, :4], 3, temperature=0.0)
    step_by_step = tokens[:, :4]
    for _ in range(3):
        step_by_step = torch.cat([step_by_step, spliced(step_by_step)[:, -1:].argmax(-1)], 1)
    assert torch.equal(generated, step_by_step)
    means = activation_means(spliced, tokens, [FEATURES])
    torch.testing.assert_close(means.mean(FEATURES).float(), cache[FEATURES].flatten(0, 1).mean(0))
    torch.testing.assert_close(copy.deepcopy(spliced)(tokens), logits)
    with pytest.raises(EditError, match="cannot be saved"):
        spliced.save("anywhere")


def test_a_dictionary_computes_in_its_own_dtype(model: GPT2, tokens: Tensor) -> None:
    spliced = splice(model, SAE(32, dtype=torch.bfloat16), AT)
    logits, cache = spliced.run_with_cache(tokens)
    assert (cache[FEATURES].dtype, cache[ERROR].dtype, logits.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    torch.testing.assert_close(logits, model(tokens), atol=2e-5, rtol=1e-5)


def test_heads_are_side_by_side(model: GPT2, tokens: Tensor) -> None:
    z = model.run_with_cache(tokens, ("z", 1))[1]["z", 1]
    _, cache = splice(model, Plain(), ("z", 1)).run_with_cache(tokens, "*sae_acts_post")
    assert torch.equal(cache["blocks.1.attn.z.sae_acts_post"], 2 * z.flatten(2))


# What it is worth -----------------------------------------------------------------------------------------------------


@pytest.fixture
def likely(model: GPT2, tokens: Tensor) -> Tensor:
    """Text that the model predicts well, so that there is a loss to recover."""
    return model.generate(tokens.repeat(2, 1)[:, :2] + torch.arange(4)[:, None], 12, temperature=0.0)


def test_a_perfect_dictionary_recovers_all_and_an_empty_one_nothing(model: GPT2, likely: Tensor) -> None:
    perfect = splice_scores(model, Plain(), likely, AT, batch_size=1)
    assert perfect.loss_recovered == pytest.approx(1, abs=1e-5)
    assert perfect.explained == pytest.approx(1)
    empty = splice_scores(model, Plain(0), likely, AT)
    assert empty.loss_recovered == 0
    assert torch.equal(empty.spliced, empty.zero)
    assert (perfect.l0 == 32).all()
    assert (perfect.n_dead, perfect.n_tokens) == (0, 56)


def test_its_ends_are_ablations_of_the_hook_point(model: GPT2, likely: Tensor, sae: SAE) -> None:
    sae.requires_grad_(False)
    scores = splice_scores(model, sae, likely, AT, batch_size=1)
    value = model.requires_grad_(False).run_with_cache(likely, AT)[1][AT]
    mean = value.flatten(0, 1).mean(0)
    for found, edit in (
        (scores.zero, lambda v, s: v * 0),
        (scores.mean, lambda v, s: mean.expand_as(v)),
        (scores.spliced, lambda v, s: sae.decode(sae.encode(v))),
        (scores.clean, lambda v, s: v),
    ):
        torch.testing.assert_close(found, token_losses(model.with_edits({AT: edit}), likely).mean(1), atol=1e-5, rtol=1e-5)
    features, back = sae.encode(value), sae.decode(sae.encode(value))
    torch.testing.assert_close(scores.l0, (features > 0).double().sum(-1).mean(1))
    assert scores.n_dead == int((features == 0).all(0).all(0).sum())
    assert scores.explained == pytest.approx(float(1 - (value - back).square().sum() / (value - mean).square().sum()), rel=1e-4)
    recovered = (scores.zero.mean() - scores.spliced.mean()) / (scores.zero.mean() - scores.clean.mean())
    assert scores.loss_recovered == pytest.approx(float(recovered))


def test_the_table_has_every_figure_with_its_interval(model: GPT2, likely: Tensor, sae: SAE) -> None:
    scores = splice_scores(model, sae, likely, AT)
    table = scores.to_frame().set_index("metric")
    assert list(table.index) == [
        "loss_clean", "loss_spliced", "loss_zero", "loss_mean", "loss_recovered", "loss_recovered_from_mean", "l0",
        "explained_variance", "dead_features",
    ]  # fmt: skip
    assert table.loc["loss_recovered", "value"] == scores.loss_recovered
    assert table.loc["loss_spliced", "low"] < table.loc["loss_spliced", "value"] < table.loc["loss_spliced", "high"]
    assert "of zero" in repr(scores)


def test_where_nothing_is_lost_nothing_can_be_recovered() -> None:
    same = torch.ones(3, dtype=torch.float64)
    scores = SpliceScores("embed", 4, same, same, same, same, same, 1.0, 0, 30)
    assert scores.loss_recovered != scores.loss_recovered
    assert scores.to_frame().shape == (9, 7)


# Held wrong -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sae", "point", "error", "says"),
    [
        (SAE(31), AT, ShapeError, r"does not take 'blocks\.0\.resid_post', of 32 numbers a token: mat1 and mat2"),
        (nn.Linear(32, 32), AT, AnalysisError, "Linear has no encode and decode"),
        (SAE(32), "*resid_post", AnalysisError, "stands for 2 hook points; name one"),
        (SAE(32), ("pattern", 0), AnalysisError, "is no activation of a token"),
        (SAE(32), "resid_pots", HookNameError, "Nearest"),
        (SAE(32), None, AnalysisError, "does not say what it was trained on"),
    ],
    ids=["width", "no encoder", "several", "pattern", "no such name", "unnamed"],
)
def test_what_does_not_fit_is_refused_at_once(model: GPT2, sae, point, error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        splice(model, sae, point)


def test_features_that_lose_a_token_are_refused(model: GPT2) -> None:
    class Pooled(Plain):
        def encode(self, activation: Tensor) -> Tensor:
            return activation.mean(1)

    with pytest.raises(ShapeError, match=r"features of shape \(1, 32\)"):
        splice(model, Pooled(), AT)


def test_two_dictionaries_at_one_point_are_refused(model: GPT2, sae: SAE) -> None:
    with pytest.raises(AnalysisError, match=r"there is a dictionary at 'blocks\.0\.resid_post' already"):
        splice(splice(model, sae, AT), sae, AT)
    with pytest.raises(AnalysisError, match="is no activation of a token"):
        splice(splice(model, sae, AT), sae, FEATURES)


def test_an_sae_of_sae_lens_is_spliced_in_where_it_was_trained(model: GPT2, tokens: Tensor) -> None:
    sae_lens = pytest.importorskip("sae_lens", reason="needs sae-lens")
    for name, point in (("blocks.1.hook_resid_post", "blocks.1.resid_post"), ("blocks.0.attn.hook_z", "blocks.0.attn.z")):
        config = sae_lens.StandardSAEConfig(d_in=32, d_sae=64, metadata=sae_lens.saes.sae.SAEMetadata(hook_name=name))
        theirs = sae_lens.StandardSAE(config)
        spliced = splice(model, theirs)
        logits, cache = spliced.run_with_cache(tokens)
        torch.testing.assert_close(logits, model(tokens), atol=2e-5, rtol=1e-5)
        assert cache[f"{point}.sae_acts_post"].shape == (2, 12, 64)
