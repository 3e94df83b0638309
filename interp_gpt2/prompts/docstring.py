"""Docstrings of Python functions, which name arguments in the order of the definition."""

from collections.abc import Sequence
from typing import Literal

from interp_gpt2.data.batches import rng_at
from interp_gpt2.errors import DataError
from interp_gpt2.prompts.prompt_set import Example, PromptSet, distinct, encoded, pick, usable, words
from interp_gpt2.tokenizers import Tokenizer

Corruption = Literal["random_definition", "random_docstring", "random_both"]
CORRUPTIONS: dict[str, str] = {
    "random_definition": "the arguments in the definition replaced by random ones",
    "random_docstring": "the arguments in the docstring replaced by random ones",
    "random_both": "the arguments in the definition and in the docstring replaced by different random ones",
}
TEMPLATE = '''def {function}(self, {B1}, {B2}, {C}, {D}):
    """The {about} {of} {kind}

    :param {B1_doc}: {about_B1} {of_B1}
    :param {B2_doc}: {about_B2} {of_B2}
    :param'''
_DEFINED, _DESCRIBED = ("B1", "B2", "C", "D"), ("B1_doc", "B2_doc")
_OTHER = ("function", "about", "of", "kind", "about_B1", "of_B1", "about_B2", "of_B2")


def docstring(
    tokenizer: Tokenizer,
    n: int = 8,
    seed: int = 0,
    corruption: Corruption = "random_both",
    identifiers: Sequence[str] | None = None,
    bos: bool = False,
) -> PromptSet:
    """ "def port(self, load, size, files, last)" with two arguments described: ":param" is answered by the third, files.

    Incorrect answers are the definition's other arguments, and in a corrupted definition those that it has instead.
    Corrupted in one of three ways: see CORRUPTIONS. Positions are "B1", "B2", "C" (the answer) and "D" in the definition,
    "B1_doc" and "B2_doc" in the docstring, and "end". Heimersheim & Janiak 2023, "A circuit for Python docstrings in a
    4-layer attention-only transformer", whose metric is the answer's logit less the highest incorrect one; here it is less
    the mean of them, which is linear.

    Raises TokenError if fewer than 20 identifiers are single tokens.
    """
    if corruption not in CORRUPTIONS:
        raise DataError(f"corruption={corruption!r} must be one of {', '.join(CORRUPTIONS)}")
    chosen, left_out = usable(tokenizer, identifiers or words()["identifiers"], 20, "identifiers")
    rng = rng_at(seed, 0)

    def draw(_: int) -> Example:
        drawn = pick(rng, chosen, 20)
        defined = dict(zip(_DEFINED, drawn, strict=False))
        clean = defined | {"B1_doc": drawn[0], "B2_doc": drawn[1]} | dict(zip(_OTHER, drawn[4:], strict=False))
        random_definition = dict(zip(_DEFINED, drawn[12:], strict=False))
        random_docstring = dict(zip(_DESCRIBED, drawn[16:], strict=False))
        corrupted = {
            "random_definition": clean | random_definition,
            "random_docstring": clean | random_docstring,
            "random_both": clean | random_definition | random_docstring,
        }[corruption]
        wrong = [drawn[0], drawn[1], drawn[3]]
        wrong += [corrupted[name] for name in _DEFINED] if corruption != "random_docstring" else []
        return Example(TEMPLATE, clean, corrupted, (f" {drawn[2]}",), tuple(f" {word}" for word in wrong))

    pairs, positions = encoded(tokenizer, distinct(draw, n), bos)
    return PromptSet(
        pairs, "docstring", f"the next argument in a Python docstring; corrupted: {CORRUPTIONS[corruption]}", "logit_difference",
        "Heimersheim & Janiak 2023, A circuit for Python docstrings in a 4-layer attention-only transformer", left_out,
        {word: at for word, at in positions.items() if word not in _OTHER},
    )  # fmt: skip
