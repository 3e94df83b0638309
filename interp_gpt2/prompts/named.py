"""Sets of prompts by name."""

from collections.abc import Callable

from interp_gpt2.errors import DataError
from interp_gpt2.prompts.agreement import subject_verb_agreement
from interp_gpt2.prompts.capitals import capital_cities
from interp_gpt2.prompts.docstring import docstring
from interp_gpt2.prompts.greater_than import greater_than
from interp_gpt2.prompts.induction import induction
from interp_gpt2.prompts.ioi import ioi
from interp_gpt2.prompts.prompt_set import PromptSet
from interp_gpt2.prompts.pronouns import gendered_pronouns
from interp_gpt2.tokenizers import Tokenizer

PROMPT_SETS: dict[str, Callable[..., PromptSet]] = {
    "ioi": ioi,
    "greater-than": greater_than,
    "docstring": docstring,
    "induction": induction,
    "gendered-pronouns": gendered_pronouns,
    "subject-verb-agreement": subject_verb_agreement,
    "capital-cities": capital_cities,
}


def prompt_set(name: str, tokenizer: Tokenizer, n: int = 8, seed: int = 0, bos: bool = False) -> PromptSet:
    """The set called `name`, as its generator makes it by default. Raises DataError for another name."""
    if name not in PROMPT_SETS:
        raise DataError(f"no prompts are called {name!r}; choose {', '.join(PROMPT_SETS)}")
    return PROMPT_SETS[name](tokenizer, n=n, seed=seed, bos=bos)
