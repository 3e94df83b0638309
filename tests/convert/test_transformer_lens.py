"""Our activations are TransformerLens's, one by one, and an edit does the same there; or the difference is named here."""

import socket
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version

import pytest
import torch
from torch import Tensor

from interp_gpt2.cache import ActivationCache
from interp_gpt2.config import GPT2Config
from interp_gpt2.convert import transformer_lens as convert
from interp_gpt2.errors import CheckpointError, ConversionError
from interp_gpt2.hooks import default_hook_points, hook_point_names, tl_name
from interp_gpt2.model import GPT2

TL_4 = int(version("transformer-lens").split(".")[0]) >= 4
with_tl_4 = pytest.mark.skipif(not TL_4, reason="needs transformer-lens >=4")
pytestmark = [
    pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning"),
]

CONFIGS = {
    "GPT-2": {},
    "one head": {"n_heads": 1},
    "heads wider than the stream": {"n_heads": 3, "d_head": 12},
    "no biases": {"bias": False},
    "untied": {"tied": False},
    "unembedding bias": {"tied": False, "unembed_bias": True},
    "exact GELU": {"act_fn": "gelu"},
    "ReLU, narrow MLP": {"act_fn": "relu", "d_mlp": 24},
    "large eps": {"eps": 0.1},
    "scores divided by layer + 1": {"n_layers": 3, "scale_attn_by_inverse_layer_idx": True},
    "attention only": {"attn_only": True},
    "attention only, no layer norm": {"attn_only": True, "layer_norm": False},
    "no layer norm": {"layer_norm": False},
    "no layers": {"n_layers": 0},
}
BEYOND_HUGGING_FACE = ("wider", "attention only", "no layer norm", "unembedding bias")
ON_HUGGING_FACE = [name for name in CONFIGS if not any(word in name for word in BEYOND_HUGGING_FACE)]

# What TransformerBridge (3.9 and 4.3) does otherwise, at these hook points; the tests below check that it still does.
BRIDGE_ACTIVATIONS = {
    "attn_scores": "masked scores are the lowest float, not -inf, without enable_compatibility_mode(): the mask is Hugging Face's"
}
BRIDGE_EDITS = {"resid_mid": "an alias of ln2's input: an edit reaches the MLP but not the skip connection"}


def config_with(changes: dict) -> GPT2Config:
    return GPT2Config(**({"n_layers": 2, "n_heads": 4, "d_model": 32, "d_vocab": 50, "n_ctx": 16} | changes))


@pytest.fixture(params=CONFIGS)
def any_model(request, make_gpt2) -> GPT2:
    return make_gpt2(config_with(CONFIGS[request.param]))


@pytest.fixture(params=ON_HUGGING_FACE)
def hf_shaped_model(request, make_gpt2) -> GPT2:
    return make_gpt2(config_with(CONFIGS[request.param]))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args):
        raise AssertionError(f"a connection to {args[1:]} was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def equal(ours: Tensor, theirs: Tensor) -> bool:
    """Within 1e-5 in float32, the accuracy stated for every conversion; -inf equals -inf alone."""
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def differing(ours: ActivationCache, theirs, names: Iterable[str]) -> set[str]:
    return {name for name in names if not equal(ours[name], theirs[tl_name(name)])}


def noisy(value: Tensor) -> Tensor:
    """An edit that suits every hook point: factors in [0.5, 1.5] keep masked scores at -inf and patterns causal."""
    factors = torch.rand(value.shape, generator=torch.Generator().manual_seed(3))
    return value * (0.5 + factors)


def differing_edits(model: GPT2, theirs, tokens: Tensor, names: Iterable[str]) -> set[str]:
    """Hook points at which the same edit gives other logits there than here. Each must change the logits at all."""
    unedited, wrong = model(tokens), set()
    for name in names:
        ours = model.run_with_edits(tokens, {name: lambda value, site: noisy(value)})
        assert not equal(ours, unedited), f"the edit at {name} changed nothing"
        edited = theirs.run_with_hooks(tokens, fwd_hooks=[(tl_name(name), lambda value, hook: noisy(value))])
        if not torch.allclose(ours, edited, rtol=1e-4, atol=3e-5):  # an edited scale of half its size doubles rounding
            wrong.add(name)
    return wrong


def names_ending(config: GPT2Config, *leaves: str) -> list[str]:
    return [name for name in hook_point_names(config) if name.rpartition(".")[2] in leaves]


# The state dict: every version ----------------------------------------------------------------------------------------


def test_a_state_dict_comes_back_bit_for_bit(any_model):
    back = convert.from_hooked_state_dict(convert.hooked_state_dict(any_model), any_model.config)
    assert back.state_dict().keys() == any_model.state_dict().keys()
    assert all(torch.equal(weight, back.state_dict()[name]) for name, weight in any_model.state_dict().items())


def test_a_state_dict_is_a_copy_in_safe_layout(model):
    state = convert.hooked_state_dict(model)
    before = model.state_dict()["wte.weight"].clone()
    assert all(weight.is_contiguous() for weight in state.values())
    assert len({weight.untyped_storage().data_ptr() for weight in state.values()}) == len(state), "safetensors refuses sharing"
    for weight in state.values():
        weight.zero_()
    assert torch.equal(model.wte.weight, before)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda state: state.pop("blocks.1.attn.W_V"), CheckpointError, "blocks.1.attn.W_V is missing"),
        (lambda state: state.update({"blocks.0.attn._W_K": torch.zeros(1)}), CheckpointError, "_W_K has no place in this model"),
        (lambda state: state.update({"embed.W_E": torch.zeros(49, 32)}), CheckpointError, r"embed.W_E has shape \(49, 32\)"),
        (lambda state: state["unembed.b_U"].fill_(1), ConversionError, "unembed.b_U is not zero.*fold_ln=False"),
        (lambda state: state["unembed.W_U"].fill_(1), ConversionError, "set tied=False"),
    ],
)
def test_a_state_dict_that_is_not_this_gpt2_is_refused_by_name(model, change, kind, message):
    state = convert.hooked_state_dict(model)
    change(state)
    with pytest.raises(kind, match=message):
        convert.from_hooked_state_dict(state, model.config)


@pytest.mark.parametrize("name", ["blocks.0.attn.b_K", "blocks.1.mlp.b_out", "ln_final.b"])
def test_a_bias_that_the_config_denies_is_refused_by_name(make_gpt2, name):
    config = config_with({"bias": False})
    state = convert.hooked_state_dict(make_gpt2(config))
    state[name].fill_(1)
    with pytest.raises(ConversionError, match=f"{name} is not zero"):
        convert.from_hooked_state_dict(state, config)


# HookedTransformer: version 3.9 ---------------------------------------------------------------------------------------


@pytest.mark.hooked_transformer
def test_every_activation_is_hooked_transformers_by_name_and_value(any_model, tokens):
    hooked = convert.to_hooked_transformer(any_model)
    logits, theirs = hooked.run_with_cache(tokens)
    our_logits, ours = any_model.run_with_cache(tokens)
    assert equal(our_logits, logits)
    assert {tl_name(name) for name in ours} == set(theirs), "the same names by default"
    assert not differing(ours, theirs, ours)


@pytest.mark.hooked_transformer
def test_hook_points_on_request_are_hooked_transformers_too(any_model, tokens):
    hooked, config = convert.to_hooked_transformer(any_model), any_model.config
    _, ours = any_model.run_with_cache(tokens, ["*"])
    hooked.set_use_attn_result(True)
    if not config.attn_only:
        hooked.set_use_hook_mlp_in(True)
    hooked.set_use_attn_in(True)
    _, theirs = hooked.run_with_cache(tokens)
    names = names_ending(config, "result", "mlp_in", "attn_in")
    hooked.set_use_attn_in(False)
    hooked.set_use_split_qkv_input(True)
    _, split = hooked.run_with_cache(tokens)
    inputs = names_ending(config, "q_input", "k_input", "v_input")
    assert not differing(ours, theirs, names) | differing(ours, split, inputs)
    assert default_hook_points(config) | {*names, *inputs} == set(hook_point_names(config)), "none was left out"


@pytest.mark.hooked_transformer
@pytest.mark.parametrize("kind", ["GPT-2", "attention only", "no layer norm", "scores divided by layer + 1"])
def test_an_edit_at_every_hook_point_does_what_it_does_in_hooked_transformer(make_gpt2, tokens, kind):
    model = make_gpt2(config_with(CONFIGS[kind]))
    hooked, config = convert.to_hooked_transformer(model), model.config
    wrong = differing_edits(model, hooked, tokens, default_hook_points(config))
    hooked.set_use_attn_result(True)
    if not config.attn_only:
        hooked.set_use_hook_mlp_in(True)
    wrong |= differing_edits(model, hooked, tokens, names_ending(config, "result", "mlp_in"))
    hooked.set_use_attn_in(True)
    wrong |= differing_edits(model, hooked, tokens, names_ending(config, "attn_in"))
    hooked.set_use_attn_in(False)
    hooked.set_use_split_qkv_input(True)
    wrong |= differing_edits(model, hooked, tokens, names_ending(config, "q_input", "k_input", "v_input"))
    assert not wrong


@pytest.mark.hooked_transformer
def test_a_padded_batch_agrees_at_its_real_positions(model, tokens):
    mask = torch.ones_like(tokens)
    mask[0, :5] = 0
    logits = convert.to_hooked_transformer(model)(tokens, attention_mask=mask)
    assert equal(model(tokens, attention_mask=mask)[mask.bool()], logits[mask.bool()])


@pytest.mark.hooked_transformer
def test_a_hooked_transformer_is_whole_and_its_own(model, tokens):
    torch.manual_seed(0)
    drawn = torch.get_rng_state()
    hooked = convert.to_hooked_transformer(model.double().train())
    assert torch.equal(torch.get_rng_state(), drawn), "the caller's random numbers are untouched"
    assert not hooked.training
    assert hooked.cfg.dtype == hooked(tokens).dtype == torch.float64
    assert torch.allclose(model(tokens), hooked(tokens), rtol=0, atol=1e-12)  # float64 throughout
    ours = {weight.data_ptr() for weight in model.parameters()}
    assert ours.isdisjoint(weight.data_ptr() for weight in hooked.parameters())


@pytest.mark.hooked_transformer
def test_dropout_is_what_eval_mode_computes(make_gpt2, tokens):
    model = make_gpt2(config_with({"dropout": 0.5}))
    assert equal(model.eval()(tokens), convert.to_hooked_transformer(model.train())(tokens))


@pytest.mark.hooked_transformer
def test_a_model_comes_back_from_hooked_transformer_bit_for_bit(any_model):
    back = convert.from_hooked_transformer(convert.to_hooked_transformer(any_model))
    # Absent biases are zeros there, and stay.
    assert back.config == replace(any_model.config, bias=True)
    weights = back.state_dict()
    assert all(torch.equal(weight, weights.pop(name)) for name, weight in any_model.state_dict().items())
    assert not any(weight.count_nonzero() for weight in weights.values())


@pytest.mark.hooked_transformer
def test_a_model_made_by_transformer_lens_keeps_its_logits(tokens):
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    cfg = HookedTransformerConfig(
        n_layers=2, d_model=24, d_head=8, n_ctx=16, d_vocab=50, act_fn="gelu_fast", seed=0, device="cpu"
    )
    hooked = HookedTransformer(cfg)
    for weight in hooked.parameters():
        weight.data += 0.1 * torch.randn(weight.shape)
    hooked.unembed.b_U.data.zero_()
    model = convert.from_hooked_transformer(hooked)
    assert (model.config.n_heads, model.config.tied, model.config.act_fn) == (3, False, "gelu_new")
    assert equal(model(tokens), hooked(tokens))


@pytest.mark.hooked_transformer
def test_a_model_that_transformer_lens_has_processed_keeps_its_activations(model, tokens):
    hooked = convert.to_hooked_transformer(model)
    hooked.cfg.normalization_type = "LNPre"
    theirs = type(hooked)(hooked.cfg)
    theirs.load_and_process_state_dict(hooked.state_dict())  # folds, centres: its from_pretrained's default
    ours = convert.from_hooked_transformer(theirs)
    assert (ours.config.tied, ours.config.unembed_bias) == (False, True)
    _, cache = theirs.run_with_cache(tokens)
    assert not differing(ours.run_with_cache(tokens)[1], cache, default_hook_points(ours.config))


@pytest.mark.hooked_transformer
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positional_embedding_type": "rotary"}, "positional_embedding_type='rotary'"),
        ({"normalization_type": "RMS"}, "normalization_type='RMS'"),
        ({"final_rms": True}, "final_rms=True"),
        ({"gated_mlp": True}, "gated_mlp=True"),
        ({"n_key_value_heads": 1}, "n_key_value_heads=1"),
        ({"attention_dir": "bidirectional"}, "attention_dir='bidirectional'"),
        ({"parallel_attn_mlp": True}, "parallel_attn_mlp=True"),
        ({"attn_scores_soft_cap": 30.0}, "attn_scores_soft_cap=30.0"),
        ({"use_attn_scale": False}, "use_attn_scale=False"),
        ({"attn_scale": 3.0}, "attn_scale=3.0 is not sqrt"),
        ({"act_fn": "solu"}, "act_fn='solu'"),
        ({"d_vocab_out": 7}, "d_vocab_out=7"),
        ({"post_embedding_ln": True}, "post_embedding_ln=True"),
        ({"use_local_attn": True, "window_size": 4, "attn_types": ["local"]}, "use_local_attn=True"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_a_gpt2_cannot_compute_is_refused_by_name(changes, message):
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    sizes = {"n_layers": 1, "d_model": 16, "d_head": 8, "n_ctx": 8, "d_vocab": 11, "act_fn": "relu", "device": "cpu"}
    hooked = HookedTransformer(HookedTransformerConfig(**(sizes | changes)))
    with pytest.raises(ConversionError, match=message):
        convert.from_hooked_transformer(hooked)


@with_tl_4
def test_on_version_4_the_error_says_which_version_has_it_and_what_to_use_instead(model):
    with pytest.raises(ConversionError, match=r"4\.\d.*pip install 'transformer-lens<4'.*to_transformer_bridge\(model\)"):
        convert.to_hooked_transformer(model)


# TransformerBridge: 3.9 and 4.3 ---------------------------------------------------------------------------------------


def test_every_activation_is_the_bridges_but_for_the_exceptions_named_above(hf_shaped_model, tokens):
    bridge = convert.to_transformer_bridge(hf_shaped_model)
    logits, theirs = bridge.run_with_cache(tokens)
    our_logits, ours = hf_shaped_model.run_with_cache(tokens)
    assert equal(our_logits, logits)
    excepted = set(names_ending(hf_shaped_model.config, *BRIDGE_ACTIVATIONS))
    assert differing(ours, theirs, ours) == excepted
    for name in excepted:
        mask = ours[name] == -torch.inf
        scores = theirs[tl_name(name)]
        assert equal(ours[name][~mask], scores[~mask])
        assert (scores[mask] == torch.finfo(torch.float32).min).all()


def test_in_compatibility_mode_every_activation_is_the_bridges(model, tokens):
    bridge = convert.to_transformer_bridge(model)
    bridge.enable_compatibility_mode(no_processing=True)
    _, theirs = bridge.run_with_cache(tokens)
    _, ours = model.run_with_cache(tokens)
    assert not differing(ours, theirs, ours)


def test_hook_points_on_request_are_the_bridges_too(model, tokens):
    bridge, config = convert.to_transformer_bridge(model), model.config
    _, ours = model.run_with_cache(tokens, ["*"])
    bridge.set_use_attn_result(True)
    bridge.set_use_hook_mlp_in(True)
    bridge.set_use_attn_in(True)
    _, theirs = bridge.run_with_cache(tokens)
    wrong = differing(ours, theirs, names_ending(config, "result", "mlp_in", "attn_in"))
    bridge.set_use_attn_in(False)
    bridge.set_use_split_qkv_input(True)
    _, theirs = bridge.run_with_cache(tokens)
    assert not wrong | differing(ours, theirs, names_ending(config, "q_input", "k_input", "v_input"))


@pytest.mark.parametrize("compatible", [False, True], ids=["raw", "compatibility mode"])
def test_an_edit_does_what_it_does_in_the_bridge_but_for_the_exceptions_named_above(model, tokens, compatible):
    bridge, config = convert.to_transformer_bridge(model), model.config
    if compatible:
        bridge.enable_compatibility_mode(no_processing=True)
    wrong = differing_edits(model, bridge, tokens, default_hook_points(config))
    bridge.set_use_attn_result(True)
    bridge.set_use_hook_mlp_in(True)
    wrong |= differing_edits(model, bridge, tokens, names_ending(config, "result", "mlp_in"))
    bridge.set_use_attn_in(True)
    wrong |= differing_edits(model, bridge, tokens, names_ending(config, "attn_in"))
    bridge.set_use_attn_in(False)
    bridge.set_use_split_qkv_input(True)
    wrong |= differing_edits(model, bridge, tokens, names_ending(config, "q_input", "k_input", "v_input"))
    assert wrong == set(names_ending(config, *BRIDGE_EDITS))


def test_a_bridge_is_its_own(model, tokens):
    torch.manual_seed(0)
    drawn, before = torch.get_rng_state(), model(tokens)
    bridge = convert.to_transformer_bridge(model.train())
    assert torch.equal(torch.get_rng_state(), drawn), "the caller's random numbers are untouched"
    assert not bridge.training
    with torch.no_grad():
        for weight in bridge.original_model.parameters():
            weight.zero_()
    assert torch.equal(model(tokens), before)


@pytest.mark.parametrize("kind", [name for name in CONFIGS if name not in ON_HUGGING_FACE])
def test_what_hugging_face_cannot_compute_is_refused_by_name(make_gpt2, kind):
    changes = CONFIGS[kind]
    with pytest.raises(ConversionError, match=f"TransformerBridge.*cannot represent ({'|'.join(changes)})="):
        convert.to_transformer_bridge(make_gpt2(config_with(changes)))


@with_tl_4
@pytest.mark.parametrize("kind", [name for name in CONFIGS if "divided" not in name])
def test_the_state_dict_loads_into_version_4s_own_model_with_every_name_used(make_gpt2, tokens, kind):
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.utilities.tl_checkpoint_conversion import convert_tl_checkpoint

    model = make_gpt2(config_with(CONFIGS[kind]))
    same = ("n_layers", "n_heads", "d_model", "d_head", "d_mlp", "d_vocab", "n_ctx", "act_fn", "eps", "attn_only")
    cfg = TransformerBridgeConfig(
        **{name: getattr(model.config, name) for name in same},
        normalization_type="LN" if model.config.layer_norm else None,
        architecture="TransformerLensNative",
        device="cpu",
        init_weights=False,
    )
    native = TransformerBridge.boot_native(cfg)
    native.load_state_dict(convert_tl_checkpoint(convert.hooked_state_dict(model), cfg), strict=True)
    assert equal(model(tokens), native.eval()(tokens))
