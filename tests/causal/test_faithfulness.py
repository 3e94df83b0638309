"""Faithfulness, completeness and minimality: 0 and 1 where they must be, and as computed by hand between."""

import pytest
import torch

from interp_gpt2.causal.circuit import Circuit, greedy_edges, top_edges
from interp_gpt2.causal.circuit_pass import circuit_logits
from interp_gpt2.causal.edge_attribution import eap
from interp_gpt2.causal.faithfulness import FaithfulnessCurve, faithfulness, faithfulness_curve, minimality
from interp_gpt2.causal.graph import Graph
from interp_gpt2.causal.metrics import logit_difference
from interp_gpt2.causal.result import ratio_interval
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2
from interp_gpt2.planted import induction_pair
from interp_gpt2.prompts.induction import induction
from interp_gpt2.prompts.pairs import PromptPairs

ABLATIONS = ["resample", "zero", "mean", "positional mean"]


@pytest.fixture
def pairs() -> PromptPairs:
    draw = torch.Generator().manual_seed(3)
    clean, corrupted = (torch.randint(0, 50, (4, 9), generator=draw) for _ in range(2))
    answers = torch.arange(4)[:, None]
    return PromptPairs(clean, corrupted, answers, answers + 10)


@pytest.fixture
def metric(pairs: PromptPairs):
    return logit_difference(pairs.correct, pairs.incorrect)


def random_circuit(graph: Graph, share: float = 0.5) -> Circuit:
    return Circuit(graph, torch.rand(graph.exists.shape, generator=torch.Generator().manual_seed(1)) < share)


@torch.no_grad()
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_the_whole_model_is_worth_1_nothing_0_and_a_circuit_the_share_that_it_keeps(model, pairs, metric, ablation) -> None:
    graph = Graph.of(model.config)
    assert faithfulness(model, Circuit.full(graph), pairs, metric, ablation).value == pytest.approx(1, abs=1e-4)
    nothing = faithfulness(model, Circuit.empty(graph), pairs, metric, ablation)
    assert nothing.value == pytest.approx(0, abs=1e-4)
    assert nothing.complement == pytest.approx(1, abs=1e-4)
    circuit = random_circuit(graph)
    found = faithfulness(model, circuit, pairs, metric, ablation)
    of = [circuit, circuit.complement(), Circuit.empty(graph)]
    kept, rest, empty = (metric(circuit_logits(model, each, pairs, ablation)).mean() for each in of)
    whole = metric(model(pairs.clean)).mean()
    assert found.value == pytest.approx(float((kept - empty) / (whole - empty)), abs=1e-4)
    assert found.complement == pytest.approx(float((rest - empty) / (whole - empty)), abs=1e-4)
    assert (found.n_edges, found.n_edges_of_model) == (circuit.n_edges, graph.n_edges)
    assert found.low <= found.value <= found.high


def test_one_pair_has_no_interval(model: GPT2, pairs, metric) -> None:
    one = pairs[0]
    found = faithfulness(model, random_circuit(Graph.of(model.config)), one, logit_difference(one.correct, one.incorrect))
    assert (found.low, found.high) == (None, None)
    assert "pairs" in repr(found)


@torch.no_grad()
def test_minimality_is_the_faithfulness_with_a_part_less_that_without_it(model: GPT2, pairs, metric) -> None:
    circuit = random_circuit(Graph.of(model.config), 0.3)
    whole = faithfulness(model, circuit, pairs, metric).value
    edges = minimality(model, circuit, pairs, metric)
    assert edges.labels == circuit.labels
    assert edges.faithfulness == pytest.approx(whole, abs=1e-6)
    for label, effect in list(zip(edges.labels, edges.effects.tolist(), strict=True))[::7]:
        assert effect == pytest.approx(whole - faithfulness(model, circuit.without(label), pairs, metric).value, abs=1e-4)
    nodes = minimality(model, circuit, pairs, metric, parts="nodes")
    assert nodes.labels == tuple(node.label for node in circuit.nodes[1:])
    for label, effect in zip(nodes.labels, nodes.effects.tolist(), strict=True):
        assert effect == pytest.approx(whole - faithfulness(model, circuit.without_node(label), pairs, metric).value, abs=1e-4)
    largest = [abs(row["effect"]) for row in nodes.to_frame().to_dict("records")]
    assert largest == sorted(largest, reverse=True)


def test_the_planted_circuit_is_faithful_complete_and_minimal() -> None:
    planted = induction_pair()
    prompts = induction(19, n=8, period=8, corruption="change_previous_token").pairs
    bos = torch.zeros(8, 1, dtype=torch.long)
    clean, corrupted = (torch.cat([bos, tokens + 1], 1) for tokens in (prompts.clean, prompts.corrupted))
    pairs = PromptPairs(clean, corrupted, prompts.correct + 1, prompts.incorrect + 1)
    metric = logit_difference(pairs.correct, pairs.incorrect)
    circuit = Circuit.of_edges(Graph.of(planted.model.config), ["embed -> L0H1.v", "L0H1 -> L1H2.k", "L1H2 -> logits"])
    found = faithfulness(planted.model, circuit, pairs, metric)
    assert found.value == pytest.approx(1, abs=1e-4)
    assert found.complement == pytest.approx(0, abs=1e-4)
    assert minimality(planted.model, circuit, pairs, metric).effects.tolist() == pytest.approx([1, 1, 1], abs=1e-4)
    idle = circuit.graph.exists.clone()
    needless = minimality(planted.model, Circuit(circuit.graph, idle), pairs, metric)
    effects = dict(zip(needless.labels, needless.effects.tolist(), strict=True))
    assert {label for label, effect in effects.items() if abs(effect) > 1e-4} == set(circuit.labels)


@pytest.mark.parametrize("choose", [top_edges, greedy_edges])
def test_the_curve_holds_the_faithfulness_of_each_size_and_ends_at_the_model(model: GPT2, pairs, metric, choose) -> None:
    scores = eap(model, pairs, metric).values
    curve = faithfulness_curve(model, scores, pairs, metric, choose=choose)
    assert curve.n_edges[-1] == curve.kept[-1] == Graph.of(model.config).n_edges
    assert curve.faithfulness[-1] == pytest.approx(1, abs=1e-4)
    for row in curve.to_frame().to_dict("records")[::3]:
        circuit = choose(Graph.of(model.config), scores, row["n_edges"])
        assert row["kept"] == circuit.n_edges
        found = faithfulness(model, circuit, pairs, metric)
        assert row["faithfulness"] == pytest.approx(found.value, abs=1e-4)
        assert (row["low"], row["high"]) == pytest.approx((found.low, found.high), abs=1e-3)


def test_areas_of_a_curve_are_those_of_its_polygon() -> None:
    def curve(sizes, values) -> FaithfulnessCurve:
        return FaithfulnessCurve(sizes, sizes, torch.tensor(values, dtype=torch.float64), None, None, 100, "m", "zero")

    assert curve((50,), [0.5]).area == pytest.approx(0.5)  # the straight line from nothing to the model
    assert curve((50,), [0.5]).distance == pytest.approx(0.5)
    assert curve((1, 100), [1.0, 1.0]).area == pytest.approx(0.995)
    assert curve((1, 100), [1.0, 1.0]).distance == pytest.approx(0.005)
    assert curve((50,), [1.5]).area == pytest.approx(0.375 + 0.625)
    assert curve((50,), [1.5]).distance == pytest.approx(
        0.375 + 0.125
    )  # |1 - f| by its ends: the curve's crossing of 1 is not looked for


def test_where_nothing_could_be_kept_that_is_said(model: GPT2, pairs) -> None:
    circuit = random_circuit(Graph.of(model.config))
    with pytest.raises(AnalysisError, match="there is nothing that a circuit could keep"):
        faithfulness(model, circuit, pairs, lambda logits: logits.new_ones(len(logits)))
    with pytest.raises(AnalysisError, match="no edges to leave out"):
        minimality(model, Circuit.empty(circuit.graph), pairs, logit_difference(pairs.correct, pairs.incorrect))
    with pytest.raises(AnalysisError, match="parts='heads'"):
        minimality(model, circuit, pairs, logit_difference(pairs.correct, pairs.incorrect), parts="heads")
    with pytest.raises(AnalysisError, match="no sizes"):
        faithfulness_curve(
            model, torch.zeros(circuit.kept.shape), pairs, logit_difference(pairs.correct, pairs.incorrect), sizes=[]
        )


@pytest.mark.parametrize("n_pairs", [3, 10])
def test_intervals_hold_the_truth_in_95_of_100_samples(n_pairs):
    draw = torch.Generator().manual_seed(n_pairs)
    wholes = 3 + torch.randn(2000, n_pairs, generator=draw)
    parts = 0.4 * wholes + 0.6 * torch.randn(2000, n_pairs, generator=draw)
    ends = [ratio_interval(part[None], whole) for part, whole in zip(parts, wholes, strict=True)]
    held = sum(bool(low <= 0.4 <= high) for low, high in ends)
    assert held / 2000 == pytest.approx(0.95, abs=0.02)  # four standard errors of 2,000 samples


def test_a_circuit_s_interval_is_that_of_a_ratio_of_means(model: GPT2, pairs, metric) -> None:
    found = faithfulness(model, Circuit.full(Graph.of(model.config)).without("mlp 0 -> logits"), pairs, metric)
    low, high = ratio_interval(found.circuit - found.ablated, found.model - found.ablated)
    assert (found.low, found.high) == (float(low), float(high))
