"""Whole models to Hugging Face's GPT-2 and back: the same function, measured in logits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from interp_gpt2.config import GPT2Config
from interp_gpt2.convert.huggingface import from_huggingface, model_of_state, to_huggingface
from interp_gpt2.errors import CheckpointError, ConversionError
from interp_gpt2.model import GPT2

TINY = {"n_layers": 2, "n_heads": 4, "d_model": 32, "d_vocab": 50, "n_ctx": 16}
VARIANTS = [
    {},
    {"tied": False},
    {"bias": False},
    {"n_layers": 0},
    {"d_mlp": 20},
    {"act_fn": "gelu"},
    {"act_fn": "relu"},
    {"eps": 1e-2},
    {"dropout": 0.1},
    {"scale_attn_by_inverse_layer_idx": True},
]
TOLERANCE = 1e-5  # float32; logits are of size 10 here, and the two sum in different orders


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@torch.no_grad()
def test_logits_are_equal_both_ways_and_the_weights_come_back_bit_for_bit(
    changes: dict[str, Any], make_gpt2: Callable[..., GPT2], tokens: torch.Tensor
) -> None:
    model = make_gpt2(GPT2Config(**TINY | changes))
    hf_model = to_huggingface(model)
    logits = model(tokens)
    assert logits.std() > 0.5
    assert (hf_model(tokens).logits - logits).abs().max() <= TOLERANCE
    back = from_huggingface(hf_model)
    assert (back(tokens) - logits).abs().max() <= TOLERANCE
    for name, weight in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], weight)


@torch.no_grad()
def test_every_recorded_activation_path_gives_hugging_faces_logits(model: GPT2, tokens: torch.Tensor) -> None:
    logits, cache = model.run_with_cache(tokens, names="*")
    assert len(cache) == len(model.hook_points())
    assert (to_huggingface(model)(tokens).logits - logits).abs().max() <= TOLERANCE


@torch.no_grad()
def test_a_float64_model_agrees_to_1e_12(model: GPT2, tokens: torch.Tensor) -> None:
    model = model.double()
    hf_model = to_huggingface(model)
    assert (hf_model(tokens).logits - model(tokens)).abs().max() <= 1e-12
    assert (from_huggingface(hf_model)(tokens) - model(tokens)).abs().max() <= 1e-12


@torch.no_grad()
def test_the_stanford_models_order_of_rounding_is_the_same_function(model: GPT2, tokens: torch.Tensor) -> None:
    hf_model = to_huggingface(model)
    hf_model.set_attn_implementation("eager")
    for block in hf_model.transformer.h:
        block.attn.reorder_and_upcast_attn = True
    hf_model.config.reorder_and_upcast_attn = True
    logits = hf_model(tokens).logits
    assert (logits - model(tokens)).abs().max() <= TOLERANCE
    assert (from_huggingface(hf_model)(tokens) - logits).abs().max() <= TOLERANCE


@torch.no_grad()
def test_training_either_model_does_not_touch_the_other(model: GPT2, tokens: torch.Tensor) -> None:
    before = model(tokens).clone()
    hf_model = to_huggingface(model)
    again = from_huggingface(hf_model)
    for weight in hf_model.parameters():
        weight.zero_()
    assert torch.equal(model(tokens), before)
    assert (again(tokens) - before).abs().max() <= TOLERANCE


def test_a_tied_model_stays_tied(model: GPT2) -> None:
    hf_model = to_huggingface(model)
    assert hf_model.lm_head.weight.data_ptr() == hf_model.transformer.wte.weight.data_ptr()
    assert sum(weight.numel() for weight in hf_model.parameters()) == model.config.n_params


def test_converting_draws_no_random_numbers(model: GPT2) -> None:
    before = torch.get_rng_state()
    from_huggingface(to_huggingface(model))
    assert torch.equal(torch.get_rng_state(), before)


@torch.no_grad()
def test_a_body_without_its_head_is_the_tied_model(model: GPT2, tokens: torch.Tensor) -> None:
    body = to_huggingface(model).transformer
    assert (from_huggingface(body)(tokens) - model(tokens)).abs().max() <= TOLERANCE


def test_mode_and_precision_are_said_and_kept(model: GPT2) -> None:
    assert not to_huggingface(model).training
    assert to_huggingface(model.train()).training
    half = to_huggingface(model.half())
    assert half.dtype == torch.float16
    back = from_huggingface(half)
    assert back.wte.weight.dtype == torch.float32
    assert not back.training
    assert torch.equal(back.wte.weight, model.wte.weight.float())


@pytest.mark.parametrize("changes", [{"attn_only": True}, {"layer_norm": False}, {"d_head": 4}], ids=str)
def test_what_hugging_face_cannot_compute_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConversionError, match=next(iter(changes))):
        to_huggingface(GPT2(GPT2Config(**TINY | changes)))


def test_another_architecture_or_another_head_is_refused() -> None:
    from transformers import GPT2Config as HFConfig
    from transformers import GPT2ForTokenClassification, GPTNeoXConfig, GPTNeoXModel

    sizes = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    with pytest.raises(ConversionError, match="gpt_neox"):
        from_huggingface(GPTNeoXModel(GPTNeoXConfig(intermediate_size=8, bos_token_id=None, eos_token_id=None, **sizes)))
    with pytest.raises(CheckpointError, match=r"classifier\.weight"):
        from_huggingface(GPT2ForTokenClassification(HFConfig(bos_token_id=None, eos_token_id=None, **sizes)))
    with pytest.raises(ConversionError, match="scale_attn_weights"):
        from_huggingface(
            GPT2ForTokenClassification(HFConfig(scale_attn_weights=False, bos_token_id=None, eos_token_id=None, **sizes))
        )


def test_a_model_built_from_its_state_shares_no_memory_with_it(model: GPT2) -> None:
    state = model.state_dict()
    built = model_of_state(model.config, state)
    for name, weight in built.state_dict().items():
        assert weight.data_ptr() != state[name].data_ptr()
    assert all(weight.requires_grad for weight in built.parameters())
