"""The calls of tutorials people learn from, written afresh: the same code, run with either library, finds the same.

ARENA chapters 1.2 (induction heads) and 1.4.1 (indirect object identification); TransformerLens's Main, Exploratory
Analysis and Activation Patching demos. Random weights hold no circuits; what is compared is every number on the way.
"""

from functools import partial

import einops
import pytest
import torch

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
PROMPTS = [
    "When John and Mary went to the shops, John gave the bag to",
    "When Mary and John went to the shops, Mary gave the bag to",
]
ANSWERS = [(" Mary", " John"), (" John", " Mary")]


def repeated_tokens(model, length=10, batch=2):
    """A BOS and the same random tokens twice."""
    half = torch.randint(1, model.cfg.d_vocab, (batch, length), generator=torch.Generator().manual_seed(0))
    return torch.cat([torch.full((batch, 1), model.tokenizer.bos_token_id), half, half], dim=1)


def logit_diff(logits, answers, per_prompt=False):
    last = logits[:, -1]
    diff = last.gather(-1, answers)[:, 0] - last.gather(-1, answers)[:, 1]
    return diff if per_prompt else diff.mean()


def ioi(model):
    answers = torch.tensor([[model.to_single_token(name) for name in pair] for pair in ANSWERS])
    tokens = model.to_tokens(PROMPTS, prepend_bos=True)
    return tokens, tokens[[1, 0]], answers


# ARENA 1.2: induction heads -------------------------------------------------------------------------------------------


def looking_at_attention(lens, model):
    text = PROMPTS[0]
    logits, cache = model.run_with_cache(text, remove_batch_dim=True)
    by_key, by_name = cache["pattern", 0], cache["blocks.0.attn.hook_pattern"]
    q, k = cache["q", 0], cache["k", 0]
    seq = q.shape[0]
    scores = einops.einsum(q, k, "query head d, key head d -> head query key") / model.cfg.d_head**0.5
    mask = torch.triu(torch.ones(seq, seq, dtype=torch.bool), diagonal=1)
    by_hand = scores.masked_fill(mask, -1e9).softmax(-1)
    torch.testing.assert_close(by_hand, by_key, rtol=1e-4, atol=1e-6)
    loss = model(text, return_type="loss")
    return [logits, by_key, by_name, loss, model.to_str_tokens(text), lens.utils.get_act_name("pattern", 0)]


def loss_on_repeated_tokens(lens, model):
    tokens = repeated_tokens(model)
    logits, cache = model.run_with_cache(tokens)
    log_probs = logits.log_softmax(-1)
    correct = log_probs[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    measured = [lens.utils.lm_cross_entropy_loss(logits, tokens), lens.utils.lm_accuracy(logits, tokens)]
    return [correct, measured, cache["pattern", 1]]


def induction_scores_with_hooks(lens, model):
    tokens, length = repeated_tokens(model), 10
    store = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)

    def score(pattern, hook):
        stripe = pattern.diagonal(dim1=-2, dim2=-1, offset=1 - length)
        store[hook.layer()] = stripe.mean((0, -1))

    model.run_with_hooks(tokens, return_type=None, fwd_hooks=[(lambda name: name.endswith("pattern"), score)])
    return store


def logit_attribution_of_heads(lens, model):
    tokens = repeated_tokens(model, batch=1)
    model.set_use_attn_result(True)
    logits, cache = model.run_with_cache(tokens, remove_batch_dim=True)
    W_U = model.W_U[:, tokens[0, 1:]]
    direct = einops.einsum(W_U, cache["embed"][:-1], "d pos, pos d -> pos")
    heads = [einops.einsum(W_U, cache["result", layer][:-1], "d pos, pos head d -> pos head") for layer in range(2)]
    return [logits, direct, heads]


def ablating_heads(lens, model):
    tokens = repeated_tokens(model)

    def zero(z, hook, head):
        z[:, :, head] = 0.0

    def to_mean(z, hook, head):
        z[:, :, head] = z[:, :, head].mean(0)
        return z

    found = {}
    clean = model(tokens, return_type="loss")
    for ablation in (zero, to_mean):
        for layer in range(model.cfg.n_layers):
            for head in range(model.cfg.n_heads):
                hooks = [(lens.utils.get_act_name("z", layer), partial(ablation, head=head))]
                found[ablation.__name__, layer, head] = model.run_with_hooks(tokens, return_type="loss", fwd_hooks=hooks) - clean
    return found


def reverse_engineering_circuits(lens, model):
    head, layer = 1, 1
    OV = lens.FactoredMatrix(model.W_V[layer, head], model.W_O[layer, head])
    full_OV = model.W_E @ OV @ model.W_U
    W_QK = model.W_Q[0, head] @ model.W_K[0, head].T
    pos_by_pos = model.W_pos @ W_QK @ model.W_pos.T
    indices = torch.arange(0, model.cfg.d_vocab, 7)
    sample = full_OV[indices, indices].AB
    _, cache = model.run_with_cache(repeated_tokens(model, batch=1), remove_batch_dim=True)
    q_input = cache["embed"] + cache["pos_embed"] + sum(cache["attn_out", at] for at in range(layer))
    return [sample, full_OV.AB.argmax(-1), pos_by_pos, q_input, full_OV.eigenvalues.abs().sort().values[-5:]]


def composition_by_weights(lens, model):
    scores = {mode: model.all_composition_scores(mode) for mode in "QKV"}
    one = (model.OV[0, 1] @ model.QK[1, 2]).norm() / (model.OV[0, 1].norm() * model.QK[1, 2].norm())
    return [scores, one]


# ARENA 1.4.1 and the Exploratory Analysis demo: indirect object identification ----------------------------------------


def attributing_the_answer(lens, model):
    tokens, _, answers = ioi(model)
    logits, cache = model.run_with_cache(tokens)
    directions = model.tokens_to_residual_directions(answers)
    difference = directions[:, 0] - directions[:, 1]
    last = cache["resid_post", -1][:, -1]
    found = {"diff": logit_diff(logits, answers, per_prompt=True)}
    for name, stack_of in {
        "accumulated": partial(cache.accumulated_resid, layer=-1, incl_mid=True),
        "layers": partial(cache.decompose_resid, layer=-1),
        "heads": partial(cache.stack_head_results, layer=-1),
    }.items():
        stack, labels = stack_of(pos_slice=-1, return_labels=True)
        normed = cache.apply_ln_to_stack(stack, layer=-1, pos_slice=-1)
        found[name] = [einops.einsum(normed, difference, "... batch d, batch d -> ...") / len(tokens), labels]
    total = einops.einsum(cache.apply_ln_to_stack(last[None], layer=-1, pos_slice=-1)[0], difference, "b d, b d -> b")
    torch.testing.assert_close(total, found["diff"] - (model.b_U[answers[:, 0]] - model.b_U[answers[:, 1]]), rtol=1e-4, atol=1e-4)
    return found


def patching_the_stream_by_hand(lens, model):
    clean, corrupted, answers = ioi(model)
    clean_logits, clean_cache = model.run_with_cache(clean)
    base = logit_diff(model(corrupted), answers)
    span = logit_diff(clean_logits, answers) - base

    def patch(value, hook, pos, cache):
        value[:, pos] = cache[hook.name][:, pos]
        return value

    found = torch.zeros(model.cfg.n_layers, clean.shape[1])
    for layer in range(model.cfg.n_layers):
        for pos in range(clean.shape[1]):
            name = lens.utils.get_act_name("resid_pre", layer)
            logits = model.run_with_hooks(corrupted, fwd_hooks=[(name, partial(patch, pos=pos, cache=clean_cache))])
            found[layer, pos] = (logit_diff(logits, answers) - base) / span
    return found


def path_patching(lens, model):
    """A head's direct effect on the answer: its z changed, every other head's held, the last stream carried over."""
    clean, corrupted, answers = ioi(model)
    _, clean_cache = model.run_with_cache(clean, names_filter=lambda name: name.endswith("z"))
    _, new_cache = model.run_with_cache(corrupted, names_filter=lambda name: name.endswith("z"))

    def freeze(z, hook, layer, head):
        z[:] = clean_cache[hook.name]
        if hook.layer() == layer:
            z[:, :, head] = new_cache[hook.name][:, :, head]
        return z

    found = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            model.reset_hooks()
            model.add_hook(lambda name: name.endswith("z"), partial(freeze, layer=layer, head=head))
            name = lens.utils.get_act_name("resid_post", model.cfg.n_layers - 1)
            _, cache = model.run_with_cache(clean, names_filter=lambda n, name=name: n == name, return_type=None)
            model.reset_hooks()
            carry = partial(lambda value, hook, cache: cache[hook.name], cache=cache)
            found[layer, head] = logit_diff(model.run_with_hooks(clean, fwd_hooks=[(name, carry)]), answers)
    return found


def copying_by_the_ov_circuit(lens, model):
    first = model.blocks[0]
    embedded = model.W_E + first.mlp(first.ln2(model.W_E[None]))[0]
    read = model.ln_final(embedded[None])[0]
    results = [(read @ model.W_V[1, head] @ model.W_O[1, head]) for head in range(model.cfg.n_heads)]
    return [model.unembed(model.ln_final(result[None])).topk(5).values for result in results]


# TransformerLens's Main demo ------------------------------------------------------------------------------------------


def main_demo(lens, model):
    text = PROMPTS[0]
    tokens = model.to_tokens(text)
    found = [model(text, return_type="loss"), model.to_str_tokens(text), model.to_string(tokens[0, -1])]
    logits, cache = model.run_with_cache(tokens, remove_batch_dim=True)
    found += [cache["blocks.0.attn.hook_pattern"], cache["pattern", 0, "attn"], logits]
    found += [model.run_with_hooks(tokens, return_type="loss", fwd_hooks=[("blocks.0.attn.hook_v", zero_a_head)])]
    attention = model.run_with_cache(text, remove_batch_dim=True, stop_at_layer=1, names_filter=["blocks.0.attn.hook_pattern"])[1]
    found += [attention["blocks.0.attn.hook_pattern"], len(attention)]
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda value, hook: value * 0.5)]):
        found += [model(text), model.generate(text, max_new_tokens=4, temperature=0, verbose=False)]
    ov = model.OV
    found += [ov.shape, ov[1, 2].svd()[1], (model.QK[0, 0].eigenvalues.sum()).abs(), model.W_E.shape, model.cfg.act_fn]
    found += [lens.head_detector.detect_head(model, text, name) for name in lens.head_detector.HEAD_NAMES]
    return found


def zero_a_head(value, hook):
    value[:, :, 2] = 0.0
    return value


def ablating_with_a_permanent_hook(lens, model):
    def mean_over_positions(value, hook):
        hook.ctx["mean"] = value.mean(1, keepdim=True)
        return hook.ctx["mean"].expand_as(value)

    model.add_perma_hook("blocks.0.hook_mlp_out", mean_over_positions)
    found = [model(PROMPTS[0]), model.hook_dict["blocks.0.hook_mlp_out"].ctx["mean"]]
    model.reset_hooks()
    found.append(model(PROMPTS[0]))
    model.reset_hooks(including_permanent=True)
    return [*found, model(PROMPTS[0])]


# TransformerLens's Activation Patching and attribution patching demos --------------------------------------------------


def activation_patching_demo(lens, model):
    clean, corrupted, answers = ioi(model)
    clean, corrupted = clean[:, :8], corrupted[:, :8]
    _, cache = model.run_with_cache(clean)
    metric = partial(logit_diff, answers=answers)
    found = {}
    names = ["resid_pre", "resid_mid", "attn_out", "mlp_out", "attn_head_pattern_dest_src_pos"]
    names += [f"attn_head_{part}_{kind}" for part in ("out", "q", "k", "v", "pattern") for kind in ("by_pos", "all_pos")]
    for name in names:
        found[name] = getattr(lens.patching, f"get_act_patch_{name}")(model, corrupted[:1], cache_of(cache, 0), first(metric))
    found["block"] = lens.patching.get_act_patch_block_every(model, corrupted, cache, metric)
    found["heads"] = lens.patching.get_act_patch_attn_head_all_pos_every(model, corrupted, cache, metric)
    found["heads by position"] = lens.patching.get_act_patch_attn_head_by_pos_every(model, corrupted[:, :3], short(cache), metric)
    return found


def first(metric):
    return lambda logits: logits[0, -1, 3] - logits[0, -1, 4]


def cache_of(cache, index):
    return cache.apply_slice_to_batch_dim([index])


def short(cache):
    """The same, of the first three tokens: a causal model's activations there do not depend on what follows."""
    kept = {name: value for name, value in cache.items() if name.endswith(("hook_z", "hook_q", "hook_k", "hook_v"))}
    kept = {name: value[:, :3] for name, value in kept.items()}
    patterns = {name: value[..., :3, :3] for name, value in cache.items() if name.endswith("pattern")}
    return type(cache)(kept | patterns, cache.model)


def attribution_patching_demo(lens, model):
    kept = ("hook_z", "hook_resid_pre")
    clean, corrupted, answers = ioi(model)
    caches = []
    for tokens in (clean, corrupted):
        model.reset_hooks()
        forward, backward = {}, {}
        model.add_hook(lambda name: name.endswith(kept), lambda value, hook, f=forward: f.update({hook.name: value.detach()}))
        for name in [name for name in model.hook_dict if name.endswith(kept)]:
            model.add_hook(name, lambda gradient, hook, b=backward: b.update({hook.name: gradient.detach()}), "bwd")
        value = logit_diff(model(tokens), answers)
        value.backward()
        model.reset_hooks()
        caches.append((value, lens.ActivationCache(forward, model), lens.ActivationCache(backward, model)))
    (_, clean_cache, _), (_, corrupted_cache, gradients) = caches
    stack = [cache.stack_activation("z") for cache in (clean_cache, corrupted_cache, gradients)]
    return [((stack[0] - stack[1]) * stack[2]).sum((1, 2, 4)), [value for value, _, _ in caches]]


CODE = [
    looking_at_attention, loss_on_repeated_tokens, induction_scores_with_hooks, logit_attribution_of_heads, ablating_heads,
    reverse_engineering_circuits, composition_by_weights, attributing_the_answer, patching_the_stream_by_hand, path_patching,
    copying_by_the_ov_circuit, main_demo, ablating_with_a_permanent_hook, activation_patching_demo, attribution_patching_demo,
]  # fmt: skip


@pytest.mark.parametrize("code", CODE, ids=lambda code: code.__name__)
def test_the_same_code_finds_the_same_with_either_library(pair, code, capsys):
    pair.both(code)
