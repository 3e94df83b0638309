"""HookedTransformer's own methods, one by one, against TransformerLens's on the same weights."""

import copy

import pytest
import torch

from interp_gpt2.errors import CheckpointError, ConfigError, ContextLengthError, TokenError
from interp_gpt2.folding import refactor_factored_attn_matrices
from interp_gpt2.transformer_lens import HookedTransformer, HookedTransformerConfig

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
TEXT = "When John and Mary went to the shops"
TEXTS = ["When John and Mary", "the ball to James gave the bag"]
KINDS = {
    "GPT-2": {},
    "processed": {"processed": True},
    "attention only": {"attn_only": True},
    "no layer norm": {"layer_norm": False, "attn_only": True},
    "scores divided by layer + 1": {"scale_attn_by_inverse_layer_idx": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_returns_what_it_returns_there(make_pair, kind):
    pair = make_pair(**KINDS[kind])

    def code(lens, model):
        tokens = model.to_tokens(TEXT)
        both = model(tokens, return_type="both")
        return {
            "text": model(TEXT), "tokens": model(tokens), "one sequence": model(tokens[0]),
            "none": model(TEXT, return_type=None), "loss": model(TEXT, return_type="loss"),
            "per token": model(TEXT, return_type="loss", loss_per_token=True),
            "both": [both.logits, both.loss], "no BOS": model(TEXT, prepend_bos=False),
            "texts, padded right": model(TEXTS, return_type="both"), "stop": model(tokens, stop_at_layer=1),
            "stop at -1": model(tokens, stop_at_layer=-1), "stop at 0": model(tokens, stop_at_layer=0),
            "start": model(model(tokens, stop_at_layer=1), start_at_layer=1),
            "start with loss": model(model(tokens, stop_at_layer=1), start_at_layer=1, tokens=tokens, return_type="loss"),
            "one layer": model(model(tokens, stop_at_layer=0), start_at_layer=0, stop_at_layer=1),
        }  # fmt: skip

    pair.both(code)


def test_padding_on_the_left_is_not_seen(pair):
    def code(lens, model):
        logits, loss = model(TEXTS, return_type="both", padding_side="left")
        short = model(TEXTS[0])
        return [logits[:, -short.shape[1] :], loss]

    logits, _ = pair.both(code)
    alone = pair.ours.model(TEXTS[0])
    torch.testing.assert_close(logits[0], alone[0], rtol=1e-5, atol=1e-5)
    tokens = pair.ours.model.to_tokens(TEXT)
    masked = pair.ours.model(tokens, attention_mask=torch.ones_like(tokens))
    torch.testing.assert_close(masked, pair.ours.model(TEXT), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_holds_what_it_holds_there(make_pair, kind):
    pair = make_pair(**KINDS[kind])

    def code(lens, model):
        found = {}
        filters = {
            "all": None, "one": "blocks.1.attn.hook_z", "some": ["hook_embed", "blocks.0.hook_resid_post"],
            "function": lambda name: name.endswith("hook_pattern"), "none": lambda name: False,
        }  # fmt: skip
        for name, names_filter in filters.items():
            output, cache = model.run_with_cache(TEXT, names_filter=names_filter)
            found[name] = [output, dict(sorted(cache.items()))]
        found["dict"] = dict(sorted(model.run_with_cache(TEXT, return_cache_object=False, device="cpu")[1].items()))
        for pos in (-1, (1, 4), [0, 2]):
            cache = model.run_with_cache(TEXT, pos_slice=pos, remove_batch_dim=True)[1]
            found[str(pos)] = [cache.has_batch_dim, dict(sorted(cache.items()))]
        output, cache = model.run_with_cache(TEXT, stop_at_layer=1)
        return [found, output, dict(sorted(cache.items()))]

    found = pair.both(code)[0]
    assert not found["all"][1]["blocks.0.attn.hook_z"].requires_grad


def test_hook_points_that_cost_extra_are_cached_when_turned_on(pair):
    def code(lens, model):
        model.set_use_attn_result(True)
        model.set_use_split_qkv_input(True)
        model.set_use_hook_mlp_in(True)
        cache = model.run_with_cache(TEXT)[1]
        # With split inputs TransformerLens calls ln1 three times, once for each head's stream; ours is the shared one's.
        return {name: cache[name] for name in sorted(cache.keys()) if ".ln1." not in name}

    found = pair.both(code)
    assert "blocks.1.attn.hook_result" in found
    assert "blocks.1.hook_k_input" in found


def test_gradients_are_cached_beside_activations(pair):
    def code(lens, model):
        model.zero_grad()
        loss, cache = model.run_with_cache(TEXT, return_type="loss", incl_bwd=True)
        # TransformerLens calls ln1 for q, k and v each, and keeps the gradient of one of the three alone: see below.
        return [loss, {name: cache[name] for name in sorted(cache.keys()) if not (".ln1." in name and name.endswith("_grad"))}]

    _, found = pair.both(code)
    assert "blocks.0.hook_resid_pre_grad" in found
    assert pair.ours.model.W_E.grad is not None


def test_the_gradient_at_ln1_is_the_whole_one(pair):
    def code(lens, model):
        found = {}

        def add(gradient, hook):
            found[hook.name] = found.get(hook.name, 0) + gradient

        with model.hooks(bwd_hooks=[(lambda name: ".ln1." in name, add)]):
            model(TEXT, return_type="loss").backward()
        return dict(sorted(found.items()))

    pair.both(code)


def test_a_weight_of_a_part_changed_in_place_is_the_models(pair):
    model = copy.deepcopy(pair.ours.model)
    tokens, block = model.to_tokens(TEXT), model.blocks[1]
    weights = [getattr(block.attn, name) for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_V", "b_O")]
    for weight in [*weights, block.mlp.W_in, block.mlp.b_in, block.mlp.W_out, block.mlp.b_out, block.ln2.w, block.ln2.b]:
        before = model(tokens)
        weight.data.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
        assert not torch.equal(model(tokens), before)


def test_weights_are_those_of_transformerlens(pair):
    names = ["W_E", "W_pos", "W_U", "b_U", "W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O", "W_in", "b_in", "W_out",
             "b_out", "W_E_pos"]  # fmt: skip

    def code(lens, model):
        block = model.blocks[1]
        ids = model.to_tokens(TEXT)
        resid = model(ids, stop_at_layer=2)
        return {
            "weights": {name: getattr(model, name) for name in names}, "QK": model.QK.AB, "OV": model.OV[0, 1].AB,
            "attn": [getattr(block.attn, name) for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O")],
            "mlp": [getattr(block.mlp, name) for name in ("W_in", "b_in", "W_out", "b_out")],
            "parts": [model.embed.W_E, model.pos_embed.W_pos, model.unembed.W_U, model.unembed.b_U],
            "calls": [model.embed(ids), model.pos_embed(ids), model.ln_final(resid), model.unembed(model.ln_final(resid)),
                      block.ln1(resid), block.mlp(block.ln2(resid)), block(resid)],
            "biases": [model.accumulated_bias(1), model.accumulated_bias(1, mlp_input=True),
                       model.accumulated_bias(2, include_mlp_biases=False)],
            "labels": model.all_head_labels(),
            "state": [model.state_dict()[name] for name in ("blocks.0.attn.W_Q", "unembed.W_U")],
            "directions": [model.tokens_to_residual_directions(t) for t in (" Mary", 5, torch.tensor(5), ids)],
            "sizes": [getattr(model.cfg, n) for n in ("n_layers", "d_head", "d_mlp", "n_ctx", "d_vocab")] + [len(model.blocks)],
        }  # fmt: skip

    pair.both(code)


@pytest.mark.parametrize("mode", ["Q", "K", "V"])
def test_composition_scores_are_those_of_transformerlens(pair, mode):
    pair.both(lambda lens, model: model.all_composition_scores(mode))


def test_what_is_not_supported_is_refused_by_name(pair):
    model = pair.ours.model
    refused = {
        "past_kv_cache": lambda: model(TEXT, past_kv_cache=object()), "return_type": lambda: model(TEXT, return_type="losses"),
        "shortformer_pos_embed": lambda: model(TEXT, shortformer_pos_embed=torch.zeros(1)),
        "freq_penalty": lambda: model.generate(TEXT, freq_penalty=0.5),
        "top_k and top_p": lambda: model.generate(TEXT, top_k=1, top_p=0.5),
        "use_past_kv_cache": lambda: model.generate(TEXT, use_past_kv_cache=False),
        "first_n_layers": lambda: HookedTransformer.from_pretrained("gpt2", first_n_layers=2),
        "n_devices": lambda: HookedTransformer.from_pretrained("gpt2", n_devices=2),
        "mode='X'": lambda: model.all_composition_scores("X"),
    }  # fmt: skip
    for name, call in refused.items():
        with pytest.raises(ConfigError, match=name):
            call()
    with pytest.raises(TypeError, match="logits_type"):
        model(TEXT, logits_type="loss")
    with pytest.raises(TokenError, match="a loss needs tokens"):
        model(model(TEXT, stop_at_layer=0), start_at_layer=0, return_type="loss")
    with pytest.raises(ContextLengthError):
        model(torch.zeros(1, 49, dtype=torch.long))


@pytest.mark.parametrize(
    "field",
    [
        {"positional_embedding_type": "rotary"},
        {"gated_mlp": True},
        {"normalization_type": "RMS"},
        {"act_fn": "silu"},
        {"n_key_value_heads": 1},
    ],
    ids=str,
)
def test_a_config_that_is_no_gpt2s_is_refused_by_its_field(field):
    shape = {"n_layers": 1, "d_model": 8, "n_ctx": 8, "d_head": 4, "d_vocab": 9, "act_fn": "gelu_new"}
    with pytest.raises(ConfigError, match=next(iter(field))):
        HookedTransformerConfig(**(shape | field))


@pytest.mark.parametrize("norm", ["LN", "LNPre", None])
@pytest.mark.parametrize("attn_only", [False, True])
def test_a_config_makes_the_same_architecture_and_takes_the_same_weights(theirs, norm, attn_only):
    fields = {"n_layers": 2, "d_model": 8, "n_ctx": 12, "d_head": 4, "d_vocab": 9, "act_fn": "gelu_new", "seed": 3,
              "normalization_type": norm, "attn_only": attn_only, "device": "cpu"}  # fmt: skip
    other = theirs.HookedTransformer(theirs.HookedTransformerConfig(**fields))
    mine = HookedTransformer(HookedTransformerConfig(**fields))
    state = {name: weight for name, weight in other.state_dict().items() if not name.endswith((".mask", ".IGNORE"))}
    assert mine.state_dict().keys() == state.keys()
    mine.load_state_dict({name: weight + 0.1 for name, weight in state.items()})
    other.load_state_dict({name: weight + 0.1 for name, weight in state.items()}, strict=False)
    tokens = torch.randint(0, 9, (2, 12), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mine(tokens), other(tokens), rtol=1e-5, atol=1e-5)
    with pytest.raises(CheckpointError, match=r"embed\.W_E"):
        mine.load_state_dict({name: weight for name, weight in state.items() if name != "embed.W_E"})
    assert torch.equal(HookedTransformer(fields).W_E, HookedTransformer(fields).W_E)


def test_processing_weights_is_transformerlenss(make_pair):
    pair = make_pair(processed=False)

    def code(lens, model):
        state = {name: weight for name, weight in model.state_dict().items() if "mask" not in name and "IGNORE" not in name}
        before = model(TEXT).log_softmax(-1)
        model.process_weights_()
        torch.testing.assert_close(model(TEXT).log_softmax(-1), before, rtol=1e-4, atol=1e-5)
        return [model(TEXT), model.W_Q, model.W_U, model.b_U, model.b_O, model.cfg.normalization_type, sorted(state)]

    pair.both(code)


def test_refactored_heads_are_transformerlenss_but_for_signs(make_pair):
    pair = make_pair(processed=False)

    def code(lens, model):
        model.process_weights_(True, True, True, True)  # the fourth is refactor_factored_attn_matrices
        logits, cache = model.run_with_cache(TEXT)
        return [
            logits, cache["pattern", 1], cache["attn_scores", 1], model.b_O, model.b_V, model.QK.AB, model.OV.AB,
            model.W_Q.norm(dim=2), model.W_V.abs(), model.W_O.abs(),
        ]  # fmt: skip

    pair.both(code)


def test_from_pretrained_refactors_heads_when_asked(markov_run):
    options = {"fold_ln": False, "center_writing_weights": False, "center_unembed": False, "fold_value_biases": False}
    hooked = HookedTransformer.from_pretrained(markov_run.path, refactor_factored_attn_matrices=True, **options)
    state = refactor_factored_attn_matrices(markov_run.model()).state_dict()
    assert all(torch.equal(weight, state[name]) for name, weight in hooked.model.state_dict().items())


def test_the_dtype_in_the_config_is_the_models(pair):
    model = pair.ours.model
    assert model.to(torch.bfloat16) is model
    assert model.cfg.dtype == model(TEXT).dtype == torch.bfloat16
    assert model.cfg.device == "cpu"


def test_a_copy_is_a_model_of_its_own(pair):
    model = pair.ours.model
    copied = copy.deepcopy(model)
    copied.add_hook("blocks.0.hook_mlp_out", lambda value, hook: value * 0)
    copied.blocks[1].mlp.W_out.data.zero_()
    torch.testing.assert_close(model(TEXT), pair.theirs.model(TEXT), rtol=1e-5, atol=1e-5)
    assert copied.blocks[0].hook_mlp_out.has_hooks()
    assert not copied.W_out[1].any()
    assert not model.blocks[0].hook_mlp_out.has_hooks()
    with pytest.raises(AttributeError, match="W_gate"):
        model.blocks[0].mlp.W_gate  # noqa: B018
    with pytest.raises(AttributeError, match=r"blocks\.0\.hook_nothing"):
        model.blocks[0].hook_nothing  # noqa: B018
