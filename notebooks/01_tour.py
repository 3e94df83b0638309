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
# # A tour of the instrument
#
# A small GPT-2 was trained on a task with a known answer, and its checkpoints were kept. Each sequence is a Markov chain
# over 16 states whose transition probabilities are drawn anew, so nothing can be learned by heart: only a model that looks
# back in the sequence for what followed the current state can predict the next one. We watch it learn to.
#
# The checkpoints come with the repository (`tests/data/study`); nothing is trained here.

# %%
# %matplotlib inline
from interp_gpt2 import Run, sweep

run = Run("../tests/data/study/demo-induction")
print(run.name, "with checkpoints at steps", run.steps)
run.config

# %% [markdown]
# ## Reading activations
#
# `run_with_cache` returns the logits and what the model computed on the way. Hook points have TransformerLens's names;
# `("pattern", 1)` is short for `blocks.1.attn.pattern`.

# %%
model = run.model()
tokens = next(run.source().validation(n_ctx=64, batch_size=64))[:, :-1]
logits, cache = model.run_with_cache(tokens)
cache

# %% [markdown]
# ## Where the heads look
#
# Hover a token to see where it attends; click a head to enlarge it. In layer 0 look for the line just below the diagonal
# (the previous token), in layer 1 for attention to whatever followed earlier occurrences of the same state.

# %%
from interp_gpt2.views.attention import attention_view

labels = [run.tokenizer().labels[token] for token in tokens[0, :32].tolist()]
attention_view(labels, cache.stack("pattern")[:, 0, :, :32, :32])

# %% [markdown]
# A number comes with its yardstick: beside every head's score, what a head attending evenly would score on the same tokens.

# %%
from interp_gpt2.analysis.attention_patterns import head_scores

scores = head_scores(model, tokens)
for name in ("induction", "previous_token"):
    head, value = scores[name].best
    print(f"{name}: {head} scores {value:.2f}, a uniform head {scores[name].uniform:.2f}")

# %% [markdown]
# ## When did they form?
#
# `sweep` maps an analysis over the checkpoints of a run and returns one tidy table.

# %%
from interp_gpt2.analysis.attention_patterns import HeadScores
from interp_gpt2.analysis.development import best_head_curve

table = sweep(run, HeadScores(tokens))
curve = best_head_curve(table, "induction")
print(curve.growth.verdict)
table[table["metric"] == "induction"].pivot(index="label", columns="step", values="value").round(2)

# %%
from interp_gpt2.views import figures

induction = table[table["metric"] == "induction"].pivot(index="label", columns="step", values="value")
figures.head_scores(list(induction.columns), induction.to_numpy(), list(induction.index), curve.uniform[-1])

# %% [markdown]
# ## What each layer would predict
#
# The logit lens reads the residual stream after each layer with the model's own final layer norm and unembedding. The last
# row is the model's output.

# %%
from interp_gpt2.analysis.logit_lens import logit_lens
from interp_gpt2.views.lens import lens_view

prompt = tokens[:1, :24]
lenses = [logit_lens(run.model(step), prompt) for step in run.steps]
lens_view(prompt[0].tolist(), run.tokenizer().labels, lenses, run.steps)

# %% [markdown]
# ## What a head is for
#
# An edit is a function `(value, site) -> Tensor`. Here the strongest previous-token head of layer 0 says nothing, and, for
# comparison, its neighbour. If the induction heads of layer 1 read what the previous-token head wrote, silencing it should
# take the model back to where it was before the phase change. Losses are in nats per token on the second half of the
# sequence; the exact Bayes predictor and a model that only counts states are the yardsticks.

# %%
from interp_gpt2.analysis.loss import mean_loss, token_losses

sequences = next(run.source().validation(n_ctx=64, batch_size=512))
second_half = run.source().scored_positions(64)
for reference in run.source().references(64):
    print(f"{reference.name:>28}: {reference.loss:.2f}")
print(f"{'the model':>28}: {mean_loss(token_losses(model, sequences), second_half).loss:.2f}")

# %%
import torch


def silence(head):
    def edit(z, site):
        z[:, :, head] = 0
        return z

    return edit


previous_head = int(scores["previous_token"].best[0].split("H")[1])
for head in (previous_head, 1 - previous_head):
    logits = model.run_with_edits(sequences[:, :-1], {("z", 0): silence(head)})
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), sequences[:, 1:], reduction="none")
    print(f"{f'without L0H{head}':>28}: {mean_loss(losses.detach(), second_half).loss:.2f}")

# %% [markdown]
# Without its previous-token head the model does no better than counting states. The neighbour, which attends to the previous
# token a little too, costs about half as much. (Zero is not a neutral value for a head; that this is the circuit, path
# patching would have to show.)
#
# ## Taking it elsewhere
#
# The same weights as a Hugging Face model; `to_hooked_transformer` and `to_transformer_bridge` do the same for
# TransformerLens. Every checkpoint directory also loads with `transformers.GPT2LMHeadModel.from_pretrained` as it stands.

# %%
from interp_gpt2.convert.huggingface import to_huggingface

theirs = to_huggingface(model)(tokens).logits
print(f"largest difference in logits: {(theirs - model(tokens)).abs().max().item():.1e}")
