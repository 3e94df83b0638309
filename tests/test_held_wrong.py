"""Held wrong, a model says what came in and what it expected, before any compute."""

import pytest
import torch

from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import ConfigError, ContextLengthError, EditError, HookNameError, TokenError


@pytest.mark.parametrize(
    ("tokens", "kind", "said"),
    [
        (torch.tensor([[1, 50]]), TokenError, "token 50 at batch 0, pos 1 is not in the vocabulary: ids are 0 to 49"),
        (torch.tensor([[1], [-2]]), TokenError, "token -2 at batch 1, pos 0"),
        (torch.tensor([[1.0]]), TokenError, "must be int64 (or int32), not float32"),
        (torch.tensor([1, 2]), TokenError, "pass tokens[None]"),
        (torch.zeros(1, 2, dtype=torch.long, device="meta"), TokenError, "on meta, the model is on cpu; pass tokens.to('cpu')"),
        (torch.zeros(1, 0, dtype=torch.long), TokenError, "at least one token"),
        (torch.zeros(0, 4, dtype=torch.long), TokenError, "at least one token"),
        (torch.zeros(1, 17, dtype=torch.long), ContextLengthError, "17 tokens do not fit in n_ctx=16; pass tokens[:, :16]"),
        ("hello", TokenError, "not str; encode text"),
    ],
)
def test_tokens_the_model_cannot_read_are_refused_before_any_compute(model, tokens, kind, said):
    model.wte = None  # touching a weight would raise another error
    with pytest.raises(kind) as error:
        model(tokens)
    assert said in str(error.value)


def test_an_unknown_hook_name_is_refused_before_anything_runs(model, tokens):
    model.wte = None
    with pytest.raises(HookNameError, match=r"Nearest: 'blocks\.0\.attn\.pattern'"):
        model.run_with_cache(tokens, "blocks.0.attn.patern")
    with pytest.raises(HookNameError, match="no hook point"):
        model.run_with_edits(tokens, {"blocks.0.attn.zz": lambda value, site: value})


def test_a_mask_of_another_shape_and_layers_that_do_not_exist_are_refused(model, tokens):
    with pytest.raises(TokenError, match=r"attention_mask has shape \(2, 3\)"):
        model(tokens, attention_mask=torch.ones(2, 3))
    with pytest.raises(TokenError, match="attention_mask must be a tensor"):
        model(tokens, attention_mask=[[1] * 12] * 2)
    with pytest.raises(TokenError, match="attention_mask is on meta, the tokens are on cpu"):
        model(tokens, attention_mask=torch.ones_like(tokens, device="meta"))
    with pytest.raises(EditError, match=r"keep returned None for 'embed'"):
        model.run_with_cache(tokens, "embed", keep=lambda value: None)
    with pytest.raises(TokenError, match=r"attention_mask has shape \(2, 3\); expected \(2, 12\)"):
        model.run_blocks(model.embed(tokens), attention_mask=torch.ones(2, 3))
    with pytest.raises(ConfigError, match="blocks 0 to 3 do not exist"):
        model.run_blocks(model.embed(tokens), stop=3)


def test_a_config_that_describes_no_model_is_refused():
    with pytest.raises(ConfigError, match="is not a multiple of n_heads=5"):
        GPT2Config(n_heads=5)
    with pytest.raises(ConfigError, match="did you mean 'n_layers'"):
        GPT2Config.from_dict({"n_layer": 3})
    with pytest.raises(ConfigError, match="act_fn='swish' is not one of"):
        GPT2Config(act_fn="swish")
    with pytest.raises(ConfigError, match="unembed_bias=True needs tied=False"):
        GPT2Config(unembed_bias=True)
