"""On text by characters an induction head is found where one forms, and nowhere else."""

from pathlib import Path

import numpy as np
import pytest
import torch

from interp_gpt2.analysis.attention_patterns import HeadScores
from interp_gpt2.analysis.development import best_head_curve
from interp_gpt2.analysis.phase_changes import detect
from interp_gpt2.config import GPT2Config
from interp_gpt2.planted import plant
from interp_gpt2.sweeps.tables import COLUMNS
from interp_gpt2.tokenizers import CharTokenizer

STEPS = (0, 64, 300, 500, 600, 700, 750, 800, 900, 1100, 1500, 2000)
ROLES = {"without": {"previous_token": (0, 1)}, "with": {"previous_token": (0, 1), "induction": (1, 0)}}


@pytest.fixture(scope="module")
def characters(text_file: Path) -> tuple[torch.Tensor, int]:
    text = text_file.read_text("utf-8")
    tokenizer = CharTokenizer.from_text(text)
    return torch.tensor(tokenizer.encode(text[: 16 * 40])).view(16, 40), tokenizer.d_vocab


def grown(roles: dict[str, tuple[int, int]], characters: tuple[torch.Tensor, int]):
    """The rows of a run in which the heads' queries grow to what was planted, by a logistic at step 750."""
    import pandas

    tokens, d_vocab = characters
    config = GPT2Config(n_layers=2, n_heads=2, d_model=224, d_head=96, d_vocab=d_vocab, n_ctx=40, tied=False)
    analysis = HeadScores(tokens, ("induction", "previous_token"))
    rows = []
    for step in STEPS:
        model = plant(roles, config, noise=0.02).model
        with torch.no_grad():
            for block in model.blocks:
                block.attn.qkv.weight[: 2 * 96] *= 1 / (1 + np.exp(-(step - 750) / 30))
        rows += [{"run": "grown", "step": step, **row} for row in analysis(model)]
    return pandas.DataFrame(rows).reindex(columns=list(COLUMNS))


@pytest.mark.parametrize("kind", ROLES)
def test_characters_show_an_induction_head_only_where_one_forms(kind, characters):
    table = grown(ROLES[kind], characters)
    changed = {}
    for metric in ("induction", "previous_token"):
        curve = best_head_curve(table, metric)
        changed[metric] = detect(curve.steps, curve.values, curve.uniform, least_rise=0.2).change
        assert (curve.growth.phase_change is None) == (changed[metric] is None)
    assert changed["previous_token"] is not None, "which forms in both"
    assert (changed["induction"] is not None) == (kind == "with")
    if kind == "with":
        assert 600 < changed["induction"].step < 800
