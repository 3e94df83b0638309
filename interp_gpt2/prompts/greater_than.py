"""Greater-than: a span of years ends after it began."""

from collections.abc import Sequence

from interp_gpt2.data.batches import rng_at
from interp_gpt2.errors import TokenError
from interp_gpt2.prompts.encoding import check_tokenizer, is_single_token
from interp_gpt2.prompts.prompt_set import Example, PromptSet, distinct, encoded, pick, usable, words
from interp_gpt2.tokenizers import Tokenizer

TEMPLATE = "The {span} began in the year {century}{YY} and ended in the year {XX}"
CENTURIES = range(11, 18)
TWO_DIGITS = tuple(f"{number:02}" for number in range(100))


def greater_than(
    tokenizer: Tokenizer, n: int = 8, seed: int = 0, spans: Sequence[str] | None = None, bos: bool = False
) -> PromptSet:
    """ "The war began in the year 1732 and ended in the year 17" is answered by two digits above 32; corrupted: 1701.

    Correct answers are YY + 1 to 99, incorrect ones 00 to YY: their numbers differ from pair to pair, and rows are filled
    up with -1. The metric is the probability of all correct answers less that of all incorrect ones, in [-1, 1].
    Positions are "YY", "XX" (the century at the end) and "end". Hanna et al. 2023, "How does GPT-2 compute greater-than?".

    Years of the centuries 11 to 17 from 02 to 98 are used that the tokenizer splits into the century and two digits.
    Raises TokenError if two digits are not a token, or no year is split that way.
    """
    check_tokenizer(tokenizer)
    years, left_out = _years(tokenizer)
    spans, no_spans = usable(tokenizer, spans or words()["spans"], 0, "spans")
    rng = rng_at(seed, 0)

    def draw(_: int) -> Example:
        [year], [span] = pick(rng, years), pick(rng, spans or no_spans)
        century, YY = year[:2], year[2:]
        clean = {"span": span, "century": century, "YY": YY, "XX": century}
        later = TWO_DIGITS.index(YY) + 1
        return Example(TEMPLATE, clean, clean | {"YY": "01"}, TWO_DIGITS[later:], TWO_DIGITS[:later])

    pairs, positions = encoded(tokenizer, distinct(draw, n), bos)
    return PromptSet(
        pairs, "greater-than", "a span of years ends in a later year; corrupted: the first year ends in 01",
        "probability_difference", "Hanna et al. 2023, How does GPT-2 compute greater-than?", left_out, positions,
    )  # fmt: skip


def _years(tokenizer: Tokenizer) -> tuple[list[str], tuple[str, ...]]:
    several = [digits for digits in TWO_DIGITS if not is_single_token(tokenizer, digits)]
    if several:
        raise TokenError(
            f"greater-than needs every two digits to be one token; {len(several)} of 100 are not under the {tokenizer.kind} "
            f"tokenizer, such as {several[0]!r}: use GPT-2's"
        )
    every = [f"{century}{YY}" for century in CENTURIES for YY in TWO_DIGITS[2:99]]
    years = [year for year in every if _is_split(tokenizer, year) and _is_split(tokenizer, year[:2] + "01")]
    if not years:
        raise TokenError(f"no year from 1102 to 1798 is a century and two digits under the {tokenizer.kind} tokenizer")
    return years, tuple(year for year in every if year not in set(years))


def _is_split(tokenizer: Tokenizer, year: str) -> bool:
    return tokenizer.encode(f" {year}") == tokenizer.encode(f" {year[:2]}") + tokenizer.encode(year[2:])
