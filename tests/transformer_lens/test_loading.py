"""from_pretrained: runs at any step, directories, models of other libraries, processed as TransformerLens does."""

import pytest
import torch

from interp_gpt2.config import GPT2Config
from interp_gpt2.convert.huggingface import to_huggingface
from interp_gpt2.errors import CheckpointError, ConfigError, RunError, TokenizerError
from interp_gpt2.folding import process_weights
from interp_gpt2.tokenizers import tokenizer_named
from interp_gpt2.transformer_lens import HookedTransformer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def test_a_run_is_loaded_at_any_of_its_steps(markov_run):
    tokens = torch.arange(12)[None]
    for options, step in [
        ({}, 9), ({"checkpoint_value": 3}, 3), ({"checkpoint_index": 0}, 0), ({"checkpoint_index": -2}, markov_run.steps[-2])
    ]:  # fmt: skip
        hooked = HookedTransformer.from_pretrained_no_processing(markov_run.path, **options)
        assert hooked.cfg.checkpoint_value == step
        torch.testing.assert_close(hooked(tokens), markov_run.model(step)(tokens))
    assert hooked.to_tokens("ABC").tolist() == [[0, 1, 2]]
    assert hooked.cfg.model_name == markov_run.name
    with pytest.raises(TokenizerError, match="no BOS token"):
        HookedTransformer.from_pretrained(markov_run.path, default_prepend_bos=True)


def test_a_step_that_is_not_there_is_refused(markov_run):
    with pytest.raises(RunError, match="nearest: 9"):
        HookedTransformer.from_pretrained(markov_run.path, checkpoint_value=50)
    with pytest.raises(RunError, match="checkpoint_index=99"):
        HookedTransformer.from_pretrained(markov_run.path, checkpoint_index=99)
    with pytest.raises(ConfigError, match="both choose"):
        HookedTransformer.from_pretrained(markov_run.path, checkpoint_index=1, checkpoint_value=1)
    with pytest.raises(ConfigError, match="chooses a step of a run"):
        HookedTransformer.from_pretrained("gpt2", checkpoint_value=1000)


def test_a_checkpoints_own_directory_is_loaded_with_its_tokenizer(markov_run):
    hooked = HookedTransformer.from_pretrained(markov_run.checkpoint(5))
    tokens = hooked.to_tokens("ABBA")
    expected = markov_run.model(5)(tokens).log_softmax(-1)
    torch.testing.assert_close(hooked(tokens).log_softmax(-1), expected, rtol=1e-4, atol=1e-5)
    assert hooked.cfg.normalization_type == "LNPre"
    with pytest.raises(CheckpointError, match="there is no directory"):
        HookedTransformer.from_pretrained("no/such/model")


@pytest.mark.parametrize("left_out", ["fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"])
def test_each_processing_option_is_transformerlenss(theirs, make_gpt2, left_out):
    model = make_gpt2(GPT2Config(n_layers=2, n_heads=2, d_model=16, d_vocab=300, n_ctx=16))
    hf_model = to_huggingface(model)
    mine = HookedTransformer.from_pretrained("gpt2", hf_model=hf_model, **{left_out: False})
    other = theirs.HookedTransformer(
        theirs.HookedTransformerConfig(
            n_layers=2, n_heads=2, d_model=16, d_head=8, d_vocab=300, n_ctx=16, act_fn="gelu_new", normalization_type="LN",
            device="cpu", default_prepend_bos=False,
        )
    )  # fmt: skip
    raw = HookedTransformer.from_gpt2(model).state_dict()
    buffers = dict(other.named_buffers())
    options = {"fold_ln": True, "center_writing_weights": True, "center_unembed": True, "fold_value_biases": True}
    other.load_and_process_state_dict({**buffers, **raw}, **(options | {left_out: False}))
    for name in ("W_E", "W_Q", "b_Q", "W_O", "b_O", "W_in", "W_out", "W_U", "b_U"):
        torch.testing.assert_close(getattr(mine, name), getattr(other, name), rtol=1e-4, atol=1e-5)
    tokens = torch.arange(9)[None]
    torch.testing.assert_close(mine(tokens), other(tokens), rtol=1e-4, atol=1e-4)


def test_a_saved_directory_is_loaded_with_what_is_asked_for(tmp_path, make_gpt2):
    model = make_gpt2(GPT2Config(n_layers=1, n_heads=2, d_model=8, d_vocab=256, n_ctx=16))
    to_huggingface(model).save_pretrained(tmp_path / "saved")
    tokenizer_named("byte").save(tmp_path / "saved")
    hooked = HookedTransformer.from_pretrained(str(tmp_path / "saved"), dtype="float64", default_padding_side="left")
    assert hooked.cfg.dtype == torch.float64
    assert hooked.tokenizer.padding_side == "left"
    assert hooked.to_string(hooked.to_tokens("né")) == ["né"]
    expected = process_weights(model)(hooked.to_tokens("né"))
    torch.testing.assert_close(hooked("né").float(), expected, rtol=1e-4, atol=1e-5)


def test_a_dtype_that_is_none_is_refused(markov_run):
    with pytest.raises(ConfigError, match="dtype='int8'"):
        HookedTransformer.from_pretrained(markov_run.path, dtype="int8")
