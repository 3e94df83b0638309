"""Every tool finds exactly the circuit that was planted, with or without noise elsewhere, and in random models nothing.

Four circuits, each with prompts of which one token is corrupted; what carries that token is known, head by head and edge by
edge. Where a tool does not find it, because it trusts a derivative that hard attention does not have, that is shown.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch

from interp_gpt2.analysis.attention_patterns import head_scores
from interp_gpt2.analysis.circuit_readings import ov_readings, qk_readings
from interp_gpt2.analysis.circuits import compositions
from interp_gpt2.analysis.logit_attribution import direct_logit_attribution
from interp_gpt2.analysis.source_attribution import source_attribution
from interp_gpt2.causal.ablation import resample, zero
from interp_gpt2.causal.ablation_effect import ablation_effect
from interp_gpt2.causal.acdc import acdc
from interp_gpt2.causal.activation_patching import Sweep, activation_patching
from interp_gpt2.causal.edge_attribution import EdgeAttribution, eap, eap_ig_activations, eap_ig_inputs
from interp_gpt2.causal.edge_patching import edge_patching
from interp_gpt2.causal.graph import Graph
from interp_gpt2.causal.metrics import logit_difference
from interp_gpt2.causal.node_attribution import attribution_patching
from interp_gpt2.causal.path_patching import get_path_patch_head_to_final_resid_post, get_path_patch_head_to_heads
from interp_gpt2.causal.result import PatchingResult
from interp_gpt2.config import GPT2Config
from interp_gpt2.model import GPT2
from interp_gpt2.planted import OUTPUT_NORM, PlantedCircuit, plant
from interp_gpt2.prompts.pairs import PromptPairs

CONFIG = GPT2Config(n_layers=2, n_heads=4, d_model=96, d_head=36, d_mlp=64, d_vocab=12, n_ctx=20, tied=False)
GRAPH = Graph.of(CONFIG)
HEADS = [f"L{layer}H{head}" for layer in range(2) for head in range(4)]
EDGES = [edge.label for edge in GRAPH.edges()]
NOISE = 0.02  # GPT-2's own initialisation
BY_HEAD = Sweep("z", ("layer", "head"))

Scores = dict[str, float]  # of heads or edges, by label; a share of what is between the clean and the corrupted run
Tool = Callable[[GPT2, PromptPairs], Scores]


@dataclass(frozen=True)
class Planted:
    """A circuit: its heads, the one whose output is read as logits, and the edges that carry the corrupted token."""

    roles: dict[str, tuple[int, int]]
    heads: frozenset[str]
    speaker: str
    edges: frozenset[str]
    source: int  # the position that the speaker reads it from

    @cache  # noqa: B019 - a handful of models, for as long as the tests run
    def circuit(self, noise: float = 0.0) -> PlantedCircuit:
        planted = plant(self.roles, CONFIG, noise)
        return speaking(planted) if set(self.roles) == {"previous_token"} else planted

    @property
    def pairs(self) -> PromptPairs:
        return pairs_of(next(iter(reversed(self.roles))))

    __hash__ = object.__hash__


def speaking(planted: PlantedCircuit) -> PlantedCircuit:
    """Its previous-token head writes the token as output, where it can be seen in the logits (a bigram backwards)."""
    (layer, head), d_head = planted.heads["previous_token"], CONFIG.d_head
    with torch.no_grad():
        W_O = planted.model.blocks[layer].attn.proj.weight[:, head * d_head : (head + 1) * d_head]
        W_O.zero_()
        W_O[:, : CONFIG.d_vocab] = OUTPUT_NORM * planted.spaces["output"].T
    return planted


def pairs_of(role: str, n_pairs: int = 6) -> PromptPairs:
    """bos and distinct tokens, of which the one that the role's head reads is replaced by a stranger."""
    draw = torch.Generator().manual_seed(0)
    drawn = torch.stack([torch.randperm(CONFIG.d_vocab - 1, generator=draw)[:8] + 1 for _ in range(n_pairs)])
    clean, stranger, wrong = drawn[:, :6].clone(), drawn[:, 6], drawn[:, 7]
    at = {"previous_token": 4, "duplicate_token": 2, "copying": 2, "induction": 3}[role]
    answer = clean[:, at]
    if role == "duplicate_token":
        clean[:, 5] = clean[:, 2]
    if role == "induction":  # the fourth token comes again: the fifth follows, unless it occurs nowhere before
        answer, wrong = clean[:, 4], clean[:, 1]
        clean = torch.cat([clean, clean[:, :4]], 1)
    corrupted = clean.clone()
    corrupted[:, at] = stranger
    bos = torch.zeros(n_pairs, 1, dtype=torch.long)
    return PromptPairs(*(torch.cat([bos, each], 1) for each in (clean, corrupted)), answer[:, None], wrong[:, None])


CIRCUITS = {
    "previous token": Planted(
        {"previous_token": (0, 1)}, frozenset({"L0H1"}), "L0H1", frozenset({"embed -> L0H1.v", "L0H1 -> logits"}), 5
    ),
    "induction": Planted(
        {"previous_token": (0, 1), "induction": (1, 2)}, frozenset({"L0H1", "L1H2"}), "L1H2",
        frozenset({"embed -> L0H1.v", "L0H1 -> L1H2.k", "L1H2 -> logits"}), 5,
    ),
    "duplicate token": Planted(
        {"duplicate_token": (0, 3)}, frozenset({"L0H3"}), "L0H3",
        frozenset({"embed -> L0H3.k", "embed -> L0H3.v", "L0H3 -> logits"}), 3,
    ),
    "copying": Planted({"copying": (1, 0)}, frozenset({"L1H0"}), "L1H0", frozenset({"embed -> L1H0.v", "L1H0 -> logits"}), 3),
}  # fmt: skip
every_circuit = pytest.mark.parametrize("planted", CIRCUITS.values(), ids=CIRCUITS)
with_and_without_noise = pytest.mark.parametrize("noise", [0.0, NOISE])


def assert_exactly(found: Scores, expected: frozenset[str], noise: float, at_least: float = 0.9) -> None:
    """The expected ones come first, and nothing else counts: not at all, or with noise elsewhere 8 times less."""
    others = [abs(score) for label, score in found.items() if label not in expected]
    least = min(found[label] for label in expected)
    assert least >= at_least
    assert max(others, default=0) <= (1e-4 if noise == 0 else least / 8)


# Heads ----------------------------------------------------------------------------------------------------------------


def shares(result: PatchingResult) -> list[float]:
    """How far each cell went from the patched run to the other one."""
    moved = result.normalised if result.direction == "denoising" else 1 - result.normalised
    return moved.flatten().tolist()


def patched(direction: str) -> Tool:
    return lambda model, pairs: dict(
        zip(HEADS, shares(activation_patching(model, pairs, BY_HEAD, direction=direction)), strict=True)
    )


def attributed(direction: str) -> Tool:
    return lambda model, pairs: dict(
        zip(HEADS, shares(attribution_patching(model, pairs, BY_HEAD, direction=direction)), strict=True)
    )


def to_logits(model: GPT2, pairs: PromptPairs) -> Scores:
    return dict(zip(HEADS, shares(get_path_patch_head_to_final_resid_post(model, pairs)), strict=True))


def ablated(kind: str) -> Tool:
    """The share of the logit difference that is lost without a head."""

    def tool(model: GPT2, pairs: PromptPairs) -> Scores:
        metric, (ablation, source) = metric_of(pairs), {"zero": (zero(), None), "resample": (resample(), pairs.corrupted)}[kind]
        found = ablation_effect(model, pairs.clean, None, ablation, metric, source_tokens=source)
        return dict(zip(found.labels, (-found.mean / found.clean.mean()).tolist(), strict=True))

    return tool


@torch.no_grad()
def spoken(model: GPT2, pairs: PromptPairs) -> Scores:
    """The share of the logit difference that each head, and all else, writes itself."""
    _, activations = model.run_with_cache(pairs.clean)
    found = direct_logit_attribution(model, activations, pairs.correct[:, 0], pairs.incorrect[:, 0], "heads", [-1])
    return dict(zip(found.labels, (found.values.mean((1, 2)) / found.logits.mean()).tolist(), strict=True))


@torch.no_grad()
def spoken_by_source(model: GPT2, pairs: PromptPairs) -> Scores:
    _, activations = model.run_with_cache(pairs.clean)
    found = source_attribution(model, activations, pairs.correct[:, 0], pairs.incorrect[:, 0], positions=[-1])
    by_source = found.values.mean((1, 2)) / found.shares.sum(0).mean()  # (head, key)
    return {f"{label} from {key}": float(v) for label, row in zip(HEADS, by_source, strict=True) for key, v in enumerate(row)}


def metric_of(pairs: PromptPairs):
    return logit_difference(pairs.correct, pairs.incorrect)


WHOLE_EFFECTS = {
    "activation patching, noising": patched("noising"), "activation patching, denoising": patched("denoising"),
    "ablation, zero": ablated("zero"), "ablation, resample": ablated("resample"),
}  # fmt: skip
DIRECT_EFFECTS = {"paths to the logits": to_logits, "direct logit attribution": spoken}


@every_circuit
@with_and_without_noise
@pytest.mark.parametrize("tool", WHOLE_EFFECTS.values(), ids=WHOLE_EFFECTS)
def test_every_head_of_the_circuit_counts_and_no_other(planted, noise, tool):
    assert_exactly(tool(planted.circuit(noise).model, planted.pairs), planted.heads, noise)


@every_circuit
@with_and_without_noise
@pytest.mark.parametrize("tool", DIRECT_EFFECTS.values(), ids=DIRECT_EFFECTS)
def test_of_direct_effects_only_the_head_that_is_read_has_one(planted, noise, tool):
    assert_exactly(tool(planted.circuit(noise).model, planted.pairs), frozenset({planted.speaker}), noise)


@every_circuit
@with_and_without_noise
def test_it_has_it_from_the_position_where_the_token_stands(planted, noise):
    found = spoken_by_source(planted.circuit(noise).model, planted.pairs)
    assert_exactly(found, frozenset({f"{planted.speaker} from {planted.source}"}), noise)


def test_a_previous_token_head_that_nobody_reads_is_seen_where_it_looks_and_in_no_answer():
    model, pairs = plant({"previous_token": (0, 1)}, CONFIG).model, pairs_of("previous_token")
    scores = head_scores(model, pairs.clean, ["previous_token"])["previous_token"]
    assert scores.best[0] == "L0H1"
    assert scores.best[1] > 0.999
    effects = ablation_effect(model, pairs.clean, None, resample(), metric_of(pairs), source_tokens=pairs.corrupted)
    for moved in (effects.effects, edge_patching(model, pairs), eap(model, pairs).values):
        assert moved.abs().max() < 1e-5  # logits


# Edges ----------------------------------------------------------------------------------------------------------------


def edges_patched(model: GPT2, pairs: PromptPairs) -> Scores:
    effects = edge_patching(model, pairs)
    with torch.no_grad():
        clean, corrupted = (metric_of(pairs)(model(tokens)).mean() for tokens in (pairs.clean, pairs.corrupted))
    return dict(zip(EDGES, (effects / (corrupted - clean)).tolist(), strict=True))


def edges_attributed(found: EdgeAttribution) -> Scores:
    return {edge: found[edge] / (found.corrupted - found.clean) for edge in EDGES}


def head_to_head_paths(model: GPT2, pairs: PromptPairs) -> Scores:
    found = {}
    for receiver in (f"L1H{head}.{which}" for head in range(4) for which in "qkv"):
        effects = shares(get_path_patch_head_to_heads(model, pairs, receiver))
        found |= {f"{sender} -> {receiver}": effect for sender, effect in zip(HEADS, effects, strict=False)}
    return found


@every_circuit
@with_and_without_noise
def test_edges_patched_alone_are_those_of_the_circuit(planted, noise):
    assert_exactly(edges_patched(planted.circuit(noise).model, planted.pairs), planted.edges, noise)


@every_circuit
@with_and_without_noise
def test_path_patching_finds_the_edges_between_heads(planted, noise):
    between = frozenset(edge for edge in planted.edges if edge[0] == "L" and ".k" in edge)
    found = head_to_head_paths(planted.circuit(noise).model, planted.pairs)
    if between:
        assert_exactly(found, between, noise)
    else:
        assert max(map(abs, found.values())) <= (1e-4 if noise == 0 else 0.01)


@every_circuit
@with_and_without_noise
@pytest.mark.parametrize("integrated", [eap_ig_inputs, eap_ig_activations])
def test_eap_ig_finds_the_edges_of_the_circuit(planted, noise, integrated):
    """At least a third of the gap: two edges that need each other (k and v of a duplicate-token head) share one between them.

    Without noise too there is a little beside them, where the path between the runs leads where neither of them goes.
    """
    found = edges_attributed(integrated(planted.circuit(noise).model, planted.pairs, steps=20))
    assert_exactly(found, planted.edges, NOISE, at_least=0.33)


def test_two_edges_that_need_each_other_share_one_gap_in_eap_ig_and_have_one_each_when_patched():
    planted = CIRCUITS["duplicate token"]
    model, both = planted.circuit().model, ("embed -> L0H3.k", "embed -> L0H3.v")
    alone, found = edges_patched(model, planted.pairs), eap_ig_inputs(model, planted.pairs, steps=50)
    assert [alone[edge] for edge in both] == pytest.approx([1, 1], abs=1e-3)
    attributed = edges_attributed(found)
    assert sum(attributed[edge] for edge in both) == pytest.approx(1, abs=0.15)
    assert found.residue == pytest.approx(
        (1 - sum(attributed[edge] for edge in both)) * (found.corrupted - found.clean), abs=1e-3
    )


@every_circuit
@with_and_without_noise
@pytest.mark.parametrize(("metric", "threshold"), [("logit_difference", 0.5), ("kl_divergence", 0.2)])
def test_acdc_leaves_the_edges_of_the_circuit(planted, noise, metric, threshold):
    found = acdc(planted.circuit(noise).model, planted.pairs, threshold, metric, progress=False)
    assert set(found.circuit.labels) == planted.edges


# Where the first order fails --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["previous token", "copying"])
@with_and_without_noise
def test_the_first_order_is_enough_where_no_pattern_changes(name, noise):
    """Behind the final layer norm, which a loud head fills, a derivative can be 5 times too small; the order stays."""
    planted = CIRCUITS[name]
    model = planted.circuit(noise).model
    assert_exactly(edges_attributed(eap(model, planted.pairs)), planted.edges, noise, at_least=0.19)
    for direction in ("noising", "denoising"):
        assert_exactly(attributed(direction)(model, planted.pairs), planted.heads, noise, at_least=0.19)


@pytest.mark.parametrize(("name", "hidden"), [("induction", "L0H1 -> L1H2.k"), ("duplicate token", "embed -> L0H3.k")])
def test_what_only_moves_a_saturated_pattern_is_hidden_from_the_first_order_and_shows_when_the_pattern_is_softened(name, hidden):
    """The planted heads attend with scores of 40 against 20. Their derivative is that of the softmax, p (1 - p)."""
    planted, seen = CIRCUITS[name], {}
    for softness in (1.0, 0.4, 0.2, 0.1):
        circuit = planted.circuit()
        model = softened(circuit, *circuit.heads[list(planted.roles)[-1]], softness)
        assert edges_patched(model, planted.pairs)[hidden] > 0.75  # it carries the answer all along
        seen[softness] = edges_attributed(eap(model, planted.pairs))[hidden]
    assert abs(seen[1.0]) < 1e-4
    assert seen[1.0] < seen[0.4] < seen[0.2] < seen[0.1]
    assert seen[0.1] > 0.15


def softened(circuit: PlantedCircuit, layer: int, head: int, softness: float) -> GPT2:
    """A copy whose head has its attention scores multiplied."""
    model = GPT2(CONFIG).eval()
    model.load_state_dict(circuit.model.state_dict())
    with torch.no_grad():
        model.blocks[layer].attn.qkv.weight[head * CONFIG.d_head : (head + 1) * CONFIG.d_head] *= softness
    return model


# Readings of the weights ------------------------------------------------------------------------------------------------


@with_and_without_noise
def test_readings_of_the_weights_name_what_was_planted(noise):
    tokens = list(range(1, CONFIG.d_vocab))
    for planted in CIRCUITS.values():
        model = planted.circuit(noise).model
        copies = ov_readings(model, tokens, k=1)
        assert {label for label, share in zip(copies.labels, copies.own_among(1), strict=True) if share == 1} == {planted.speaker}
        looks = qk_readings(model, tokens, k=1)
        same = {label for label, share in zip(looks.labels, looks.own_among(1), strict=True) if share == 1}
        assert same == (planted.heads if "duplicate_token" in planted.roles else set())
        first = compositions(model).to_frame().iloc[0]
        if "induction" in planted.roles:
            assert f"{first['sender']} -> {first['receiver']}" in planted.edges
            assert first["score"] > 1.2 * first["unrelated"]


# Random models ----------------------------------------------------------------------------------------------------------


def by_edge(method: Callable[..., EdgeAttribution]) -> Callable[[GPT2, PromptPairs], torch.Tensor]:
    return lambda model, pairs: method(model, pairs).values[GRAPH.indices]


def in_logits(tool: Tool) -> Callable[[GPT2, PromptPairs], torch.Tensor]:
    """Not as a share of the gap, which in a model without one is anything."""

    def measure(model: GPT2, pairs: PromptPairs) -> torch.Tensor:
        with torch.no_grad():
            clean, corrupted = (metric_of(pairs)(model(tokens)).mean() for tokens in (pairs.clean, pairs.corrupted))
        return torch.tensor(list(tool(model, pairs).values())) * (clean - corrupted)

    return measure


MEASURES = {
    "activation patching": in_logits(patched("noising")),
    "attribution patching": in_logits(attributed("denoising")),
    "paths to the logits": in_logits(to_logits),
    "paths between heads": in_logits(head_to_head_paths),
    "EAP": by_edge(eap),
    "EAP-IG": by_edge(eap_ig_inputs),
    "patched edges": edge_patching,
    "ablation": lambda model, pairs: ablation_effect(model, pairs.clean, metric=metric_of(pairs)).mean,
    "direct logit attribution": lambda model, pairs: torch.tensor(list(spoken_logits(model, pairs))),
}


@torch.no_grad()
def spoken_logits(model: GPT2, pairs: PromptPairs) -> list[float]:
    _, activations = model.run_with_cache(pairs.clean)
    found = direct_logit_attribution(model, activations, pairs.correct[:, 0], pairs.incorrect[:, 0], "heads", [-1])
    return found.values.mean((1, 2))[: len(HEADS)].tolist()


@pytest.fixture(scope="module")
def random_models() -> list[GPT2]:
    """The same in all but the planted heads: 20 to learn from, and a fresh one."""
    return [plant({}, CONFIG, NOISE, seed).model for seed in range(100, 121)]


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_in_a_random_model_no_score_lies_outside_the_range_of_chance(measure, random_models, assert_finds):
    planted = CIRCUITS["induction"]
    pairs = planted.pairs[:3]
    largest = measure(planted.circuit(NOISE).model, pairs).abs().max()
    assert_finds(lambda model: measure(model, pairs), [float(largest), -float(largest)], random_models)


def test_in_random_models_acdc_leaves_nothing(random_models):
    pairs = CIRCUITS["induction"].pairs[:3]
    assert all(acdc(model, pairs, 0.2, progress=False).circuit.n_edges == 0 for model in random_models[:3])
