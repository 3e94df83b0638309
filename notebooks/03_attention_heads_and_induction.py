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
# # Attention heads and induction
#
# What is a head for? Three kinds of evidence, none of them enough by itself: where it looks, what its weights would do with
# what it sees, and what is lost without it. Each number below stands beside what a head that does nothing would score, and
# a second model, of one layer, which cannot hold the circuit that we look for, shows what each number is worth.
#
# Both models were trained on the same sequences, Markov chains over 16 states whose transition probabilities are drawn anew
# for each: the next state can be told only from what followed the current one earlier in the sequence.

# %%
# %matplotlib inline
import pandas as pd
import torch

from interp_gpt2 import Run

run, control = Run("../tests/data/study/demo-induction"), Run("../tests/data/study/demo-induction-one-layer")
models = {"two layers": run.model(), "one layer": control.model(), "two layers, untrained": run.model(0)}
tokens = next(run.source().validation(n_ctx=64, batch_size=64))[:, :-1]
pd.DataFrame({name: {"layers": m.config.n_layers, "heads a layer": m.config.n_heads} for name, m in models.items()})

# %% [markdown]
# ## Look first
#
# Random states said twice are the plainest test: every state of the second half has been seen once. `prompts.induction`
# makes them; no model was trained on such sequences. The line in layer 1 is not at a distance of one period, where the same
# state stood, but one to the right of it: at what came *next*.

# %%
from interp_gpt2.prompts.induction import induction
from interp_gpt2.views.attention import attention_view

model, period = models["two layers"], 12
prompts = induction(run.tokenizer(), n=64, seed=0, period=period).pairs
twice = prompts.clean
_, cache = model.run_with_cache(twice[:1], "*.pattern")
attention_view(prompts.clean_str_tokens[0], cache.stack("pattern")[:, 0])

# %% [markdown]
# ## Then count
#
# `head_scores` says how much of a head's attention goes, on average over queries, to each of these sets of keys:
#
# - `previous_token`: the token before
# - `duplicate_token`: where the current token stood before
# - `induction`: what followed there
# - `first_token`: the first of the sequence
#
# The sets are told by the tokens alone, so what a head attending evenly would score is exact. It is not zero, and it is not
# the same for all: the longer a sequence, the more often a state has been there.

# %%
from interp_gpt2.analysis.attention_patterns import METRICS, head_scores


def score_table(model, metrics=METRICS):
    scores = head_scores(model, tokens, metrics)
    table = {metric: [*score.value.flatten().tolist(), score.uniform] for metric, score in scores.items()}
    labels = [f"L{layer}H{head}" for layer in range(model.config.n_layers) for head in range(model.config.n_heads)]
    return pd.DataFrame(table, index=[*labels, "uniform"])


pd.concat({name: score_table(model) for name, model in models.items()}).round(2)

# %% [markdown]
# In the trained model of two layers there is a head in layer 0 that looks mostly at the previous token, and both heads of
# layer 1 look mostly at what followed. In the model of one layer no head scores much above the uniform one in either, and
# in the untrained model all heads are the uniform one to two digits. The last column is the entropy of attention in nats,
# where the uniform head is the upper end.
#
# With standard errors, whose units are sequences: two queries of one sequence are not independent.

# %%
scores = head_scores(model, tokens)
for name in ("previous_token", "induction"):
    score = scores[name]
    label, value = score.best
    stderr = float(score.stderr.flatten()[score.value.argmax()])
    print(f"{name}: {label} {value:.3f} +- {stderr:.3f}, uniform {score.uniform:.3f}", end="; ")
    print(f"{score.n} queries of {len(tokens)} sequences")

# %% [markdown]
# ## What does a head do when there is nothing to find?
#
# The heads of layer 1 also score well above uniform on `first_token`. Is that where they rest when the current state is new,
# and there is nothing to look at? We split the queries by whether the head has a target.

# %%
from interp_gpt2.analysis.attention_patterns import induction_targets

_, cache = model.run_with_cache(tokens, "*.pattern")
pattern = cache.stack("pattern")  # (layer, batch, head, query, key)
has_target = induction_targets(tokens).any(-1)
nothing_there = ~has_target
nothing_there[:, 0] = False  # the first query can look nowhere else
at_first = pattern[..., 0]  # attention to the first token, (layer, batch, head, query)
even = (1 / torch.arange(1, tokens.shape[1] + 1)).expand(has_target.shape)
rows = {
    f"{kind} (n = {int(where.sum())})": {
        "L1H0": at_first[1, :, 0][where].mean().item(),
        "L1H1": at_first[1, :, 1][where].mean().item(),
        "uniform": even[where].mean().item(),
    }
    for kind, where in {"the current state was seen before": has_target, "it is new": nothing_there}.items()
}
pd.DataFrame(rows).T.round(3)

# %% [markdown]
# Mostly, yes: a head whose attention has to sum to one needs a place that stands for "not found".
#
# ## The same on text of another kind
#
# A head that scores on its training data may have learned something that goes along with it there. On random states said
# twice, `repeated_sequence_scores` counts attention to the one position that came next a period ago.

# %%
from interp_gpt2.analysis.attention_patterns import repeated_sequence_scores

for name, other in models.items():
    score = repeated_sequence_scores(other, twice, period)
    print(f"{name:>22}: best is {score.best[0]} with {score.best[1]:.2f}, uniform {score.uniform:.2f}")

# %% [markdown]
# ## What would it do with what it sees?
#
# Attention says where information comes from and not what becomes of it. The OV circuit does: through it, does attending to a
# state raise that state's logit? `full_ov_copying_scores` sums the eigenvalues of W_E OV W_U over their absolute values, 1
# for a head that raises whatever it attends to; heads of random weights lie `random_std` about 0 (Elhage et al. 2021). The
# layer norms are folded into the weights before.

# %%
from interp_gpt2.analysis.circuits import compositions, full_ov_copying_scores
from interp_gpt2.analysis.head_weights import folded

copying = {}
for name, other in models.items():
    score = full_ov_copying_scores(folded(other))
    for layer, values in enumerate(score.values.tolist()):
        copying[name, f"layer {layer}"] = {"H0": values[0], "H1": values[1], "random_std": score.random_std}
pd.DataFrame(copying).T.round(2)

# %% [markdown]
# All heads of both trained models copy, those of the one-layer model too, which has no induction heads: copying is a part of
# induction and no sign of it. (Before training they are near 0, though one lies further out than the yardstick allows for.)
#
# The other half is in the keys. An induction head must find a position by the token *before* it, which only a head of an
# earlier layer can have left there. `compositions` asks of each pair of heads how much of what the one writes the other's
# queries, keys and values read, from weights alone. Only what is above `unrelated` speaks for a pair.

# %%
pairs = compositions(folded(model)).to_frame()[["sender", "receiver", "score", "unrelated"]]
pairs.head(6).round(3)

# %% [markdown]
# The two largest are the previous-token head and the *keys* of the two induction heads. Before training no pair stands out:

# %%
untrained = compositions(folded(models["two layers, untrained"])).to_frame()
print(f"largest of {len(untrained)} before training: {untrained['score'].max():.3f}, unrelated {untrained['unrelated'][0]:.3f}")

# %% [markdown]
# ## What is lost without it?
#
# Each head's output is replaced by its mean over other sequences (zero would be a value that the head never has). The effect
# is on the mean loss in nats per token, with a 95 % interval over sequences; positive where the head helps.

# %%
from interp_gpt2.causal.ablation import mean
from interp_gpt2.causal.ablation_effect import ablation_effect
from interp_gpt2.causal.means import activation_means

batches = run.source().validation(n_ctx=64, batch_size=128)
measured_on, averaged_over = next(batches)[:, :-1], next(batches)[:, :-1]
columns = ["label", "effect", "low", "high", "clean"]
found = {}
for name in ("two layers", "one layer"):
    means = activation_means(models[name], averaged_over)
    heads = [f"L{layer}H{head}" for layer in range(models[name].config.n_layers) for head in range(2)]
    together = [tuple(heads[at : at + 2]) for at in range(0, len(heads), 2)]
    found[name] = ablation_effect(models[name], measured_on, [*heads, *together], mean(means)).to_frame()[columns]
pd.concat(found).round(3)

# %% [markdown]
# Do effects of single heads add up to the effect of both? In layer 1 nearly, so the two induction heads share the work. In
# layer 0 they come to more: what taking out one head has broken, taking out the other cannot break again.

# %%
effect = found["two layers"].set_index("label")["effect"]
for layer in range(2):
    one, other, both = (effect[label.format(layer)] for label in ("L{0}H0", "L{0}H1", "L{0}H0 + L{0}H1"))
    print(f"layer {layer}: {one:.2f} + {other:.2f} = {one + other:.2f}; together they cost {both:.2f}")

# %% [markdown]
# Where they look, what they would do with it, and what is lost without them agree here on the same heads. That the one in
# layer 0 works *through* the two in layer 1 none of these three shows: that is for path patching, in
# `05_patching_a_circuit`. When the heads formed, and whether together, is the subject of `06_how_a_circuit_forms`.
