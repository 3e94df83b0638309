"""Whole models to and from Hugging Face's GPT-2, exactly: the same logits to 1e-5, or a refusal that names the field."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import ConversionError
from interp_gpt2.hf_format import MODEL_TYPE, config_from_hf, config_to_hf, state_from_hf, state_to_hf
from interp_gpt2.model import GPT2
from interp_gpt2.passes import refuse_edited

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, GPT2Model


def model_of_state(config: GPT2Config, state: Mapping[str, Tensor]) -> GPT2:
    """The model with these weights, on their device and in eval mode; it shares no memory with `state`.

    In float32, which holds float16 and bfloat16 exactly; float64 stays.
    """
    model = GPT2(config, device="meta")  # initial values would be thrown away
    dtype = torch.promote_types(torch.float32, state["wte.weight"].dtype)
    model.load_state_dict({name: tensor.detach().to(dtype, copy=True) for name, tensor in state.items()}, assign=True)
    return model.eval()


def from_huggingface(hf_model: "GPT2LMHeadModel | GPT2Model") -> GPT2:
    """Our model with the weights of a Hugging Face GPT-2 (with or without its head), on the same device.

    Raises ConversionError, naming the field, for a config that computes anything else than GPT2Config can say, and
    CheckpointError, naming the tensor, for weights that are not a GPT-2's, such as a classification head.
    """
    fields = hf_model.config.to_dict()
    if fields.get("model_type") != MODEL_TYPE:
        raise ConversionError(f"{type(hf_model).__name__} is a {fields.get('model_type')!r}; only GPT-2 models are converted")
    config = config_from_hf(fields)
    return model_of_state(config, state_from_hf(hf_model.state_dict(), config))


def to_huggingface(model: GPT2) -> "GPT2LMHeadModel":
    """A Hugging Face GPT-2 with the same weights, dtype, device and mode; it shares no memory with ours.

    Absent biases become zeros. Raises ConversionError, naming the field, for a model that its GPT-2 cannot compute, and
    EditError for a view with standing edits, which would be lost.
    """
    refuse_edited(model, "converted")
    fields, state = config_to_hf(model.config), state_to_hf(model.state_dict(), model.config)
    from transformers import GPT2Config as HFConfig
    from transformers import GPT2LMHeadModel

    hf_config = HFConfig(**{name: value for name, value in fields.items() if name not in ("model_type", "architectures")})
    with torch.random.fork_rng(devices=[]):  # its initial values are drawn from the caller's generator otherwise
        hf_model = GPT2LMHeadModel(hf_config)
    hf_model.to(device=model.device, dtype=state["transformer.wte.weight"].dtype)
    if model.config.tied:
        state["lm_head.weight"] = state["transformer.wte.weight"]
    hf_model.load_state_dict(state, strict=True)
    return hf_model.train(model.training)
