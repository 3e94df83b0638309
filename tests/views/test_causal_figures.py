"""Traces, ablations and steering as pictures: the numbers of their results, where they should stand."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from interp_gpt2.causal.metrics import probability
from interp_gpt2.causal.tracing import causal_trace
from interp_gpt2.errors import AnalysisError
from interp_gpt2.views import causal_figures, figures, tracing_view
from interp_gpt2.views.tracing import as_patching
from tests.views.examples import ablated, swept, trace

LABELS = [f"t{token}" for token in range(50)]


def saved(figure, path: Path) -> list[dict[str, str]]:
    with open(figures.save(figure, path)[1], encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_trace_is_shown_as_shares_of_its_total_effect(model, tokens) -> None:
    found = causal_trace(model, tokens[:, :8], [2, 3], probability(7), n_samples=3)
    packed = tracing_view(found, LABELS).packed
    shares = (found.indirect_effect / found.total_effect).numpy()
    np.testing.assert_allclose(np.array(packed.values, dtype=float)[0], shares, rtol=1e-3, atol=1e-6)
    assert packed.axes == ["", "layer", "pos"]
    assert packed.clean == pytest.approx(float(found.clean.mean()))
    assert packed.corrupted == pytest.approx(float(found.corrupted.mean()))


def test_the_subject_is_marked_and_a_position_of_several_tokens_says_so() -> None:
    found = trace(2, 5)
    assert as_patching(found, LABELS).labels["pos"] == ("0 t0", "1 *t1", "2 *t2", "3 t3", "4 t4")
    differ = found.tokens.clone()
    differ[1, 4] = 7
    found = replace(found, tokens=differ)
    assert as_patching(found, LABELS).labels["pos"][4] == "4 …"
    with pytest.raises(AnalysisError, match="another tokenizer's"):
        tracing_view(found, LABELS[:3])


def test_all_heads_are_a_map_and_other_entries_rows_the_largest_first(tmp_path: Path) -> None:
    effects = ablated(2, 3)
    figure = causal_figures.ablation_figure(effects)
    np.testing.assert_allclose(figure.axes[0].get_images()[0].get_array(), effects.mean.reshape(2, 3))
    low, high = figure.axes[0].get_images()[0].get_clim()
    assert low == -high
    assert figure.get_suptitle().replace("\n", " ").startswith("Mean ablation: change of loss (whole model 2")
    more = ablated(2, 3, whole=False)
    rows = saved(causal_figures.ablation_figure(more), tmp_path / "rows.svg")
    values = [float(row["x"]) for row in rows if row["series"] == "effect"]
    assert sorted(values) == pytest.approx(sorted(more.mean.tolist()))
    assert [abs(value) for value in values] == sorted(map(abs, values), reverse=True)


def test_of_many_entries_the_smaller_are_left_out_and_counted(tmp_path: Path) -> None:
    figure = causal_figures.ablation_figure(ablated(6, 8, whole=False))
    assert figure.get_suptitle().replace("\n", " ").endswith("9 smaller are left out")
    assert len(saved(figure, tmp_path / "rows.svg")) == causal_figures.MOST_ROWS


def test_steering_is_drawn_beside_its_controls_for_effect_and_damage(tmp_path: Path) -> None:
    sweep = swept()
    rows = saved(causal_figures.steering_figure(sweep), tmp_path / "steering.svg")
    table = sweep.to_frame().set_index(["vector", "coefficient"])
    for panel, column in enumerate(("effect", "loss_change", "kl")):
        for vector in sweep.vectors:
            drawn = {float(row["x"]): float(row["y"]) for row in rows if (row["panel"], row["series"]) == (str(panel), vector)}
            for coefficient in sweep.coefficients:
                assert drawn[coefficient] == pytest.approx(table.loc[(vector, coefficient), column], abs=1e-6)
