"""Ways of choosing the next token, side by side: planted distributions."""

import pytest
import torch

from interp_gpt2.errors import AnalysisError, ConfigError
from interp_gpt2.model import GPT2
from interp_gpt2.views import pack_sampling, sampling_view

PLANTED = torch.tensor([0.15, 0.5, 0.1, 0.25]).log() + 7
LABELS = ["a", "b", "c", "d"]


def test_a_planted_distribution_under_every_way() -> None:
    data = pack_sampling(PLANTED, LABELS, temperature=0.5, top_k=2, top_p=0.8, n_shown=3)
    assert data.tokens == ["b", "d", "a"]
    assert data.ways == ["softmax", "greedy", "temperature 0.5", "top-k 2", "top-p 0.8", "all three"]
    squares = 0.25 + 0.0625 + 0.0225 + 0.01
    wanted = [
        [0.5, 0.25, 0.15],
        [1, 0, 0],
        [0.25 / squares, 0.0625 / squares, 0.0225 / squares],
        [2 / 3, 1 / 3, 0],
        [5 / 9, 2.5 / 9, 1.5 / 9],
    ]
    for found, row in zip(data.probability[:5], wanted, strict=True):
        assert found == pytest.approx(row, abs=1e-3)
    assert data.n_kept[:5] == [4, 1, 4, 2, 3]
    assert data.kept[:5] == pytest.approx([1, 0.5, 1, 0.75, 0.9], abs=1e-3)
    assert data.rest[:5] == pytest.approx([0.1, 0, 0.01 / squares, 0, 0], abs=1e-3)


def test_all_three_are_temperature_then_top_k_then_top_p() -> None:
    data = pack_sampling(PLANTED, LABELS, temperature=0.5, top_k=2, top_p=0.7)
    assert data.n_kept[-1] == 1  # of the two largest squares, the larger has 0.8
    assert data.kept[-1] == pytest.approx(0.25 / (0.25 + 0.0625 + 0.0225 + 0.01), rel=1e-3)
    assert pack_sampling(PLANTED, LABELS, temperature=0.5, top_k=2, top_p=0.9).n_kept[-1] == 2


@torch.no_grad()
def test_probabilities_are_how_often_generate_draws_each_token(model: GPT2, tokens: torch.Tensor) -> None:
    logits = model(tokens[:1])[0, -1]
    data = pack_sampling(logits, [str(token) for token in range(50)], temperature=3.0, top_k=6, top_p=0.85, n_shown=50)
    drawn = model.generate(tokens[:1].expand(4000, -1), 1, temperature=3.0, top_k=6, top_p=0.85, seed=0)[:, -1]
    for token, probability in zip(data.tokens, data.probability[-1], strict=True):
        share = (drawn == int(token)).float().mean().item()
        assert share == pytest.approx(probability, abs=4 * (0.25 / 4000) ** 0.5)
        assert probability or not share


def test_a_view_holds_its_numbers_and_needs_no_script(model: GPT2, tokens: torch.Tensor) -> None:
    logits = model(tokens[:1])[0, -1]
    labels = [f"t{token}" for token in range(50)]
    view = sampling_view(logits, labels)
    assert view.packed == pack_sampling(logits, labels)
    assert "<script" not in str(view.fragment)
    assert str(view.fragment).count("<tr>") == 1 + 20 + 3
    assert f"{view.packed.probability[0][0]:.3f}" in str(view.fragment)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(AnalysisError, match=r"pass those of one position, logits\[0, -1\]"):
        pack_sampling(PLANTED[None], LABELS)
    with pytest.raises(AnalysisError, match="do not fit 3 labels"):
        pack_sampling(PLANTED, LABELS[:3])
    with pytest.raises(AnalysisError, match="finite"):
        pack_sampling(PLANTED * float("nan"), LABELS)
    with pytest.raises(AnalysisError, match="temperature=0 is greedy"):
        pack_sampling(PLANTED, LABELS, temperature=0)
    with pytest.raises(ConfigError, match="top_k=0"):
        pack_sampling(PLANTED, LABELS, top_k=0)
