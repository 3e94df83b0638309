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
# # Probing neurons
#
# What does a model of text keep track of as it reads, and is there a neuron for it? A probe answers the first question all
# too readily: a linear classifier on enough directions finds something everywhere, and of many neurons one is always best.
# So every score below stands beside what the same procedure finds where there is nothing to be found, and the last section
# asks the question that no probe can: does the model use it?
#
# The model is a small GPT-2 that has learned CPython's documentation by characters. Checkpoints of its training, and text that
# it has never seen, come with the repository.

# %%
# %matplotlib inline
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from interp_gpt2 import Run
from interp_gpt2.analysis.loss import token_losses
from interp_gpt2.data.corpora import text_file

torch.set_num_threads(1)  # so small a model is slower on two
pd.options.display.width = 120
run = Run("../tests/data/study/demo-text-small")
tokenizer, model, untrained = run.tokenizer(), run.model(), run.model(0)
texts = [document.text for document in text_file(Path("../tests/data/study/held_out.txt")).documents]
documents = [torch.tensor(tokenizer.encode(text)) for text in texts]
windows = torch.cat(documents).split(129)[:-1]
windows = torch.stack(windows[:: len(windows) // 100])  # a hundred or so, from all over
rows = {}
for name, m in {f"step {run.steps[-1]}": model, "untrained": untrained}.items():
    rows[name] = {"layers": m.config.n_layers, "neurons a layer": m.config.d_mlp}
    rows[name] |= {"nats per character": token_losses(m, windows).mean().item(), "even odds": np.log(m.config.d_vocab)}
pd.DataFrame(rows).T.convert_dtypes().round(2)

# %% [markdown]
# ## Labels that the text supplies
#
# A label is a function of the text up to and including a character, so that a model that reads from left to right could know
# it. Two of these need context from further back, and are the interesting ones; the others can be told by the last
# characters. Where are the quotes in this text?

# %%
from interp_gpt2.analysis.text_labels import TEXT_LABELS, inside_quotes

text, start = next((text, found.start() - 40) for text in texts if (found := re.search(r'"[^"\n]{12,}"', text)))
part, marks = text[start : start + 110], inside_quotes(text)[start : start + 110]
print(part.replace("\n", "⏎"))
print("".join("▔" if inside else " " for inside in marks))
pd.DataFrame({name: {"measures": label.measures, "contextual": label.contextual} for name, label in TEXT_LABELS.items()}).T

# %% [markdown]
# `probe_set` draws windows of the documents for training and for testing, no document in both. Each begins at a paragraph,
# where every label starts anew, so that what it depends on can be seen from inside the window. Windows with the rarer class
# are drawn more often than they occur; every score and yardstick is on the same tokens. Beside each label,
# `with_control_tasks` puts a control: a random class for each *character*, wherever it stands, in the same shares. A probe can
# only have learned that by heart (Hewitt and Liang 2019).

# %%
from interp_gpt2.analysis.control_tasks import control_name, with_control_tasks
from interp_gpt2.analysis.probe_sets import UNLABELLED, probe_set

data = with_control_tasks(probe_set(documents, tokenizer, n_ctx=128, n_tokens=8192))
rows = {}
for name in TEXT_LABELS:
    of = data.label(name)
    for half, where in (("train", ~data.is_test), ("test", data.is_test)):
        values = of.labels[where][of.labels[where] != UNLABELLED]
        rows.setdefault(name, {})[f"{half}: n"] = len(values)
        rows[name][f"{half}: share above 0"] = (values > 0).double().mean().item()
print(f"{len(data.tokens)} windows of {len(data.documents.unique())} documents")
pd.DataFrame(rows).T.convert_dtypes().round(2)

# %% [markdown]
# ## What can be read off the stream
#
# A logistic regression of the residual stream after each layer, trained on one half of the documents and scored on the
# other. AUROC is the probability that a character with the label scores above one without: 0.5 is chance, whatever the shares.
# What it has to beat: always saying the commoner class (`majority`), the best guess from the current character and from
# the last two, the same probe on shuffled labels, and the same probe of the model before any training.

# %%
from interp_gpt2.analysis.logit_lens import stream_hook_points
from interp_gpt2.analysis.neuron_probing import baselines, linear_probe

LABELS = ("inside_quotes", "indentation")
names = stream_hook_points(model.config.n_layers)
with torch.no_grad():
    streams, untrained_streams = (m.run_with_cache(data.tokens, list(names))[1] for m in (model, untrained))


def probe_table(label):
    rows = {kind: {"AUROC": found.auroc, "low": found.auroc_low, "high": found.auroc_high, "accuracy": found.accuracy}
            for kind, found in vars(baselines(data, label)).items()}  # fmt: skip
    for name in names:
        probe = linear_probe(streams[name], data, label)
        control = linear_probe(streams[name], data, control_name(label))
        rows[name] = {"AUROC": probe.score.auroc, "low": probe.score.auroc_low, "high": probe.score.auroc_high,
                      "accuracy": probe.score.accuracy, "shuffled": probe.shuffled.auroc,
                      "untrained": linear_probe(untrained_streams[name], data, label).score.auroc,
                      "selectivity": probe.score.accuracy - control.score.accuracy}  # fmt: skip
    return pd.DataFrame(rows).T


streams_read = {label: probe_table(label) for label in LABELS}
streams_read["inside_quotes"].round(2).fillna("")

# %%
streams_read["indentation"].round(2).fillna("")

# %% [markdown]
# After the last layers both labels can be read off better than the last two characters tell them, and better than off the
# untrained model; before the first layer they cannot, where the stream holds the current character and its position alone.
# Accuracy says nothing of this: with 97 % of the characters outside quotes, it is the majority's whatever one does.
#
# Selectivity is negative throughout: the control task can be learned by heart better than the label can be read. That is so
# because the character is what a stream holds best, and it tells the control task entirely. So these probes *can* learn by
# heart; that they did not do so for the label is said by the rows of the characters, and not by selectivity.
#
# ## How few neurons are enough?
#
# A probe that may read `k` neurons only, chosen and trained on the training documents. Where one is as good as all, the
# property sits in a neuron; where it takes many, it is spread. `shuffled` has chosen its neurons for shuffled labels in the
# same way, and `control` for the control task.

# %%
from interp_gpt2.analysis.neuron_probing import mlp_activations
from interp_gpt2.analysis.sparse_probes import sparse_probes

neurons = dict(mlp_activations(model, data.tokens))
rows = []
for layer, activations in neurons.items():
    everything = linear_probe(activations, data, "inside_quotes").score.auroc
    controls = {
        probe.k: probe.score.auroc for probe in sparse_probes(activations, data, control_name("inside_quotes"), ks=(1, 4, 16))
    }
    for probe in sparse_probes(activations, data, "inside_quotes", ks=(1, 4, 16)):
        interval = {"low": probe.score.auroc_low, "high": probe.score.auroc_high}
        rows.append({"layer": layer, "k": probe.k, "AUROC": probe.score.auroc, **interval})
        rows[-1] |= {"shuffled": probe.shuffled, "control": controls[probe.k], "all neurons": everything}
pd.DataFrame(rows).set_index(["layer", "k"]).round(2)

# %% [markdown]
# It is spread. In the last layer one neuron gets to 0.71, four to 0.84 and sixteen to 0.92, of the 0.94 of all of them. (The one
# is what is left of sixteen by the weights of a regression, and need not be the one that tells most by itself.) And sixteen
# neurons tell nearly any property of the character: see `control`.
#
# ## Every neuron at once
#
# The AUROC of all neurons of a layer for all labels takes one sort a neuron, exactly, by ranks. At a scale where activations do
# not fit in memory, `streamed_aurocs` keeps counts in their place and says how far it can be off. Is it as near as it says?

# %%
from interp_gpt2.analysis.neuron_auroc import exact_aurocs, streamed_aurocs
from interp_gpt2.analysis.neuron_probes import halves
from interp_gpt2.analysis.windows import Windows, columns_of, neuron_layers

of_data = Windows.of_probe_set(data)
train, test = halves(data)
exact = {layer: exact_aurocs(columns_of(batches, of_data.n_tokens), train) for layer, batches in neuron_layers(model, of_data)}
rows = {}
for n_bins in (64, 512):
    for layer, batches in neuron_layers(model, of_data):
        streamed = streamed_aurocs(batches, train, n_bins)
        off = np.abs(streamed.auroc - exact[layer].auroc)
        rows[n_bins, layer] = {"labels x neurons": off.size, "furthest off": off.max(), "largest bound": streamed.error.max(),
                               "beyond its bound": int((off > streamed.error + 1e-12).sum())}  # fmt: skip
pd.DataFrame(rows).T.convert_dtypes().rename_axis(["bins", "layer"]).round(4)

# %% [markdown]
# How many neurons tell the label better than any tells the control task? The grey ones are what can be had by chance and by
# heart.

# %%
label, control = (train.names.index(name) for name in ("inside_quotes", control_name("inside_quotes")))
figure, axes = plt.subplots(1, len(exact), figsize=(2.6 * len(exact), 2.4), sharey=True, layout="constrained")
bins, rows = np.linspace(0, 1, 51), {}
for layer, axis in zip(exact, axes, strict=True):
    axis.hist(exact[layer].auroc[control], bins, color="#b5b9be", label="control task")
    axis.hist(exact[layer].auroc[label], bins, histtype="step", color="#0567ab", label="inside quotes")
    axis.axvline(0.5, color="#6d737b", linestyle="--", linewidth=0.8)
    axis.set(title=f"layer {layer}", xlabel="AUROC of a neuron")
    strength = np.abs(exact[layer].auroc - 0.5)
    rows[layer] = {"neurons": strength.shape[1], "above every control": int((strength[label] > strength[control].max()).sum()),
                   "best AUROC": 0.5 + strength[label].max(), "best of the control": 0.5 + strength[control].max()}  # fmt: skip
axes[0].set_ylabel("neurons")
axes[-1].legend(fontsize=7, frameon=False)
plt.show()
pd.DataFrame(rows).T.convert_dtypes().rename_axis("layer").round(2)

# %% [markdown]
# Not one, in any layer: neurons tell characters better than they tell quotes. By this yardstick there is no quote neuron here.
#
# ## The best of many
#
# These are scores on the documents that the neuron is chosen on, and the best of hundreds is good by luck too. So the neuron is
# chosen on the training documents and scored on the test documents. Its yardstick is the whole procedure on shuffled
# labels: twenty times, the best neuron for a shuffling is chosen, and scored for the label that it was not chosen for.

# %%
from interp_gpt2.analysis.neuron_probing import best_neurons

rows = []
for layer, activations in neurons.items():
    for best in best_neurons(activations, data, LABELS):
        rows.append(
            {"label": best.label, "neuron": f"L{layer}N{best.neuron}", "sign": best.sign, "in training": best.auroc_train}
        )
        rows[-1] |= {"on test": best.auroc, "low": best.low, "high": best.high, "best of shuffled": best.shuffled}
best = pd.DataFrame(rows).sort_values(["label", "in training"], ascending=[False, False])
best.set_index(["label", "neuron"]).round(3)

# %% [markdown]
# One neuron of the last layer stands out: L2N127 tells quotes at 0.82 (0.77 to 0.85) on documents that it was not chosen on, by
# being *less* active inside them. The best of the layers before come with intervals that reach down to about 0.5. Choosing
# the best of hundreds is worth nothing (`best of shuffled`), as it should be on documents that had no part in the choice.
#
# ## Neurons that never fire, and those that always do
#
# A neuron that never fires tells nothing, and one that always does is nearly linear. Both are facts about these tokens; one
# that is silent on all of them may fire on others.

# %%
from interp_gpt2.analysis.neuron_activity import layer_activity

rows = {}
for name, m in {"trained": model, "untrained": untrained}.items():
    for layer, batches in neuron_layers(m, of_data):
        found = layer_activity(batches)
        share = found.frequency
        rows[name, layer] = {"neurons": len(share), "dead": len(found.dead), "always on": len(found.always_on)}
        rows[name, layer] |= {"least": share.min().item(), "median share": share.median().item(), "most": share.max().item()}
print(f"on {found.n} tokens, so that a neuron that fires on none fires on fewer than {3 / found.n:.4f} of such tokens (95 %)")
pd.DataFrame(rows).T.convert_dtypes().round(2)

# %% [markdown]
# None is either. What training has changed is how often they fire: half of the neurons did so on half of the tokens, and now do
# on about a quarter.
#
# ## A neuron's page
#
# The neuron that tells best, in training, whether a character is inside quotes: where it is most active, and also where it is
# half-way down, since maxima alone make a neuron look purer than it is; which characters it promotes; and its history.

# %%
from interp_gpt2.analysis.neuron_history import neuron_histories
from interp_gpt2.views import neuron_view

chosen = best[best["label"] == "inside_quotes"].iloc[0]["neuron"]
layer, neuron = (int(part) for part in chosen[1:].split("N"))
(history,) = neuron_histories(run.model, run.steps, of_data, [(layer, neuron)], width=72)
neuron_view(history, tokenizer.labels)

# %% [markdown]
# When did it become that? At each step, the AUROC on test documents of this neuron, as its activation is (below 0.5: less active
# inside), beside that of the neuron of its layer that was best in training then, turned the way it was there.

# %%
rows = {}
for step, record in zip(run.steps, history.records, strict=True):
    columns = columns_of(
        next(batches for at, batches in neuron_layers(run.model(step), of_data) if at == layer), of_data.n_tokens
    )
    in_training, tested = exact_aurocs(columns, train), exact_aurocs(columns, test)
    then = int(in_training.best[label])
    sign = 1 if in_training.auroc[label, then] >= 0.5 else -1
    rows[step] = {f"AUROC of {chosen}": tested.auroc[label, neuron], "best then": f"L{layer}N{then}"}
    rows[step] |= {"its AUROC": 0.5 + sign * (tested.auroc[label, then] - 0.5), "input cosine": record.input_cosine}
    rows[step] |= {"output cosine": record.output_cosine, "correlation": record.correlation, "fires on": record.frequency}
pd.DataFrame(rows).T.convert_dtypes().round(2)

# %% [markdown]
# Late: at step 1024 another neuron told more, and its own activations went the other way from where they ended (a correlation of
# -0.38), though its weights had come most of the way. By step 1500 it was what it is. A history by weights alone would have
# dated it too early.
#
# ## Is it used?
#
# That a label can be read off a neuron does not say that the model reads it there. So we take it away: its activation is
# replaced by its mean, and the loss of every prediction compared with what it was. If the neuron is what tells the model that a
# quote is open, predictions inside quotes should suffer, and most of all those of the mark that closes one. The yardstick is
# every other neuron of its layer, taken out in the same way.

# %%
from interp_gpt2.analysis.token_classes import TokenClasses, loss_by_class
from interp_gpt2.causal.ablation import mean
from interp_gpt2.causal.means import activation_means

measured = data.tokens[data.is_test]
mark = tokenizer.encode('"')[0]
labelled, real = data.label("inside_quotes").labels[data.is_test], of_data.real[data.is_test]
inside, a_mark_follows = labelled[:, :-1] > 0, measured[:, 1:] == mark
classes = TokenClasses(
    ("inside", "outside", "the mark that closes", "the mark that opens"),
    torch.stack([inside, ~inside, inside & a_mark_follows, ~inside & a_mark_follows]) & real[:, 1:],
)
means = activation_means(model, data.tokens[~data.is_test], ["*.mlp.post"], of_data.real[~data.is_test].long())
clean = token_losses(model, measured)
as_it_is = loss_by_class(clean, classes)


def cost(*parts):
    """By how much each class of predictions is worse, in nats, when these neurons are at their means."""
    return loss_by_class(token_losses(model.with_edits(mean(means).edits(model.config, parts)), measured) - clean, classes)


others = {other: cost(f"L{layer}N{other}") for other in range(0, model.config.d_mlp, 4) if other != neuron}
found = cost(chosen)
of_others = torch.stack([other.loss for other in others.values()])
used = pd.DataFrame({
    "n": found.n.tolist(), "loss": as_it_is.loss.tolist(), f"cost of {chosen}": found.loss.tolist(), "+-": found.stderr.tolist(),
    "median of others": of_others.median(0).values.tolist(), "most of others": of_others.max(0).values.tolist(),
    "others that cost more": (of_others > found.loss).sum(0).tolist(),
}, index=found.names)  # fmt: skip
print(f"{chosen} and {len(others)} others of its layer")
used.round(3)

# %% [markdown]
# Not for what it tells. Without it, predictions inside quotes lose nothing that stands out, and neither does the mark that
# closes one, of which it is silent. The one class that suffers is the mark that *opens* a quote: by 0.059 nats, several
# standard errors, and more than without any of the 64 others. So a probe reads "inside quotes" off this neuron, while what the
# model does with it is about where a quote may begin. A probe, or an AUROC, is no evidence of use, however well controlled.
#
# Nor is this the last word on use. Thirty marks are few, and four classes were looked at. One neuron at its mean is a small
# change: what other parts make up for costs nothing here, and is not thereby unused (`05_patching_a_circuit` has tools for
# parts that cover for each other). And what replaces a neuron decides what is measured: see `causal.ablation`.
