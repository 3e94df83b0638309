# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Patching a circuit
#
# A small GPT-2 has learned to look back: in a sequence of states it finds where the current one stood before, and continues
# with what followed it there. Two kinds of heads are said to do this together (Olsson et al. 2022): a *previous-token head*,
# which leaves at each position a note of the token before it, and an *induction head*, which looks for the position whose
# note is the current token. Here we do not look at attention and guess; we intervene, and see what the answer hangs on.
#
# The checkpoint comes with the repository (`tests/data/study`). The same on one pair of prompts, from a shell:
# `interp-gpt2 patch ABCDEFGHABC HGFEDCBAABC --answer D --wrong B --model tests/data/study/demo-induction`.

# %%
# %matplotlib inline
from interp_gpt2 import Run
from interp_gpt2.causal.graph import Graph

run = Run("../tests/data/study/demo-induction")
model, graph = run.model(), Graph.of(run.config)
print(f"{run.name}, step {run.steps[-1]}: {graph.n_layers} layers of {graph.n_heads} heads, {graph.n_edges} edges")

# %% [markdown]
# ## Two prompts that differ in one token
#
# States that were drawn at random are said twice; the answer is what would come next. In the corrupted prompt, the token
# before the answer in the first half is another one, so that the current token has never been seen before. Everything the
# model knows of the answer must pass through that one place.

# %%
from interp_gpt2.prompts.induction import induction

prompts = induction(run.tokenizer(), n=64, seed=0, period=8, corruption="change_previous_token")
pairs = prompts.pairs
print("clean    ", " ".join(pairs.clean_str_tokens[0]), "->", run.tokenizer().labels[int(pairs.correct[0, 0])])
print("corrupted", " ".join(pairs.corrupted_str_tokens[0]), "-> ?")
print({name: int(positions[0]) for name, positions in prompts.positions.items()})

# %% [markdown]
# ## Where is the answer's clue, layer by layer?
#
# *Denoising*: the clean run's residual stream is copied into the corrupted run at one layer and position, and the rest is
# computed anew. A cell is 1 where that alone brings back the clean run's logit difference, 0 where it does nothing. Every
# cell says its value with a 95 % interval over pairs when you hover it or reach it by the arrow keys. Hatched cells were not
# computed: the two runs are the same there, or nothing from there reaches the answer.

# %%
from interp_gpt2.causal.activation_patching import get_act_patch_resid_pre
from interp_gpt2.views import patching_view

streams = get_act_patch_resid_pre(model, pairs)
patching_view(streams)

# %% [markdown]
# The clue enters at the earlier occurrence of the current token. Before the second layer it has moved on by one position:
# something in the first layer has carried it from a token to the one after it.

# %%
current, answer = (int(prompts.positions[name][0]) for name in ("current", "answer"))
print(f"before layer 0, all of it is at position {current}: {streams.normalised[0, current]:.2f}")
print(f"before layer 1, at position {answer}: {streams.normalised[1, answer]:.2f}, and no longer at {current}: ", end="")
print(f"{abs(streams.normalised[1, current]):.2f}")

# %% [markdown]
# ## Which heads carry it?
#
# One head's output at a time, at all positions; then the same the other way round. *Noising* copies corrupted pieces into
# the clean run and shows what is needed, where denoising shows what is enough; there no effect is 1. The two do not have
# to agree: what either of two heads can do alone, neither is needed for.

# %%
from interp_gpt2.causal.activation_patching import get_act_patch_attn_head_out_all_pos

for direction in ("denoising", "noising"):
    heads = get_act_patch_attn_head_out_all_pos(model, pairs, direction=direction)
    print(heads, "\n", heads.to_frame().pivot(index="layer", columns="head", values="normalised").round(2), "\n")

# %% [markdown]
# Position by position, and for a paper:

# %%
from interp_gpt2.causal.activation_patching import get_act_patch_attn_head_out_by_pos
from interp_gpt2.views.patching_figures import patching_heat_map

by_position = get_act_patch_attn_head_out_by_pos(model, pairs)
patching_heat_map(by_position)

# %%
strongest = by_position.top(3)
strongest[["layer", "head", "pos", "normalised", "low", "high"]].round(2)

# %% [markdown]
# In the first layer it is one head, at the answer's position: the previous-token head. In the second layer both heads
# matter, at the last token, where they read the answer off. What is it in them that changes? Patching their queries, keys,
# values and patterns apart says: where they look, and of that their keys. The head of the first layer looks at the same
# place as ever, and its values change.

# %%
from interp_gpt2.causal.activation_patching import get_act_patch_attn_head_all_pos_every

parts = get_act_patch_attn_head_all_pos_every(model, pairs).to_frame()
parts["head"] = "L" + parts["layer"] + parts["head"]
parts.pivot(index="head", columns="type", values="normalised")[["out", "q", "k", "v", "pattern"]].round(2) + 0.0

# %% [markdown]
# ## Who tells whom?
#
# That two heads matter does not make them a circuit. Path patching changes what one part tells another directly and nothing
# else: the sender writes what it wrote in the corrupted run, and only the receiver hears it. MLPs between the two may pass
# it on, as in Wang et al. 2022; `mlps="frozen"` would leave the direct path alone. Noising again: 1 is no effect.

# %%
import pandas as pd

from interp_gpt2.causal.path_patching import path_patching

senders = [node.label for node in graph.senders if node.layer in (None, 0)]
receivers = [f"L1H{head}.{which}" for head in range(graph.n_heads) for which in "qkv"]
paths = {receiver: path_patching(model, pairs, senders, receiver) for receiver in receivers}
table = pd.DataFrame({receiver: path.normalised.tolist() for receiver, path in paths.items()}, index=senders)
table.round(2)

# %%
heads_only = table.loc[[label for label in senders if "H" in label]].stack()
for (sender, receiver), value in heads_only.sort_values().head(2).items():
    low, high = (float(end[senders.index(sender)]) for end in paths[receiver].interval)
    print(f"{sender} -> {receiver}: only {value:.2f} of the difference between the runs is left ({low:.2f} to {high:.2f})")

# %% [markdown]
# The strongest paths between heads run from the previous-token head into the *keys* of the two heads of the second layer:
# K-composition, the induction circuit. Into queries and values there is next to nothing.
#
# ## All edges at once
#
# Edge attribution estimates from derivatives what path patching measures one edge at a time. The model is small enough for
# the truth: every edge patched. (An edge is direct: what the MLP between two heads passes on counts as the MLP's.)

# %%
from interp_gpt2.causal.edge_attribution import eap, eap_ig_inputs
from interp_gpt2.causal.edge_patching import edge_correlation, edge_patching

truth = edge_patching(model, pairs)
quick, careful = eap(model, pairs), eap_ig_inputs(model, pairs, steps=20)
edges = pd.DataFrame({"patched": truth.tolist()}, index=[edge.label for edge in graph.edges()])
for name, scores in {"EAP": quick, "EAP-IG": careful}.items():
    edges[name] = [scores[label] for label in edges.index]
    agreement = edge_correlation(scores, truth)
    print(f"{name:>6}: Pearson {agreement.pearson:.2f} with patching over {agreement.n} edges, residue {scores.residue:.2f}")
edges.loc[edges["patched"].abs().sort_values(ascending=False).index[:10]].round(2)

# %% [markdown]
# Both find the previous-token head's edges into the keys. But plain EAP hardly sees the edge that everything starts with,
# from the embeddings into the previous-token head's values: it trusts the slope at the clean run, and from there to the
# corrupted one is far. EAP-IG averages slopes along the way. `residue` told us so without any patching: it is how much of
# the difference between the two runs the edges out of the embeddings do not account for.
#
# ## A circuit, and what it is worth
#
# The edges with the highest EAP-IG scores, grown back from the logits, all others carrying what they carry in the corrupted
# run. Faithfulness is 0 where nothing of the logit difference is left, and 1 where all of it is.

# %%
from interp_gpt2.causal.circuit import greedy_edges
from interp_gpt2.causal.faithfulness import faithfulness, faithfulness_curve

sizes = range(2, 14)
curve = faithfulness_curve(model, careful.values, pairs, sizes=sizes, choose=greedy_edges)
pd.Series(curve.faithfulness.tolist(), index=pd.Index(sizes, name="edges"), name="faithfulness").round(2).to_frame().T + 0.0

# %%
enough = next(size for size, value in zip(sizes, curve.faithfulness.tolist(), strict=True) if value >= 0.9)
circuit = greedy_edges(graph, careful.values, enough)
faithfulness(model, circuit, pairs)

# %%
from interp_gpt2.views import circuit_view

circuit_view(circuit, "The induction circuit", "EAP-IG, logit difference")

# %% [markdown]
# Is each of its edges needed? And would a search that tries edge after edge (ACDC) have kept the same ones?

# %%
from interp_gpt2.causal.acdc import acdc
from interp_gpt2.causal.faithfulness import minimality

minimality(model, circuit, pairs).to_frame().round(2)

# %%
pruned = acdc(model, pairs, threshold=0.2, metric="logit_difference", progress=False)
both = [label for label in circuit.labels if label in pruned.circuit]
print(f"ACDC keeps {pruned.circuit.n_edges} edges, among them {len(both)} of these {circuit.n_edges}")
print("only here:", ", ".join(label for label in circuit.labels if label not in pruned.circuit) or "none")
print("only there:", ", ".join(label for label in pruned.circuit.labels if label not in circuit) or "none")

# %% [markdown]
# What was found on these prompts holds for these prompts: corrupting the first half in another way asks another question
# (`corruption="shuffle_first_half"`), and other pieces carry what differs then.
