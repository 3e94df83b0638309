"""Capital cities: a fact about the subject."""

from collections.abc import Mapping

from interp_gpt2.data.batches import rng_at
from interp_gpt2.errors import TokenError
from interp_gpt2.prompts.prompt_set import Example, PromptSet, distinct, encoded, pick, usable, words
from interp_gpt2.tokenizers import Tokenizer

TEMPLATES = (
    "The capital of {country} is",
    "The capital city of {country} is called",
    "Her plane to the capital of {country} landed in",
    "The government of {country} has its seat in",
)


def capital_cities(
    tokenizer: Tokenizer, n: int = 8, seed: int = 0, capitals: Mapping[str, str] | None = None, bos: bool = False
) -> PromptSet:
    """ "The capital of France is" is answered by " Paris"; corrupted: another country whose name has as many tokens.

    Templates take turns. Positions are "country" (its last token) and "end"; the metric is the logit of the capital less
    that of the other country's. Facts of this form are studied in Meng et al. 2022, "Locating and Editing Factual
    Associations in GPT". `capitals` gives others than our 80: country to city.

    Capitals of several tokens are left out, and countries with no other of as many tokens. Raises TokenError if fewer than
    2 remain.
    """
    table = dict(words()["capitals"] if capitals is None else capitals)
    cities, _ = usable(tokenizer, list(table.values()), 2, "capitals")
    by_length: dict[int, list[str]] = {}
    for country, city in table.items():
        if city in cities:
            by_length.setdefault(len(tokenizer.encode(f" {country}")), []).append(country)
    groups = {
        country: [other for other in group if table[other] != table[country]] for group in by_length.values() for country in group
    }
    countries = [country for country, others in groups.items() if others]
    if not countries:
        raise TokenError(
            f"no two countries have names of as many tokens under the {tokenizer.kind} tokenizer and capitals of one token each; "
            "give more"
        )
    rng = rng_at(seed, 0)

    def draw(i: int) -> Example:
        [country] = pick(rng, countries)
        [other] = pick(rng, groups[country])
        return Example(
            TEMPLATES[i % len(TEMPLATES)],
            {"country": country},
            {"country": other},
            (f" {table[country]}",),
            (f" {table[other]}",),
        )

    pairs, positions = encoded(tokenizer, distinct(draw, n), bos)
    left_out = tuple(f"{country} ({city})" for country, city in table.items() if country not in countries)
    return PromptSet(
        pairs, "capital cities", "the capital of a country; corrupted: another country", "logit_difference",
        "Meng et al. 2022, Locating and Editing Factual Associations in GPT", left_out, positions,
    )  # fmt: skip
