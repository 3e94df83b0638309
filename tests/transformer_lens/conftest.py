"""One set of random weights, seen through TransformerLens's HookedTransformer and through ours."""

from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch

from interp_gpt2 import transformer_lens as ours
from interp_gpt2.config import GPT2Config
from interp_gpt2.convert.transformer_lens import to_hooked_transformer
from interp_gpt2.folding import process_weights

TL_4 = int(version("transformer-lens").split(".")[0]) >= 4
PROMPTS = [
    "When John and Mary went to the shops, John gave the bag to",
    "When Mary and John went to the shops, Mary gave the bag to",
    "When Tom and James went to the park, James gave the ball to",
    "When James and Tom went to the park, Tom gave the ball to",
]


class Side(NamedTuple):
    """A model with the library it belongs to, for code that differs in its import line alone."""

    lens: ModuleType
    model: Any


class Pair(NamedTuple):
    ours: Side
    theirs: Side

    def both(self, code: Callable[[ModuleType, Any], Any]) -> Any:
        """Run code on TransformerLens and on ours, find the same, and return ours."""
        expected, found = code(*self.theirs), code(*self.ours)
        same(found, expected)
        return found


def same(found: Any, expected: Any) -> None:
    """Equal: tensors to 1e-5, everything else exactly, inside lists, tuples and dicts too."""
    if isinstance(expected, torch.Tensor):
        assert isinstance(found, torch.Tensor)
        torch.testing.assert_close(found.detach(), expected.detach(), rtol=1e-5, atol=1e-5)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            same(found[name], expected[name])
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-5)
    else:
        assert found == expected


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A byte-level BPE of 300 tokens with an end of text, which has learnt the prompts' words; on disk, as both need it."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(PROMPTS * 4, vocab_size=380, min_frequency=1, special_tokens=["<|endoftext|>"], show_progress=False)
    end = "<|endoftext|>"
    directory: Path = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token=end, eos_token=end).save_pretrained(directory)
    return AutoTokenizer.from_pretrained(directory)


@pytest.fixture(scope="session")
def theirs() -> ModuleType:
    if TL_4:
        pytest.skip("HookedTransformer needs transformer-lens <4")
    import transformer_lens
    import transformer_lens.head_detector
    import transformer_lens.patching
    import transformer_lens.utils

    return transformer_lens


@pytest.fixture
def pair_of(theirs: ModuleType) -> Callable[[Any, Any], Pair]:
    return lambda mine, other: Pair(Side(ours, mine), Side(theirs, other))


@pytest.fixture
def make_pair(theirs: ModuleType, tokenizer: Any, make_gpt2: Callable) -> Callable[..., Pair]:
    def make(processed: bool = False, **changes: Any) -> Pair:
        config = {"n_layers": 2, "n_heads": 4, "d_model": 32, "d_vocab": len(tokenizer), "n_ctx": 48, **changes}
        model = make_gpt2(GPT2Config(**config))
        model = process_weights(model) if processed else model
        hooked = to_hooked_transformer(model)
        hooked.cfg.default_prepend_bos = True
        hooked.set_tokenizer(tokenizer)
        return Pair(Side(ours, ours.HookedTransformer.from_gpt2(model, tokenizer)), Side(theirs, hooked))

    return make


@pytest.fixture
def pair(make_pair: Callable[..., Pair]) -> Iterator[Pair]:
    yield make_pair(processed=True)
    torch.set_grad_enabled(True)
