"""Taking parts out means what it says: the same as by hand, as in TransformerLens, and as patches of the engine."""

import copy
import math

import pytest
import torch
from torch import Tensor

from interp_gpt2.analysis.loss import mean_loss, token_losses
from interp_gpt2.causal import ablation
from interp_gpt2.causal.ablation import Component, heads_of, mean, neurons_of, positional_mean, resample, sublayers_of, zero
from interp_gpt2.causal.ablation_effect import ablation_effect
from interp_gpt2.causal.engine import run_patches
from interp_gpt2.causal.means import activation_means
from interp_gpt2.causal.metrics import logit_difference, probability
from interp_gpt2.causal.patch import patch_edits
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError, EditError, TokenError

PARTS = ["L0H1", "L0H3", "L1H0", "mlp 0", "attn 1", "L1N5", "L1N70"]
POINTS = ["*attn.z", "*attn_out", "*mlp.post", "*mlp_out"]


@pytest.fixture
def data() -> Tensor:
    return torch.randint(0, 50, (7, 12), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def means(model, data):
    return activation_means(model, data)


def by_hand(value: Tensor, part: str, new: Tensor, at: list[int]) -> Tensor:
    """`new` in the place of the part of `value`, with plain loops."""
    new, found = new.expand_as(value).to(value), value.clone()
    for pos in at:
        if "H" in part:
            head = int(part.partition("H")[2])
            found[:, pos, head] = new[:, pos, head]
        elif "N" in part:
            neuron = int(part.partition("N")[2])
            found[:, pos, neuron] = new[:, pos, neuron]
        else:
            found[:, pos] = new[:, pos]
    return found


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("positions", [None, [2, 5], slice(3, None), slice(1, 8, 3)], ids=str)
@pytest.mark.parametrize("kind", ablation.KINDS)
def test_an_ablation_replaces_just_that_part_at_just_those_positions(model, tokens, data, means, part, positions, kind):
    name = Component.from_label(part).hook_point
    clean = model.run_with_cache(tokens, POINTS)[1]
    _, whole = model.run_with_cache(data, POINTS)
    other = model.run_with_cache(data[:2], POINTS)[1]
    made, new = {
        "zero": (zero(positions), torch.zeros(())),
        "mean": (mean(means, positions), whole[name].mean((0, 1))),
        "positional mean": (positional_mean(means, positions), whole[name].mean(0)),
        "resample": (resample(other, positions), other[name]),
    }[kind]
    at = positions if isinstance(positions, list) else list(range(12))[positions or slice(None)]
    found = model.run_with_cache(tokens, name, made.edits(model.config, part))[1][name]
    torch.testing.assert_close(found, by_hand(clean[name], part, new, at))


@pytest.mark.parametrize(("one", "other"), [("L0H1", "L0H3"), ("L0H1", "mlp 0"), ("L1N5", "L1N70")])
def test_parts_taken_out_together_are_each_taken_out(model, tokens, means, one, other):
    first, second = (mean(means).edits(model.config, part) for part in (one, other))
    both = model.run_with_edits(tokens, mean(means).edits(model.config, [one, other]))
    torch.testing.assert_close(both, model.with_edits(first).run_with_edits(tokens, second))


@pytest.mark.parametrize("kind", ablation.KINDS)
def test_patches_are_the_same_ablation(model, tokens, data, means, kind):
    source = model.run_with_cache(data[:2], POINTS)[1]
    made = {
        "zero": zero([1, 7]), "mean": mean(means, slice(2, 9)),
        "positional mean": positional_mean(means), "resample": resample(source),
    }[kind]  # fmt: skip
    patches = made.patches(model.config, PARTS, 12)
    expected = model.run_with_edits(tokens, made.edits(model.config, PARTS))
    torch.testing.assert_close(model.run_with_edits(tokens, patch_edits(patches, None, model.config, 12)), expected)
    metric = logit_difference([3, 4], [7, 8])
    swept = run_patches(model, tokens, [patches], metric).values[0]
    torch.testing.assert_close(swept, metric(expected), rtol=1e-4, atol=1e-5)


def test_resampling_patches_read_the_engines_source_where_they_have_none(model, tokens, data):
    source = model.run_with_cache(data[:2])[1]
    metric = logit_difference(3, 7)
    found = run_patches(model, tokens, [resample().patches(model.config, PARTS, 12)], metric, source).values[0]
    expected = metric(model.run_with_edits(tokens, resample(source).edits(model.config, PARTS)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.hooked_transformer
@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
def test_transformer_lens_finds_the_same_losses(model, data, means):
    from interp_gpt2.convert.transformer_lens import to_hooked_transformer

    hooked = to_hooked_transformer(model)
    clean = hooked(data, return_type="loss", loss_per_token=True).mean(1)
    for made, new in ((zero(), None), (mean(means), means.mean), (positional_mean(means), means.positional_mean)):
        found = ablation_effect(model, data, ["L1H2", "mlp 0"], made, batch_size=3)

        def ablate_head(z, hook, new=new):
            z[:, :, 2] = 0 if new is None else new("blocks.1.attn.z")[..., 2, :].float()
            return z

        def ablate_mlp(out, hook, new=new):
            return out * 0 if new is None else new("blocks.0.mlp_out").float().expand_as(out)

        for row, (name, hook) in enumerate((("blocks.1.attn.hook_z", ablate_head), ("blocks.0.hook_mlp_out", ablate_mlp))):
            theirs = hooked.run_with_hooks(data, return_type="loss", loss_per_token=True, fwd_hooks=[(name, hook)]).mean(1)
            torch.testing.assert_close(found.effects[row], (theirs - clean).double(), rtol=1e-4, atol=1e-5)


# Effects --------------------------------------------------------------------------------------------------------------


def test_the_effect_is_the_loss_of_the_edited_model_less_that_of_the_model(any_model, data):
    if not any_model.config.n_layers:
        return
    parts = ["L1H0", ("L0H0", "attn 1"), *([] if any_model.config.attn_only else [("mlp 1", "L0N3")])]
    found = ablation_effect(any_model, data, parts, batch_size=3)
    for row, part in enumerate(parts):
        edited = any_model.with_edits(zero().edits(any_model.config, part))
        change = token_losses(edited, data).mean(1) - token_losses(any_model, data).mean(1)
        torch.testing.assert_close(found.effects[row], change, rtol=1e-4, atol=1e-5)
    assert mean_loss(token_losses(any_model, data)).loss == pytest.approx(float(found.clean.mean()), abs=1e-6)


def test_a_metric_is_measured_where_it_looks(model, data):
    metric = probability(torch.arange(7), pos=torch.tensor([3, 4, 5, 6, 7, 8, 11]))
    found = ablation_effect(model, data, ["L0H1", "L1H2"], zero(), metric, batch_size=3)
    for label in found.labels:
        edited = metric(model.run_with_edits(data, zero().edits(model.config, label)))
        torch.testing.assert_close(found[label].float(), edited - metric(model(data)), rtol=1e-4, atol=1e-6)
    whole = ablation_effect(model, data, ["L0H1", "L1H2"], zero(), lambda logits: metric(logits), batch_size=7)
    torch.testing.assert_close(whole.effects, found.effects, rtol=1e-4, atol=1e-6)


def test_padding_does_not_count(model, data):
    lengths = [12, 5, 9, 2, 12, 7, 3]
    mask = (torch.arange(12) < torch.tensor(lengths)[:, None]).long()
    means = activation_means(model, data, attention_mask=mask)
    for made in (zero(), mean(means), positional_mean(means, [0, 1])):
        found = ablation_effect(model, data, ["L0H1", "mlp 1"], made, attention_mask=mask, batch_size=3)
        for i, n in enumerate(lengths):
            alone = ablation_effect(model, data[i : i + 1, :n], ["L0H1", "mlp 1"], made)
            torch.testing.assert_close(found.effects[:, i], alone.effects[:, 0], rtol=1e-4, atol=1e-5)


def test_texts_packed_into_one_row_count_as_they_would_alone(model, data):
    packed = torch.tensor([[1] * 5 + [2] * 4 + [0] * 3, [0] * 2 + [1] * 10])
    found = ablation_effect(model, data[:2], ["L0H1"], zero(), attention_mask=packed)
    first, second, third = (token_losses(model, text[None])[0] for text in (data[0, :5], data[0, 5:9], data[1, 2:]))
    assert float(found.clean[0]) == pytest.approx(float((first.sum() + second.sum()) / 7), abs=1e-5)
    assert float(found.clean[1]) == pytest.approx(float(third.mean()), abs=1e-5)


def test_without_parts_every_head_is_ablated_alone(model, data):
    found = ablation_effect(model, data)
    assert found.labels == tuple(part.label for part in heads_of(model.config))
    table = found.to_frame()
    assert list(zip(table["layer"], table["head"], strict=True)) == [(layer, head) for layer in range(2) for head in range(4)]
    assert table.effect[3] == pytest.approx(float(found.effects[3].mean()))
    assert table.stderr[3] == pytest.approx(float(found.effects[3].std()) / math.sqrt(7))
    assert (table.n == 7).all()


def test_resampling_draws_other_sequences_and_the_same_ones_again(model, data):
    first, again, other = (ablation_effect(model, data, ["attn 0"], resample(), seed=seed).ablated for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    swapped = data.flip(0)
    found = ablation_effect(model, data, ["attn 0", "L1H1"], resample(), source_tokens=swapped, batch_size=2)
    source = model.run_with_cache(swapped, POINTS)[1]
    expected = ablation_effect(model, data, ["attn 0", "L1H1"], resample(source), batch_size=3)
    torch.testing.assert_close(found.ablated, expected.ablated)
    own = ablation_effect(model, data, ["attn 0"], resample(), source_tokens=data)
    assert own.effects.abs().max() < 1e-6


def test_the_mean_of_data_that_is_always_the_same_changes_nothing(model, data):
    same = data[:1].expand(5, -1)
    means = activation_means(model, same)
    found = ablation_effect(model, same, ["L0H1", "mlp 0", "attn 1"], positional_mean(means))
    assert found.effects.abs().max() < 1e-5


def test_nothing_is_left_on_the_model(model, data, means):
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    logits = model(data)
    ablation_effect(model, data, None, mean(means))
    assert torch.equal(model(data), logits)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


def test_an_edited_model_is_ablated_under_its_edits(model, data):
    edits = {("z", 0): lambda z, site: z * 0.5, "unembed.in": lambda value, site: value * 2}
    found = ablation_effect(model.with_edits(edits), data, ["L1H1"], zero(), logit_difference(3, 4))
    metric = logit_difference(3, 4)
    both = metric(model.run_with_edits(data, edits | zero().edits(model.config, "L1H1")))
    torch.testing.assert_close(found.ablated[0].float(), both, rtol=1e-4, atol=1e-5)


# Generation -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", [None, [1], slice(4, None), slice(0, 6, 2)], ids=str)
def test_generating_without_a_part_is_the_same_with_and_without_the_kv_cache(model, tokens, means, positions):
    edited = model.with_edits(positional_mean(means, positions).edits(model.config, PARTS))
    found = edited.generate(tokens[:, :4], 6, temperature=0)
    text = tokens[:, :4]
    for _ in range(6):
        text = torch.cat([text, edited(text)[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(found, text)


def test_positional_means_end_where_the_data_did(model, tokens, means):
    edited = model.with_edits(positional_mean(means).edits(model.config, "L0H1"))
    with pytest.raises(EditError, match="positions 0 to 11; this pass goes to 12"):
        edited.generate(tokens, 2)


def test_an_edit_for_a_position_that_is_not_there_is_refused(model, tokens):
    edits = zero([9]).edits(model.config, "L0H1")
    with pytest.raises(EditError, match=r"position 9, and a text of this pass ends at 4; slice\(9, None\)"):
        model.run_with_edits(tokens[:, :5], edits)


def test_an_ablated_model_can_be_copied(model, tokens, means):
    edited = model.with_edits(mean(means).edits(model.config, PARTS))
    assert torch.equal(copy.deepcopy(edited)(tokens), edited(tokens))


# Held wrong -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("L0H4", "no 'L0H4': the heads of a layer are 0 to 3"),
        ("L2H0", "no 'L2H0': the model's layers are 0 to 1"),
        ("L0N128", "neurons of a layer are 0 to 127"),
        ("mlp 7", "layers are 0 to 1"),
        ("head 3", "'head 3' is no part of a model"),
        ([], "no part was named"),
    ],
)
def test_unknown_parts_are_refused(model, part, message):
    with pytest.raises(AnalysisError, match=message):
        zero().edits(model.config, part)


def test_a_model_without_mlps_has_none_to_take_out():
    config = GPT2Config(n_layers=1, n_heads=2, d_model=8, d_vocab=9, n_ctx=4, attn_only=True)
    assert [part.label for part in sublayers_of(config)] == ["attn 0"]
    with pytest.raises(AnalysisError, match="has no MLPs"):
        zero().edits(config, "mlp 0")


def test_parts_are_listed_in_the_order_of_the_pass(config):
    assert [part.label for part in sublayers_of(config)] == ["attn 0", "mlp 0", "attn 1", "mlp 1"]
    assert [part.label for part in neurons_of(config, 1)][-1] == "L1N127"
    for label in PARTS:
        assert Component.from_label(label).label == label


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([16], "no position 16: positions are 0 to 15"),
        ([-1], "no position -1: positions are 0 to 15; the last of 16 tokens is 15"),
        ([], "no positions were named"),
        ([1.5], "whole numbers"),
        ("all", "whole numbers"),
        (torch.tensor([True, False]), "whole numbers"),
        (slice(16, None), "holds none of the positions"),
        (slice(3, 2), "holds none of the positions"),
        (slice(-3, None), "holds none of the positions"),
    ],
)
def test_positions_that_no_text_has_are_refused(model, positions, message):
    with pytest.raises(AnalysisError, match=message):
        zero(positions).edits(model.config, "L0H1")


def test_means_of_another_model_or_of_one_sequence_are_refused(model, make_gpt2, data, means):
    other = GPT2Config(n_layers=2, n_heads=4, d_model=32, d_vocab=60, n_ctx=16)
    with pytest.raises(AnalysisError, match="another model, with d_vocab=50, not 60"):
        mean(means).edits(other, "L0H1")
    with pytest.raises(AnalysisError, match="a model with other weights"):
        ablation_effect(make_gpt2(model.config, 7), data, ["L0H1"], mean(means))
    with pytest.raises(AnalysisError, match="one sequence are its own"):
        positional_mean(activation_means(model, data[:1])).edits(model.config, "L0H1")
    with pytest.raises(AnalysisError, match=r"no means of 'blocks.0.mlp_out'"):
        mean(activation_means(model, data, "*attn.z")).edits(model.config, "mlp 0")


def test_an_ablation_that_lacks_what_it_needs_says_so(model, data, tokens):
    with pytest.raises(AnalysisError, match="needs the activations of other texts"):
        resample().edits(model.config, "L0H1")
    source = model.run_with_cache(data, "*attn.z")[1]
    with pytest.raises(AnalysisError, match=r"has not kept 'blocks.0.mlp_out'"):
        resample(source).edits(model.config, "mlp 0")
    with pytest.raises(EditError, match=r"shape \(7, 12, 4, 8\), this pass's \(2, 12, 4, 8\)"):
        model.run_with_edits(tokens, resample(source).edits(model.config, "L0H1"))
    with pytest.raises(AnalysisError, match="needs means"):
        ablation.Ablation("mean").edits(model.config, "L0H1")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, t: ablation_effect(m, t[:1], None, resample()), AnalysisError, "no other one to be resampled from"),
        (lambda m, t: ablation_effect(m, t, None, zero(), source_tokens=t), AnalysisError, "this ablation is zero"),
        (lambda m, t: ablation_effect(m, t, None, resample(), source_tokens=t[:2]), AnalysisError, "as many and as long"),
        (lambda m, t: ablation_effect(m, t, []), AnalysisError, "no part was named"),
        (lambda m, t: ablation_effect(m, t, batch_size=0), AnalysisError, "batch_size=0"),
        (lambda m, t: ablation_effect(m, t, None, "zero"), AnalysisError, "ablation='zero' is none; make one with"),
        (lambda m, t: ablation_effect(m, t.tolist()), TokenError, "tokens must be a tensor"),
        (lambda m, t: ablation_effect(m, t[:, :1]), AnalysisError, "predicts nothing"),
        (lambda m, t: ablation_effect(m, t + 50), TokenError, "not in the vocabulary"),
        (lambda m, t: ablation_effect(m, t, metric=lambda x: x.mean()), AnalysisError, "a number for each of 7 sequences"),
        (lambda m, t: ablation_effect(m, t, metric=lambda x: x[:, 0, 0], batch_size=2), AnalysisError, "pass batch_size=7"),
        (lambda m, t: ablation_effect(m, t, metric=lambda x: x[:, 0, 0] * math.nan), AnalysisError, "not a finite number"),
        (lambda m, t: ablation_effect(m, t, metric=probability(3, pos=12)), AnalysisError, "position 12"),
        (lambda m, t: ablation_effect(m, t, metric=probability(50)), TokenError, "token 50"),
        (lambda m, t: ablation_effect(m, t, ["L0H0"])["L0H1"], AnalysisError, "'L0H1' was not ablated"),
    ],
)
def test_holding_it_wrong(model, data, call, error, message):
    with pytest.raises(error, match=message):
        call(model, data)


def test_dropout_that_is_on_is_refused(make_gpt2, data):
    model = make_gpt2(GPT2Config(n_layers=1, n_heads=2, d_model=16, d_vocab=50, n_ctx=16, dropout=0.1)).train()
    for call in (lambda: ablation_effect(model, data), lambda: activation_means(model, data)):
        with pytest.raises(AnalysisError, match=r"model\.eval\(\)"):
            call()
