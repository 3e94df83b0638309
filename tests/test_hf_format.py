"""Hugging Face's names, shapes and config: both ways without loss, and every difference refused by name."""

import json
import random
from typing import Any

import pytest
import torch

from interp_gpt2.config import SIZES, GPT2Config
from interp_gpt2.errors import CheckpointError, ConversionError
from interp_gpt2.hf_format import (
    OURS,
    check_hf_shapes,
    check_our_shapes,
    config_from_hf,
    config_to_hf,
    our_shapes,
    parameters,
    state_from_hf,
    state_to_hf,
    unrepresentable,
)
from interp_gpt2.model import GPT2

TINY = {"n_layers": 2, "n_heads": 2, "d_model": 8, "d_vocab": 11, "n_ctx": 6}
SHAPES = [{}, {"tied": False}, {"bias": False}, {"n_layers": 0}, {"d_mlp": 5}, {"act_fn": "relu", "dropout": 0.25, "eps": 1e-6}]
OURS_ONLY = [{"unembed_bias": True, "tied": False}, {"attn_only": True}, {"layer_norm": False}, {"d_head": 3}]

# config.json of the small GPT-2 as OpenAI's weights are published today.
PUBLISHED = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}
# What a Stanford CRFM model adds to it.
STANFORD = {"_name_or_path": "gpt2", "gradient_checkpointing": False, "reorder_and_upcast_attn": True,
            "scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": True, "use_cache": False, "_num_labels": 2,
            "torch_dtype": "float32", "transformers_version": "4.5.0"}  # fmt: skip

# What DistilGPT-2 adds: half the layers, and labels of a head that it does not have.
DISTILLED = {"_num_labels": 1, "n_layer": 6, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}


def config_or_refusal(fields: dict[str, Any]) -> GPT2Config | str:
    try:
        return config_from_hf(fields)
    except ConversionError as error:
        return str(error)


def random_state(config: GPT2Config) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=draw) for name, shape in our_shapes(config).items()}


@pytest.mark.parametrize("changes", SHAPES + OURS_ONLY, ids=str)
def test_the_table_of_parameters_is_the_models_own(changes: dict[str, Any]) -> None:
    config = GPT2Config(**TINY | changes)
    of_model = {name: tuple(weight.shape) for name, weight in GPT2(config).state_dict().items()}
    assert our_shapes(config) == of_model
    assert sum(torch.Size(shape).numel() for shape in our_shapes(config).values()) == config.n_params


@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_state_and_config_come_back_as_they_went(changes: dict[str, Any]) -> None:
    config = GPT2Config(**TINY | changes)
    state = random_state(config)
    fields = json.loads(json.dumps(config_to_hf(config) | {OURS: config.to_dict()}))
    assert config_from_hf(fields) == config
    back = state_from_hf(state_to_hf(state, config), config)
    assert list(back) == list(state)
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_the_names_and_shapes_are_those_transformers_gives_its_own_model() -> None:
    from transformers import GPT2Config as HFConfig
    from transformers import GPT2LMHeadModel

    config = GPT2Config(**TINY | {"tied": False})
    fields = config_to_hf(config)
    hf_model = GPT2LMHeadModel(HFConfig(**{k: v for k, v in fields.items() if k not in ("model_type", "architectures")}))
    theirs = {name: tuple(weight.shape) for name, weight in hf_model.state_dict().items()}
    assert theirs == {p.theirs: p.their_shape for p in parameters(config)}


def test_the_published_config_is_the_small_gpt2() -> None:
    config = config_from_hf(PUBLISHED)
    assert config.to_dict() == SIZES["gpt2"].to_dict() | {"dropout": 0.1}
    assert config.n_params == 124_439_808
    stanford = config_from_hf(PUBLISHED | STANFORD)
    assert stanford.to_dict() == config.to_dict() | {"scale_attn_by_inverse_layer_idx": True}


# Parameters as counted from the published weights, the unembedding being the embedding.
@pytest.mark.parametrize(
    ("changes", "n_params"),
    [
        ({}, 124_439_808),
        ({"n_layer": 24, "n_head": 16, "n_embd": 1024}, 354_823_168),
        ({"n_layer": 36, "n_head": 20, "n_embd": 1280}, 774_030_080),
        ({"n_layer": 48, "n_head": 25, "n_embd": 1600}, 1_557_611_200),
        (DISTILLED, 81_912_576),
        (STANFORD, 124_439_808),
    ],
)
def test_the_published_sizes_have_the_names_and_shapes_that_transformers_gives_them(changes: dict, n_params: int) -> None:
    from transformers import GPT2Config as HFConfig
    from transformers import GPT2LMHeadModel

    config = config_from_hf(PUBLISHED | changes)
    assert config.n_params == n_params
    with torch.device("meta"):
        theirs = GPT2LMHeadModel(HFConfig(**PUBLISHED | changes))
    shapes = {name: tuple(weight.shape) for name, weight in theirs.state_dict().items()}
    check_hf_shapes(shapes, config)
    n_ctx = config.n_ctx
    old = {name.removeprefix("transformer."): shape for name, shape in shapes.items() if name != "lm_head.weight"}
    old |= {f"h.{layer}.attn.bias": (1, 1, n_ctx, n_ctx) for layer in range(config.n_layers)}  # as the small one is stored
    check_hf_shapes(old, config)
    assert our_shapes(config) == {name: tuple(weight.shape) for name, weight in GPT2(config, device="meta").named_parameters()}


def test_absent_fields_have_the_defaults_of_transformers() -> None:
    from transformers import GPT2Config as HFConfig

    assert config_from_hf({}) == config_from_hf(HFConfig().to_dict())
    aliases = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 3, "max_position_embeddings": 9}
    config = config_from_hf(aliases)
    assert (config.d_model, config.n_heads, config.n_layers, config.n_ctx) == (8, 2, 3, 9)


def test_every_field_of_transformers_own_config_is_known() -> None:
    from transformers import GPT2Config as HFConfig

    defaults = HFConfig().to_dict()
    for name, value in defaults.items():
        strange = "strange" if not isinstance(value, bool) else not value
        found = config_or_refusal(defaults | {name: strange})
        if isinstance(found, str):
            assert name in found  # it is read, or there is one value that we compute
        else:  # it changes nothing, or it is one of the two switches that we have too
            assert found == config_from_hf(defaults) or name in ("scale_attn_by_inverse_layer_idx", "tie_word_embeddings")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scale_attn_weights", False),
        ("add_cross_attention", True),
        ("activation_function", "gelu_fast"),
        ("activation_function", None),
        ("is_encoder_decoder", True),
        ("pruned_heads", {"0": [1]}),
        ("quantization_config", {"bits": 8}),
        ("auto_map", {"AutoModel": "evil.Model"}),
        ("rotary_dim", 64),
        ("model_type", "gptj"),
        ("n_layer", "12"),
        ("n_layer", True),
        ("n_embd", 770),
        ("n_inner", 0),
        ("layer_norm_epsilon", "small"),
        ("tie_word_embeddings", "yes"),
        ("hidden_size", 12.5),
    ],
)
def test_a_field_that_changes_the_arithmetic_is_refused_by_name(field: str, value: Any) -> None:
    named = {"n_embd": "d_model", "n_inner": "d_mlp", "layer_norm_epsilon": "layer_norm_epsilon", "hidden_size": "n_embd"}
    with pytest.raises(ConversionError, match=named.get(field, field)):
        config_from_hf(PUBLISHED | {field: value})


def test_a_misspelt_field_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConversionError, match=r"scale_atn_weights.*did it mean scale_attn_weights"):
        config_from_hf(PUBLISHED | {"scale_atn_weights": "x"})


def test_three_dropouts_that_differ_are_refused() -> None:
    with pytest.raises(ConversionError, match="attn_pdrop"):
        config_from_hf(PUBLISHED | {"attn_pdrop": 0.0})


def test_a_config_that_contradicts_its_own_copy_is_refused() -> None:
    config = GPT2Config(**TINY)
    fields = config_to_hf(config) | {OURS: config.to_dict()}
    with pytest.raises(ConversionError, match="n_layer=3"):
        config_from_hf(fields | {"n_layer": 3})
    with pytest.raises(ConversionError, match="n_layers"):
        config_from_hf(fields | {OURS: config.to_dict() | {"n_layers": "2"}})
    with pytest.raises(ConversionError, match="n_layerz"):
        config_from_hf(fields | {OURS: config.to_dict() | {"n_layerz": 2}})
    with pytest.raises(ConversionError, match=OURS):
        config_from_hf({"model_type": "interp_gpt2"})


@pytest.mark.parametrize("changes", OURS_ONLY, ids=str)
def test_what_hugging_face_cannot_compute_is_refused_by_field(changes: dict[str, Any]) -> None:
    config = GPT2Config(**TINY | changes)
    field = next(iter(changes))
    assert field in (unrepresentable(config) or "")
    with pytest.raises(ConversionError, match=field):
        config_to_hf(config)
    with pytest.raises(ConversionError, match=field):
        state_to_hf(random_state(config), config)


def test_end_of_text_is_null_unless_it_is_a_token() -> None:
    config = GPT2Config(**TINY)
    assert config_to_hf(config)["eos_token_id"] is None
    assert config_to_hf(config, 3)["bos_token_id"] == 3
    with pytest.raises(ConversionError, match="50256"):
        config_to_hf(config, 50256)


# ----------------------------------------------------------------------------------------------------------- state


@pytest.fixture
def tiny() -> GPT2Config:
    return GPT2Config(**TINY)


@pytest.fixture
def theirs(tiny: GPT2Config) -> dict[str, torch.Tensor]:
    return state_to_hf(random_state(tiny), tiny)


def test_every_single_missing_tensor_is_refused_by_name(tiny: GPT2Config, theirs: dict[str, torch.Tensor]) -> None:
    for name in theirs:
        with pytest.raises(CheckpointError, match=f"{name} is missing"):
            state_from_hf({n: t for n, t in theirs.items() if n != name}, tiny)


def test_every_single_misshapen_tensor_is_refused_by_name(tiny: GPT2Config, theirs: dict[str, torch.Tensor]) -> None:
    for name, tensor in theirs.items():
        with pytest.raises(CheckpointError, match=f"{name} has shape"):
            state_from_hf(theirs | {name: torch.zeros(*tensor.shape, 1)}, tiny)
        if tensor.ndim == 2 and tensor.shape[0] != tensor.shape[1]:  # as nn.Linear would have it
            with pytest.raises(CheckpointError, match=f"{name} has shape"):
                state_from_hf(theirs | {name: tensor.T}, tiny)


@pytest.mark.parametrize(
    "name",
    [
        "score.weight",
        "transformer.h.2.ln_1.weight",
        "transformer.h.0.attn.rotary",
        "_orig_mod.wte.weight",
        "h.0.crossattention.c_attn.bias",
    ],
)
def test_an_unexpected_tensor_is_refused_by_name(name: str, tiny: GPT2Config, theirs: dict[str, torch.Tensor]) -> None:
    with pytest.raises(CheckpointError, match=name):
        state_from_hf(theirs | {name: torch.zeros(8)}, tiny)


def test_old_spellings_are_the_same_model(tiny: GPT2Config, theirs: dict[str, torch.Tensor]) -> None:
    bare = {name.removeprefix("transformer."): tensor for name, tensor in theirs.items()}
    bare |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 6, 6, dtype=torch.uint8) for layer in range(2)}
    bare |= {"h.0.attn.masked_bias": torch.tensor(-1e4), "lm_head.weight": bare["wte.weight"].clone()}
    expected = state_from_hf(theirs, tiny)
    for name, tensor in state_from_hf(bare, tiny).items():
        assert torch.equal(tensor, expected[name])


def test_a_tensor_under_both_spellings_is_refused(tiny: GPT2Config, theirs: dict[str, torch.Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"wte\.weight is there twice"):
        state_from_hf(theirs | {"wte.weight": theirs["transformer.wte.weight"]}, tiny)


def test_a_tied_head_must_be_the_embedding(tiny: GPT2Config, theirs: dict[str, torch.Tensor]) -> None:
    theirs["transformer.wte.weight"][0, 0] = torch.nan
    head = theirs["transformer.wte.weight"].clone()
    state_from_hf(theirs | {"lm_head.weight": head}, tiny)
    head[-1, -1] += 1e-6
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs"):
        state_from_hf(theirs | {"lm_head.weight": head}, tiny)
    untied = state_from_hf(theirs | {"lm_head.weight": head}, GPT2Config(**TINY | {"tied": False}))
    assert untied["lm_head.weight"] is head


def test_an_untied_model_without_its_head_is_refused(theirs: dict[str, torch.Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing"):
        state_from_hf(theirs, GPT2Config(**TINY | {"tied": False}))


def test_biases_of_a_model_without_must_be_zero(theirs: dict[str, torch.Tensor]) -> None:
    without = GPT2Config(**TINY | {"bias": False})
    with pytest.raises(CheckpointError, match=r"ln_1\.bias is not zero"):
        state_from_hf(theirs, without)
    zeroed = {name: tensor * (not name.endswith(".bias")) for name, tensor in theirs.items()}
    assert list(state_from_hf(zeroed, without)) == list(our_shapes(without))


def test_whole_numbers_are_not_weights(tiny: GPT2Config, theirs: dict[str, torch.Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"ln_f\.bias holds torch\.int8"):
        state_from_hf(theirs | {"transformer.ln_f.bias": torch.zeros(8, dtype=torch.int8)}, tiny)


def test_shapes_are_checked_without_values(tiny: GPT2Config) -> None:
    check_hf_shapes({p.theirs: p.their_shape for p in parameters(tiny)}, tiny)
    with pytest.raises(CheckpointError, match=r"\(and 27 more\)"):
        check_hf_shapes({"lm_head.weight": (11, 8), "score.weight": (1,)}, tiny)
    for check in (check_hf_shapes, check_our_shapes):
        with pytest.raises(CheckpointError, match="n_layers=1000000000000"):  # at once, not after listing them
            check({}, GPT2Config(**TINY | {"n_layers": 10**12}))


def test_500_random_configs_are_read_or_refused_and_nothing_else() -> None:
    draw = random.Random(0)
    values = [None, True, False, -1, 0, 1, 2, 10**30, 0.5, -1e400, "", "gelu", "gpt2", [], [1], {}, {"a": 1}]
    refused = 0
    for _ in range(500):
        fields = {"n_embd": 8, "n_head": 2, "n_layer": 1, OURS: GPT2Config(**TINY).to_dict()}
        fields |= {name: draw.choice(values) for name in draw.sample([*PUBLISHED, OURS, "dtype", "hidden_size", "x"], 2)}
        if draw.random() < 0.5 and isinstance(fields[OURS], dict):
            fields[OURS] = fields[OURS] | {draw.choice([*GPT2Config().to_dict(), "x"]): draw.choice(values)}
            fields["model_type"] = draw.choice(["gpt2", "interp_gpt2"])
        refused += isinstance(config_or_refusal(fields), str)
    assert refused > 100
