"""Circuits compute what the model computes; copying and composition are planted, and equal TransformerLens's."""

import math

import pytest
import torch

from interp_gpt2.analysis.circuits import (
    copying_score,
    full_ov_copying_scores,
    k_composition,
    ov_copying_scores,
    q_composition,
    v_composition,
)
from interp_gpt2.config import GPT2Config
from interp_gpt2.factored import FactoredMatrix
from interp_gpt2.model import GPT2
from interp_gpt2.weights import full_OV, full_QK

COMPOSITIONS = {"Q": q_composition, "K": k_composition, "V": v_composition}


@torch.no_grad()
def test_circuits_are_the_scores_and_results_of_a_head(make_gpt2, tokens):
    model = make_gpt2(GPT2Config(n_layers=2, n_heads=4, d_model=32, d_vocab=50, n_ctx=16, bias=False))
    _, cache = model.run_with_cache(tokens, "*")
    for layer, block in enumerate(model.blocks):
        normed = block.ln1(cache["resid_pre", layer])[:, None]  # (batch, 1, pos, d_model)
        scores = normed @ model.QK[layer].AB @ normed.mT / math.sqrt(8)
        torch.testing.assert_close(scores.tril(), cache["attn_scores", layer].tril().nan_to_num(neginf=0), atol=1e-4, rtol=1e-4)
        result = cache["pattern", layer] @ normed @ model.OV[layer].AB
        torch.testing.assert_close(result.transpose(1, 2), cache["result", layer], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_full_circuits_are_from_tokens_to_tokens_and_are_not_formed(model):
    QK, OV = full_QK(model, 1, 2), full_OV(model, 1, 2)
    torch.testing.assert_close(QK.AB, model.W_E @ model.W_Q[1, 2] @ model.W_K[1, 2].T @ model.W_E.T)
    torch.testing.assert_close(OV.AB, model.W_E @ model.W_V[1, 2] @ model.W_O[1, 2] @ model.W_U)
    assert QK.mdim == OV.mdim == 8


@torch.no_grad()
def test_a_head_that_copies_scores_one_and_a_head_that_inhibits_minus_one(model):
    for head, sign in [(0, 1), (1, -1)]:
        W_O = model.blocks[1].attn.proj.weight.unflatten(1, (4, 8))[:, head]  # (d_model, d_head)
        W_O.copy_(sign * model.W_V[1, head])  # V V.T has positive eigenvalues alone
    for scores in (ov_copying_scores(model), full_ov_copying_scores(model)):
        torch.testing.assert_close(scores.values[1, :2], torch.tensor([1.0, -1.0]))
        assert scores.values.abs().max() <= 1 + 1e-6


@torch.no_grad()
def test_full_copying_scores_are_those_of_the_full_circuits(model):
    scores = full_ov_copying_scores(model).values
    for layer, head in [(0, 3), (1, 0)]:
        eigenvalues = torch.linalg.eigvals(full_OV(model, layer, head).AB.double())
        by_hand = eigenvalues.sum().real / eigenvalues.abs().sum()
        torch.testing.assert_close(scores[layer, head].double(), by_hand, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(copying_score(full_OV(model, layer, head)), scores[layer, head], atol=1e-5, rtol=1e-5)


def test_random_heads_score_around_zero_with_the_stated_spread():
    scores = ov_copying_scores(GPT2(GPT2Config(n_layers=8, n_heads=8, d_model=256, d_vocab=10, n_ctx=8)))
    # 64 heads: the mean is 0 within 4 / sqrt(64) spreads, the spread known within a third (4 / sqrt(2 * 64)).
    assert abs(scores.values.mean()) < scores.random_std / 2
    assert abs(scores.values.std() / scores.random_std - 1) < 0.36


def test_unrelated_heads_compose_by_the_stated_baseline():
    model = GPT2(GPT2Config(n_layers=3, n_heads=8, d_model=128, d_vocab=10, n_ctx=8))
    for composition in COMPOSITIONS.values():
        scores = composition(model)
        pairs = scores.values[0, :, 1:]
        assert scores.unrelated == 1 / math.sqrt(128)
        assert abs(pairs.square().mean().sqrt() / scores.unrelated - 1) < 0.02  # 128 pairs, each within 3 %


@torch.no_grad()
def test_a_head_that_reads_just_what_another_writes_composes_and_only_forwards(model):
    """Heads 0.1 and 1.2 share one direction: the score is 1, the largest there is, where they meet."""
    direction = torch.nn.functional.normalize(torch.arange(1.0, 33), dim=0)
    model.blocks[0].attn.proj.weight.unflatten(1, (4, 8))[:, 1] = direction[:, None] * torch.arange(1.0, 9)
    model.blocks[1].attn.qkv.weight.unflatten(0, (3, 4, 8))[1, 2] = torch.arange(1.0, 9)[:, None] * direction
    k, q = k_composition(model).values, q_composition(model).values
    torch.testing.assert_close(k[0, 1, 1, 2], torch.tensor(1.0))
    assert q[0, 1, 1, 2] < 0.9
    assert not k[1].any()
    assert not k[:, :, 0].any()
    assert k.max() <= 1 + 1e-6


@pytest.mark.parametrize("mode", COMPOSITIONS)
def test_composition_is_its_formula_on_formed_matrices(model, mode):
    first = model.OV.AB[0, 3]
    second = {"Q": model.QK.AB, "K": model.QK.AB.mT, "V": model.OV.AB}[mode][1, 2]
    by_hand = (first @ second).norm() / first.norm() / second.norm()
    torch.testing.assert_close(COMPOSITIONS[mode](model).values[0, 3, 1, 2], by_hand.detach())


@pytest.mark.hooked_transformer
@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
@torch.no_grad()
def test_circuits_and_compositions_are_hooked_transformers(make_gpt2):
    from interp_gpt2.convert.transformer_lens import to_hooked_transformer

    model = make_gpt2(GPT2Config(n_layers=3, n_heads=4, d_model=32, d_vocab=50, n_ctx=16))
    hooked = to_hooked_transformer(model)
    for ours, theirs in [(model.QK, hooked.QK), (model.OV, hooked.OV)]:
        assert isinstance(ours, FactoredMatrix)
        torch.testing.assert_close(ours.AB, theirs.AB)
        torch.testing.assert_close(ours.norm(), theirs.norm())
    for mode, composition in COMPOSITIONS.items():
        torch.testing.assert_close(composition(model).values, hooked.all_composition_scores(mode), atol=1e-6, rtol=1e-5)
