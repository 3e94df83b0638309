"""Path patching is two passes: what the receivers would have read, and what comes of it."""

import pytest
import torch
from torch import Tensor

from interp_gpt2.causal.graph import Node
from interp_gpt2.causal.metrics import logit_difference
from interp_gpt2.causal.path_patching import (
    get_path_patch_head_to_final_resid_post,
    get_path_patch_head_to_heads,
    path_patching,
)
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2
from interp_gpt2.planted import induction_pair
from interp_gpt2.prompts.pairs import PromptPairs

PATHS = [
    (["L0H1"], ["L1H0.k"]),
    (["L0H1"], ["logits"]),
    (["embed"], ["L1H3.v"]),
    (["L0H1", "L1H2", "embed"], ["L1H0.k", "L2H1.q", "L2H3.q", "L2H2.v"]),
    (["L0H0", "L1H1"], ["logits"]),
]
THROUGH_MLPS = [(["mlp 0"], ["mlp 2", "L2H0.v"]), (["mlp 1"], ["logits"]), (["L1H0"], ["mlp 1"]), (["L0H0", "mlp 1"], ["L2H0.q"])]


@pytest.fixture(params=[{}, {"attn_only": True}, {"layer_norm": False}, {"bias": False}], ids=str)
def deep_model(request, config, make_gpt2) -> GPT2:
    from dataclasses import replace

    return make_gpt2(replace(config, n_layers=3, d_mlp=None, **request.param))


def two_passes(model: GPT2, pairs: PromptPairs, senders: list[str], receivers: list[str], mlps: str) -> Tensor:
    """The metric by hand: every other head frozen in the first pass, the receivers' inputs patched in the second."""
    mask = pairs.attention_mask
    clean = model.run_with_cache(pairs.clean, "*", attention_mask=mask)[1]
    corrupted = model.run_with_cache(pairs.corrupted, "*", attention_mask=mask)[1]
    writers, readers = [[Node.from_label(label) for label in labels] for labels in (senders, receivers)]
    first = {}
    for layer in range(model.config.n_layers):
        heads = [node.head for node in writers if (node.kind, node.layer) == ("head", layer)]

        def z(value, site, heads=heads):
            value = clean["z", site.layer].clone()
            value[:, :, heads] = corrupted["z", site.layer][:, :, heads]
            return value

        first["z", layer] = z
        if any((node.kind, node.layer) == ("mlp", layer) for node in writers):
            first["mlp_out", layer] = lambda value, site: corrupted["mlp_out", site.layer]
        elif mlps == "frozen" and not model.config.attn_only:
            first["mlp_out", layer] = lambda value, site: clean["mlp_out", site.layer]
    if "embed" in senders:
        first["embed"] = lambda value, site: corrupted["embed"]
    read = model.run_with_cache(pairs.clean, "*", first, attention_mask=mask)[1]
    second = {}
    for node in readers:
        name = (node.input or "mlp_in", node.layer) if node.kind != "logits" else ("resid_post", model.config.n_layers - 1)
        second[name] = _reading(read[name], [other.head for other in readers if (other.input, other.layer) == name])
    metric = logit_difference(pairs.correct, pairs.incorrect)
    return metric(model.run_with_edits(pairs.clean, second, mask), mask)


def _reading(read: Tensor, heads: list[int]):
    def edit(value, site):
        if not heads:
            return read
        value[:, :, heads] = read[:, :, heads]
        return value

    return edit


@pytest.mark.parametrize("mlps", ["recomputed", "frozen"])
@pytest.mark.parametrize("lengths", [None, [9, 7]], ids=["one length", "padded"])
@torch.no_grad()
def test_paths_are_those_of_two_passes_by_hand(deep_model, make_pairs, mlps, lengths):
    pairs = make_pairs(lengths=lengths)
    for senders, receivers in PATHS + ([] if deep_model.config.attn_only else THROUGH_MLPS):
        found = path_patching(deep_model, pairs, [senders], receivers, mlps=mlps)
        expected = two_passes(deep_model, pairs, senders, receivers, mlps)
        assert (found.values[0] - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())
        assert (expected - found.clean).abs().max() > 1e-4  # the path says something


@torch.no_grad()
def test_denoising_is_noising_with_the_prompts_exchanged(model, make_pairs):
    pairs = make_pairs()
    denoised = path_patching(model, pairs, ["L0H1"], "L1H0.k", direction="denoising")
    swapped = path_patching(model, pairs.swapped(), ["L0H1"], "L1H0.k", direction="noising")
    assert torch.equal(denoised.values, swapped.values)
    assert torch.equal(denoised.clean, swapped.corrupted)


def test_every_head_is_what_it_is_alone_and_batches_change_nothing(model, make_pairs):
    pairs = make_pairs()
    to_heads = get_path_patch_head_to_heads(model, pairs, ["L1H0.k", "L1H2.q"])
    assert to_heads.axes == ("layer", "head")
    assert to_heads.values.shape == (1, 4, 2)
    alone = path_patching(model, pairs, ["L0H3"], ["L1H0.k", "L1H2.q"])
    assert (to_heads.values[0, 3] - alone.values[0]).abs().max() <= 1e-5
    to_logits = get_path_patch_head_to_final_resid_post(model, pairs)
    assert to_logits.values.shape == (2, 4, 2)
    split = get_path_patch_head_to_final_resid_post(model, pairs, budget=200_000)
    assert (split.values - to_logits.values).abs().max() <= 1e-5
    assert split.bytes_used < to_logits.bytes_used


def test_all_senders_at_once_are_the_whole_other_run(model, make_pairs):
    pairs = make_pairs()
    everything = ["embed", "mlp 0", "mlp 1", *(f"L{layer}H{head}" for layer in range(2) for head in range(4))]
    found = path_patching(model, pairs, [everything], "logits")
    assert found.normalised.item() == pytest.approx(0, abs=1e-5)


def test_the_planted_edge_is_the_only_one_of_heads(make_pairs):
    circuit = induction_pair(previous_token=(0, 1), induction=(1, 2))
    clean = circuit.repeated_tokens(n_sequences=8, period=8, seed=0)[:, :13]  # the next token is the fifth of the period
    corrupted = clean.clone()
    at = torch.arange(8)
    answers = clean[:, 5]
    corrupted[:, 4] = clean[:, 7]  # the token before the answer, in its first occurrence
    assert torch.equal(clean[:, 12], clean[:, 4])
    pairs = PromptPairs(clean, corrupted, answers[:, None], clean[at, 2][:, None])
    found = get_path_patch_head_to_heads(circuit.model, pairs, "L1H2.k")
    effect = (found.normalised - 1).abs()
    assert effect[0, 1] > 0.9
    assert (effect[0, [0, 2, 3]] < 1e-4).all()


@pytest.mark.parametrize(
    ("senders", "receivers", "message"),
    [
        (["L1H0"], "L1H2.k", "writes after L1H2.k have read"),
        (["mlp 1"], "L1H2.k", "writes after"),
        (["L0H9"], "logits", "is no sender of this model"),
        (["L0H1"], "L1H0", "is no receiver of this model"),
        (["L0H1"], [], "at least one receiver"),
        ([], "L1H0.k", "at least one sender"),
        (["L0H1", []], "L1H0.k", "at least one sender"),
        (["L0H1"], ["logits", "L1H0.k"], "make it the only receiver"),
    ],
)
def test_paths_that_do_not_exist_are_refused(model, make_pairs, senders, receivers, message):
    with pytest.raises(AnalysisError, match=message):
        path_patching(model, make_pairs(), senders, receivers)


def test_models_whose_parts_are_edited_are_refused(model, make_pairs):
    with pytest.raises(ValueError, match="standing edits"):
        path_patching(model.with_edits({"embed": lambda value, site: value}), make_pairs(), ["L0H1"], "logits")
    with pytest.raises(AnalysisError, match="'recomputed' or 'frozen'"):
        path_patching(model, make_pairs(), ["L0H1"], "logits", mlps="thawed")
