"""Two tokenizers with whole words as tokens: one trained here in a moment, and GPT-2's where its files are."""

import re

import pytest

from interp_gpt2.prompts import capitals, docstring, greater_than, ioi, pronouns
from interp_gpt2.prompts.prompt_set import words
from interp_gpt2.tokenizers import BPETokenizer, Tokenizer


@pytest.fixture(scope="session")
def bpe() -> Tokenizer:
    """Of the words of our prompts alone; a few of the longest names and cities remain several tokens."""
    lists = words()
    plurals = [noun + "s" for noun in lists["nouns"]]
    known = [word for name, each in lists.items() if name != "capitals" for word in each]
    known += [*plurals, *lists["capitals"], *lists["capitals"].values(), "he", "she", "is", "are", "was", "were", "has", "have"]
    templates = [*ioi.TEMPLATES, *pronouns.TEMPLATES, *capitals.TEMPLATES, docstring.TEMPLATE, greater_than.TEMPLATE]
    known += [word for template in templates for word in re.sub(r"\{\w+\}", " ", template).split()]
    digits = "\n".join(f"a{number:02}" for number in range(100)) + " 11 12 13 14 15 16 17"
    return BPETokenizer.train([" ".join(["x", *known]), digits] * 3, 1900)


@pytest.fixture(params=["bpe", "gpt2"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)
