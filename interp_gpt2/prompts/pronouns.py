"""Gendered pronouns: "he" or "she", as the name says."""

from collections.abc import Sequence

from interp_gpt2.data.batches import rng_at
from interp_gpt2.prompts.prompt_set import Example, PromptSet, distinct, encoded, pick, usable, words
from interp_gpt2.tokenizers import Tokenizer

TEMPLATES = (  # a name is one token with the space before it
    "Well, {name} is a very good neighbor, isn't",
    "Well, {name} was late for work again, wasn't",
    "Well, {name} has a new job here, hasn't",
    "Well, {name} can play the piano well, can't",
    "Well, {name} is one of my cousins, isn't",
    "Well, {name} was the first to arrive, wasn't",
)


def gendered_pronouns(
    tokenizer: Tokenizer,
    n: int = 8,
    seed: int = 0,
    female: Sequence[str] | None = None,
    male: Sequence[str] | None = None,
    bos: bool = False,
) -> PromptSet:
    """ "Well, Anna was late for work again, wasn't" is answered by " she"; corrupted: a name of the other gender.

    Female and male names take turns, and templates follow one another. Positions are "name" and "end"; the metric is the
    logit of the right pronoun less that of the other. After Mathwin et al. 2023, "Identifying a Preliminary Circuit for
    Predicting Gendered Pronouns in GPT-2 Small"; the templates are our own.

    Raises TokenError if fewer than 2 names of each gender, or one of the two pronouns, are not single tokens.
    """
    usable(tokenizer, ["he", "she"], 2, "pronouns")
    hers, not_hers = usable(tokenizer, female or words()["female"], 2, "female names")
    his, not_his = usable(tokenizer, male or words()["male"], 2, "male names")
    rng = rng_at(seed, 0)

    def draw(i: int) -> Example:
        [her], [him] = pick(rng, hers), pick(rng, his)
        both = [(her, " she"), (him, " he")]
        (name, right), (other, wrong) = both if i % 2 == 0 else both[::-1]
        return Example(TEMPLATES[i // 2 % len(TEMPLATES)], {"name": name}, {"name": other}, (right,), (wrong,))

    pairs, positions = encoded(tokenizer, distinct(draw, n), bos)
    return PromptSet(
        pairs, "gendered pronouns", "the pronoun of a name; corrupted: a name of the other gender", "logit_difference",
        "Mathwin et al. 2023, Identifying a Preliminary Circuit for Predicting Gendered Pronouns in GPT-2 Small",
        (*not_hers, *not_his), positions,
    )  # fmt: skip
