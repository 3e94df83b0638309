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
# # Logit lens and direct logit attribution
#
# Everything a GPT-2 predicts is read off one vector by one matrix, and that vector is a sum: of the embeddings and of what
# every head and MLP has added. Two measurements make use of this. They look alike, and answer different questions:
#
# - The *logit lens* asks what the model would predict if it stopped after a layer: it normalises that layer's stream anew.
# - *Direct logit attribution* asks what each part contributes to the logit that the model does give: it freezes the final
#   layer norm's scale at what it was, so that the parts add up.

# %%
# %matplotlib inline
import pandas as pd
import torch

from interp_gpt2 import Run
from interp_gpt2.prompts.induction import induction

run = Run("../tests/data/study/demo-induction")
model, labels = run.model(), run.tokenizer().labels
pairs = induction(run.tokenizer(), n=128, seed=0, period=12).pairs
tokens, correct, incorrect = pairs.clean, pairs.correct[:, 0], pairs.incorrect[:, 0]
print(len(tokens), "prompts such as", " ".join(pairs.clean_str_tokens[0]), "->", labels[int(correct[0])])

# %% [markdown]
# The prompts are states drawn at random and said twice; the last token is still to come. Whoever looks back knows it, and the
# incorrect answer is what would follow were the first half in another order. Does the model know?

# %%
with torch.no_grad():
    final = model(tokens)[:, -1]
first = (final.argmax(-1) == correct).double()
probability = final.double().softmax(-1).gather(1, correct[:, None])
print(f"the answer comes first in {first.mean():.0%} of the prompts, at chance in {1 / len(labels):.0%}")
print(f"its probability is {probability.mean():.2f} on average, evenly it would be {1 / len(labels):.2f}")

# %% [markdown]
# ## The lens on one prompt
#
# Each cell is the most probable token of a stream at a position, coloured by the probability of the token that does come
# next. Hover a cell, or move to it with the arrow keys, for the top five. The bottom row is before the first layer, the top
# row is the model's output. The slider goes through training.

# %%
from interp_gpt2.analysis.logit_lens import logit_lens
from interp_gpt2.views.lens import lens_view

targets = torch.cat([tokens[:, 1:], correct[:, None]], 1)
steps = [0, 500, 750, 1100, 2000]
lenses = [logit_lens(run.model(step), tokens[:1], targets[:1]) for step in steps]
lens_view(tokens[0].tolist(), labels, lenses, steps)

# %% [markdown]
# ## The lens on many
#
# One prompt is an anecdote. Averages at the last position, where the answer is to come: its probability, its rank (0 is
# first), how far the lens is from the output, and how sure it is, both in nats. A model that knows nothing has an entropy of
# ln 16 and the answer in the middle.

# %%
import math


def lens_table(lens):
    at_end = {
        "probability": lens.target_probability,
        "rank": lens.target_rank.double(),
        "KL to the output": lens.kl,
        "entropy": lens.entropy,
    }
    return pd.DataFrame({name: values[:, :, -1].mean(1).tolist() for name, values in at_end.items()}, index=lens.labels)


nothing = {"probability": 1 / 16, "rank": 7.5, "KL to the output": math.nan, "entropy": math.log(16)}
lens = logit_lens(model, tokens, targets)
pd.concat([lens_table(lens), pd.DataFrame(nothing, index=["knows nothing"])]).round(2)

# %% [markdown]
# Before the last layer the lens gives the answer less than knowing nothing would. Is that the model being wrong, or the
# lens? Look at what it takes for the next token there:

# %%
early = pd.DataFrame(
    {
        "the current token": [(lens.top_tokens[layer, :, -1, 0] == tokens[:, -1]).double().mean().item() for layer in range(3)],
        "the answer": [(lens.top_tokens[layer, :, -1, 0] == correct).double().mean().item() for layer in range(3)],
    },
    index=lens.labels,
)
early.round(2)

# %% [markdown]
# Embeddings and unembedding are the same matrix in this model (as in GPT-2), so that a stream that holds the current token
# reads as a prediction of it. That is no opinion about what comes next. An early row of a logit lens says what is written in
# the directions of the *output*, no more: what a layer knows in directions of its own is not seen.
#
# ## Which part puts it there?
#
# The logit of the answer less that of the incorrect one, split among embeddings, attention layers and MLPs, and then heads.
# The parts add up to the logit difference of the pass; `residue` is what they miss by.

# %%
from interp_gpt2.analysis.logit_attribution import direct_logit_attribution

with torch.no_grad():
    _, cache = model.run_with_cache(tokens)
    by_layer, by_head = (
        direct_logit_attribution(model, cache, correct, incorrect, parts=parts, positions=-1) for parts in ("layers", "heads")
    )


def attribution_table(attribution):
    values = attribution.values[..., 0].double()  # (component, prompt)
    stderr = values.std(1) / values.shape[1] ** 0.5
    return pd.DataFrame({"share": values.mean(1).tolist(), "+-": stderr.tolist()}, index=attribution.labels)


print(f"logit difference {by_layer.logits.mean():.3f}, sum of the shares {by_layer.values.sum(0).mean():.3f}, ", end="")
print(f"largest residue {by_layer.residue.abs().max():.0e}")
attribution_table(by_layer).round(3)

# %%
attribution_table(by_head).round(3)

# %% [markdown]
# The two heads of layer 1 write the answer, about half of it each, and the MLP after them takes a little back. Everything in
# layer 0 has a share of next to nothing.
#
# ## Direct is not all
#
# So is layer 0 of no use? The attribution cannot say: what a part does for later layers counts as theirs. We take each part
# out (its mean over other sequences in its place) and look at the same logit difference.

# %%
from interp_gpt2.causal.ablation import mean
from interp_gpt2.causal.ablation_effect import ablation_effect
from interp_gpt2.causal.means import activation_means
from interp_gpt2.causal.metrics import logit_difference

means = activation_means(model, induction(run.tokenizer(), n=256, seed=1, period=12).pairs.clean)
parts = ["L0H0", "L0H1", "L1H0", "L1H1", "mlp 0", "mlp 1"]
lost = ablation_effect(model, tokens, parts, mean(means), logit_difference(correct, incorrect))
shares = attribution_table(by_head)["share"].rename({"0_mlp_out": "mlp 0", "1_mlp_out": "mlp 1"})
effects = pd.DataFrame({"direct share": shares[parts], "lost without it": -lost.mean}, index=parts)
print(f"logit difference of the whole model: {lost.clean.mean():.2f}")
effects.round(2)

# %% [markdown]
# `L0H1` has no direct share, and without it nothing is left of the difference: all that it does, others do with it. (What,
# `05_patching_a_circuit` shows.) The other two parts of layer 0 likewise: no direct share, and most is lost without them.
# Read a direct attribution as the last step of a computation and not as a list of what matters.
#
# ## Two ways of reading one stream
#
# Why not read the shares off the logit lens, as differences from one layer to the next? Because the lens divides each stream
# by its own scale, and the attribution all of them by the last one's. The scale moves from layer to layer, and with it, in
# the lens, everything that was there before.

# %%
difference, scale = {}, {}
with torch.no_grad():
    for layer, name in enumerate(lens.labels):
        stream = (cache["resid_pre", 0] if layer == 0 else cache["resid_post", layer - 1])[:, -1:]
        logits = model.unembed(stream)[:, -1]  # the final layer norm and W_U
        scale[name] = stream.std(-1).mean().item()
        difference[name] = (logits.gather(1, correct[:, None]) - logits.gather(1, incorrect[:, None])).mean().item()
shares = by_layer.values[..., 0].mean(1)
running = {
    "embed": shares[[0, 1, -1]].sum().item(),
    "L0": shares[[0, 1, 2, 3, -1]].sum().item(),
    "L1": shares.sum().item(),
}
pd.DataFrame({"scale of the stream": scale, "logit lens": difference, "sum of direct shares so far": running}).round(3)

# %% [markdown]
# In the last row they are the same by construction. To compare layers by one yardstick, use the shares; to ask what a layer
# would say if it were the last, the lens.
#
# ## When did the shares come about?
#
# The share of each head in the logit difference, at every checkpoint: the two heads of layer 1 begin to write the answer
# together.

# %%
from interp_gpt2.views import figures

over_training = {}
for step in run.steps:
    checkpoint = run.model(step)
    with torch.no_grad():
        _, cache_then = checkpoint.run_with_cache(tokens)
        then = direct_logit_attribution(checkpoint, cache_then, correct, incorrect, parts="heads", positions=-1)
    over_training[step] = attribution_table(then)["share"]
over_training = pd.DataFrame(over_training)
heads = ["L0H0", "L0H1", "L1H0", "L1H1"]
over_training.loc[heads].round(2)

# %%
figure = figures.curves(
    run.steps, over_training.loc[heads].to_numpy(), heads, ("none", 0.0), "Share in the answer", "logit difference"
)
figure.axes[0].set_ylim(bottom=-0.15)
figure
