"""nanoGPT's checkpoints: the model that Hugging Face computes from the same weights, or the name of what does not fit."""

from pathlib import Path
from typing import Any

import pytest
import torch

from interp_gpt2.config import GPT2Config
from interp_gpt2.convert.huggingface import to_huggingface
from interp_gpt2.convert.nanogpt import from_nanogpt, load_nanogpt, load_state
from interp_gpt2.errors import CheckpointError, ConversionError
from interp_gpt2.model import GPT2

TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
ARGS = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 16, "vocab_size": 50, "bias": True, "dropout": 0.0}
State = dict[str, torch.Tensor]


def nano_state(model: GPT2) -> State:
    """nanoGPT's state dict by way of Hugging Face, whose matrices nanoGPT transposes when it imports them."""
    state = to_huggingface(model).state_dict()
    state = {name: t.T.contiguous() if name.endswith(TRANSPOSED) else t for name, t in state.items()}
    return {name: t for name, t in state.items() if model.config.bias or not name.endswith(".bias")}


@pytest.fixture
def nano(make_gpt2: Any) -> GPT2:
    return make_gpt2(GPT2Config(n_layers=2, n_heads=4, d_model=32, d_vocab=50, n_ctx=16, act_fn="gelu"))


def written(path: Path, state: State, args: dict[str, Any] = ARGS, **parts: Any) -> Path:
    """What nanoGPT's train.py saves."""
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.95)}]}
    checkpoint = {"model": state, "optimizer": optimizer, "model_args": args, "iter_num": 3, "best_val_loss": torch.tensor(1.9)}
    torch.save(checkpoint | {"config": {"device": "cpu"}} | parts, path)
    return path


def equal_models(a: GPT2, b: GPT2) -> bool:
    return all(torch.equal(weight, b.state_dict()[name]) for name, weight in a.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "_orig_mod.module.", "module._orig_mod."])
def test_a_checkpoint_computes_what_hugging_face_computes_from_its_weights(nano: GPT2, tokens, tmp_path, prefix: str) -> None:
    state = {prefix + name: tensor for name, tensor in nano_state(nano).items()}
    loaded = load_nanogpt(written(tmp_path / "ckpt.pt", state))
    torch.testing.assert_close(loaded(tokens), to_huggingface(nano)(tokens).logits, atol=1e-4, rtol=1e-4)
    assert equal_models(loaded, nano)
    assert loaded.config == nano.config
    assert not loaded.training


def test_a_checkpoint_without_biases_and_one_that_does_not_say(make_gpt2, nano: GPT2, tmp_path) -> None:
    config = GPT2Config.from_dict(nano.config.to_dict() | {"bias": False})
    bare = make_gpt2(config)
    loaded = load_nanogpt(written(tmp_path / "ckpt.pt", nano_state(bare), ARGS | {"bias": False}))
    assert equal_models(loaded, bare)
    assert not loaded.config.bias
    unsaid = {name: value for name, value in ARGS.items() if name not in ("bias", "dropout")}
    for model in (bare, nano):
        assert equal_models(load_nanogpt(written(tmp_path / "ckpt.pt", nano_state(model), unsaid)), model)


def test_masks_of_older_checkpoints_are_dropped_if_they_are_causal(nano: GPT2, tmp_path) -> None:
    mask = torch.ones(1, 1, 16, 16).tril()
    state = nano_state(nano) | {f"transformer.h.{layer}.attn.bias": mask for layer in (0, 1)}
    assert equal_models(load_nanogpt(written(tmp_path / "ckpt.pt", state)), nano)
    state["transformer.h.1.attn.bias"] = torch.ones(1, 1, 16, 16)
    with pytest.raises(ConversionError, match=r"transformer\.h\.1\.attn\.bias is not a causal mask"):
        load_nanogpt(written(tmp_path / "ckpt.pt", state))


@torch.no_grad()
def test_padding_of_the_vocabulary_is_kept_unless_told(nano: GPT2, tokens, tmp_path) -> None:
    path = written(tmp_path / "ckpt.pt", nano_state(nano))
    assert load_nanogpt(path).config.d_vocab == 50
    cut = load_nanogpt(path, d_vocab=47)
    tokens = tokens % 47
    assert cut.config.d_vocab == 47
    torch.testing.assert_close(cut(tokens), nano(tokens)[..., :47], atol=1e-5, rtol=1e-5)
    for wrong in (51, 0, -1):
        with pytest.raises(ConversionError, match=f"d_vocab={wrong} rows cannot be kept of an embedding of 50"):
            load_nanogpt(path, d_vocab=wrong)


@torch.no_grad()
def test_a_bare_state_dict_of_mingpt_has_an_unembedding_of_its_own(make_gpt2, tokens, tmp_path) -> None:
    model = make_gpt2(GPT2Config(n_layers=2, n_heads=4, d_model=32, d_vocab=50, n_ctx=16, tied=False))
    torch.save(nano_state(model), tmp_path / "model.pt")
    loaded = from_nanogpt(load_state(tmp_path / "model.pt"), n_heads=4, act_fn="gelu_new")
    assert loaded.config == model.config
    assert equal_models(loaded, model)
    torch.testing.assert_close(loaded(tokens), to_huggingface(model)(tokens).logits, atol=1e-4, rtol=1e-4)
    assert from_nanogpt(nano_state(model), n_heads=4, d_vocab=40)(tokens % 40).shape[-1] == 40
    with pytest.raises(CheckpointError, match="with from_nanogpt it may have its own"):
        load_nanogpt(written(tmp_path / "ckpt.pt", nano_state(model)))


def test_a_tied_state_dict_with_or_without_its_head_is_tied(nano: GPT2) -> None:
    state = nano_state(nano)
    for given in (state, {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}):
        loaded = from_nanogpt(given, n_heads=4)
        assert loaded.config == nano.config
        assert equal_models(loaded, nano)
    with pytest.raises(ConversionError, match="n_heads=5"):
        from_nanogpt(state, n_heads=5)


def test_half_precision_becomes_float32_exactly(nano: GPT2, tmp_path) -> None:
    loaded = load_nanogpt(written(tmp_path / "ckpt.pt", {n: t.bfloat16() for n, t in nano_state(nano).items()}))
    assert loaded.W_E.dtype == torch.float32
    assert torch.equal(loaded.W_E, nano.W_E.bfloat16().float())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_experts": 4}, "n_experts=4 is not a field of nanoGPT's"),
        ({"n_heads": 4}, "n_heads=4 is not a field of nanoGPT's; did it mean n_head?"),
        ({"n_layer": "2"}, "n_layer must be a whole number, not '2'"),
        ({"n_layer": True}, "n_layer must be a whole number"),
        ({"vocab_size": None}, "vocab_size must be a whole number, not None"),
        ({"bias": 1}, "bias=1 must be true or false"),
        ({"n_head": 5}, "n_heads=5"),
        ({"n_layer": 10**12}, "n_layers=1000000000000"),
        ({"n_layer": 3}, r"transformer\.h\.2\.ln_1\.weight is missing"),
        ({"n_layer": 1}, r"transformer\.h\.1\.ln_1\.weight has no place"),
        ({"vocab_size": 10**12}, r"transformer\.wte\.weight has shape \(50, 32\)"),
        ({"bias": False}, r"transformer\.h\.0\.ln_1\.bias has no place"),
    ],
)
def test_model_args_that_do_not_fit_are_refused_by_name(nano: GPT2, tmp_path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises((ConversionError, CheckpointError), match=said):
        load_nanogpt(written(tmp_path / "ckpt.pt", nano_state(nano), ARGS | changes))


def test_every_missing_misshapen_and_unknown_tensor_is_refused_by_name(nano: GPT2) -> None:
    state = nano_state(nano)
    for name, tensor in state.items():
        if name != "lm_head.weight":
            with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
                from_nanogpt({other: t for other, t in state.items() if other != name}, n_heads=4)
        for wrong in (torch.cat([tensor, tensor]), torch.tensor(1.0)):
            if not (name == "transformer.wpe.weight" and wrong.ndim):  # twice as many positions are a model too
                with pytest.raises((CheckpointError, ConversionError)):
                    from_nanogpt(state | {name: wrong}, n_heads=4)
    with pytest.raises(CheckpointError, match=r"transformer\.h\.0\.attn\.rotary has no place"):
        from_nanogpt(state | {"transformer.h.0.attn.rotary": torch.zeros(2)}, n_heads=4)
    with pytest.raises(CheckpointError, match=r"transformer\.ln_f\.weight is there twice"):
        from_nanogpt(state | {"_orig_mod.transformer.ln_f.weight": torch.zeros(32)}, n_heads=4)
    with pytest.raises(CheckpointError, match=r"ln_f\.weight holds torch\.int64"):
        from_nanogpt(state | {"transformer.ln_f.weight": torch.ones(32, dtype=torch.long)}, n_heads=4)


def test_what_is_no_nanogpt_checkpoint_is_refused(nano: GPT2, tmp_path) -> None:
    state = nano_state(nano)
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"use from_nanogpt\(load_state\(path\)"):
        load_nanogpt(tmp_path / "model.pt")
    with pytest.raises(ConversionError, match="holds 'lora'"):
        load_nanogpt(written(tmp_path / "ckpt.pt", state, lora={}))
    with pytest.raises(CheckpointError, match="there is no file"):
        load_nanogpt(tmp_path / "absent.pt")
