"""The graph of a GPT-2: who reads what, counted and checked against what the model's own hook points do."""

import pytest
import torch

from interp_gpt2 import GPT2, GPT2Config
from interp_gpt2.causal.graph import Edge, Graph, Node
from interp_gpt2.errors import AnalysisError

CONFIG = GPT2Config(n_layers=2, n_heads=3, d_model=12, d_vocab=11, n_ctx=8)


def test_the_small_gpt2_has_the_32491_edges_of_the_eap_ig_convention():
    graph = Graph.of(GPT2Config())
    heads = sum(36 * (1 + 13 * layer) for layer in range(12))  # q, k and v of 12 heads read 1 + 13 per earlier layer
    mlps = sum(13 + 13 * layer for layer in range(12))  # and an MLP reads the 12 heads of its own layer too
    assert graph.n_edges == heads + mlps + 157 == 32_491
    assert graph.n_edges == graph.exists.sum() == len(list(graph.edges()))


@pytest.mark.parametrize("attn_only", [False, True])
@pytest.mark.parametrize("n_layers", [0, 1, 3])
def test_indices_labels_and_edges_name_the_same_things(n_layers, attn_only):
    graph = Graph(n_layers, 2, attn_only)
    senders, receivers = graph.indices
    assert len(senders) == graph.n_edges
    for edge, sender, receiver in zip(graph.edges(), senders, receivers, strict=True):
        assert graph.exists[sender, receiver]
        assert graph.index(edge.label) == graph.index(edge) == (sender, receiver)
        assert Edge.from_label(edge.label) == edge == Edge(graph.senders[sender], graph.receivers[receiver])
    for layer in range(n_layers):
        assert [node.label for node in graph.senders[graph.head_senders(layer)]] == [f"L{layer}H0", f"L{layer}H1"]
        inputs = [f"L{layer}H{head}.{which}" for which in "qkv" for head in range(2)]
        assert [node.label for node in graph.receivers[graph.head_receivers(layer)]] == inputs
        if not attn_only:
            assert graph.senders[graph.mlp_sender(layer)] == graph.receivers[graph.mlp_receiver(layer)] == Node("mlp", layer)


def test_an_edge_exists_exactly_where_the_senders_output_can_change_the_receivers_input():
    model, graph = GPT2(CONFIG).eval(), Graph.of(CONFIG)
    tokens = torch.arange(6)[None]
    points = {"q": "q_input", "k": "k_input", "v": "v_input"}
    names = ["*_input", "*.mlp_in", "blocks.1.resid_post"]

    def inputs_under(edits):
        _, cache = model.run_with_cache(tokens, names, edits)
        read = {"logits": cache["resid_post", 1]}
        read |= {f"mlp {layer}": cache["mlp_in", layer] for layer in range(2)}
        read |= {
            f"L{layer}H{head}.{which}": cache[point, layer][:, :, head]
            for layer in range(2) for head in range(3) for which, point in points.items()
        }  # fmt: skip
        return read

    clean = inputs_under({})
    for index, sender in enumerate(graph.senders):
        if sender.kind == "head":
            point, at = ("result", sender.layer), (..., sender.head, slice(None))
        else:
            point, at = (("mlp_out", sender.layer) if sender.kind == "mlp" else "embed"), ...

        def add_one(value, site, at=at):
            value[at] += torch.linspace(-1, 1, 12)
            return value

        moved = inputs_under({point: add_one})
        changed = [not torch.allclose(moved[node.label], clean[node.label], atol=1e-6) for node in graph.receivers]
        assert changed == graph.exists[index].tolist()


def test_a_reader_knows_the_writer_it_feeds():
    graph = Graph.of(CONFIG)
    assert Node.from_label("L1H2.q").writer.label == "L1H2"
    assert all(node.writer in graph.senders for node in graph.receivers[:-1])


def test_a_graph_without_mlps_has_none():
    graph = Graph(2, 2, attn_only=True)
    assert not any(node.kind == "mlp" for node in (*graph.senders, *graph.receivers))
    assert graph.n_edges == 6 * (1 + 3) + 5


@pytest.mark.parametrize("label", ["L9H0 -> logits", "L0H0.q -> logits", "L0H0 -> L1H0", "logits -> embed", "L0H0"])
def test_what_is_no_edge_is_refused(label):
    with pytest.raises(AnalysisError, match=r"is no (edge|sender|receiver)"):
        Graph.of(CONFIG).index(label)


def test_an_edge_backwards_in_the_pass_is_refused_with_the_reason():
    with pytest.raises(AnalysisError, match=r"L1H0 writes after L0H1\.k has read"):
        Graph.of(CONFIG).index("L1H0 -> L0H1.k")


def test_a_label_of_nothing_is_refused():
    with pytest.raises(AnalysisError, match="'layer 3' is no node"):
        Node.from_label("layer 3")
