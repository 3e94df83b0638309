"""Figures for papers: any token text, numbers that are those drawn, the same bytes twice."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from interp_gpt2.analysis.logit_lens import logit_lens
from interp_gpt2.errors import AnalysisError
from interp_gpt2.views import LensData, figures, pack_lens

NASTY = ["$\\frac{$", "$", "\\", "{", "_x^", "·", "↵", "$$", "<b>"]
STEPS = [0, 1, 10, 100]


def saved(figure, path: Path) -> list[dict[str, str]]:
    _, numbers = figures.save(figure, path)
    with open(numbers, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def lens(model, tokens: torch.Tensor) -> LensData:
    labels = [NASTY[i % len(NASTY)] + str(i) for i in range(50)]
    return pack_lens(tokens[0], labels, [logit_lens(model, tokens[:1])])


def test_the_csv_beside_a_curve_holds_the_curve_and_its_references(tmp_path: Path) -> None:
    rows = saved(figures.loss_curve(STEPS, [4.0, 3.0, 2.0, 1.5], {"bigram": 2.5}), tmp_path / "loss.svg")
    assert [(float(r["x"]), float(r["y"])) for r in rows if r["series"] == "loss"] == [(0, 4), (1, 3), (10, 2), (100, 1.5)]
    assert [(r["x"], float(r["y"])) for r in rows if r["series"] == "bigram"] == [("", 2.5)]


def test_the_csv_beside_a_pattern_holds_every_weight_but_the_future(tmp_path: Path) -> None:
    pattern = np.tril(np.ones((9, 9))) / np.arange(1, 10)[:, None]
    rows = saved(figures.attention_pattern(pattern, NASTY), tmp_path / "pattern.pdf")
    assert len(rows) == 45
    for row in rows:
        query, key = int(row["y"].split()[0]), int(row["x"].split()[0])
        assert float(row["value"]) == pytest.approx(pattern[query, key])


@pytest.mark.parametrize("statistic", ["probability", "rank", "kl", "entropy"])
def test_the_csv_beside_a_lens_holds_every_statistic(lens: LensData, statistic: str, tmp_path: Path) -> None:
    rows = saved(figures.lens_table(lens, statistic=statistic), tmp_path / "lens.svg")
    drawn = [float(row["value"]) for row in rows]
    assert drawn == pytest.approx([v for layer in getattr(lens, statistic)[0] for v in layer if v is not None])


def test_the_title_of_head_scores_carries_the_uniform_head(tmp_path: Path) -> None:
    scores = np.linspace(0, 1, 24).reshape(6, 4)
    figure = figures.head_scores(STEPS, scores, [f"L0H{i}" for i in range(6)], uniform=0.06, window=(1, 10))
    assert figure.get_suptitle() == "Induction score (uniform head 0.06)"
    named = {text.get_text() for text in figure.axes[0].texts}
    assert named == {"L0H5", "L0H4", "L0H3", "L0H2", "uniform"}
    assert len(saved(figure, tmp_path / "heads.svg")) == 6 * 4 + 1


def test_a_probe_heat_map_is_centred_on_its_majority_baseline() -> None:
    figure = figures.probe_heat_map([[0.7, 0.8], [0.78, 0.95]], [0, 100], ["embed", "L0"], majority=0.78)
    low, high = figure.axes[0].get_images()[0].get_clim()
    assert low == -high
    assert {text.get_text() for text in figure.axes[0].texts} == {"0.70", "0.80", "0.78", "0.95"}


@pytest.mark.parametrize("suffix", ["svg", "pdf", "png"])
def test_the_same_figure_is_the_same_bytes(suffix: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        figures.save(figures.loss_curve(STEPS, [4.0, 3.0, 2.0, 1.5]), tmp_path / f"{name}.{suffix}")
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_drawing_leaves_the_users_style_alone() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    figures.loss_curve(STEPS, [4.0, 3.0, 2.0, 1.5])
    assert dict(matplotlib.rcParams) == before


def test_shapes_that_do_not_fit_and_statistics_that_do_not_exist_are_refused(lens: LensData) -> None:
    with pytest.raises(AnalysisError, match="3 curves and 4 steps"):
        figures.head_scores(STEPS, np.zeros((4, 3)), ["a", "b", "c"], uniform=0.1)
    with pytest.raises(AnalysisError, match="query, key"):
        figures.attention_pattern(np.zeros((2, 3)), ["a", "b"])
    with pytest.raises(AnalysisError, match="2 steps and 1 layers"):
        figures.probe_heat_map(np.zeros((1, 2)), [0, 1], ["embed"], majority=0.5)
    with pytest.raises(AnalysisError, match="choose one of probability"):
        figures.lens_table(lens, statistic="loss")
    with pytest.raises(AnalysisError, match="no lens at step 5"):
        figures.lens_table(lens, step=5)
