"""Edge attribution on models whose circuit is known, planted or trained."""

from pathlib import Path

import pytest
import torch

from interp_gpt2.causal.edge_attribution import eap, eap_ig_activations, eap_ig_inputs
from interp_gpt2.causal.edge_patching import edge_correlation, edge_patching
from interp_gpt2.planted import induction_pair
from interp_gpt2.prompts.pairs import PromptPairs
from interp_gpt2.runs.run import Run

STUDY = Path(__file__).parents[1] / "data" / "study"


def test_eap_is_blind_behind_hard_attention_and_eap_ig_names_the_planted_circuit():
    """The induction head's pattern is saturated in the clean run: no small change of its keys would move it."""
    circuit = induction_pair()
    tokens = circuit.repeated_tokens(4, period=10)
    clean, answer, wrong = tokens[:, :15], tokens[:, 15], tokens[:, 2]
    corrupted = clean.clone()
    corrupted[:, 4] = torch.tensor([min(set(range(1, 20)) - set(row)) for row in clean.tolist()])  # before the answer's place
    pairs = PromptPairs(clean, corrupted, answer[:, None], wrong[:, None])
    previous, induction = circuit.label("previous_token"), circuit.label("induction")
    path = {f"embed -> {previous}.v", f"{previous} -> {induction}.k", f"{induction} -> logits"}
    for integrated in (eap_ig_inputs, eap_ig_activations):
        found = integrated(circuit.model, pairs, steps=20)
        assert {edge.label for edge, _ in found.top(3)} == path
        gap = found.corrupted - found.clean
        assert all(score == pytest.approx(gap, rel=0.1) for _, score in found.top(3))
        assert abs(found.top(4)[3][1]) < 0.03 * abs(gap)
    assert abs(eap(circuit.model, pairs)[f"{previous} -> {induction}.k"]) < 1e-3 * abs(gap)


def test_in_a_trained_induction_model_the_strongest_edge_between_heads_is_k_composition():
    """Repeated random tokens, the earlier occurrence of the last one replaced: L0H1 looks back by one, L1 has induction."""
    model = Run(STUDY / "demo-induction").model().eval()
    draw = torch.Generator().manual_seed(0)
    tokens = torch.stack([torch.randperm(model.config.d_vocab, generator=draw)[:10] for _ in range(16)])
    half, others = tokens[:, :8], tokens[:, 8:]
    clean, answer = torch.cat([half, half[:, :5]], 1), half[:, 5]
    corrupted = clean.clone()
    corrupted[:, 4] = others[:, 0]
    pairs = PromptPairs(clean, corrupted, answer[:, None], others[:, 1:])
    effects = edge_patching(model, pairs)
    for attribute, at_least in ((eap, 0.5), (eap_ig_inputs, 0.9), (eap_ig_activations, 0.9)):
        found = attribute(model, pairs)
        between = [edge for edge, _ in found.top(found.graph.n_edges) if edge.sender.kind == edge.receiver.kind == "head"]
        assert between[0].label == "L0H1 -> L1H0.k"
        assert edge_correlation(found, effects).pearson > at_least  # saturated patterns are what EAP loses by
