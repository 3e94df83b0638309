"""Copying and composition by checkpoint are the circuits' own numbers, and a planted pair stands out."""

import pytest
import torch

from interp_gpt2.analysis import head_weights
from interp_gpt2.analysis.circuits import compositions, full_ov_copying_scores
from interp_gpt2.analysis.head_weights import HeadComposition, HeadCopying, folded
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2


def by(rows, metric):
    return {row.get("label"): row.get("value") for row in rows if row["metric"] == metric}


def test_copying_rows_are_those_of_the_folded_weights(model):
    rows = HeadCopying()(model)
    expected = full_ov_copying_scores(folded(model)).values
    assert by(rows, "copying")["L1H2"] == pytest.approx(float(expected[1, 2]))
    assert len(by(rows, "copying")) == len(by(rows, "ov_copying")) == 8
    assert by(rows, "ov_copying_random_std") == {None: 1.5 / 8}
    (spread,) = by(rows, "copying_random_std").values()
    assert spread == pytest.approx(1.5 / 8, rel=0.5), "embeddings that spread evenly over all directions"


def test_gains_of_layer_norms_count(model):
    before = by(HeadCopying()(model), "copying")
    with torch.no_grad():
        model.blocks[1].ln1.weight[:16] = 0
    after = by(HeadCopying()(model), "copying")
    assert before["L0H0"] == pytest.approx(after["L0H0"])
    assert before["L1H0"] != pytest.approx(after["L1H0"])


def test_heads_between_embeddings_of_one_large_direction_are_held_against_random_heads_between_the_same():
    """There a random head is all copying or all inhibition, and 3 / (2 d_head) would call each of them a finding."""
    model = GPT2(GPT2Config(n_layers=2, n_heads=8, d_model=64, d_vocab=40, n_ctx=8, layer_norm=False)).eval()
    with torch.no_grad():
        model.wte.weight[:, 0] += 2 * torch.linspace(-1, 1, 40)  # some 50 times the others
    rows = HeadCopying()(model)
    scores = torch.tensor(list(by(rows, "copying").values()))
    (spread,) = by(rows, "copying_random_std").values()
    assert float(scores.square().mean().sqrt()) > 0.6
    assert spread == pytest.approx(float(scores.square().mean().sqrt()), rel=0.35)


def test_a_head_that_raises_every_token_alike_copies_none():
    config = GPT2Config(n_layers=1, n_heads=2, d_model=16, d_vocab=30, n_ctx=8, tied=False, layer_norm=False)
    model = GPT2(config).eval()
    with torch.no_grad():
        model.wte.weight[:, 0] += 1  # all embeddings share a direction, and it raises all logits
        model.lm_head.weight[:, 0] = 1
        model.blocks[0].attn.qkv.weight.view(3, 2, 8, 16)[2, 0, 0] = 5 * torch.eye(16)[0]
        model.blocks[0].attn.proj.weight[:, 0] = 5 * torch.eye(16)[0]
    assert float(full_ov_copying_scores(model).values[0, 0]) > 0.9
    assert abs(by(HeadCopying()(model), "copying")["L0H0"]) < 0.5


def test_a_planted_k_composition_is_the_largest_and_unrelated_pairs_score_what_is_said():
    model = GPT2(GPT2Config(n_layers=3, n_heads=4, d_model=64, d_vocab=20, n_ctx=8)).eval()
    with torch.no_grad():  # head L2H1 reads with its keys just what L0H3 writes
        written = model.W_O[0, 3]  # (d_head, d_model)
        model.blocks[2].attn.qkv.weight.view(3, 4, 16, 64)[1, 1] = written
    rows = HeadComposition()(model)
    k = by(rows, "k_composition")
    assert max(k, key=k.get) == "L0H3>L2H1"
    assert len(k) == 3 * 16
    assert by(rows, "k_composition_max")["L2H1"] == k["L0H3>L2H1"] > 2 * by(rows, "composition_unrelated")[None]
    untrained = {row["layer"]: row["value"] for row in rows if row["metric"] == "k_composition_max_untrained"}
    assert by(rows, "composition_unrelated")[None] < untrained[1] < untrained[2] < 0.6 * k["L0H3>L2H1"]
    q = torch.tensor(list(by(rows, "q_composition").values()))
    assert float(q.square().mean().sqrt()) == pytest.approx(by(rows, "composition_unrelated")[None], rel=0.05)
    assert k["L0H3>L2H1"] == pytest.approx(float(compositions(folded(model)).k.values[0, 3, 2, 1]))


def test_of_many_pairs_the_largest_are_kept(model, monkeypatch):
    every = by(HeadComposition()(model), "v_composition")
    monkeypatch.setattr(head_weights, "MOST_PAIRS", 5)
    kept = by(HeadComposition()(model), "v_composition")
    assert set(kept) == set(sorted(every, key=every.get)[-5:])


def test_a_head_of_no_weights_has_no_number_and_a_model_of_no_layers_is_refused(model):
    with torch.no_grad():
        model.blocks[0].attn.proj.weight.zero_()
    assert by(HeadCopying()(model), "ov_copying")["L0H0"] is None
    with torch.no_grad():
        model.wte.weight.zero_()
    assert by(HeadCopying()(model), "copying_random_std") == {None: None}, "between embeddings of zeros nothing copies"
    with pytest.raises(AnalysisError, match="no layers"):
        HeadCopying()(GPT2(GPT2Config(n_layers=0, n_heads=1, d_model=8, d_vocab=5, n_ctx=4)).eval())
