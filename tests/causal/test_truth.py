"""Every tool on the same two models whose circuit is known, planted and trained, and on models in which there is none."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import t
from torch import Tensor

from interp_gpt2 import Run
from interp_gpt2.causal.ablation import mean, resample
from interp_gpt2.causal.ablation_effect import ablation_effect
from interp_gpt2.causal.activation_patching import get_act_patch_attn_head_out_all_pos
from interp_gpt2.causal.edge_attribution import eap, eap_ig_activations, eap_ig_inputs
from interp_gpt2.causal.edge_patching import edge_patching
from interp_gpt2.causal.graph import Graph
from interp_gpt2.causal.means import activation_means
from interp_gpt2.causal.node_attribution import attribution_patching
from interp_gpt2.causal.path_patching import get_path_patch_head_to_heads, path_patching
from interp_gpt2.model import GPT2
from interp_gpt2.planted import PLANTED_CONFIG, PlantedCircuit, plant
from interp_gpt2.prompts.induction import induction
from interp_gpt2.prompts.pairs import PromptPairs

DEMO = Path(__file__).parents[1] / "data" / "study" / "demo-induction"
PLANTED = {"previous_token": (0, 1), "induction": (1, 2)}
NOISE = 0.02  # GPT-2's initialisation


def pairs_of(circuit: PlantedCircuit) -> PromptPairs:
    """Repeated tokens; corrupted is the one before the answer's first place, so that the current one occurs nowhere."""
    tokens = circuit.repeated_tokens(8, period=10)
    clean, answer, wrong = tokens[:, :15], tokens[:, 15], tokens[:, 2]
    corrupted = clean.clone()
    corrupted[:, 4] = torch.tensor([min(set(range(1, 20)) - set(row)) for row in clean.tolist()])
    return PromptPairs(clean, corrupted, answer[:, None], wrong[:, None])


def by_head(model: GPT2, pairs: PromptPairs) -> Tensor:
    return get_act_patch_attn_head_out_all_pos(model, pairs).mean.flatten()


def by_head_attributed(model: GPT2, pairs: PromptPairs) -> Tensor:
    return attribution_patching(model, pairs, get_act_patch_attn_head_out_all_pos).mean.flatten()


def by_path(model: GPT2, pairs: PromptPairs) -> Tensor:
    return get_path_patch_head_to_heads(model, pairs, "L1H2.k").mean.flatten()


def by_edge(model: GPT2, pairs: PromptPairs) -> Tensor:
    graph = Graph.of(model.config)
    return eap_ig_inputs(model, pairs, steps=5).values[graph.indices]


def by_ablation(model: GPT2, pairs: PromptPairs) -> Tensor:
    return ablation_effect(model, pairs.clean, ablation=resample(), source_tokens=pairs.corrupted).mean


# Where the circuit is in each tool's scores. Attribution sees no previous-token head: hard attention has no derivative.
TOOLS: dict[str, tuple[Callable[[GPT2, PromptPairs], Tensor], tuple[int, ...]]] = {
    "activation patching": (by_head, (1, 6)),
    "path patching": (by_path, (1,)),
    "ablation": (by_ablation, (1, 6)),
}


@pytest.fixture(scope="module")
def random_models() -> list[GPT2]:
    """The same in all but the planted heads: 20 to learn from, and a fresh one."""
    return [plant({}, PLANTED_CONFIG, NOISE, seed).model for seed in range(100, 121)]


@pytest.mark.parametrize("tool", [*TOOLS, "attribution patching", "edge attribution"])
def test_in_a_random_model_no_score_lies_outside_the_range_of_twenty_and_planted_ones_do(random_models, tool):
    """The 99 % range holds all scores of a model at once: Student's t of each one's 20, two-sided, its share of the 1 %."""
    extra = {"attribution patching": (by_head_attributed, (6,)), "edge attribution": (by_edge, ())}
    measure, places = (TOOLS | extra)[tool]
    circuit = plant(PLANTED, PLANTED_CONFIG, NOISE, seed=0)
    pairs = pairs_of(circuit)
    scores = torch.stack([measure(model, pairs).double() for model in random_models])
    known, fresh = scores[:20], scores[20]
    reach = t.ppf(1 - 0.005 / len(fresh), 19) * known.std(0) * (1 + 1 / 20) ** 0.5
    assert ((fresh - known.mean(0)).abs() <= reach).all()
    found = measure(circuit.model, pairs).double()
    if not places:
        labels = [edge.label for edge in Graph.of(PLANTED_CONFIG).edges()]
        places = tuple(map(labels.index, ("embed -> L0H1.v", "L0H1 -> L1H2.k", "L1H2 -> logits")))
        assert set(found.abs().topk(3).indices.tolist()) == set(places)
    base = found.median()  # parts without a role
    assert ((found - base).abs() > reach)[list(places)].all()


@pytest.mark.parametrize("tool", TOOLS)
def test_each_tool_finds_exactly_the_planted_heads(tool):
    measure, places = TOOLS[tool]
    circuit = plant(PLANTED, PLANTED_CONFIG, 0.0, seed=0)
    found = measure(circuit.model, pairs_of(circuit))
    size = (found - found.median()).abs()
    others = [place for place in range(len(size)) if place not in places]
    assert size[list(places)].min() > 20 * size[others].max()


# Trained ---------------------------------------------------------------------------------------------------------------


def test_path_patching_edge_patching_and_attribution_name_the_same_edge_of_a_trained_model():
    model = Run(DEMO).model(2000)
    pairs = induction(model.config.d_vocab, n=32, period=8, corruption="change_previous_token").pairs
    graph = Graph.of(model.config)
    between = [str(edge) for edge in graph.edges() if edge.sender.kind == edge.receiver.kind == "head"]
    edges = [edge.split(" -> ") for edge in between]
    for mlps in ("recomputed", "frozen"):
        found = [path_patching(model, pairs, [sender], to, mlps=mlps) for sender, to in edges]
        by_paths = torch.stack([each.mean[0] - each.clean.mean() for each in found])
        assert between[int(by_paths.abs().argmax())] == "L0H1 -> L1H0.k"
    by_edges = edge_patching(model, pairs, edges=between)
    torch.testing.assert_close(by_paths, by_edges, rtol=1e-4, atol=1e-5)  # with MLPs frozen, a path is an edge
    for attribute in (eap, eap_ig_inputs, eap_ig_activations):
        scores = attribute(model, pairs)
        assert max(between, key=lambda edge, scores=scores: abs(scores[edge])) == "L0H1 -> L1H0.k"


def test_without_the_previous_token_head_a_trained_model_predicts_like_a_unigram():
    run = Run(DEMO)
    model, source = run.model(2000), run.source()
    tokens = next(iter(source.validation(64, 64)))[:, :64]
    unigram = next(each.loss for each in source.references(64) if each.name == "in-context unigram")  # positions 32 to 63

    def loss(logits: Tensor) -> Tensor:
        losses = F.cross_entropy(logits[:, 31:-1].transpose(1, 2), tokens[:, 32:], reduction="none")
        return losses.mean(1)

    means = activation_means(model, next(iter(source.validation(64, 256)))[:, :64])
    for ablation in (mean(means), resample()):
        found = ablation_effect(model, tokens, ["L0H0", "L0H1"], ablation, loss, batch_size=64)
        kept, lost = (found.mean / (unigram - found.clean.mean())).tolist()
        assert lost >= 0.8
        assert kept < lost
