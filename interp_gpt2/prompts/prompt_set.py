"""Prompts filled into templates: what the named sets of prompts are made with."""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from string import Formatter
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from interp_gpt2.errors import DataError, TokenError
from interp_gpt2.prompts.encoding import check_tokenizer, single_tokens
from interp_gpt2.prompts.pairs import PromptPairs
from interp_gpt2.tokenizers import Tokenizer

MetricName = Literal["logit_difference", "probability_difference"]


@dataclass(frozen=True, eq=False)
class PromptSet:
    """Pairs of one task. `metric` is what its literature measures, by the name of the function in `causal.metrics`.

    `left_out` are the words that could not be used because they, or their answers, are not single tokens. `positions` are
    where the words of the template stand in the clean prompts, and "end", the last token of each, where the answer is read.
    """

    pairs: PromptPairs
    name: str
    description: str
    metric: MetricName
    source: str
    left_out: tuple[str, ...] = ()
    positions: Mapping[str, Int[Tensor, "pair"]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pairs)

    def __repr__(self) -> str:
        left_out = f", {len(self.left_out)} words left out" if self.left_out else ""
        return f"PromptSet({self.name}: {len(self)} pairs, {self.pairs.clean.shape[1]} tokens, {self.metric}{left_out})"


@dataclass(frozen=True)
class Example:
    """One pair before it is encoded. Answers begin with the space that text has before them, if it has one."""

    template: str  # with {words} in braces
    clean: Mapping[str, str]
    corrupted: Mapping[str, str]
    correct: tuple[str, ...]
    incorrect: tuple[str, ...]


@cache
def words() -> dict[str, Any]:
    """Lists of words by name, from words.toml. Treat as read-only."""
    return tomllib.loads(files("interp_gpt2.prompts").joinpath("words.toml").read_text("utf-8"))


def space_before(tokenizer: Tokenizer) -> str:
    """The space that is part of the token of a word within a sentence; empty where a space is a token by itself."""
    return "" if tokenizer.kind in ("byte", "char") else " "


def usable(tokenizer: Tokenizer, candidates: Sequence[str], at_least: int, what: str) -> tuple[list[str], tuple[str, ...]]:
    """The words that are one token within a sentence, and those that are not. Raises TokenError if too few are."""
    check_tokenizer(tokenizer)
    space = space_before(tokenizer)
    kept, left_out = single_tokens(tokenizer, [space + word for word in dict.fromkeys(candidates)])
    dropped = tuple(word.removeprefix(space) for word in left_out)
    if len(kept) < at_least:
        raise TokenError(
            f"of {len(kept) + len(dropped)} {what}, {len(kept)} are one token under the {tokenizer.kind} tokenizer, and at least "
            f"{at_least} are needed; left out: {', '.join(dropped[:12])}{', …' if len(dropped) > 12 else ''}. Give others, or "
            "use GPT-2's tokenizer"
        )
    return [word.removeprefix(space) for word in kept], dropped


def distinct(draw: Callable[[int], Example], n: int) -> list[Example]:
    """`n` different pairs: `draw` makes example i, again where it repeats an earlier one.

    Clean prompts are all different as long as 1,000 draws find another; then one may come again with another corrupted one.
    Raises DataError for n < 1, and where 1,000 draws find no other pair.
    """
    if type(n) is not int or n < 1:
        raise DataError(f"n={n!r} prompts; ask for a whole number, at least 1")
    found: list[Example] = []
    seen: set[tuple[str, ...]] = set()
    for n_texts in (1, 2):  # different by the clean text, and then by both
        repeats = 0
        while len(found) < n and repeats < 1000:
            example = draw(len(found))
            texts = tuple(example.template.format_map(each) for each in (example.clean, example.corrupted))
            repeats = repeats + 1 if texts[:n_texts] in seen else 0
            if not repeats:
                found.append(example)
                seen |= {texts[:1], texts}
    if len(found) < n:
        raise DataError(f"only {len(found)} different pairs were found of the {n} asked for; ask for fewer")
    return found


def pick(rng: np.random.Generator, choices: Sequence[str], n: int = 1) -> list[str]:
    """`n` different ones of the choices, in random order."""
    return [choices[i] for i in rng.choice(len(choices), n, replace=False)]


def encoded(
    tokenizer: Tokenizer, examples: Sequence[Example], bos: bool = False
) -> tuple[PromptPairs, dict[str, Int[Tensor, "pair"]]]:
    """The pairs, and the position of the last token of each word that all templates have, with "end".

    A space before the answers goes to the end of the prompts where it is a token by itself.
    """
    before = "" if space_before(tokenizer) else " "
    clean, corrupted, ends = [], [], []
    for example in examples:
        text, end_of = _filled(example.template, example.clean)
        other, _ = _filled(example.template, example.corrupted)
        tail = before if example.correct[0].startswith(before) else ""
        clean.append(text + tail)
        corrupted.append(other + tail)
        ends.append(end_of)
    correct, incorrect = ([[text.removeprefix(before) for text in answers] for answers in kind] for kind in _answers(examples))
    pairs = PromptPairs.from_text(tokenizer, clean, corrupted, correct, incorrect, bos=bos)
    return pairs, _positions(pairs, tokenizer, ends, bos)


def _answers(examples: Sequence[Example]) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    return [example.correct for example in examples], [example.incorrect for example in examples]


def _filled(template: str, given: Mapping[str, str]) -> tuple[str, dict[str, int]]:
    """The text, and the number of its bytes up to the end of each word (the last place, of a word that stands twice)."""
    text, end_of = "", {}
    for literal, word, _, _ in Formatter().parse(template):
        text += literal
        if word is not None:
            text += given[word]
            end_of[word] = len(text.encode())
    return text, end_of


def _positions(
    pairs: PromptPairs, tokenizer: Tokenizer, ends: Sequence[Mapping[str, int]], bos: bool
) -> dict[str, Int[Tensor, "pair"]]:
    lengths = pairs.lengths.tolist()
    shared = [word for word in ends[0] if all(word in end_of for end_of in ends)]
    found: dict[str, list[int]] = {word: [] for word in shared}
    for row, length, end_of in zip(pairs.clean.tolist(), lengths, ends, strict=True):
        token_ends = np.cumsum(tokenizer.token_lengths[row[bos:length]])
        for word in shared:
            found[word].append(int(np.searchsorted(token_ends, end_of[word])) + bos)
    found["end"] = [length - 1 for length in lengths]
    return {word: torch.tensor(at) for word, at in found.items()}
