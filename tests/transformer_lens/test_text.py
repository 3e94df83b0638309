"""Text becomes the same tokens as in TransformerLens, with its BOS in front unless told otherwise."""

import pytest
import torch

from interp_gpt2.errors import TokenError, TokenizerError
from interp_gpt2.tokenizers import CharTokenizer, tokenizer_named
from interp_gpt2.transformer_lens import HookedTransformer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
TEXT = "When John and Mary went"


@pytest.mark.parametrize("prepend_bos", [None, True, False])
@pytest.mark.parametrize("side", [None, "left", "right"])
@pytest.mark.parametrize("text", [TEXT, [TEXT, " to the bag"], "", "<|endoftext|>John", "a é\n" * 40])
def test_texts_become_the_same_tokens(pair, text, prepend_bos, side):
    if text == "" and prepend_bos is False:
        pytest.skip("TransformerLens cannot say that there are no tokens")
    if len(text) > 100 and prepend_bos is False:
        pytest.skip("TransformerLens truncates to n_ctx - 1 tokens: it takes a BOS away afterwards")
    pair.both(lambda lens, model: model.to_tokens(text, prepend_bos=prepend_bos, padding_side=side))


def test_tokens_become_the_same_text(pair):
    def code(lens, model):
        tokens = model.to_tokens(TEXT)
        return [
            model.to_string(tokens), model.to_string(tokens[0]), model.to_string(tokens[0].tolist()),
            model.to_string(tokens[0, 1]),
            model.to_str_tokens(TEXT), model.to_str_tokens(TEXT, prepend_bos=False), model.to_str_tokens(tokens),
            model.to_str_tokens([TEXT, " bag"]), model.to_str_tokens(tokens[0].numpy()), model.to_single_token(" Mary"),
            model.to_single_str_token(5), model.get_token_position(" Mary", TEXT),
            model.get_token_position(5, torch.tensor([1, 5, 5])),
            model.get_token_position(5, torch.tensor([[1, 5, 5]]), mode="last"),
            model.get_token_position(" Mary", TEXT, prepend_bos=False), model.to_tokens(TEXT * 20, truncate=False),
        ]  # fmt: skip

    pair.both(code)


def test_a_token_that_is_not_one_is_refused(pair):
    model = pair.ours.model
    with pytest.raises(TokenError, match="not one token but"):
        model.to_single_token(TEXT)
    with pytest.raises(TokenError, match="does not occur"):
        model.get_token_position(" ball", TEXT)


def test_without_an_end_of_text_nothing_is_prepended_or_padded(make_gpt2):
    from interp_gpt2.config import GPT2Config

    model = make_gpt2(GPT2Config(n_layers=1, n_heads=2, d_model=8, d_vocab=26, n_ctx=16))
    hooked = HookedTransformer.from_gpt2(model, CharTokenizer("abcdefghijklmnopqrstuvwxyz"))
    assert hooked.cfg.default_prepend_bos is False
    assert hooked.to_tokens("cab").tolist() == [[2, 0, 1]]
    assert hooked.to_str_tokens("cab") == ["c", "a", "b"]
    with pytest.raises(TokenizerError, match="no BOS token"):
        hooked.to_tokens("cab", prepend_bos=True)
    with pytest.raises(TokenizerError, match="need padding"):
        hooked.to_tokens(["cab", "a"])
    with pytest.raises(TokenizerError, match="token 255"):
        hooked.set_tokenizer(tokenizer_named("byte"))


def test_a_tokenizer_that_is_given_stays_as_it_was(pair, tokenizer):
    assert pair.ours.model.tokenizer.pad_token is not None
    assert tokenizer.pad_token is None
