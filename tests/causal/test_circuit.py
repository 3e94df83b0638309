"""Circuits: the edges outside them carry what was put there, exactly, and nothing else changes."""

from functools import partial

import pytest
import torch

from interp_gpt2.causal.ablation import mean, positional_mean, resample, zero
from interp_gpt2.causal.circuit import Circuit, greedy_edges, on_a_path, top_edges, writers
from interp_gpt2.causal.circuit_pass import circuit_logits, circuit_values
from interp_gpt2.causal.edge_attribution import eap
from interp_gpt2.causal.graph import Graph
from interp_gpt2.causal.means import activation_means
from interp_gpt2.causal.metrics import kl_divergence, logit_difference
from interp_gpt2.causal.senders import sender_outputs, sender_points, stand_in
from interp_gpt2.config import GPT2Config
from interp_gpt2.convert.transformer_lens import to_hooked_transformer
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2
from interp_gpt2.prompts.pairs import PromptPairs

ABLATIONS = ["resample", "zero", "mean", "positional mean"]


@pytest.fixture(params=[False, True], ids=["one length", "padded"])
def pairs(request) -> PromptPairs:
    return prompt_pairs(request.param)


def prompt_pairs(padded: bool, n_pairs: int = 3) -> PromptPairs:
    draw = torch.Generator().manual_seed(3)
    clean, corrupted = (torch.randint(0, 50, (n_pairs, 9), generator=draw) for _ in range(2))
    mask = None
    if padded:
        mask = torch.ones_like(clean)
        mask[1, 6:] = 0
    answers = torch.arange(n_pairs)[:, None]
    return PromptPairs(clean, corrupted, answers, answers + 10, mask)


def metric_of(pairs: PromptPairs):
    return logit_difference(pairs.correct, pairs.incorrect)


def random_circuit(graph: Graph, seed: int, share: float = 0.5) -> Circuit:
    draw = torch.Generator().manual_seed(seed)
    return Circuit(graph, torch.rand(graph.exists.shape, generator=draw) < share)


def real(pairs: PromptPairs) -> torch.Tensor:
    return torch.ones_like(pairs.clean).bool() if pairs.attention_mask is None else pairs.attention_mask.bool()


def largest_difference(one: torch.Tensor, other: torch.Tensor, pairs: PromptPairs) -> float:
    """Relative to the largest logit, over real positions."""
    return float((one - other)[real(pairs)].abs().max() / other[real(pairs)].abs().max())


# By hand: one hook a receiver, one term an edge ------------------------------------------------------------------------


def logits_by_hand(model: GPT2, circuit: Circuit, pairs: PromptPairs, ablated: torch.Tensor) -> torch.Tensor:
    """The definition, edge by edge: each input is the stream plus ablated less current of every edge that is not kept."""
    graph, current = circuit.graph, {}

    def remember(sender, value, site):
        current[sender] = value.clone()
        return value

    def remember_heads(result, site):
        for head in range(graph.n_heads):
            current[f"L{site.layer}H{head}"] = result[:, :, head].clone()
        return result

    def changed(receiver, stream):
        for index, sender in enumerate(graph.senders[: graph.n_upstream[graph.receiver_index(receiver)]]):
            if (sender, receiver) not in kept:
                stream = stream + ablated[index] - current[sender.label]
        return stream

    def change(receiver, value, site):
        return changed(receiver, value)

    def change_heads(which, value, site):
        for head in range(graph.n_heads):
            receiver = next(r for r in graph.receivers if r.label == f"L{site.layer}H{head}.{which}")
            value[:, :, head] = changed(receiver, value[:, :, head])
        return value

    kept = {(edge.sender, edge.receiver) for edge in circuit.edges}
    edits = {}
    for layer in range(graph.n_layers):
        edits |= {(f"{which}_input", layer): partial(change_heads, which) for which in "qkv"}
        edits["result", layer] = remember_heads
        if not graph.attn_only:
            mlp = graph.receivers[graph.mlp_receiver(layer)]
            edits["mlp_in", layer] = partial(change, mlp)
            edits["mlp_out", layer] = partial(remember, mlp.label)
    current["embed"] = model.embed(pairs.clean, attention_mask=pairs.attention_mask)
    last = ("resid_post", graph.n_layers - 1)
    _, cache = model.run_with_cache(pairs.clean, last, edits, attention_mask=pairs.attention_mask)
    return model.unembed(changed(graph.receivers[-1], cache[last]))


@torch.no_grad()
@pytest.mark.parametrize("extra", [{}, {"attn_only": True}, {"layer_norm": False}, {"bias": False}], ids=str)
def test_a_circuit_is_what_hooks_at_every_receiver_make_of_it(make_gpt2, pairs: PromptPairs, extra: dict) -> None:
    config = GPT2Config(**{"n_layers": 3, "n_heads": 3, "d_model": 24, "d_vocab": 50, "n_ctx": 16} | extra)
    model = make_gpt2(config).double()  # without biases, layer norms blow up the rounding of what zeros leave of a stream
    ablated = {
        "resample": sender_outputs(model, pairs.corrupted, pairs.attention_mask),
        "zero": torch.zeros(len(Graph.of(model.config).senders), 1, 1, 1),
    }
    for seed, share in ((0, 0.5), (1, 0.9), (2, 0.1)):
        circuit = random_circuit(Graph.of(model.config), seed, share)
        for name, values in ablated.items():
            by_hand = logits_by_hand(model, circuit, pairs, values)
            assert largest_difference(circuit_logits(model, circuit, pairs, name), by_hand, pairs) < 1e-11


@torch.no_grad()
@pytest.mark.hooked_transformer
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_transformer_lens_agrees_with_its_split_inputs_and_head_results_hooked(model: GPT2) -> None:
    pairs = prompt_pairs(padded=False)
    hooked = to_hooked_transformer(model)
    for switch in (hooked.set_use_split_qkv_input, hooked.set_use_attn_result, hooked.set_use_hook_mlp_in):
        switch(True)
    graph = Graph.of(model.config)
    _, corrupted = hooked.run_with_cache(pairs.corrupted)
    circuit, current = random_circuit(graph, 4), {}
    names = {"embed": "blocks.0.hook_resid_pre"} | {f"mlp {layer}": f"blocks.{layer}.hook_mlp_out" for layer in range(2)}

    def theirs(sender):
        if sender.kind == "head":
            return corrupted[f"blocks.{sender.layer}.attn.hook_result"][:, :, sender.head]
        return corrupted[names[sender.label]]

    def remember(value, hook):
        current[hook.name] = value.clone()

    def now(sender):
        name = f"blocks.{sender.layer}.attn.hook_result" if sender.kind == "head" else names[sender.label]
        return current[name][:, :, sender.head] if sender.kind == "head" else current[name]

    def change(receiver, value):
        index = graph.receiver_index(receiver)
        outside = [s for i, s in enumerate(graph.senders[: graph.n_upstream[index]]) if not circuit.kept[i, index]]
        return value + sum((theirs(sender) - now(sender) for sender in outside), torch.zeros_like(value))

    def change_heads(which, value, hook):
        label = f"L{hook.layer()}H{{}}.{which}"
        return torch.stack([change(label.format(head), value[:, :, head]) for head in range(graph.n_heads)], 2)

    hooks = [("blocks.0.hook_resid_pre", remember)]
    for layer in range(graph.n_layers):
        hooks += [(f"blocks.{layer}.hook_{which}_input", partial(change_heads, which)) for which in "qkv"]
        hooks += [(f"blocks.{layer}.attn.hook_result", remember), (f"blocks.{layer}.hook_mlp_out", remember)]
        hooks.append((f"blocks.{layer}.hook_mlp_in", lambda value, hook: change(f"mlp {hook.layer()}", value)))
    hooks.append(("blocks.1.hook_resid_post", lambda value, hook: change("logits", value)))
    wanted = hooked.run_with_hooks(pairs.clean, fwd_hooks=hooks)
    assert largest_difference(circuit_logits(model, circuit, pairs), wanted, pairs) < 1e-5


# The two ends, and batches ---------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_full_circuit_is_the_model_and_the_empty_one_the_model_on_the_corrupted_prompts(any_model, pairs) -> None:
    graph = Graph.of(any_model.config)
    clean, corrupted = (any_model(tokens, attention_mask=pairs.attention_mask) for tokens in (pairs.clean, pairs.corrupted))
    for ablation in ABLATIONS:
        assert largest_difference(circuit_logits(any_model, Circuit.full(graph), pairs, ablation), clean, pairs) < 1e-5
    assert largest_difference(circuit_logits(any_model, Circuit.empty(graph), pairs), corrupted, pairs) < 1e-5


@torch.no_grad()
def test_under_a_fixed_ablation_the_empty_circuit_does_not_know_the_prompt(model: GPT2, pairs: PromptPairs) -> None:
    empty = Circuit.empty(Graph.of(model.config))
    for ablation in ("zero", "mean"):
        logits = circuit_logits(model, empty, pairs, ablation)[real(pairs)]
        assert torch.allclose(logits, logits[:1].expand_as(logits), atol=1e-4)
    logits = circuit_logits(model, empty, pairs, "positional mean")
    assert torch.allclose(logits[0], logits[2], atol=1e-4)


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_circuits_and_pairs_side_by_side_are_as_each_by_itself(model: GPT2, pairs, ablation: str, monkeypatch) -> None:
    graph, metric = Graph.of(model.config), metric_of(pairs)
    circuits = [Circuit.full(graph), random_circuit(graph, 1), random_circuit(graph, 2, 0.1), Circuit.empty(graph)]
    alone = torch.stack([metric(circuit_logits(model, circuit, pairs, ablation), pairs.attention_mask) for circuit in circuits])
    together = circuit_values(model, circuits, pairs, metric, ablation)
    assert torch.allclose(together, alone, atol=1e-4)
    monkeypatch.setattr("interp_gpt2.causal.circuit_pass.BUDGET", 0)  # one circuit and one pair at a time
    assert torch.allclose(circuit_values(model, circuits, pairs, metric, ablation), together, atol=1e-4)
    as_function = circuit_values(model, circuits, pairs, lambda logits: metric(logits, pairs.attention_mask), ablation)
    assert torch.allclose(as_function, together, atol=1e-4)


def test_means_of_other_text_take_the_place_of_ablated_senders(model: GPT2, pairs: PromptPairs) -> None:
    graph, metric = Graph.of(model.config), metric_of(pairs)
    circuit = [random_circuit(graph, 1)]
    same = activation_means(model, pairs.corrupted, sender_points(model.config), pairs.attention_mask)
    other = activation_means(model, pairs.clean, sender_points(model.config), pairs.attention_mask)
    for name, made in (("mean", mean), ("positional mean", positional_mean)):
        by_name = circuit_values(model, circuit, pairs, metric, name)
        assert torch.equal(circuit_values(model, circuit, pairs, metric, made(same)), by_name)
        assert not torch.allclose(circuit_values(model, circuit, pairs, metric, made(other)), by_name)
    outputs = sender_outputs(model, pairs.corrupted, pairs.attention_mask)
    there = real(pairs)
    expected = outputs[:, there].mean(1)
    assert torch.allclose(stand_in("mean", model, pairs).of(slice(0, 1))[:, 0, 0], expected, atol=1e-5)
    by_position = torch.where(there[..., None], outputs, 0).sum(1) / there.sum(0)[:, None]
    assert torch.allclose(stand_in("positional mean", model, pairs).of(slice(0, 1))[:, 0], by_position, atol=1e-5)


# Choosing edges --------------------------------------------------------------------------------------------------------


GRAPH = Graph(n_layers=2, n_heads=2)


def test_a_circuit_knows_its_edges_nodes_and_complement() -> None:
    circuit = Circuit.of_edges(GRAPH, ["embed -> L0H1.v", "L0H1 -> L1H0.k", "L1H0 -> logits"])
    assert circuit.labels == ("embed -> L0H1.v", "L0H1 -> L1H0.k", "L1H0 -> logits")
    assert [node.label for node in circuit.nodes] == ["embed", "L0H1", "L1H0"]
    assert "L0H1 -> L1H0.k" in circuit
    assert "L0H1 -> L1H0.q" not in circuit
    assert circuit.n_edges + circuit.complement().n_edges == GRAPH.n_edges
    assert circuit.complement().complement() == circuit
    assert circuit.without("L1H0 -> logits").labels == circuit.labels[:2]
    assert circuit.without_node("L0H1").labels == ("embed -> L0H1.v", "L1H0 -> logits")
    assert circuit.to_frame()["sender"].tolist() == ["embed", "L0H1", "L1H0"]


@torch.no_grad()
def test_a_circuit_of_nodes_is_the_model_with_all_others_resampled(model: GPT2, pairs: PromptPairs) -> None:
    circuit = Circuit.of_nodes(Graph.of(model.config), ["L0H1", "mlp 0", "L1H3", "mlp 1"])
    outside = [node for node in circuit.graph.senders if node not in circuit.nodes]
    _, other = model.run_with_cache(pairs.corrupted, ["*.z"], attention_mask=pairs.attention_mask)

    def patch(z, site):
        heads = [node.head for node in outside if node.layer == site.layer]
        z[:, :, heads] = other["z", site.layer][:, :, heads]
        return z

    wanted = model.run_with_edits(pairs.clean, {"*.z": patch}, pairs.attention_mask)
    assert largest_difference(circuit_logits(model, circuit, pairs), wanted, pairs) < 1e-5


def paths(graph: Graph, kept: torch.Tensor) -> set[tuple[int, int]]:
    """Edges on a path from the embeddings to the logits, by walking every path."""
    writer, found = writers(graph).tolist(), set()

    def walk(node, edges):
        if node == len(graph.senders):
            found.update(edges)
            return
        for receiver in kept[node].nonzero()[:, 0].tolist():
            walk(writer[receiver], [*edges, (node, receiver)])

    walk(0, [])
    return found


@pytest.mark.parametrize("seed", range(6))
def test_what_stays_lies_on_a_path_and_what_lies_on_a_path_stays(seed: int) -> None:
    kept = random_circuit(GRAPH, seed, 0.15 + 0.05 * seed).kept
    assert {tuple(edge) for edge in on_a_path(GRAPH, kept).nonzero().tolist()} == paths(GRAPH, kept)


@torch.no_grad()
def test_dropping_dangling_edges_changes_nothing_under_resampling(model: GPT2, pairs: PromptPairs) -> None:
    circuit = random_circuit(Graph.of(model.config), 5, 0.12)
    connected = circuit.connected()
    assert connected.dropped
    assert connected.n_edges + len(connected.dropped) == circuit.n_edges
    assert not set(connected.dropped) & set(connected.labels)
    one, other = (circuit_logits(model, c, pairs) for c in (circuit, connected))
    assert largest_difference(one, other, pairs) < 1e-5


def test_top_edges_are_the_greatest_in_absolute_value_less_those_on_no_path() -> None:
    scores = torch.zeros(GRAPH.exists.shape)
    chosen = {
        "embed -> L0H1.v": 3.0,
        "L0H1 -> L1H0.k": -2.0,
        "L1H0 -> logits": 1.0,
        "embed -> mlp 0": 2.5,
        "mlp 1 -> logits": -0.5,
    }
    for label, score in chosen.items():
        scores[GRAPH.index(label)] = score
    circuit = top_edges(GRAPH, scores, 5)
    assert circuit.labels == ("embed -> L0H1.v", "L0H1 -> L1H0.k", "L1H0 -> logits")
    assert set(circuit.dropped) == {"embed -> mlp 0", "mlp 1 -> logits"}
    assert [row["score"] for row in circuit.rows()] == [3, -2, 1]
    assert top_edges(GRAPH, scores, 2).labels == ()  # nothing reaches the logits
    assert top_edges(GRAPH, scores, GRAPH.n_edges) == Circuit.full(GRAPH)


@pytest.mark.parametrize("seed", range(4))
def test_greedy_edges_each_time_add_the_best_edge_into_what_is_there(seed: int) -> None:
    scores = torch.randn(GRAPH.exists.shape, generator=torch.Generator().manual_seed(seed))
    inside, chosen = {"logits"}, []
    for _ in range(12):
        into = [e for e in GRAPH.edges() if e.receiver.writer.label in inside and e not in chosen]
        best = max(into, key=lambda edge: abs(float(scores[GRAPH.index(edge)])))
        chosen.append(best)
        inside.add(best.sender.label)
    circuit = greedy_edges(GRAPH, scores, 12)
    assert set(circuit.labels) | set(circuit.dropped) == {edge.label for edge in chosen}
    assert circuit == circuit.connected()
    assert greedy_edges(GRAPH, scores, GRAPH.n_edges) == Circuit.full(GRAPH)


# Held wrong ------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_run_is_refused_with_what_to_do(model: GPT2) -> None:
    pairs = prompt_pairs(padded=False)
    graph, metric = Graph.of(model.config), metric_of(pairs)
    full = Circuit.full(graph)
    with pytest.raises(AnalysisError, match="another model"):
        circuit_logits(model, Circuit.full(GRAPH), pairs)
    others = activation_means(GPT2(model.config, 9), pairs.corrupted, sender_points(model.config))
    with pytest.raises(AnalysisError, match="other weights"):
        circuit_logits(model, full, pairs, mean(others))
    with pytest.raises(AnalysisError, match="one prompt are its own"):
        circuit_logits(model, full, pairs[:1], "positional mean")
    with pytest.raises(AnalysisError, match="is none; give a name"):
        circuit_logits(model, full, pairs, zero)
    with pytest.raises(AnalysisError, match="None is no metric"):
        circuit_values(model, [full], pairs, None)
    with pytest.raises(AnalysisError, match="not EdgeAttribution; of an attribution, pass its values"):
        top_edges(graph, eap(model, pairs), 3)
    with pytest.raises(AnalysisError, match=r"no 3\.0 edges"):
        top_edges(graph, torch.zeros(graph.exists.shape), 3.0)
    with pytest.raises(AnalysisError, match="no ablation is called 'shuffle'"):
        circuit_logits(model, full, pairs, "shuffle")
    with pytest.raises(AnalysisError, match="neither"):
        circuit_logits(model, full, pairs, resample(positions=-1))
    with pytest.raises(AnalysisError, match="there is no edge"):
        Circuit.of_edges(graph, ["L1H0 -> L0H1.k"])
    with pytest.raises(AnalysisError, match="standing edits"):
        circuit_values(model.with_edits({"embed": lambda value, site: value}), [full], pairs, metric)
    with pytest.raises(AnalysisError, match="no circuits"):
        circuit_values(model, [], pairs, metric)
    with pytest.raises(AnalysisError, match="nan"):
        circuit_values(model, [full], pairs, lambda logits: logits[:, -1, 0] * float("nan"))
    with pytest.raises(AnalysisError, match=r"shape \(3, 9\)"):
        circuit_values(model, [full], pairs, lambda logits: logits[:, :, 0])
    with pytest.raises(AnalysisError, match="no 999999 edges"):
        top_edges(graph, torch.zeros(graph.exists.shape), 999999)
    with pytest.raises(AnalysisError, match="not finite"):
        top_edges(graph, torch.full(graph.exists.shape, float("nan")), 3)
    with pytest.raises(AnalysisError, match="expected"):
        top_edges(graph, torch.zeros(3, 3), 3)


def test_kl_divergence_to_the_model_is_zero_for_the_full_circuit_alone(model: GPT2, pairs: PromptPairs) -> None:
    graph = Graph.of(model.config)
    logits = model(pairs.clean, attention_mask=pairs.attention_mask).detach()
    metric = kl_divergence(logits, attention_mask=pairs.attention_mask)
    full, empty = circuit_values(model, [Circuit.full(graph), Circuit.empty(graph)], pairs, metric)
    assert full.abs().max() < 1e-5
    assert empty.min() > 1e-3
