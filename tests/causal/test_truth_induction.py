"""Of a trained induction circuit the tools say the same; where they do not, the cause is measured (analyses/CAUSAL.md)."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from interp_gpt2 import Run
from interp_gpt2.causal.acdc import acdc
from interp_gpt2.causal.activation_patching import Sweep, activation_patching
from interp_gpt2.causal.edge_attribution import eap, eap_ig_inputs
from interp_gpt2.causal.edge_patching import edge_patching
from interp_gpt2.causal.graph import Edge, Graph
from interp_gpt2.causal.path_patching import path_patching
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2

STUDY = Path(__file__).parents[1] / "data" / "study"
SCRIPT = Path(__file__).parents[2] / "analyses" / "causal_tools.py"
EDGE, SECOND, RELAY = "L0H1 -> L1H0.k", "L0H1 -> L1H1.k", "L0H1 -> mlp 0"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def model() -> GPT2:
    return Run(STUDY / "demo-induction").model().eval()


@pytest.fixture(scope="module")
def pairs(script, model):
    return script["pairs_for"](model, 24)


@pytest.fixture(scope="module")
def found(script, model, pairs) -> dict[str, Any]:
    return script["study"](model, pairs, 256)


@pytest.fixture(scope="module")
def by_edge(found) -> dict[str, dict[str, float]]:
    return {row["edge"]: row for row in found["edges"]}


@pytest.fixture(scope="module")
def without(found) -> dict[str, dict[str, float]]:
    """How far the model goes to the unigram without each part, by what is taken out."""
    return {row["without"]: row for row in found["back to counting"]}


# They agree -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tool", ["patched", "path", "EAP", "EAP-IG, inputs", "EAP-IG, activations"])
def test_every_tool_names_the_edges_from_the_previous_token_head_to_the_keys_of_the_induction_heads(by_edge, tool):
    between = sorted((row for row in by_edge.values() if "path" in row), key=lambda row: -abs(row[tool]))
    assert [row["edge"] for row in between[:2]] == [EDGE, SECOND]
    assert between[1][tool] > 1.5 * abs(between[2][tool])


def test_attributions_rank_edges_as_patching_does(found):
    agreed = {(row["tool"], row["over"]): row for row in found["attribution and patching, edges"]}
    for tool in ("EAP", "EAP-IG, inputs", "EAP-IG, activations"):
        assert agreed[tool, "edges between heads"]["spearman"] > 0.9
        assert agreed[tool, "edges between heads"]["pearson"] > 0.9
    for tool in ("EAP-IG, inputs", "EAP-IG, activations"):
        assert agreed[tool, "all edges"]["pearson"] > 0.95
        assert agreed[tool, "all edges"]["spearman"] > 0.9
    nodes = {(row["direction"], row["over"]): row for row in found["attribution and patching, nodes"]}
    assert min(nodes[direction, "layer x pos x head"]["spearman"] for direction in ("noising", "denoising")) > 0.85


def test_the_heads_that_count_are_the_same_in_both_directions(found):
    for direction in ("patched, noising", "patched, denoising"):
        order = sorted(found["heads"], key=lambda row, direction=direction: -row[direction])
        assert [row["head"] for row in order] == ["L0H1", "L1H0", "L1H1", "L0H0"]
        assert order[0][direction] > 0.85
        assert order[2][direction] > 3 * order[3][direction]


# They do not: the first order ---------------------------------------------------------------------------------------------


def test_the_ends_of_the_stages_are_attribution_and_patching(script, found, by_edge, model, pairs):
    for edge in (EDGE, SECOND):
        stages = found["first order by stage"][edge]
        assert stages["EAP"] == pytest.approx(by_edge[edge]["EAP"], abs=1e-5)
        assert stages["exact"] == pytest.approx(by_edge[edge]["patched"], abs=1e-4)
    for row in found["heads"]:
        stages = found["first order by stage"][row["head"]]
        assert next(iter(stages.values())) == pytest.approx(row["attributed, noising"], abs=1e-4)
        assert stages["exact"] == pytest.approx(row["patched, noising"], abs=1e-4)


def test_the_first_order_is_lost_in_the_layer_norm_before_the_keys(found, by_edge):
    """It takes the previous-token head for the least of all, and its edges for less than half of what they are."""
    head = found["first order by stage"]["L0H1"]
    assert head["attention 0"] < 0.2 < 0.85 < head["exact"]
    assert head["keys 1"] - head["MLP 0"] > 0.8  # nearly all of it between the stream and the keys, where a layer norm is
    for edge in (EDGE, SECOND):
        stages = found["first order by stage"][edge]
        assert stages["EAP"] < 0.45 * stages["exact"]
        assert stages["scale held"] == pytest.approx(stages["exact"], rel=0.15)  # the derivative of the scale is what misleads
        assert stages["pattern 1"] > 0.75 * stages["keys 1"]  # the softmax takes a fifth: these patterns are not saturated
        assert 0.2 < stages["share of the stream"] < 0.4


def test_the_derivative_of_the_edge_that_the_token_comes_in_by_is_lost_with_it(by_edge, found):
    assert by_edge["embed -> L0H1.v"]["patched"] > 0.85
    assert by_edge["embed -> L0H1.v"]["EAP"] < 0.15
    assert by_edge["embed -> L0H1.v"]["EAP-IG, inputs"] > 0.8
    agreed = {(row["tool"], row["over"]): row for row in found["attribution and patching, edges"]}
    assert agreed["EAP", "all edges"]["pearson"] < 0.8


# They do not: parts that cover for each other -------------------------------------------------------------------------------


@pytest.mark.parametrize("ablation", ["mean", "resample"])
def test_without_the_previous_token_head_or_all_that_keys_read_of_it_the_model_counts(without, ablation):
    everything = f"{EDGE} and {SECOND} and {RELAY}"
    assert without["L0H1"][ablation] > 0.8
    assert without[everything][ablation] > 0.8


def test_no_one_edge_is_enough_because_the_second_head_and_the_first_mlp_cover_for_it(without):
    """Alone the edge closes a quarter (mean) or less than half (resample) of the gap; what is left does most of its work."""
    assert without[EDGE]["mean"] < 0.35
    assert without[EDGE]["resample"] < 0.55
    both, relay, everything = f"{EDGE} and {SECOND}", RELAY, f"{EDGE} and {SECOND} and {RELAY}"
    for ablation in ("mean", "resample"):
        assert without[everything][ablation] > 1.4 * (without[both][ablation] + without[relay][ablation])


def test_the_last_mlp_works_against_the_induction_heads_and_less_when_they_are_silent(by_edge, found):
    """An edge to the logits alone does more than the head, whose silence the MLP makes up for; EAP doubles it."""
    heads = {row["head"]: row for row in found["heads"]}
    for head in ("L1H0", "L1H1"):
        alone = by_edge[f"{head} -> logits"]["patched"]
        assert alone > heads[head]["patched, noising"] + 0.05
        assert by_edge[f"{head} -> mlp 1"]["patched"] < -0.05
        assert by_edge[f"{head} -> mlp 1"]["EAP"] < 2 * by_edge[f"{head} -> mlp 1"]["patched"]


# Controls -----------------------------------------------------------------------------------------------------------------


def test_a_model_of_one_layer_has_no_edge_between_heads_to_claim(script):
    model = Run(STUDY / "demo-induction-one-layer").model().eval()
    pairs = script["pairs_for"](model, 24)
    assert not script["between_heads"](Graph.of(model.config))
    with pytest.raises(AnalysisError, match="is no receiver"):
        path_patching(model, pairs, ["L0H1"], "L1H0.k")
    found = script["study"](model, pairs, 128)
    assert not any("path" in row for row in found["edges"])
    assert list(found["first order by stage"]) == ["L0H0", "L0H1"]
    ends, losses = found["logit difference"], found["losses"]
    assert abs(ends["clean"] - ends["corrupted"]) < 0.3  # where the model of two layers has 2.4
    assert losses["in-context unigram"] - losses["model"] < 0.1  # it counts
    assert acdc(model, pairs, 0.15, progress=False).circuit.n_edges == 0
    # Either end of a patch is worth a tenth of a logit difference: nothing that a tool says of it is an answer copied.
    moved = activation_patching(model, pairs, Sweep("z", ("layer", "head")), direction="noising")
    assert (moved.mean - moved.clean.mean()).abs().max() < 0.3


def test_before_the_phase_change_no_tool_claims_the_edge(script, pairs, model):
    early = Run(STUDY / "demo-induction").model(600).eval()
    edges = [Edge.from_label(EDGE), Edge.from_label(SECOND)]
    late = edge_patching(model, pairs, edges=edges)
    assert (edge_patching(early, pairs, edges=edges).abs() < 0.05 * late.abs()).all()
    for attribute in (eap, eap_ig_inputs):
        scores, at_the_end = attribute(early, pairs), attribute(model, pairs)
        assert all(abs(scores[edge]) < 0.1 * abs(at_the_end[edge]) for edge in edges)


# The script ----------------------------------------------------------------------------------------------------------------


def test_the_script_writes_its_numbers_and_a_figure_with_them(script, tmp_path, monkeypatch, capsys):
    run = STUDY / "demo-induction"
    monkeypatch.setattr(sys, "argv", ["causal_tools.py", str(run), "--out", str(tmp_path), "--pairs", "4", "--chains", "32"])
    script["main"]()
    printed = capsys.readouterr().out
    numbers = json.loads((tmp_path / "causal_tools.json").read_text())
    assert f"{numbers['losses']['model']:.3f}" in printed
    assert EDGE in printed
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".pdf", ".csv"}
