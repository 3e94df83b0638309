"""Subject-verb agreement: the verb has the number of its subject, whatever noun stands between."""

from collections.abc import Sequence
from typing import Literal

from interp_gpt2.data.batches import rng_at
from interp_gpt2.errors import DataError, TokenError
from interp_gpt2.prompts.prompt_set import Example, PromptSet, distinct, encoded, pick, usable, words
from interp_gpt2.tokenizers import Tokenizer

Structure = Literal["simple", "same_number", "other_number"]
STRUCTURES: dict[str, tuple[str, ...]] = {
    "simple": (
        "Today the {quality} {subject}",
        "But the {quality} {subject}",
        "Perhaps the {quality} {subject}",
        "And the {quality} {subject}",
    ),
    "attractor": (
        "The {subject} near the {attractor}",
        "The {subject} behind the {attractor}",
        "The {subject} beside the {attractor}",
    ),
}
VERBS = (("is", "are"), ("was", "were"), ("has", "have"))


def subject_verb_agreement(
    tokenizer: Tokenizer,
    n: int = 8,
    seed: int = 0,
    structure: Structure = "simple",
    nouns: Sequence[str] | None = None,
    bos: bool = False,
) -> PromptSet:
    """ "Today the old keys" is answered by " are"; corrupted: the subject in the other number.

    Between subject and verb stands nothing ("simple"), or a noun of the subject's number or the other one, the same in both
    prompts: "The keys near the cabinet". Singular and plural subjects take turns. Correct answers are " is", " was" and
    " has", or " are", " were" and " have", as far as both of a verb are single tokens. Positions are "subject", "attractor"
    and "end"; the metric is the mean logit of the right forms less that of the others. Linzen et al. 2016, "Assessing the
    Ability of LSTMs to Learn Syntax-Sensitive Dependencies"; Finlayson et al. 2021, "Causal Analysis of Syntactic Agreement
    Mechanisms in Neural Language Models". The templates are our own.

    `nouns` are singulars whose plural ends in s. Raises TokenError if fewer than 3 are single tokens in both numbers.
    """
    if structure not in ("simple", "same_number", "other_number"):
        raise DataError(f"structure={structure!r} must be one of simple, same_number, other_number")
    verbs = _verbs(tokenizer)
    chosen, left_out = _nouns(tokenizer, words()["nouns"] if nouns is None else nouns)
    rng = rng_at(seed, 0)
    templates = STRUCTURES["simple" if structure == "simple" else "attractor"]

    def draw(i: int) -> Example:
        subject, attractor = pick(rng, chosen, 2)
        plural = i % 2
        between = _in_number(attractor, plural if structure == "same_number" else 1 - plural)
        others = {"attractor": between, "quality": pick(rng, words()["qualities"])[0]}
        clean, corrupted = (others | {"subject": _in_number(subject, number)} for number in (plural, 1 - plural))
        right, wrong = (tuple(f" {forms[number]}" for forms in verbs) for number in (plural, 1 - plural))
        return Example(templates[i // 2 % len(templates)], clean, corrupted, right, wrong)

    pairs, positions = encoded(tokenizer, distinct(draw, n), bos)
    return PromptSet(
        pairs, "subject-verb agreement", f"the verb's number, {structure}; corrupted: the subject in the other number",
        "logit_difference", "Linzen et al. 2016, Assessing the Ability of LSTMs to Learn Syntax-Sensitive Dependencies", left_out,
        positions,
    )  # fmt: skip


def _verbs(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    single, _ = usable(tokenizer, [form for verb in VERBS for form in verb], 2, "forms of verbs")
    verbs = [verb for verb in VERBS if set(verb) <= set(single)]
    if not verbs:
        raise TokenError(f"of none of the verbs be and have are both numbers single tokens under the {tokenizer.kind} tokenizer")
    return verbs


def _nouns(tokenizer: Tokenizer, nouns: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Those that are single tokens in both numbers, and the forms of the others that are not."""
    single, left_out = usable(tokenizer, [form for noun in nouns for form in (noun, noun + "s")], 6, "nouns in both numbers")
    chosen = [noun for noun in dict.fromkeys(nouns) if {noun, noun + "s"} <= set(single)]
    if len(chosen) < 3:
        raise TokenError(
            f"{len(chosen)} nouns are one token in both numbers under the {tokenizer.kind} tokenizer, and at least 3 are needed; "
            f"left out: {', '.join(left_out[:12])}"
        )
    return chosen, left_out


def _in_number(noun: str, plural: int) -> str:
    return noun + "s" * plural
