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
# # How a circuit forms
#
# `05_patching_a_circuit` took a trained model apart and found an induction circuit. Here we ask when it came to be: at once
# or little by little, which part first, and whether the loss shows it. One run by itself can be told any story, so a control
# goes with it all the way: the same data and settings, but one layer, in which a head cannot read what another has written.
#
# Twelve checkpoints of each run come with the repository, closer together where things happen. Nothing is trained here.

# %%
# %matplotlib inline
import pandas as pd

from interp_gpt2 import Run, sweep
from interp_gpt2.analysis.registry import analysis_named

run, control = Run("../tests/data/study/demo-induction"), Run("../tests/data/study/demo-induction-one-layer")
print("checkpoints at steps", *run.steps)
assert control.steps == run.steps
pd.DataFrame({r.name: {"layers": r.config.n_layers, "heads a layer": r.config.n_heads} for r in (run, control)})

# %% [markdown]
# ## One sweep
#
# `analysis_named` makes analyses that need nothing but held-out data of the run; `sweep` maps them over the checkpoints and
# gives a table with a row for each number, its 95 % interval over sequences where it has one, and its yardsticks.

# %%
names = ["head_scores", "in_context_learning", "head_composition", "loss_by_position"]
tables = {}
for each in (run, control):
    source = each.source()
    tables[each.name] = sweep(each, [analysis_named(name, source, each.config.n_ctx) for name in names])
table, control_table = tables.values()
print(f"{len(table)} and {len(control_table)} numbers")
table[table["metric"] == "induction"].tail(2)[["step", "metric", "label", "value", "low", "high", "n"]].round(3)

# %% [markdown]
# ## The loss
#
# Three predictors to hold it against: even odds over the 16 states, counting the states of the sequence so far, and the exact
# Bayes predictor, which no model beats on average.

# %%
losses = {}
for name, rows in tables.items():
    losses[name] = rows[rows["metric"] == "mean_loss"].set_index("step")["value"]
yardsticks = {"loss_uniform": "even odds", "mean_loss_in_context_unigram": "counting", "mean_loss_bayes_bigram": "Bayes"}
for metric, name in yardsticks.items():
    losses[name] = table[table["metric"] == metric].set_index("step")["value"]
losses = pd.DataFrame(losses)
losses.T.round(2)

# %%
from interp_gpt2.views import figures

at = losses.iloc[0][["counting", "Bayes"]]
figures.loss_curve(run.steps, losses[run.name], at.to_dict())

# %% [markdown]
# Both models come down to counting by step 300 and stay near it, the control to the end. The model of two layers leaves that
# plateau and comes close to the Bayes predictor.
#
# ## Is it a phase change?
#
# A curve that looks like a step may be nothing of the kind. `detect` calls it one only if a logistic fits better than a line
# and a power law by a BIC of 10, if it rises by enough against its noise, and if at most one in a hundred random walks as rough
# as the curve looks as much like a step. It says so, or says which of these fails. We ask it of every curve that an induction
# circuit might show in.

# %%
from interp_gpt2.analysis.phase_changes import curves_of, detect

asked = ("mean_loss", "in_context_learning", "previous_token", "induction", "k_composition")
detections = {
    (name, metric, label): detect(*curve)
    for name, rows in tables.items()
    for (metric, label), curve in curves_of(rows).items()
    if metric in asked
}
for (name, metric, label), found in detections.items():
    if found.change is not None:
        print(f"{name}, {metric} {label}\n    {found.verdict}")
changed = [key for key, found in detections.items() if found.change is not None]
for name in tables:
    print(f"{name}: {sum(key[0] == name for key in changed)} of {sum(key[0] == name for key in detections)} curves change phase")

# %% [markdown]
# The induction scores of both heads of layer 1, and in-context learning: how much lower the loss is late in a sequence than
# early. In the control, which sees the same data, not one curve. What of the others?

# %%
for (name, metric, label), found in detections.items():
    if name == run.name and found.change is None and (metric == "mean_loss" or "L0H1" in label):
        print(f"{metric} {label}\n    {found.verdict}")

# %% [markdown]
# The loss of the model of two layers misses by little, and so does the previous-token head: with twelve checkpoints and
# curves that go on rising after the step, the rule does not find for a step. That is not to say that nothing happens there;
# it says that these curves are no evidence of a *sudden* change.
#
# The two scores, head by head. Shaded is the phase change of the best induction head, as wide as `detect` found it.

# %%
induction, previous = (
    table[table["metric"] == metric].pivot(index="label", columns="step", values="value")
    for metric in ("induction", "previous_token")
)
uniform = table[table["metric"] == "induction_uniform"]["value"].iloc[0]
change = detections[run.name, "induction", induction[run.steps[-1]].idxmax()].change
window = (change.step - change.width / 2, change.step + change.width / 2)
figures.head_scores(run.steps, induction.to_numpy(), list(induction.index), uniform, window=window)

# %%
figures.head_scores(
    run.steps, previous.to_numpy(), list(previous.index),
    table[table["metric"] == "previous_token_uniform"]["value"].iloc[0], "Previous-token score", window=window,
)  # fmt: skip

# %% [markdown]
# ## Which came first?
#
# An induction head has nothing to read before a previous-token head writes. So the previous-token head should be first; or do
# they come together, each of use only with the other? The step at which each curve has gone half its way from its first
# value to its last, by straight lines between checkpoints; the distance between checkpoints there says how much that is worth.

# %%
import numpy as np


def half_way(values):
    """The step at which a curve first crosses the middle between its ends, and the distance between checkpoints there."""
    steps, middle = np.array(run.steps), (values[0] + values[-1]) / 2
    after = int(np.argmax((values > middle) == (values[-1] > middle)))
    share = (middle - values[after - 1]) / (values[after] - values[after - 1])
    return steps[after - 1] + share * (steps[after] - steps[after - 1]), steps[after] - steps[after - 1]


in_context = table[table["metric"] == "in_context_learning"].sort_values("step")["value"].to_numpy()
curves = {
    "previous token L0H1": previous.loc["L0H1"].to_numpy(),
    "induction L1H0": induction.loc["L1H0"].to_numpy(),
    "induction L1H1": induction.loc["L1H1"].to_numpy(),
    "in-context learning": in_context,
    "loss": losses[run.name].to_numpy(),
}
order = pd.DataFrame({name: half_way(values) for name, values in curves.items()}, ["half way at step", "checkpoints apart"]).T
order.round(0).astype(int)

# %% [markdown]
# The previous-token head is *last*: it goes on sharpening long after the induction heads are there. Half-way times ask when a
# part was half of what it would become, and not when it was good enough to be of use. How strong was it while the induction
# heads rose?

# %%
around = [step for step in run.steps if 600 <= step <= 900]
together = pd.concat({"previous token": previous.loc[["L0H0", "L0H1"]], "induction": induction.loc[["L1H0", "L1H1"]]})
together[around].round(2)

# %% [markdown]
# Both kinds of heads rise between the same checkpoints, and the induction heads get most of the way while the previous-token
# head is far from finished. Neither waits for the other, and these checkpoints are too far apart to say which moved first.
#
# ## Before anything can be seen
#
# Attention patterns show a circuit at work. Do the weights show it earlier? K-composition: how much of what a head of layer 0
# writes the keys of a head of layer 1 read, against what unrelated weights would score.

# %%
composition = table[table["metric"] == "k_composition"].pivot(index="label", columns="step", values="value")
composition.loc["unrelated"] = table[table["metric"] == "composition_unrelated"].set_index("step")["value"]
composition.round(2)

# %%
early = composition[300]
first_induction = induction.max().gt(2 * uniform).idxmax()
print(f"at step 300 all pairs score {early.drop('unrelated').min():.2f} to {early.drop('unrelated').max():.2f}, ", end="")
print(f"unrelated ones {early['unrelated']:.2f}")
print(f"an induction score is first above twice the uniform head's at step {first_induction}")

# %% [markdown]
# All four pairs read far above chance hundreds of steps before any head attends like an induction head; in the end it is the
# pairs with the weaker head of layer 0 that fall back. So high composition early on is no sign of *which* circuit is to come,
# and by itself no sign that one works.
#
# ## And what does the circuit do?
#
# If the induction heads do what their scores say, silencing them should undo what training has brought since the plateau, at
# each checkpoint after the change and not before.

# %%
from interp_gpt2.causal.ablation import mean
from interp_gpt2.causal.ablation_effect import ablation_effect
from interp_gpt2.causal.means import activation_means

batches = run.source().validation(n_ctx=64, batch_size=128)
measured_on, averaged_over = next(batches)[:, :-1], next(batches)[:, :-1]
rows = {}
for step in run.steps:
    model = run.model(step)
    lost = ablation_effect(model, measured_on, [("L1H0", "L1H1")], mean(activation_means(model, averaged_over)))
    rows[step] = {"loss": lost.clean.mean().item(), "without both": lost.ablated.mean().item()}
    rows[step] |= {"effect": lost.mean.item(), "+-": lost.stderr.item()}
pd.DataFrame(rows).round(2)

# %% [markdown]
# The effect grows as the scores do, and before them it is next to nothing. Without both heads the loss ends *above* the
# plateau: an ablation does not bring back the model of before the change, but leaves the one of after it without a part.
#
# ## Other seeds
#
# One run is one draw. Two more seeds of the same recipe: other weights to begin with, other batches, all else the same. Their
# checkpoints too lie closer together where their losses fall. Which heads do it?

# %%
seeds = {"seed 0": run} | {f"seed {seed}": Run(f"../tests/data/study/demo-induction-seed-{seed}") for seed in (1, 2)}
of_seed = {"seed 0": table}
for seed, each in seeds.items():
    if seed not in of_seed:
        source = each.source()
        of_seed[seed] = sweep(each, [analysis_named(name, source, each.config.n_ctx) for name in names])
scores = {}
for seed, rows in of_seed.items():
    last = rows[rows["step"] == rows["step"].max()].set_index(["metric", "label"])["value"]
    for metric in ("previous_token", "induction"):
        scores[seed, metric] = {**last[metric].to_dict(), "uniform": last[f"{metric}_uniform"].iloc[0]}
pd.DataFrame(scores).round(2)

# %% [markdown]
# The same circuit each time: one head of layer 0 looks at the previous token, both heads of layer 1 at what followed. Which of
# the two heads of layer 0 it is differs (with seed 2 it is the other one), and so does how cleanly: with seed 0 the second
# head does some of it too, with the others it does nothing of the kind. What do weights and ablations say?

# %%
composed, worth = {}, {}
for seed, each in seeds.items():
    rows = of_seed[seed]
    last = rows[rows["step"] == rows["step"].max()].set_index(["metric", "label"])["value"]
    composed[seed] = {**last["k_composition"].to_dict(), "unrelated": last["composition_unrelated"].iloc[0]}
    model = each.model()
    parts = ["L0H0", "L0H1", "L1H0", "L1H1", ("L1H0", "L1H1")]
    lost = ablation_effect(model, measured_on, parts, mean(activation_means(model, averaged_over)))
    worth[seed] = {
        label: f"{effect:.2f} +- {error:.2f}" for label, effect, error in zip(lost.labels, lost.mean, lost.stderr, strict=True)
    }
    worth[seed] |= {"loss as it is": f"{lost.clean.mean():.2f}"}
pd.DataFrame(composed).round(2)

# %%
pd.DataFrame(worth).rename_axis("lost without")

# %% [markdown]
# The keys of both induction heads read the previous-token head, whichever it is, far above `unrelated`, and the other head of
# layer 0 below it; but for seed 0, again, where they read a little of it. Without both induction heads each model
# loses as much, and one of the two alone is worth about half of that. But look at the first two rows: with seeds 1
# and 2 the head of layer 0 that does *not* look at the previous token costs as much as the one that does. Whatever it does
# there, its attention scores do not show it, and K-composition does not either.
#
# And when? `across_seeds` holds one curve of each seed against the others: the score of the head that ends highest, in-context
# learning, and the loss. Checkpoints lie where a seed's own change is, so a date is as good as its interval and no better.

# %%
from interp_gpt2.analysis.phase_changes import across_seeds

dates = {}
for metric in ("induction", "previous_token", "in_context_learning", "mean_loss"):
    best = {}
    for seed, rows in of_seed.items():
        found = {label: curve for (name, label), curve in curves_of(rows).items() if name == metric}
        best[seed] = max(found.items(), key=lambda labelled: labelled[1][1][-1])
    agreed = across_seeds({f"{seed} {label}".strip(): curve for seed, (label, curve) in best.items()})
    print(f"{metric}: {agreed.verdict}")
    for name, detection in agreed.detections.items():
        print(f"    {name}: {detection.verdict}")

# %% [markdown]
# In every seed the induction score and in-context learning change phase, and within a seed their intervals overlap. But when
# that is, is a matter of the draw: the three intervals have no step in common, and seed 2 is there in half of the time. The
# previous-token head and the loss pass for a phase change in one seed of three and in none. So what holds across seeds is which
# parts form, that two of the curves are steps, and that those two come together; not the date, and not that each part
# of the circuit comes suddenly. Three seeds are few: these are three draws and no estimate of how often.
