"""Labels of characters that the text itself supplies, for probes.

The label of a character is a function of the text up to and including it, so that a model that reads left to right could
know it. Some are told by the character alone; the interesting ones need context from further back ("contextual").
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from interp_gpt2.errors import AnalysisError

Labels = Int[np.ndarray, "character"]

_TAB = 4  # columns


@dataclass(frozen=True)
class TextLabel:
    """A label and what it measures. `contextual` labels cannot be told from the last characters alone."""

    name: str
    measures: str
    contextual: bool
    of: Callable[[str], Labels]


def inside_quotes(text: str) -> Labels:
    """1 from a double quote up to, not including, the one that ends it; else 0.

    A straight quote " opens outside and closes inside; a typographic “ opens, a ” closes. A blank line ends every quote,
    since an unpaired mark would turn all later labels round; a single line break does not, since quotes wrap. Single
    quotes are not counted: an apostrophe (don't, 'tis, dogs') cannot be told from a quote without reading on.
    """
    labels, inside, blank = np.zeros(len(text), dtype=np.int64), False, True
    for i, char in enumerate(text):
        if char == "\n":
            inside, blank = inside and not blank, True
        elif char == '"':
            inside, blank = not inside, False
        elif char in "“”":
            inside, blank = char == "“", False
        elif not char.isspace():
            blank = False
        labels[i] = inside
    return labels


def indentation(text: str) -> Labels:
    """Depth of the current line's indentation: 0 for none, 1 for 1-4 columns, 2 for 5-8, 3 for more.

    Within the leading white space it is the depth so far; a line break begins the next line, at depth 0. A tab goes
    to the next multiple of 4 columns.
    """
    labels, columns, leading = np.zeros(len(text), dtype=np.int64), 0, True
    for i, char in enumerate(text):
        if char == "\n":
            columns, leading = 0, True
        elif leading and char == " ":
            columns += 1
        elif leading and char == "\t":
            columns += _TAB - columns % _TAB
        else:
            leading = False
        labels[i] = min((columns + 3) // 4, 3)
    return labels


def word_start(text: str) -> Labels:
    """1 at a letter, digit or underscore that does not follow one."""
    word = _each(text, lambda char: char.isalnum() or char == "_")
    return word * (1 - np.concatenate([[0], word[:-1]])) if len(word) else word


def uppercase(text: str) -> Labels:
    """1 at an uppercase letter."""
    return _each(text, str.isupper)


def digit(text: str) -> Labels:
    """1 at a decimal digit."""
    return _each(text, str.isdecimal)


def _each(text: str, test: Callable[[str], bool]) -> Labels:
    return np.fromiter((test(char) for char in text), dtype=np.int64, count=len(text))


TEXT_LABELS: dict[str, TextLabel] = {
    label.name: label
    for label in (
        TextLabel("inside_quotes", "the character is inside double quotes", True, inside_quotes),
        TextLabel("indentation", "how deep the line is indented: 0, 1-4, 5-8 or more columns", True, indentation),
        TextLabel("word_start", "the character begins a word", False, word_start),
        TextLabel("uppercase", "the character is an uppercase letter", False, uppercase),
        TextLabel("digit", "the character is a digit", False, digit),
    )
}


def text_label(name: str) -> TextLabel:
    """The label of that name. Raises AnalysisError for an unknown one."""
    if name not in TEXT_LABELS:
        raise AnalysisError(f"there is no text label {name!r}; there are {', '.join(TEXT_LABELS)}")
    return TEXT_LABELS[name]


def paragraph_starts(text: str) -> Int[np.ndarray, "paragraph"]:
    """Where paragraphs begin: at the first character, and after each blank line. All labels forget what came before."""
    starts, blank = [0], True
    for i, char in enumerate(text):
        if char == "\n":
            if blank and i + 1 < len(text):
                starts.append(i + 1)
            blank = True
        elif not char.isspace():
            blank = False
    return np.unique(starts)
