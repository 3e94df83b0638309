"""Edge attribution, held against hooks by hand, patched edges, and TransformerLens."""

from importlib.metadata import version
from itertools import pairwise

import pytest
import torch

from interp_gpt2 import GPT2, GPT2Config
from interp_gpt2.causal.edge_attribution import bytes_per_token, eap, eap_by_position, eap_ig_activations, eap_ig_inputs
from interp_gpt2.causal.edge_patching import edge_correlation, edge_patching
from interp_gpt2.causal.gradients import pass_from, way_back
from interp_gpt2.causal.graph import Graph
from interp_gpt2.causal.metrics import kl_divergence, log_probability, logit_difference, rank
from interp_gpt2.convert.transformer_lens import to_hooked_transformer
from interp_gpt2.errors import AnalysisError, EditError, TokenError
from interp_gpt2.prompts.pairs import PromptPairs

TL_4 = int(version("transformer-lens").split(".")[0]) >= 4
POINTS = {"q": "q_input", "k": "k_input", "v": "v_input"}
METRIC = logit_difference([[3], [4]], [[5], [6]])


@pytest.fixture
def pairs() -> PromptPairs:
    return PromptPairs.from_tokens([[7, 8, 9, 10, 11]] * 2, [[1, 8, 2, 10, 11], [7, 8, 9, 12, 13]], [3, 4], [5, 6])


@pytest.fixture
def unequal() -> PromptPairs:
    return PromptPairs.from_tokens([[7, 8, 9, 10, 11], [7, 8, 9]], [[1, 8, 2, 10, 11], [7, 4, 9]], [3, 4], [5, 6])


@pytest.fixture
def nearby() -> tuple[GPT2, PromptPairs]:
    """A model in float64 and prompts whose one different token has nearly the same embedding: a small corruption."""
    return near(1e-4)


def near(size: float, **changes: int) -> tuple[GPT2, PromptPairs]:
    sizes = {"n_layers": 2, "n_heads": 2, "d_model": 8, "d_mlp": 10, "d_vocab": 12, "n_ctx": 8} | changes
    model = GPT2(GPT2Config(**sizes)).eval().double()
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.4 * torch.randn(weight.shape, generator=draw, dtype=torch.float64))
        model.wte.weight[1] = model.wte.weight[0] + size * torch.randn(8, generator=draw, dtype=torch.float64)
    return model, PromptPairs.from_tokens([[2, 0, 7, 4]], [[2, 1, 7, 4]], [3], [5])


def received(cache, graph: Graph) -> torch.Tensor:
    """(receiver, batch, pos, d_model) from a cache of what the receivers' hook points saw, or of derivatives by it."""
    found = []
    for node in graph.receivers:
        if node.kind == "head":
            found.append(cache[POINTS[node.input], node.layer][:, :, node.head])
        else:
            found.append(cache["mlp_in", node.layer] if node.kind == "mlp" else cache["resid_post", -1])
    return torch.stack(found)


def receiver_points(model: GPT2) -> list[str]:
    return [*("*_input" if name == "q_input" else "*.mlp_in" for name in ["q_input"] + ["mlp_in"] * (not model.config.attn_only)),
            f"blocks.{model.config.n_layers - 1}.resid_post"]  # fmt: skip


def sent(model: GPT2, tokens: torch.Tensor, mask=None) -> torch.Tensor:
    """(sender, batch, pos, d_model), through per-head results."""
    _, cache = model.run_with_cache(tokens, ["embed", "pos_embed", "*"], attention_mask=mask)
    found = []
    for node in Graph.of(model.config).senders:
        if node.kind == "embed":
            found.append(cache["embed"] + cache["pos_embed"])
        else:
            found.append(cache["result", node.layer][:, :, node.head] if node.kind == "head" else cache["mlp_out", node.layer])
    return torch.stack(found).detach()


def by_hooks(model: GPT2, pairs: PromptPairs, metric) -> torch.Tensor:
    """EAP the slow way: derivatives at hook points, outputs of every head, an einsum: (pair, sender, receiver)."""
    graph, mask = Graph.of(model.config), pairs.attention_mask
    total = lambda logits: metric(logits, mask).sum()  # noqa: E731
    _, _, gradients = model.run_with_gradients(pairs.clean, total, receiver_points(model), attention_mask=mask)
    difference = sent(model, pairs.corrupted, mask) - sent(model, pairs.clean, mask)
    return torch.einsum("sbpd,rbpd->bsr", difference, received(gradients, graph)) * graph.exists


def test_the_way_back_gives_the_derivative_by_every_receivers_input(any_model, unequal):
    if not any_model.config.n_layers:
        pytest.skip("a model without layers has only the final stream, from which the way back starts")
    mask = unequal.attention_mask
    final, cache = pass_from(any_model, any_model.embed(unequal.clean, attention_mask=mask), mask)
    total = lambda logits: METRIC(logits, mask).sum()  # noqa: E731
    _, _, slow = any_model.run_with_gradients(unequal.clean, total, receiver_points(any_model), attention_mask=mask)
    expected = received(slow, Graph.of(any_model.config))
    found = torch.full_like(expected, torch.nan)
    for receivers, gradient in way_back(any_model, cache, slow["resid_post", -1], mask):
        found[receivers] = gradient
    assert final.shape == expected.shape[1:]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_eap_is_differences_times_derivatives_at_the_hook_points(any_model, unequal):
    if not any_model.config.n_layers:
        pytest.skip("no hook point holds the stream between the embeddings and the final layer norm")
    slow = by_hooks(any_model, unequal, METRIC)
    found = eap(any_model, unequal, METRIC)
    scale = float(slow.abs().max())
    torch.testing.assert_close(found.values, slow.mean(0), rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(found.standard_error, slow.std(0) / 2**0.5, rtol=0, atol=1e-5 * scale)
    ends = [METRIC(any_model(tokens, attention_mask=unequal.attention_mask), unequal.attention_mask).mean().detach()
            for tokens in (unequal.clean, unequal.corrupted)]  # fmt: skip
    assert [found.clean, found.corrupted] == pytest.approx([end.item() for end in ends], abs=1e-5)


@pytest.mark.hooked_transformer
@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
def test_eap_agrees_with_hooks_on_transformerlens(model, pairs):
    hooked, graph = to_hooked_transformer(model), Graph.of(model.config)
    hooked.set_use_attn_result(True)
    hooked.set_use_split_qkv_input(True)
    hooked.set_use_hook_mlp_in(True)
    _, corrupted = hooked.run_with_cache(pairs.corrupted)
    kept: dict[str, torch.Tensor] = {}

    def keep(value, hook):
        value.retain_grad()
        kept[hook.name] = value

    logits = hooked.run_with_hooks(pairs.clean, fwd_hooks=[(lambda name: "hook_" in name, keep)])
    METRIC(logits).sum().backward()
    outputs = {"embed": lambda cache: cache["hook_embed"] + cache["hook_pos_embed"]}
    for layer in range(2):
        outputs[f"mlp {layer}"] = lambda cache, layer=layer: cache[f"blocks.{layer}.hook_mlp_out"]
        for head in range(4):
            outputs[f"L{layer}H{head}"] = lambda cache, layer=layer, head=head: cache[f"blocks.{layer}.attn.hook_result"][
                :, :, head
            ]
    found = eap(model, pairs, METRIC)
    for edge in graph.edges():
        to = edge.receiver
        point = {"head": f"blocks.{to.layer}.hook_{to.input}_input", "mlp": f"blocks.{to.layer}.hook_mlp_in",
                 "logits": "blocks.1.hook_resid_post"}[to.kind]  # fmt: skip
        gradient = kept[point].grad if to.kind != "head" else kept[point].grad[:, :, to.head]
        difference = outputs[edge.sender.label](corrupted) - outputs[edge.sender.label](kept)
        assert found[edge] == pytest.approx((difference * gradient).sum().item() / 2, abs=1e-4)


@torch.no_grad()
def test_a_score_is_what_patching_the_edge_does_when_the_corruption_is_small():
    errors = {}
    for size in (1e-2, 1e-3, 1e-4):
        model, pairs = near(size)
        graph, scores = Graph.of(model.config), eap(model, pairs, METRIC_OF_ONE)
        difference = sent(model, pairs.corrupted) - sent(model, pairs.clean)
        clean = METRIC_OF_ONE(model(pairs.clean))
        true = torch.zeros_like(scores.values)
        for edge in graph.edges():
            at = graph.index(edge)
            true[at] = METRIC_OF_ONE(model.run_with_edits(pairs.clean, patched(edge, difference[at[0]]))) - clean
        errors[size] = float((scores.values - true).abs().max() / true.abs().max())
    assert errors[1e-3] == pytest.approx(errors[1e-2] / 10, rel=0.5)  # first order: the error goes as the corruption
    assert errors[1e-4] == pytest.approx(errors[1e-3] / 10, rel=0.5)
    assert errors[1e-4] < 1e-3


METRIC_OF_ONE = logit_difference(3, 5)


def patched(edge, difference):
    to = edge.receiver
    if to.kind == "head":

        def add(value, site):
            value[:, :, to.head] += difference
            return value

        return {(POINTS[to.input], to.layer): add}
    return {("mlp_in", to.layer) if to.kind == "mlp" else "blocks.1.resid_post": lambda value, site: value + difference}


def test_without_layers_or_norms_scores_are_the_logits_own_and_exact():
    model = GPT2(GPT2Config(n_layers=0, n_heads=1, d_model=6, d_vocab=12, n_ctx=4, layer_norm=False)).eval()
    pairs = PromptPairs.from_tokens([[1, 2]], [[1, 3]], [4], [5])
    found = eap(model, pairs, METRIC_OF_ONE)
    assert found["embed -> logits"] == pytest.approx(found.corrupted - found.clean, abs=1e-6)
    assert found.residue == pytest.approx(0, abs=1e-6)


def test_scores_by_position_add_up_to_the_scores(model, unequal):
    found = eap_by_position(model, unequal, METRIC)
    torch.testing.assert_close(found.values.sum(0), eap(model, unequal, METRIC).values)
    assert found.position_labels == tuple(unequal.position_labels)
    assert found.values[0].abs().max() > 0
    assert not eap_by_position(model, unequal[1], log_probability(3)).values[0].any()  # before the first difference


def test_splitting_the_pairs_to_a_budget_changes_nothing(model, unequal):
    whole, split = eap(model, unequal, METRIC), eap(model, unequal, METRIC, budget=5 * bytes_per_token(model))
    torch.testing.assert_close(split.values, whole.values)
    torch.testing.assert_close(split.standard_error, whole.standard_error)
    assert eap(model, unequal, METRIC, budget=1).n_pairs == 2


def test_padding_changes_no_pairs_scores(model, unequal):
    both = eap(model, unequal, METRIC).values
    alone = [eap(model, unequal[i], logit_difference(3 + i, 5 + i)).values for i in range(2)]
    torch.testing.assert_close(both, (alone[0] + alone[1]) / 2)
    assert eap(model, unequal[1], METRIC_OF_ONE).standard_error is None


@pytest.mark.parametrize("every", [eap, eap_ig_inputs, eap_ig_activations])
def test_a_function_of_the_logits_is_a_metric_too(model, pairs, every):
    named = every(model, pairs, METRIC)
    torch.testing.assert_close(every(model, pairs, lambda logits: METRIC(logits)).values, named.values)
    one = every(model, pairs, lambda logits: METRIC(logits).mean())  # one number for all: its scores, without a spread
    torch.testing.assert_close(one.values, named.values)
    assert one.standard_error is None
    assert [one.clean, one.corrupted] == pytest.approx([named.clean, named.corrupted], abs=1e-5)


def test_swapped_pairs_are_attributed_in_the_corrupted_run(model, pairs):
    torch.testing.assert_close(
        eap(model, pairs.swapped(), METRIC).values, by_hooks(model, pairs.swapped(), METRIC).mean(0), rtol=1e-4, atol=1e-5
    )


def test_scores_correlate_with_the_edges_patched_one_by_one():
    model, pairs = near(0.1)
    graph, scores, effects = Graph.of(model.config), eap(model, pairs, METRIC_OF_ONE), edge_patching(model, pairs)
    difference = sent(model, pairs.corrupted) - sent(model, pairs.clean)
    clean = METRIC_OF_ONE(model(pairs.clean))
    for edge, effect in zip(graph.edges(), effects, strict=True):
        by_hand = METRIC_OF_ONE(model.run_with_edits(pairs.clean, patched(edge, difference[graph.index(edge)[0]]))) - clean
        torch.testing.assert_close(effect, by_hand[0].detach())
    assert edge_correlation(scores, effects).pearson > 0.95
    some = ["embed -> L0H0.v", "L0H1 -> L1H0.k", "mlp 0 -> logits", "mlp 1 -> logits"]
    torch.testing.assert_close(
        edge_patching(model, pairs, edges=some), torch.stack([effects[labels(graph).index(e)] for e in some])
    )
    assert edge_correlation(scores, edge_patching(model, pairs, edges=some), some).n == 4
    with pytest.raises(AnalysisError, match="three or more"):
        edge_correlation(scores, effects[:2], some[:2])
    with pytest.raises(AnalysisError, match="one of each"):
        edge_correlation(scores, effects[:5], some)


def labels(graph: Graph) -> list[str]:
    return [edge.label for edge in graph.edges()]


# Integrated gradients --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("integrated", [eap_ig_inputs, eap_ig_activations])
def test_one_step_is_eap(model, unequal, integrated):
    torch.testing.assert_close(integrated(model, unequal, METRIC, steps=1).values, eap(model, unequal, METRIC).values)


def test_over_inputs_derivatives_are_averaged_over_runs_between_the_embeddings(model, pairs):
    graph = Graph.of(model.config)
    ends = [model.embed(tokens).detach() for tokens in (pairs.corrupted, pairs.clean)]
    gradients = 0
    for k in (1, 2, 3):
        between = ends[0] + k / 3 * (ends[1] - ends[0])
        edits = {("resid_pre", 0): lambda value, site, between=between: between}
        _, _, found = model.run_with_gradients(pairs.clean, lambda x: METRIC(x).sum(), receiver_points(model), edits)
        gradients = gradients + received(found, graph) / 3
    difference = sent(model, pairs.corrupted) - sent(model, pairs.clean)
    slow = torch.einsum("sbpd,rbpd->sr", difference, gradients) / 2 * graph.exists
    torch.testing.assert_close(eap_ig_inputs(model, pairs, METRIC, steps=3).values, slow, rtol=1e-4, atol=1e-5)


def test_over_activations_each_place_has_a_path_of_its_own(model, pairs):
    graph = Graph.of(model.config)
    difference = sent(model, pairs.corrupted) - sent(model, pairs.clean)
    points = {("z", layer): graph.head_senders(layer) for layer in range(2)}
    points |= {("mlp_out", layer): slice(graph.mlp_sender(layer), graph.mlp_sender(layer) + 1) for layer in range(2)}
    _, clean = model.run_with_cache(pairs.clean, list(points))
    _, corrupted = model.run_with_cache(pairs.corrupted, list(points))
    slow = torch.zeros(graph.exists.shape)
    slow[0] = eap_ig_inputs(model, pairs, METRIC, steps=2).values[0]
    for point, senders in points.items():
        for k in (1, 2):
            between = (corrupted[point] + k / 2 * (clean[point] - corrupted[point])).detach()
            edits = {point: lambda value, site, between=between: between}
            _, _, found = model.run_with_gradients(pairs.clean, lambda x: METRIC(x).sum(), receiver_points(model), edits)
            slow[senders] += torch.einsum("sbpd,rbpd->sr", difference[senders], received(found, graph)) / 4
    slow *= graph.exists
    torch.testing.assert_close(eap_ig_activations(model, pairs, METRIC, steps=2).values, slow, rtol=1e-4, atol=1e-5)


def test_with_more_steps_the_edges_out_of_the_embeddings_account_for_all_of_the_difference():
    model, pairs = near(1.0)
    residues = [abs(eap_ig_inputs(model, pairs, METRIC_OF_ONE, steps=n).residue) for n in (8, 32, 128, 512)]
    assert all(less < 0.4 * more for more, less in pairwise(residues))  # the sum errs by 1 / n
    found = eap_ig_inputs(model, pairs, METRIC_OF_ONE, steps=512)
    assert residues[-1] < 0.01 * abs(found.corrupted - found.clean)


@torch.no_grad()
def test_with_more_steps_the_edges_out_of_a_place_add_up_to_patching_it():
    model, pairs = near(1.0)
    graph, scores = Graph.of(model.config), eap_ig_activations(model, pairs, METRIC_OF_ONE, steps=512).values
    _, corrupted = model.run_with_cache(pairs.corrupted)
    clean = METRIC_OF_ONE(model(pairs.clean))
    for layer in range(2):
        for point, senders in (("attn_out", graph.head_senders(layer)), ("mlp_out", slice(graph.mlp_sender(layer), None))):
            senders = slice(senders.start, senders.stop or senders.start + 1)
            edits = {(point, layer): lambda value, site, source=corrupted[point, layer]: source}
            effect = METRIC_OF_ONE(model.run_with_edits(pairs.clean, edits)) - clean
            torch.testing.assert_close(scores[senders].sum(), effect[0], rtol=0.01, atol=1e-3)


# What is refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda logits: logits[:, -1, 0] * torch.nan, "is nan for pair 0"),
        (lambda logits: logits[:, -1], r"gave shape \(2, 50\); a metric gives one number for each of 2 prompts"),
        (lambda logits: 3.0, "gave 3.0"),
        (lambda logits: logits[:, -1, 0].detach(), "no derivative"),
        (rank(3), "rank has no derivative"),
    ],
)
def test_a_metric_that_cannot_be_attributed_is_refused(model, pairs, metric, message):
    with pytest.raises(AnalysisError, match=message):
        eap(model, pairs, metric)


def test_tokens_outside_the_vocabulary_are_refused(model, pairs):
    with pytest.raises(TokenError, match="not in the vocabulary"):
        eap(model, pairs, logit_difference(3, 50))


def test_equal_runs_are_refused(model, pairs):
    with torch.no_grad():
        model.wte.weight[[1, 2, 12, 13]] = model.wte.weight[[7, 9, 10, 11]]
    with pytest.raises(AnalysisError, match="nothing to attribute"):
        eap(model, pairs, METRIC)


def test_chance_standing_edits_and_paths_without_steps_are_refused(model, pairs):
    with pytest.raises(AnalysisError, match="dropout"):
        eap(GPT2(GPT2Config(n_layers=1, n_heads=1, d_model=8, d_vocab=50, n_ctx=8, dropout=0.1)), pairs, METRIC)
    with pytest.raises(EditError, match="standing edits"):
        eap(model.with_edits({("z", 0): torch.relu}), pairs, METRIC)
    with pytest.raises(AnalysisError, match="at least one step"):
        eap_ig_inputs(model, pairs, METRIC, steps=0)


def test_nothing_is_left_on_the_model(model, pairs):
    eap(model, pairs, kl_divergence(model(pairs.corrupted).detach()))
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())


def test_the_strongest_edges_come_first(model, pairs):
    found = eap(model, pairs, METRIC)
    top = found.top(5)
    assert [abs(score) for _, score in top] == sorted(found.values.abs().flatten().tolist(), reverse=True)[:5]
    assert all(found[edge] == score for edge, score in top)
