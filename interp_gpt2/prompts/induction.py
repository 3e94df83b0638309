"""Random tokens said twice: what followed the current token before follows it again."""

from typing import Literal

import numpy as np
import torch

from interp_gpt2.data.batches import rng_at
from interp_gpt2.errors import DataError
from interp_gpt2.prompts.encoding import check_tokenizer
from interp_gpt2.prompts.pairs import PromptPairs
from interp_gpt2.prompts.prompt_set import PromptSet
from interp_gpt2.tokenizers import Tokenizer

Corruption = Literal["shuffle_first_half", "change_previous_token"]
CORRUPTIONS: dict[str, str] = {
    "shuffle_first_half": "the first half shuffled, so that another token follows the earlier occurrence of the current one",
    "change_previous_token": "the token before the answer in the first half replaced, so that the current one occurs nowhere",
}


def induction(
    vocabulary: int | Tokenizer,
    n: int = 8,
    seed: int = 0,
    period: int = 12,
    corruption: Corruption = "shuffle_first_half",
    bos: bool = False,
) -> PromptSet:
    """`period` different random tokens, and the same again but for the last, which is the answer.

    `vocabulary` is a tokenizer, whose end of text is not drawn, or a number of tokens. Corrupted in one of two ways: see
    CORRUPTIONS. The incorrect answer is the token that a model continues with by the same rule in the shuffled half, and
    otherwise one of the sequence's own at random. Positions are "current" (the earlier occurrence of the last token),
    "answer" (what followed it) and "end". Prompts have 2 period - 1 tokens, and one more with `bos`. Olsson et al. 2022,
    "In-context Learning and Induction Heads"; the metric is the answer's logit less the incorrect one's.

    Raises DataError for a period below 3, or a vocabulary without enough different tokens.
    """
    if corruption not in CORRUPTIONS:
        raise DataError(f"corruption={corruption!r} must be one of {', '.join(CORRUPTIONS)}")
    tokenizer = None if isinstance(vocabulary, int) else vocabulary
    if tokenizer is not None:
        check_tokenizer(tokenizer)
    end = None if tokenizer is None else tokenizer.eos_token_id
    if bos and end is None:
        raise DataError("bos needs a tokenizer with an end-of-text token")
    d_vocab = vocabulary if tokenizer is None else tokenizer.d_vocab
    ids = np.array([token for token in range(d_vocab) if token != end])
    if period < 3 or len(ids) <= period or type(n) is not int or n < 1:
        raise DataError(
            f"period={period} must be at least 3 and below the {len(ids)} tokens of the vocabulary, and n={n!r} a whole number "
            "of at least 1"
        )
    rng = rng_at(seed, 0)
    drawn = [_one(rng, ids, period, corruption) for _ in range(n)]
    begin = [end] * bos
    clean, corrupted, correct, incorrect = zip(*drawn, strict=True)
    pairs = PromptPairs.from_tokens(
        [begin + list(tokens) for tokens in clean], [begin + list(tokens) for tokens in corrupted], correct, incorrect,
        tokenizer=tokenizer,
    )  # fmt: skip
    at = {"current": period - 2, "answer": period - 1, "end": 2 * period - 2}
    return PromptSet(
        pairs, "induction", f"random tokens repeated after {period}; corrupted: {CORRUPTIONS[corruption]}", "logit_difference",
        "Olsson et al. 2022, In-context Learning and Induction Heads",
        positions={name: torch.full((n,), position + bos) for name, position in at.items()},
    )  # fmt: skip


def _one(rng: np.random.Generator, ids: np.ndarray, period: int, corruption: Corruption) -> tuple[list[int], list[int], int, int]:
    *block, stranger = rng.choice(ids, period + 1, replace=False).tolist()
    current, answer = block[-2:]
    second = block[:-1]
    if corruption == "change_previous_token":
        return block + second, [*block[:-2], stranger, answer, *second], answer, int(rng.choice(block[:-2]))
    while True:
        shuffled = rng.permutation(block).tolist()
        follows = (shuffled + second)[shuffled.index(current) + 1]  # the last of the half is followed by the first of the next
        if follows != answer:
            return block + second, shuffled + second, answer, follows
