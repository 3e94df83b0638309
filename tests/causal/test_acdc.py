"""ACDC: asking ahead from the cached run decides as asking one edge at a time does, and finds what was planted or learnt."""

from pathlib import Path

import pytest
import torch

from interp_gpt2 import Run
from interp_gpt2.causal.acdc import _Asking, acdc
from interp_gpt2.causal.circuit import Circuit
from interp_gpt2.causal.circuit_pass import circuit_logits, circuit_values
from interp_gpt2.causal.edge_attribution import eap
from interp_gpt2.causal.graph import Graph
from interp_gpt2.causal.metrics import kl_divergence, logit_difference
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2
from interp_gpt2.planted import PlantedCircuit, induction_pair
from interp_gpt2.prompts.induction import induction
from interp_gpt2.prompts.pairs import PromptPairs

DEMO = Path(__file__).parents[1] / "data" / "study" / "demo-induction"


def prompt_pairs(padded: bool = False) -> PromptPairs:
    draw = torch.Generator().manual_seed(3)
    clean, corrupted = (torch.randint(0, 50, (3, 9), generator=draw) for _ in range(2))
    mask = torch.ones_like(clean)
    mask[1, 6:] = 0
    answers = torch.arange(3)[:, None]
    return PromptPairs(clean, corrupted, answers, answers + 10, mask if padded else None)


def metric_of(pairs: PromptPairs):
    return logit_difference(pairs.correct, pairs.incorrect)


def pruned_by_hand(model: GPT2, pairs: PromptPairs, threshold: float) -> tuple[Circuit, list[tuple[str, bool]]]:
    """The algorithm in its plainest words: a whole pass a question, every edge asked."""
    graph = Graph.of(model.config)
    logits = model(pairs.clean, attention_mask=pairs.attention_mask)
    metric = kl_divergence(logits, attention_mask=pairs.attention_mask)
    circuit = Circuit.full(graph)
    value = metric(circuit_logits(model, circuit, pairs), pairs.attention_mask).mean()
    log = []
    for receiver in reversed(graph.receivers):
        for sender in reversed(graph.senders[: graph.n_upstream[graph.receiver_index(receiver)]]):
            smaller = circuit.without(f"{sender} -> {receiver}")
            new = metric(circuit_logits(model, smaller, pairs), pairs.attention_mask).mean()
            log.append((f"{sender} -> {receiver}", bool(new - value > threshold)))
            if new - value <= threshold:
                circuit, value = smaller, new
    return circuit, log


@torch.no_grad()
@pytest.mark.parametrize("extra", [{}, {"attn_only": True, "n_layers": 3}, {"layer_norm": False}, {"n_layers": 0}], ids=str)
@pytest.mark.parametrize("padded", [False, True], ids=["one length", "padded"])
def test_every_way_of_asking_comes_to_the_same_decisions(make_gpt2, extra: dict, padded: bool) -> None:
    config = GPT2Config(**{"n_layers": 2, "n_heads": 2, "d_model": 16, "d_vocab": 50, "n_ctx": 16} | extra)
    model, pairs = make_gpt2(config), prompt_pairs(padded)
    for threshold in (0.002, 0.05):
        by_hand, log = pruned_by_hand(model, pairs, threshold)
        found = acdc(model, pairs, threshold, progress=False)
        naive = acdc(model, pairs, threshold, naive=True, progress=False)
        assert found.margin > 1e-6  # else rounding decides
        for pruned in (found, naive):
            assert pruned.circuit == by_hand
            decided = {decision.edge: decision.kept for decision in pruned.decisions}
            assert decided == dict(log)
            assert pruned.finished
        assert [d.edge for d in found.decisions] == [d.edge for d in naive.decisions]
        changes = [torch.tensor([d.change for d in pruned.decisions]) for pruned in (found, naive)]
        assert torch.allclose(*changes, atol=1e-5)
        assert naive.n_run == naive.n_asked == found.n_asked <= found.n_run


def test_the_value_that_is_reported_is_the_circuits_own(model: GPT2) -> None:
    pairs = prompt_pairs()
    metric = metric_of(pairs)
    found = acdc(model, pairs, 0.05, metric, progress=False)
    whole, circuit = circuit_values(model, [Circuit.full(found.circuit.graph), found.circuit], pairs, metric).mean(1).tolist()
    assert found.model == pytest.approx(whole, abs=1e-5)
    assert found.value == pytest.approx(circuit, abs=1e-5)
    removed = sum(d.change for d in found.decisions if not d.kept)
    assert found.value - found.model == pytest.approx(removed, abs=1e-5)
    assert all(abs(d.change) <= 0.05 for d in found.decisions if not d.kept)
    assert all(abs(d.change) > 0.05 for d in found.decisions if d.kept)
    assert found.circuit.n_edges == found.to_frame()["kept"].sum()


@pytest.mark.parametrize("ablation", ["zero", "mean", "positional mean"])
def test_other_ablations_are_asked_about_in_the_same_way(model: GPT2, ablation: str) -> None:
    pairs = prompt_pairs()
    found, naive = (acdc(model, pairs, 0.1, metric_of(pairs), ablation, naive=n, progress=False) for n in (False, True))
    assert found.circuit == naive.circuit
    assert found.margin > 1e-6
    assert 0 < found.circuit.n_edges < found.circuit.graph.n_edges


def test_only_the_direction_that_counts_keeps_an_edge(model: GPT2) -> None:
    pairs = prompt_pairs()
    for counts, sign in (("rise", 1), ("fall", -1)):
        found = acdc(model, pairs, 0.1, metric_of(pairs), counts=counts, progress=False)
        assert found.circuit == acdc(model, pairs, 0.1, metric_of(pairs), counts=counts, naive=True, progress=False).circuit
        asked = [d for d in found.decisions if d.asked]
        assert all(d.kept == (sign * d.change > 0.1) for d in asked)
        assert any(sign * d.change < -0.1 for d in asked)


def test_an_interrupt_keeps_what_was_decided(model: GPT2, monkeypatch) -> None:
    pairs = prompt_pairs()
    whole = acdc(model, pairs, 0.02, progress=False)
    asked, values = [], _Asking.values

    def interrupted_at_the_sixth(self, kept, start):
        asked.append(kept)
        if len(asked) == 6:
            raise KeyboardInterrupt
        return values(self, kept, start)

    monkeypatch.setattr(_Asking, "values", interrupted_at_the_sixth)
    part = acdc(model, pairs, 0.02, progress=False)
    assert not part.finished
    assert "interrupted" in repr(part)
    n = len(part.decisions)
    assert 0 < n < len(whole.decisions)
    assert part.decisions == whole.decisions[:n]
    removed = {d.edge for d in part.decisions if not d.kept}
    assert part.circuit == Circuit.full(part.circuit.graph).without(*removed)


# What is known to be there ---------------------------------------------------------------------------------------------


def after_bos(pairs: PromptPairs) -> PromptPairs:
    """The same prompts over tokens 1, 2, ... behind token 0, as planted models want them."""
    bos = torch.zeros(len(pairs), 1, dtype=torch.long)
    clean, corrupted = (torch.cat([bos, tokens + 1], 1) for tokens in (pairs.clean, pairs.corrupted))
    return PromptPairs(clean, corrupted, pairs.correct + 1, pairs.incorrect + 1)


def planted_edges(planted: PlantedCircuit) -> set[str]:
    return {f"{sender.replace('pos_embed', 'embed')} -> {receiver}" for sender, receiver in planted.edges}


@pytest.mark.parametrize("noise", [0.0, 0.02])
@pytest.mark.parametrize("heads", [((0, 1), (1, 2)), ((0, 3), (1, 0))], ids=str)
def test_a_planted_induction_circuit_is_found_exactly(heads: tuple, noise: float) -> None:
    planted = induction_pair(*heads, noise=noise)
    pairs = after_bos(induction(19, n=8, period=8, corruption="change_previous_token").pairs)
    before, after = planted.label("previous_token"), planted.label("induction")
    # Of what was planted, these carry the token that differs between the prompts.
    differing = {f"embed -> {before}.v", f"{before} -> {after}.k", f"{after} -> logits"}
    assert differing < planted_edges(planted)
    for metric, threshold in (("kl_divergence", 0.2), ("logit_difference", 1)):  # nats, and logits of about 14
        assert set(acdc(planted.model, pairs, threshold, metric, progress=False).circuit.labels) == differing
    # Ablated to the same for all prompts, every edge counts; but for the key that only a head that finds nothing rests on.
    rest = {f"embed -> {after}.k"}
    for ablation in ("zero", "mean"):
        assert (
            set(acdc(planted.model, pairs, 0.2, ablation=ablation, progress=False).circuit.labels)
            == planted_edges(planted) - rest
        )


def demo_pairs(model: GPT2, seed: int = 0) -> PromptPairs:
    return induction(model.config.d_vocab, n=16, seed=seed, period=12, corruption="change_previous_token").pairs


@pytest.mark.parametrize("seed", [0, 1])
def test_the_trained_models_induction_heads_are_found_to_read_the_previous_token_heads_output_as_keys(seed: int) -> None:
    """L0H1 writes which letter came before; L1H0, and less well L1H1, look for it with their keys (K-composition)."""
    model = Run(DEMO).model(2000)
    pairs = demo_pairs(model, seed)
    found = acdc(model, pairs, 0.15, progress=False)
    heads_of_both = {"embed -> L0H1.v", "L0H1 -> L1H0.k", "L0H1 -> L1H1.k", "L1H0 -> logits", "L1H1 -> logits"}
    assert set(found.circuit.labels) == heads_of_both
    assert found.circuit.connected() == found.circuit
    assert found.value < 0.25  # nats from the model's own predictions; those on the corrupted prompts are 0.6 from them
    scores = eap(model, pairs, metric_of(pairs))
    between_heads = [(edge.label, score) for edge, score in scores.top(46) if edge.sender.kind == edge.receiver.kind == "head"]
    assert [label for label, _ in between_heads[:2]] == ["L0H1 -> L1H0.k", "L0H1 -> L1H1.k"]
    assert all(score < 0 for _, score in between_heads[:2])  # the answer rests on them


def test_before_the_phase_change_nothing_of_it_is_there() -> None:
    model = Run(DEMO).model(64)
    assert acdc(model, demo_pairs(model), 0.15, progress=False).circuit.n_edges == 0


# Held wrong ------------------------------------------------------------------------------------------------------------


def test_thresholds_and_directions_that_mean_nothing_are_refused(model: GPT2) -> None:
    pairs = prompt_pairs()
    with pytest.raises(AnalysisError, match="threshold=-1"):
        acdc(model, pairs, -1, progress=False)
    with pytest.raises(AnalysisError, match="threshold=nan"):
        acdc(model, pairs, float("nan"), progress=False)
    with pytest.raises(AnalysisError, match="counts='up'"):
        acdc(model, pairs, 0.1, metric_of(pairs), counts="up", progress=False)
    with pytest.raises(AnalysisError, match="standing edits"):
        acdc(model.with_edits({"embed": lambda value, site: value}), pairs, 0.1, progress=False)
