"""Do the causal tools agree on the induction circuit of a run, and where they do not, why?

    python analyses/causal_tools.py checkpoints/demo-induction
    python analyses/causal_tools.py tests/data/study/demo-induction --out /tmp/tools

Of a model trained on in-context Markov chains: every edge between heads as patched alone, as a path, and as attributed; how the
attributions correlate with patching; in which non-linearity the first order is lost; and how far the loss goes back to counting
states (the in-context unigram) without the previous-token head, or without what the induction heads' keys read of it.
`analyses/CAUSAL.md` says what came of it.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp_gpt2 import GPT2, Run
from interp_gpt2.analysis.logit_attribution import direct_logit_attribution
from interp_gpt2.causal import ablation
from interp_gpt2.causal.activation_patching import Sweep, activation_patching
from interp_gpt2.causal.circuit import Circuit
from interp_gpt2.causal.circuit_pass import circuit_logits
from interp_gpt2.causal.edge_attribution import eap, eap_ig_activations, eap_ig_inputs
from interp_gpt2.causal.edge_patching import edge_correlation, edge_patching
from interp_gpt2.causal.graph import Edge, Graph
from interp_gpt2.causal.means import activation_means
from interp_gpt2.causal.metrics import logit_difference
from interp_gpt2.causal.node_attribution import attribution_patching, correlation
from interp_gpt2.causal.path_patching import path_patching
from interp_gpt2.causal.senders import sender_points
from interp_gpt2.data.synthetic import bayes_bigram, held_out_chains, in_context_unigram, losses_of
from interp_gpt2.hooks import Edits
from interp_gpt2.prompts.induction import CORRUPTIONS, Corruption, induction
from interp_gpt2.prompts.pairs import PromptPairs
from interp_gpt2.views import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS = 30  # of EAP-IG
PERIOD = 12  # of the prompts
STAGES = ["*resid_pre", "*resid_mid", "*resid_post", "*attn.q", "*attn.k", "*attn.v", "*pattern"]
Row = dict[str, Any]


def pairs_for(model: GPT2, n_pairs: int, corruption: Corruption = "change_previous_token") -> PromptPairs:
    """Random states said twice; corrupted, the one before the answer is another, so that the last state occurred nowhere."""
    return induction(model.config.d_vocab, n_pairs, period=PERIOD, corruption=corruption).pairs


def between_heads(graph: Graph) -> list[Edge]:
    return [edge for edge in graph.edges() if edge.sender.kind == edge.receiver.kind == "head"]


# Agreement ------------------------------------------------------------------------------------------------------------


def edges(model: GPT2, pairs: PromptPairs) -> tuple[list[Row], list[Row]]:
    """Every edge as a share of the gap, by each tool; and how the attributions correlate with patching edges one by one."""
    graph = Graph.of(model.config)
    every, some = list(graph.edges()), between_heads(graph)
    found = {
        "EAP": eap(model, pairs),
        "EAP-IG, inputs": eap_ig_inputs(model, pairs, steps=STEPS),
        "EAP-IG, activations": eap_ig_activations(model, pairs, steps=STEPS),
    }
    gap = found["EAP"].corrupted - found["EAP"].clean
    effects = edge_patching(model, pairs)
    rows = [
        {"edge": edge.label, "patched": effect / gap, **{name: scores[edge] / gap for name, scores in found.items()}}
        for edge, effect in zip(every, effects.tolist(), strict=True)
    ]
    for row, edge in zip(rows, every, strict=True):
        if edge in some:
            row["path"] = 1 - path_patching(model, pairs, [edge.sender.label], edge.receiver.label).normalised.item()
    agreed = [
        {"tool": name, "over": what, **asdict(edge_correlation(scores, effects[[every.index(edge) for edge in chosen]], chosen))}
        for name, scores in found.items()
        for what, chosen in (("all edges", every), ("edges between heads", some))
        if len(chosen) > 2
    ]
    return sorted(rows, key=lambda row: -abs(row["patched"])), agreed


def heads(model: GPT2, pairs: PromptPairs) -> list[Row]:
    """Every head as a share of the gap, patched and attributed in both directions, and what it says directly.

    "direct" is its direct logit attribution in the clean run less that in the corrupted one: what the logits read of it, were
    the final layer norm's scale that of each run.
    """
    columns = {}
    for direction in ("noising", "denoising"):
        for name, patch in (("patched", activation_patching), ("attributed", attribution_patching)):
            found = patch(model, pairs, Sweep("z", ("layer", "head")), direction=direction)
            moved = found.normalised if direction == "denoising" else 1 - found.normalised
            columns[f"{name}, {direction}"] = moved.flatten().tolist()
    gap = float(found.clean.mean() - found.corrupted.mean())
    names = [f"L{layer}{head}" for layer in found.labels["layer"] for head in found.labels["head"]]
    said = [direct(model, tokens, pairs) for tokens in (pairs.clean, pairs.corrupted)]
    columns["direct"] = [(said[0][name] - said[1][name]) / gap for name in names]
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [{"head": name, **row} for name, row in zip(names, rows, strict=True)]


@torch.no_grad()
def direct(model: GPT2, tokens: Tensor, pairs: PromptPairs) -> dict[str, float]:
    """Direct logit attribution of the answer less the mean of the wrong ones."""
    _, cache = model.run_with_cache(tokens)
    wrong = [pairs.incorrect[:, column] for column in range(pairs.incorrect.shape[1])]
    found = [direct_logit_attribution(model, cache, pairs.correct[:, 0], ids, "heads", [-1]) for ids in wrong]
    means = torch.stack([each.values.mean((1, 2)) for each in found]).mean(0)
    return dict(zip(found[0].labels, means.tolist(), strict=True))


def nodes(model: GPT2, pairs: PromptPairs) -> list[Row]:
    """How attribution patching correlates with activation patching, over heads at every position and over heads as a whole."""
    found = []
    for direction in ("noising", "denoising"):
        for axes in (("layer", "pos", "head"), ("layer", "head")):
            sweep = Sweep("z", axes)
            both = [patch(model, pairs, sweep, direction=direction) for patch in (attribution_patching, activation_patching)]
            if (~both[1].skipped.all(-1)).sum() > 2:
                found.append({"direction": direction, "over": " x ".join(axes), **asdict(correlation(*both))})
    return found


# Where the first order is lost ----------------------------------------------------------------------------------------


def first_order_by_stage(model: GPT2, pairs: PromptPairs, edits: Edits, layer: int) -> dict[str, float]:
    """What a noising patch in `layer` does to the logit difference, to first order from each stage on, and exactly.

    The patched run is exact up to the stage; from there on, differences from the clean run times the clean run's derivatives.
    Two neighbours differ by what lies between them: "keys" by a layer norm from the stream before it, "pattern" by a softmax
    from the keys, "attention" by the product of patterns and values, "MLP" by a layer norm and an MLP, "exact" by the final
    layer norm. Shares of what the corrupted run does.
    """
    metric = logit_difference(pairs.correct, pairs.incorrect)
    with torch.no_grad():
        clean, corrupted = (metric(model(tokens)).mean() for tokens in (pairs.clean, pairs.corrupted))
        logits, patched = model.run_with_cache(pairs.clean, STAGES, edits)
    _, base, gradient = model.run_with_gradients(pairs.clean, lambda logits: metric(logits).mean(), STAGES)

    def moved(*names: tuple[str, int]) -> float:
        return sum(float(((patched[name] - base[name]) * gradient[name]).sum()) for name in names)

    found = {}
    for at in range(layer, model.config.n_layers):
        past = float(((patched["resid_pre", at] - base["resid_pre", at]) * gradient["resid_mid", at]).sum())  # by attention
        if at > layer or any("_input" in str(name) for name in edits):
            found[f"keys {at}"] = past + moved(("q", at), ("k", at), ("v", at))
            found[f"pattern {at}"] = past + moved(("pattern", at), ("v", at))
        found[f"attention {at}"] = moved(("resid_mid", at))
        found[f"MLP {at}"] = moved(("resid_post", at))
    found["exact"] = float(metric(logits).mean() - clean)
    return {stage: value / float(corrupted - clean) for stage, value in found.items()}


def head_by_stage(model: GPT2, pairs: PromptPairs, layer: int, head: int) -> dict[str, float]:
    """Of a head's whole output, corrupted. "attention" of its own layer is attribution patching."""
    with torch.no_grad():
        _, source = model.run_with_cache(pairs.corrupted, ("z", layer))

    def corrupt(value: Tensor, site: object) -> Tensor:
        value[:, :, head] = source["z", layer][:, :, head]
        return value

    return first_order_by_stage(model, pairs, {("z", layer): corrupt}, layer)


def edge_by_stage(model: GPT2, pairs: PromptPairs, edge: Edge) -> dict[str, float]:
    """Of one edge between heads, corrupted, behind EAP's score of it.

    "scale held" is that score with the receiver's layer norm taken as a division by what it divided by in the clean run.
    "share of the stream" is what the sender wrote of the stream that the receiver reads, in squared length, where the answer
    stood before. To a derivative through the layer norm, a change along the stream is none.
    """
    sender, receiver = edge.sender, edge.receiver
    names = [("result", sender.layer), ("ln1.scale", receiver.layer), ("resid_pre", receiver.layer)]
    with torch.no_grad():
        clean, corrupted = (model.run_with_cache(tokens, names)[1] for tokens in (pairs.clean, pairs.corrupted))
    written = clean[names[0]][:, :, sender.head]
    change = corrupted[names[0]][:, :, sender.head] - written

    def corrupt(value: Tensor, site: object) -> Tensor:
        value[:, :, receiver.head] += change
        return value

    score, metric = eap(model, pairs), logit_difference(pairs.correct, pairs.incorrect)
    by_input = (receiver.input, receiver.layer)
    _, _, gradient = model.run_with_gradients(pairs.clean, lambda logits: metric(logits).mean(), [by_input])
    with torch.no_grad():
        block, weights = model.blocks[receiver.layer], {"q": model.W_Q, "k": model.W_K, "v": model.W_V}[receiver.input]
        read = centred(change) / clean[names[1]] * block.ln1.weight @ weights[receiver.layer, receiver.head]
        held = float((read * gradient[by_input][:, :, receiver.head]).sum())
    stream = centred(clean[names[2]])
    share = ((centred(written) * stream).sum(-1) / stream.square().sum(-1))[:, PERIOD - 1].mean()
    gap = score.corrupted - score.clean
    stages = first_order_by_stage(model, pairs, {(f"{receiver.input}_input", receiver.layer): corrupt}, receiver.layer)
    return {"share of the stream": float(share), "EAP": score[edge] / gap, "scale held": held / gap, **stages}


def centred(stream: Tensor) -> Tensor:
    return stream - stream.mean(-1, keepdim=True)


# Back to counting -------------------------------------------------------------------------------------------------------


def predictable(chains: Tensor) -> Tensor:
    """Of the positions that the run is judged on, the second half, those whose state has been there before."""
    n_pos = chains.shape[1] - 1
    before = [(chains[:, :at] == chains[:, at : at + 1]).any(1) for at in range(n_pos)]
    return torch.stack(before, 1) & (torch.arange(n_pos) >= n_pos // 2)


@torch.no_grad()
def back_to_counting(model: GPT2, sender: str, receivers: list[str], n_chains: int) -> tuple[dict[str, float], list[Row]]:
    """Losses at predictable positions, and how far towards the unigram's the model goes without each part: 0 not, 1 all the way.

    `receivers` are inputs of later heads, the strongest first. Edges and heads are ablated at all positions: to their mean over
    other chains, or resampled from another chain.
    """
    n_ctx = model.config.n_ctx
    every = held_out_chains(n_ctx)
    chains, others = every[:n_chains], every[n_chains : 2 * n_chains, :-1]
    tokens, chosen = chains[:, :-1], predictable(chains)

    def loss(log_probs: Tensor) -> float:
        return losses_of(log_probs.double(), chains)[chosen].mean().item()

    levels = {
        "model": loss(model(tokens).log_softmax(-1)),
        "in-context unigram": loss(in_context_unigram(chains)),
        "Bayes bigram": loss(bayes_bigram(chains)),
    }
    pairs = PromptPairs(tokens, others, chains[:, -1:], (chains[:, -1:] + 1) % model.config.d_vocab)
    ablations = {
        "mean": ablation.mean(activation_means(model, others, sender_points(model.config))),
        "resample": ablation.resample(),
    }
    gap = levels["in-context unigram"] - levels["model"]
    rows = []
    for name, edges_out in parts(Graph.of(model.config), sender, receivers).items():
        circuit = Circuit.full(Graph.of(model.config)).without(*edges_out)
        shares = {
            kind: (loss(circuit_logits(model, circuit, pairs, each).log_softmax(-1)) - levels["model"]) / gap
            for kind, each in ablations.items()
        }
        rows.append({"without": name, "edges": len(edges_out), **shares})
    return levels, rows


def parts(graph: Graph, sender: str, receivers: list[str]) -> dict[str, list[str]]:
    """What is taken out, as edges."""

    def out_of(head: str) -> list[str]:
        return [edge.label for edge in graph.edges() if edge.sender.label == head]

    heads = list(dict.fromkeys(receiver.partition(".")[0] for receiver in receivers))
    direct = [f"{sender} -> {receiver}" for receiver in receivers]
    relay = [f"{sender} -> mlp {layer}" for layer in range(graph.n_layers) if f"{sender} -> mlp {layer}" in out_of(sender)][:1]
    found = {sender: out_of(sender)}
    if direct:
        found |= {direct[0]: direct[:1], " and ".join(direct): direct, " and ".join(relay): relay}
        found[" and ".join(direct + relay)] = direct + relay
    return found | {head: out_of(head) for head in heads}


# The script -------------------------------------------------------------------------------------------------------------


def study(model: GPT2, pairs: PromptPairs, n_chains: int) -> dict[str, Any]:
    graph = Graph.of(model.config)
    table, agreed = edges(model, pairs)
    strongest = [row["edge"] for row in table if "path" in row and row["patched"] > 0.05]
    first = Edge.from_label(strongest[0]) if strongest else None
    keys = [label.partition(" -> ")[2] for label in strongest if first and label.startswith(f"{first.sender} -> ")]
    places = [(layer, head) for layer in range(graph.n_layers) for head in range(graph.n_heads)]
    of_heads = heads(model, pairs)
    sender = first.sender.label if first else max(of_heads, key=lambda row: row["patched, noising"])["head"]
    levels, without = back_to_counting(model, sender, keys, n_chains)
    ends = eap(model, pairs)
    return {
        "logit difference": {"clean": ends.clean, "corrupted": ends.corrupted},
        "heads": of_heads,
        "edges": table,
        "attribution and patching, edges": agreed,
        "attribution and patching, nodes": nodes(model, pairs),
        "first order by stage": {
            **{f"L{layer}H{head}": head_by_stage(model, pairs, layer, head) for layer, head in places},
            **{label: edge_by_stage(model, pairs, Edge.from_label(label)) for label in strongest},
        },
        "losses": levels,
        "back to counting": without,
    }


def scatter(rows: list[Row]) -> "Figure":
    """Every edge: what attribution says of it, over what patching it alone does."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(figures.STYLE):
        figure = Figure(figsize=(figures.COLUMN, 2.9), layout="constrained")
        axes = figure.subplots()
        patched = [row["patched"] for row in rows]
        axes.axline((0, 0), slope=1, color=figures.GREY, linestyle="--", linewidth=0.8)
        for name, colour in (("EAP", figures.COLOURS[0]), ("EAP-IG, inputs", figures.COLOURS[1])):
            axes.plot(patched, [row[name] for row in rows], ".", color=colour, markersize=4, label=name)
        for row in rows[:6]:
            axes.annotate(row["edge"], (row["patched"], row["EAP"]), fontsize=5, xytext=(2, -5), textcoords="offset points")
        axes.set(
            xlabel="patched alone, share of the gap", ylabel="as attributed", title="Edges, clean run corrupted; 0 no effect"
        )
        axes.legend(frameon=False, fontsize=6)
    return figure


def answer(found: dict[str, Any]) -> str:
    """The strongest edge between heads by each tool, and how well attribution agrees with patching."""
    agreed = next(row for row in found["attribution and patching, edges"] if row["tool"] == "EAP")
    r = f"EAP agrees with patching over {agreed['over']}, r {agreed['pearson']:.2f}"
    strongest = next((row for row in found["edges"] if "path" in row), None)
    if strongest is None:
        return f"there are no edges between heads; {r}"
    tools = {"patched": "patched alone", "path": "as a path", "EAP": "by EAP", "EAP-IG, inputs": "by EAP-IG"}
    shares = ", ".join(f"{strongest[tool]:.2f} {name}" for tool, name in tools.items())
    return f"{strongest['edge']} is the strongest edge between heads: {shares} of the gap; {r}"


def told(found: dict[str, Any]) -> list[str]:
    ends = found["logit difference"]
    lines = [f"answer: {answer(found)}"]
    lines += [f"Logit difference: {ends['clean']:.2f} clean, {ends['corrupted']:.2f} corrupted. As shares of the gap, heads:"]
    for row in found["heads"]:
        lines.append(f"  {row['head']}" + "".join(f"  {name} {value:+.2f}" for name, value in row.items() if name != "head"))
    lines.append("Edges between heads:" if any("path" in row for row in found["edges"]) else "There are no edges between heads.")
    tools = ("patched", "path", "EAP", "EAP-IG, inputs", "EAP-IG, activations")
    for row in [row for row in found["edges"] if "path" in row][:6]:
        lines.append(f"  {row['edge']:<16}" + "".join(f"  {tool} {row[tool]:+.2f}" for tool in tools))
    for row in found["attribution and patching, edges"]:
        lines.append(f"{row['tool']}, {row['over']}: r {row['pearson']:.2f}, rank correlation {row['spearman']:.2f} ({row['n']})")
    for row in found["attribution and patching, nodes"]:
        lines.append(
            f"attribution patching, {row['direction']}, {row['over']}: r {row['pearson']:.2f}, "
            f"rank correlation {row['spearman']:.2f} ({row['n']})"
        )
    lines.append("To first order from each stage on:")
    for part, stages in found["first order by stage"].items():
        lines.append(f"  {part:<16}" + "".join(f"  {stage} {value:+.2f}" for stage, value in stages.items()))
    losses = ", ".join(f"{name} {loss:.3f}" for name, loss in found["losses"].items())
    lines.append(
        f"Losses where the state has been there before: {losses} nats. Of the way from the model to the unigram, without"
    )
    lines += [f"  {row['without']}: mean {row['mean']:.2f}, resample {row['resample']:.2f}" for row in found["back to counting"]]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--step", type=int, help="default: the last checkpoint")
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--corruption", choices=CORRUPTIONS, default="change_previous_token")
    parser.add_argument("--chains", type=int, default=1024)
    parser.add_argument("--out", type=Path, help="default: RUN/analyses")
    args = parser.parse_args()

    model = Run(args.run).model(args.step).eval()
    out = args.out or args.run / "analyses"
    out.mkdir(parents=True, exist_ok=True)
    found = study(model, pairs_for(model, args.pairs, args.corruption), args.chains)
    print(*told(found), sep="\n")
    path = out / "causal_tools.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    print("wrote", path, *figures.save(scatter(found["edges"]), out / "causal_tools.pdf"))


if __name__ == "__main__":
    main()
