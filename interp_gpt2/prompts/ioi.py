"""Indirect object identification: who was something given to, of two people named before?"""

from collections.abc import Sequence
from typing import Literal

from interp_gpt2.data.batches import rng_at
from interp_gpt2.errors import DataError
from interp_gpt2.prompts.prompt_set import Example, PromptSet, distinct, encoded, pick, usable, words
from interp_gpt2.tokenizers import Tokenizer

Order = Literal["ABBA", "BABA", "both"]
Corruption = Literal["swap_subject", "abc", "flip"]
CORRUPTIONS: dict[str, str] = {
    "swap_subject": "the second subject replaced by the indirect object, so that the other name is the answer",
    "abc": "all three names replaced by three other random ones, so that none is repeated",
    "flip": "the first two names exchanged (ABBA becomes BABA), which leaves the answer as it is",
}
# Each is 14 tokens of GPT-2's, its names at positions 1, 3 and 9, so that prompts can be averaged position by position.
TEMPLATES = (
    "While {first} and {second} walked through the {place}, {S2} handed a {object} to",
    "After {first} and {second} arrived at the {place}, {S2} gave a {object} to",
    "When {first} and {second} sat in the {place}, {S2} showed the {object} to",
    "As {first} and {second} waited near the {place}, {S2} passed the {object} to",
    "Before {first} and {second} went into the {place}, {S2} sold a {object} to",
    "Since {first} and {second} worked in the {place}, {S2} brought a {object} to",
    "Once {first} and {second} met at the {place}, {S2} offered the {object} to",
    "Because {first} and {second} stayed at the {place}, {S2} lent a {object} to",
)
_NAMES_OF = {"ABBA": {"first": "{IO}", "second": "{S1}"}, "BABA": {"first": "{S1}", "second": "{IO}"}}


def ioi(
    tokenizer: Tokenizer,
    n: int = 8,
    seed: int = 0,
    corruption: Corruption = "swap_subject",
    order: Order = "both",
    names: Sequence[str] | None = None,
    bos: bool = False,
) -> PromptSet:
    """ "When Mary and John sat in the park, John showed the book to" is answered by the indirect object, Mary.

    ABBA is IO, S, S, (IO) and BABA is S, IO, S, (IO); with "both" they take turns, and templates follow one another.
    Corrupted in one of three ways: see CORRUPTIONS. "flip" changes where the names stand and not the answer: use it to tell
    what a head reads, not for a metric that is normalised. Positions are "IO", "S1", "S2" and "end". The metric is the
    logit of IO less that of S. Wang et al. 2022, "Interpretability in the Wild"; the templates are our own.

    Raises TokenError if fewer than 5 names are single tokens; with the byte or character tokenizer give single letters.
    """
    if corruption not in CORRUPTIONS or order not in ("ABBA", "BABA", "both"):
        raise DataError(
            f"corruption={corruption!r} must be one of {', '.join(CORRUPTIONS)}, and order={order!r} ABBA, BABA or both"
        )
    chosen, left_out = usable(tokenizer, names or [*words()["female"], *words()["male"]], 5, "names")
    places, no_places = usable(tokenizer, words()["places"], 0, "places")
    objects, no_objects = usable(tokenizer, words()["objects"], 0, "objects")
    rng = rng_at(seed, 0)

    def draw(i: int) -> Example:
        this_order = order if order != "both" else ("ABBA", "BABA")[i % 2]
        template = TEMPLATES[(i // 2 if order == "both" else i) % len(TEMPLATES)]
        # Where words are several tokens anyway, prompts have different lengths, and any place and object will do.
        [place], [thing] = pick(rng, places or no_places), pick(rng, objects or no_objects)
        return _example(template, this_order, pick(rng, chosen, 5), {"place": place, "object": thing}, corruption)

    pairs, positions = encoded(tokenizer, distinct(draw, n), bos)
    return PromptSet(
        pairs, "IOI", f"indirect object identification, {order}; corrupted: {CORRUPTIONS[corruption]}", "logit_difference",
        "Wang et al. 2022, Interpretability in the Wild", left_out, positions,
    )  # fmt: skip


def _example(template: str, order: str, people: Sequence[str], things: dict[str, str], corruption: Corruption) -> Example:
    """The template with its first two names in this order; `people` are IO, S, and three more for random names."""
    io, subject, *others = people
    template = template.format_map({word: f"{{{word}}}" for word in ("place", "object", "S2")} | _NAMES_OF[order])
    clean = {"IO": io, "S1": subject, "S2": subject}
    corrupted = {
        "swap_subject": clean | {"S2": io},
        "abc": dict(zip(clean, others, strict=True)),
        "flip": clean | {"IO": subject, "S1": io},
    }[corruption]
    return Example(template, clean | things, corrupted | things, (f" {io}",), (f" {subject}",))
