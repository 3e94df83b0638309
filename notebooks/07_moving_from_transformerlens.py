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
# # Moving from TransformerLens
#
# TransformerLens 4 took `HookedTransformer` away. Code that was written for a GPT-2 in it can go on in two ways: change one
# import and leave the rest, or write it anew with hooks as arguments. Both are shown here, each beside the original on the
# same weights, so that every claim of sameness is a difference that you can read.

# %%
# %matplotlib inline
import warnings
from importlib.metadata import version

import pandas as pd
import torch

from interp_gpt2 import Run
from interp_gpt2.convert.transformer_lens import to_hooked_transformer, to_transformer_bridge
from interp_gpt2.errors import ConversionError, InterpGPT2Error

warnings.filterwarnings("ignore", category=DeprecationWarning)  # 3.9 says at every turn that HookedTransformer will go
run = Run("../tests/data/study/demo-induction")
model = run.model()
try:
    theirs = to_hooked_transformer(model)
except ConversionError as error:  # TransformerLens 4
    print(error)
    theirs = to_transformer_bridge(model)
    theirs.enable_compatibility_mode(no_processing=True)
print("beside transformer-lens", version("transformer-lens"), "and its", type(theirs).__name__)

# %% [markdown]
# ## One import changed
#
# What follows is ordinary TransformerLens code but for its first line. The prompt asks the question that this model can
# answer: `A B C D ...`, and `A B C` again. What comes next?

# %%
# from transformer_lens import HookedTransformer, utils
from interp_gpt2.transformer_lens import HookedTransformer, utils

hooked = HookedTransformer.from_pretrained("../tests/data/study/demo-induction")
tokens = hooked.to_tokens("ABCDEFGHABC")
logits, cache = hooked.run_with_cache(tokens)
print("pattern of layer 1:", tuple(cache["pattern", 1].shape), " z of layer 0:", tuple(cache["blocks.0.attn.hook_z"].shape))


def silence(z, hook, head):
    z[:, :, head] = 0.0
    return z


answers = {"as it is": logits}
for head in range(hooked.cfg.n_heads):
    hook = (utils.get_act_name("z", 0), lambda z, hook, head=head: silence(z, hook, head))
    answers[f"without L0H{head}"] = hooked.run_with_hooks(tokens, fwd_hooks=[hook])
rows = {name: answer[0, -1].softmax(-1) for name, answer in answers.items()}
pd.DataFrame(
    {
        name: {"most likely": hooked.to_string(p.argmax()), "its p": p.max().item(), "p of D": p[3].item()}
        for name, p in rows.items()
    }
).T.rename_axis("next token")

# %% [markdown]
# `from_pretrained` takes a Hub name, a directory or a run (`checkpoint_value=750` chooses a step), and processes weights as
# there: `fold_ln`, `center_writing_weights`, `center_unembed` and `fold_value_biases` are on unless turned off. The object
# keeps its mutable hooks; `hooked.model` underneath is our `GPT2`, which keeps none.
#
# ## The same numbers
#
# Three models on 64 sequences that none was trained on: the original, the drop-in, and ours. How far are they apart at each
# kind of hook point, over all layers? The yardsticks: how large the values are, how far our own float32 is from float64 (that is
# what rounding costs, whoever does it), and how far the checkpoint before is. `*_input` needs a second pass of the
# original, with its inputs split.

# %%
import copy

from interp_gpt2.hooks import canonical, tl_name

batch = next(run.source().validation(n_ctx=64, batch_size=64))[:, :-1]


def original(**switches):
    """The original's activations by our names. Hook points that cost extra have to be switched on there."""
    for name, on in switches.items():
        getattr(theirs, f"set_use_{name}")(on)
    with torch.no_grad():
        _, cache = theirs.run_with_cache(batch)
    for name in switches:
        getattr(theirs, f"set_use_{name}")(False)
    return {canonical(name): value for name, value in cache.items()}


split = {name: value for name, value in original(split_qkv_input=True).items() if name.endswith("_input")}
original_values = original(attn_result=True, hook_mlp_in=True) | split
dropped_in = HookedTransformer.from_gpt2(model)
with torch.no_grad():
    _, ours = model.run_with_cache(batch, "*")
    _, exact = copy.deepcopy(model).double().run_with_cache(batch, "*")
    _, before = run.model(run.steps[-2]).run_with_cache(batch, "*")
    _, dropped = dropped_in.run_with_cache(batch, names_filter=[tl_name(name) for name in ours])


def apart(one, other):
    """The largest difference; masked scores are -inf in both."""
    return torch.where(one == other, 0, one - other).abs().max().item()


rows = {}
for name in ours:
    if name in original_values:
        kind = name.split(".", 2)[2] if name.startswith("blocks.") else name
        rows.setdefault(kind, []).append(
            {
                "shape": tuple(ours[name].shape),
                "theirs - ours": apart(original_values[name], ours[name]),
                "theirs - drop-in": apart(original_values[name], dropped[tl_name(name)]),
                "float64 - ours": apart(exact[name], ours[name].double()),
                "largest value": ours[name][ours[name].isfinite()].abs().max().item(),
                "checkpoint before": apart(before[name], ours[name]),
            }
        )
same = pd.DataFrame({kind: pd.DataFrame(found).max() for kind, found in rows.items()}).T
pd.options.display.float_format = "{:.1e}".format
pd.options.display.width = 120
print(len(same), "kinds of hook points;", "not there:", ", ".join(sorted(set(ours) - set(original_values))) or "none")
same

# %% [markdown]
# The first two columns of differences are as small as the third: what is left is rounding, and a checkpoint away all is
# different. `attn_in` the original has with `set_use_attn_in`, which cannot be on together with split inputs.
#
# ## Names
#
# A hook point's name is TransformerLens's without the `hook_`; its spelling, its short tuples and globs are all understood.
# What is not in the default set is computed when it is named: there are no switches.

# %%
from interp_gpt2.hooks import default_hook_points

default = default_hook_points(model.config)
names = [name for name in model.hook_points() if not name.startswith("blocks.1")]
shapes = {name: " ".join(map(str, shape)) for name, shape in model.hook_points(batch=64, pos=64).items()}
pd.DataFrame(
    {
        "TransformerLens": {name: tl_name(name) if name in original_values else "" for name in names},
        "shape": {name: shapes[name] for name in names},
        "recorded": {name: "by default" if name in default else "when named" for name in names},
    }
)

# %% [markdown]
# ## Hooks become edits
#
# | TransformerLens | here |
# |---|---|
# | `model(tokens, return_type="loss")` | `token_losses(model, tokens)`, a loss for each position |
# | `run_with_cache(tokens, names_filter=f)` | `run_with_cache(tokens, names)`: a name, glob, tuple, function, or list of these |
# | `run_with_cache(..., pos_slice=-1, device="cpu")` | `run_with_cache(..., keep=Part(pos_slice=-1, device="cpu"))` |
# | `run_with_hooks(tokens, fwd_hooks=[(name, f)])`, `f(value, hook)` | `run_with_edits(tokens, {name: f})`, `f(value, site)` |
# | `add_hook`, `with model.hooks(fwd_hooks)` | `model.with_edits({name: f})`: another model of the same weights |
# | `reset_hooks()` | nothing to reset |
# | `model(tokens, stop_at_layer=1)` | `model.run_until(tokens, 1)` |
# | `model(resid, start_at_layer=1)` | `model.run_from(resid, 1)` |
# | `past_kv_cache=` | `past=KVCache()` |
# | `set_use_attn_result(True)`, then `cache["result", 1]` | name `("result", 1)` |
# | `set_use_split_qkv_input(True)`, then hook `hook_k_input` | edit `("k_input", 1)` |
# | `incl_bwd=True`, `cache[name + "_grad"]` | `run_with_gradients(tokens, metric, names)` |
# | `cache.accumulated_resid()`, `cache.stack_head_results()` | `analysis.residual`, functions of the same names |
# | `fold_ln=True`, `center_unembed=True`, ... | `interp_gpt2.folding`, each returns a new model |
# | `FactoredMatrix`, `model.QK`, `model.OV`, `model.W_Q`, ... | the same |
#
# Each line, done both ways:

# %%
from interp_gpt2.analysis.loss import token_losses
from interp_gpt2.analysis.residual import accumulated_resid, stack_head_results
from interp_gpt2.folding import process_weights
from interp_gpt2.hooks import Part
from interp_gpt2.kv_cache import KVCache

torch.set_grad_enabled(False)
z0, k1 = "blocks.0.attn.hook_z", "blocks.1.hook_k_input"
edit = {"z": lambda z, site: z * 0, "k": lambda k, site: k * 0.5}  # a hook is the same function, called with hook=
hook = {name: lambda value, hook, f=f: f(value, None) for name, f in edit.items()}


def with_switch(name, code):
    getattr(theirs, f"set_use_{name}")(True)
    found = code()
    getattr(theirs, f"set_use_{name}")(False)
    return found


def in_two_parts_theirs():
    from transformer_lens import TransformerLensKeyValueCache

    past = TransformerLensKeyValueCache.init_cache(theirs.cfg, theirs.cfg.device, len(batch))
    for part in (batch[:, :40], batch[:, 40:]):
        logits = theirs(part, past_kv_cache=past, attention_mask=torch.ones_like(part))  # or it asks for a tokenizer
    return logits


def in_two_parts_ours():
    past = KVCache()
    model(batch[:, :40], past=past)
    return model(batch[:, 40:], past=past)


def gradient_theirs():
    with torch.enable_grad(), theirs.hooks(bwd_hooks=[(z0, lambda gradient, hook: kept.append(gradient))]):
        kept = []
        theirs(batch).pow(2).sum().backward()
    return kept[0]


def hooked_for_a_while():
    with theirs.hooks(fwd_hooks=[(z0, hook["z"])]):
        return theirs(batch)


_, their_cache = theirs.run_with_cache(batch)
resid = model.run_until(batch, 1)[0]
lines = {
    "return_type='loss'": (lambda: theirs(batch, return_type="loss"), lambda: token_losses(model, batch).float().mean()),
    "names_filter": (
        lambda: theirs.run_with_cache(batch, names_filter=lambda name: name.endswith("pattern"))[1]["pattern", 1],
        lambda: model.run_with_cache(batch, "*.pattern")[1]["pattern", 1],
    ),
    "pos_slice": (
        lambda: theirs.run_with_cache(batch, pos_slice=-1)[1]["resid_post", 1],
        lambda: model.run_with_cache(batch, keep=Part(pos_slice=-1))[1]["resid_post", 1],
    ),
    "run_with_hooks": (
        lambda: theirs.run_with_hooks(batch, fwd_hooks=[(z0, hook["z"])]),
        lambda: model.run_with_edits(batch, {z0: edit["z"]}),
    ),
    "with hooks()": (hooked_for_a_while, lambda: model.with_edits({("z", 0): edit["z"]})(batch)),
    "stop_at_layer": (lambda: theirs(batch, stop_at_layer=1), lambda: model.run_until(batch, 1)[0]),
    "start_at_layer": (lambda: theirs(resid, start_at_layer=1), lambda: model.run_from(resid, 1)[0]),
    "past_kv_cache": (in_two_parts_theirs, in_two_parts_ours),
    "use_attn_result": (
        lambda: with_switch("attn_result", lambda: theirs.run_with_cache(batch)[1]["result", 1]),
        lambda: model.run_with_cache(batch, ("result", 1))[1]["result", 1],
    ),
    "use_split_qkv_input": (
        lambda: with_switch("split_qkv_input", lambda: theirs.run_with_hooks(batch, fwd_hooks=[(k1, hook["k"])])),
        lambda: model.run_with_edits(batch, {("k_input", 1): edit["k"]}),
    ),
    "backward": (gradient_theirs, lambda: model.run_with_gradients(batch, lambda out: out.pow(2).sum(), z0)[2]["z", 0]),
    "accumulated_resid": (
        lambda: their_cache.accumulated_resid(),
        lambda: accumulated_resid(model, ours).values,
    ),
    "stack_head_results": (
        lambda: their_cache.stack_head_results(),
        lambda: stack_head_results(model, ours).values,
    ),
}
table = {}
for name, (there, here) in lines.items():
    expected, found = there(), here()
    table[name] = {"theirs - ours": apart(expected, found), "largest value": expected.abs().max().item()}
pd.DataFrame(table).T

# %% [markdown]
# The one thing to get used to: nothing is ever stored on a model. A hook that was left behind by an interrupted cell, the
# commonest way to a wrong number in a notebook, cannot be.

# %%
was = {"the original": theirs(batch), "ours": model(batch)}
theirs.add_hook(z0, hook["z"])  # and the cell that would have reset it is never run
model.run_with_edits(batch, {z0: edit["z"]})
for name, each in {"the original": theirs, "ours": model}.items():
    print(f"{name}: logits are {apart(each(batch), was[name]):.1e} from where they were")
theirs.reset_hooks()

# %% [markdown]
# ## The trap of the first token
#
# `HookedTransformer` puts a BOS before every text that it is given, and so does the drop-in, because code relies on it.
# Everywhere else here a text is its own tokens and nothing more. So the same text is one token longer there: positions are
# shifted by one, and numbers differ that have no reason to. A small tokenizer with an end-of-text token shows it.

# %%
from interp_gpt2 import GPT2, GPT2Config
from interp_gpt2.tokenizers import BPETokenizer

text = "the cat sat on the mat and the dog sat on the log "
tokenizer = BPETokenizer.train([text] * 8, d_vocab=270)
small = GPT2(GPT2Config(n_layers=2, n_heads=4, d_model=64, d_vocab=tokenizer.d_vocab, n_ctx=64))
drop_in = HookedTransformer.from_gpt2(small, tokenizer)
print("tokenizer.encode:     ", [tokenizer.labels[token] for token in tokenizer.encode("the cat sat")])
print("hooked.to_tokens:     ", [tokenizer.labels[token] for token in drop_in.to_tokens("the cat sat")[0].tolist()])
print(
    "prepend_bos=False:    ",
    [tokenizer.labels[token] for token in drop_in.to_tokens("the cat sat", prepend_bos=False)[0].tolist()],
)
last = small(torch.tensor([tokenizer.encode("the cat sat")]))[0, -1]
for bos in (True, False):
    logits = drop_in("the cat sat", prepend_bos=bos)[0, -1]
    print(f"prepend_bos={bos!s:5}: last logits apart by {apart(logits, last):.1e}, their own spread {last.std():.1e}")

# %% [markdown]
# Tokens are passed as they are by both. A tokenizer without an end of text (characters, bytes) has no BOS, and none is made
# up for it: the drop-in's `cfg.default_prepend_bos` is then false, as above with the letters.
#
# ## Processed weights
#
# Folding layer norms and centring changes weights and activations, not predictions. The drop-in does it by default, as there;
# `run.model()` and `GPT2.from_pretrained` never do. So compare like with like:

# %%
processed = process_weights(model)
folded = to_hooked_transformer(processed) if type(theirs).__name__ == "HookedTransformer" else to_transformer_bridge(processed)
_, plain = model.run_with_cache(batch)
_, centred = processed.run_with_cache(batch)
rows = {
    "log-probabilities": (model(batch).log_softmax(-1), processed(batch).log_softmax(-1)),
    "attention patterns": (plain["pattern", 1], centred["pattern", 1]),
    "logits": (model(batch), processed(batch)),
    "residual stream": (plain["resid_post", 1], centred["resid_post", 1]),
    "W_Q": (model.W_Q, processed.W_Q),
}
pd.DataFrame(
    {name: {"plain - processed": apart(*pair), "largest value": pair[0].abs().max().item()} for name, pair in rows.items()}
).T

# %%
if type(theirs).__name__ == "HookedTransformer":
    there = to_hooked_transformer(model)
    there.process_weights_()
    names = ("W_E", "W_Q", "W_O", "b_O", "W_in", "W_out", "W_U", "b_U")
    furthest = max(apart(getattr(there, name), getattr(hooked, name)) for name in names)
    print(f"weights processed there and here are {furthest:.0e} apart at most")

# %% [markdown]
# ## Patching
#
# The drop-in's `patching` has TransformerLens's functions, and so has `causal.activation_patching`, which returns intervals
# over many pairs. Both run on an engine that computes what a patch changes and nothing else. First that the numbers are
# the same, for every layer, position and head:

# %%
from transformer_lens import patching as their_patching

from interp_gpt2.prompts.induction import induction
from interp_gpt2.transformer_lens import patching

pairs = induction(run.tokenizer(), n=16, seed=0, period=8).pairs
answer, wrong = pairs.correct[:, :1], pairs.incorrect[:, :1]


def logit_difference(logits):
    return (logits[:, -1].gather(1, answer) - logits[:, -1].gather(1, wrong)).mean()


sweeps = (
    "get_act_patch_resid_pre",
    "get_act_patch_attn_head_out_all_pos",
    "get_act_patch_attn_head_out_by_pos",
    "get_act_patch_attn_head_pattern_all_pos",
    "get_act_patch_mlp_out",
)
rows = {}
for name in sweeps:
    values = []
    for lens, each in ((their_patching, theirs), (patching, dropped_in)):
        _, clean_cache = each.run_with_cache(pairs.clean)
        values.append(getattr(lens, name)(each, pairs.corrupted, clean_cache, logit_difference))
    rows[name] = {"patches": values[0].numel(), "theirs - drop-in": apart(*values), "largest value": values[0].abs().max().item()}
pd.DataFrame(rows).T.astype({"patches": int})

# %% [markdown]
# Then the time, as a ratio in one process on the same weights: this model, and one with more layers. The machine decides;
# what was measured at GPT-2's size stands in `benchmarks/PATCHING.md`, with how. The gain grows with the model, since what is
# spared are layers and positions; for a model as small as this one there is little to spare.

# %% tags=["timing"]
import time

larger = GPT2(GPT2Config(n_layers=6, n_heads=8, d_model=256, d_vocab=16, n_ctx=64))


def seconds(lens, each, name):
    _, clean_cache = each.run_with_cache(pairs.clean[:1])
    began = time.perf_counter()
    getattr(lens, name)(each, pairs.corrupted[:1], clean_cache, lambda logits: logits[0, -1, 0])
    return time.perf_counter() - began


for said, weights in {"this model": model, "6 layers of 256": larger}.items():
    is_there = type(theirs).__name__ == "HookedTransformer"
    original_one = to_hooked_transformer(weights) if is_there else to_transformer_bridge(weights)
    sides = ((their_patching, original_one), (patching, HookedTransformer.from_gpt2(weights)))
    ratios = [seconds(*sides[0], "get_act_patch_resid_pre") / seconds(*sides[1], "get_act_patch_resid_pre") for _ in range(5)]
    print(f"{said}, get_act_patch_resid_pre: {sorted(ratios)[2]:.1f} times as fast as the original")

# %% [markdown]
# ## There and back
#
# A conversion keeps every weight, or refuses. `from_hooked_transformer` takes the original's model, `to_transformer_bridge`
# makes what TransformerLens 4 has, and a checkpoint's directory is one that `transformers` loads.

# %%
from interp_gpt2.convert.huggingface import from_huggingface, to_huggingface
from interp_gpt2.convert.transformer_lens import from_hooked_state_dict, from_hooked_transformer, hooked_state_dict


def unchanged(back):
    """How many weights came back to the bit, of how many."""
    state = back.state_dict()
    return sum(torch.equal(weight, state[name]) for name, weight in model.state_dict().items()), len(model.state_dict())


there_and_back = {
    "state dict": from_hooked_state_dict(hooked_state_dict(model), model.config),
    "Hugging Face": from_huggingface(to_huggingface(model)),
}
if type(theirs).__name__ == "HookedTransformer":
    there_and_back["HookedTransformer"] = from_hooked_transformer(theirs)
for name, back in there_and_back.items():
    print("{:>18}: {} of {} tensors the same".format(name, *unchanged(back)))
bridge = to_transformer_bridge(model)
print(f"TransformerBridge: logits apart by {apart(bridge(batch), model(batch)):.0e}")

# %% [markdown]
# ## What is refused, and how
#
# What cannot be done here is an error that names what to use instead; so is what the original lets pass. The drop-in's
# docstring and `refused` list all of it.


# %%
def attempt(what, code):
    try:
        found = code()
    except (InterpGPT2Error, AttributeError) as error:
        print(f"{what}\n    {type(error).__name__}: {error}")
    else:
        print(f"{what}\n    goes through" + f", {found}" * isinstance(found, str))


attempt("a name that is none", lambda: dropped_in.run_with_cache(batch, names_filter="blocks.0.attn.hook_patern"))
attempt("an edit of another shape", lambda: model.run_with_edits(batch, {("z", 0): lambda z, site: z[..., :3]}))
attempt(
    "attention to the future",
    lambda: model.run_with_edits(batch, {("pattern", 0): lambda pattern, site: torch.full_like(pattern, 1 / 64)}),
)
attempt("bwd_hooks that would be gone", lambda: dropped_in.run_with_hooks(batch, bwd_hooks=[(z0, print)]))
attempt("a method that is not here", lambda: dropped_in.generate_stream)
attempt("an argument that is not here", lambda: HookedTransformer.from_pretrained("gpt2", n_devices=2))
if type(theirs).__name__ == "HookedTransformer":
    from transformer_lens import HookedTransformer as Original
    from transformer_lens import HookedTransformerConfig

    rotary = HookedTransformerConfig(
        n_layers=1, d_model=8, n_ctx=8, d_head=4, d_vocab=4, act_fn="gelu", positional_embedding_type="rotary", rotary_dim=4
    )
    attempt("a model that is no GPT-2", lambda: from_hooked_transformer(Original(rotary)))

# %% [markdown]
# The first three, given to the original:

# %%
ones = ("blocks.0.attn.hook_pattern", lambda pattern, hook: torch.full_like(pattern, 1 / 64))
shorter = ("blocks.0.hook_attn_out", lambda out, hook: out[:, :1])


def misspelt():
    _, cache = theirs.run_with_cache(batch, names_filter=["blocks.0.attn.hook_patern"])
    return f"with {len(cache)} activations in the cache"


attempt("a name that is none", misspelt)
attempt("an edit of another shape", lambda: theirs.run_with_hooks(batch, fwd_hooks=[shorter]))
attempt("attention to the future", lambda: theirs.run_with_hooks(batch, fwd_hooks=[ones]))
