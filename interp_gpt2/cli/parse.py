"""From words to a command's dataclass, by tyro; its help without rules, its errors in one line."""

import contextlib
import io
import itertools
import re
import textwrap
from collections.abc import Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, TypeVar

import tyro

from interp_gpt2.errors import InterpGPT2Error

Command = TypeVar("Command")

_KINDS = {"N": "a whole number", "STEP": "a whole number", "X": "a number"}


class UsageError(InterpGPT2Error):
    """Words on the command line that mean nothing; the message is one line."""


def option(metavar: str) -> Any:
    """How a value is called in the help: N for a whole number, X for a number. Defaults that say nothing stay out."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=_hint)


def _hint(default: str) -> str:
    return "" if default in ("None", "False", "", "()") else f"(default: {default})"


def parse(cls: type[Command], argv: Sequence[str], prog: str, examples: Sequence[str] = ()) -> Command | str:
    """The command, or its help where that was asked for. Raises UsageError."""
    if "-h" not in argv and "--help" not in argv:
        _check_names(cls, argv, prog)
    # Written to what is no terminal, tyro's messages have rules of dashes in them and no boxes.
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            return tyro.cli(cls, prog=prog, args=list(argv), config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff))
    except SystemExit as done:
        if done.code:
            raise UsageError(one_line(err.getvalue(), argv, prog)) from None
    shown = [f"  {example}" for example in examples]
    return "\n".join([_help(out.getvalue()), "", "examples:" if len(shown) > 1 else "example:", *shown])


def _check_names(cls: type, argv: Sequence[str], prog: str) -> None:
    """Refuse an option that does not exist, before tyro wonders what its value could be."""
    known = [f"--{field.name.replace('_', '-')}" for field in fields(cls)]
    for word in itertools.takewhile(lambda word: word != "--", argv):
        name = word.split("=")[0].replace("_", "-")
        if name.startswith("--") and name not in known:
            near = get_close_matches(name, known, n=1)
            raise UsageError(f"there is no option {name}; " + (f"did you mean {near[0]}?" if near else f"see {prog} --help"))


def _help(text: str) -> str:
    """tyro's help, its paragraphs wrapped and its headings followed by a colon in place of a rule."""
    text = re.sub(r"\s*\((required|default: (False|None))\)", "", text)
    lines: list[str] = []
    for line in (line.rstrip() for line in text.splitlines()):
        if re.fullmatch(r" *-{8,}", line):
            lines[-1] = lines[-1].strip() + ":"
        elif "show this help message" not in line:
            indent = "  " if line.startswith("usage:") else ""
            long = len(line) > 80 and line[0] != " "
            lines += textwrap.wrap(line, 80, subsequent_indent=indent, break_on_hyphens=False) if long else [line]
    return "\n".join(lines).rstrip().removesuffix("\n\noptions:")


def one_line(text: str, argv: Sequence[str], prog: str) -> str:
    """What was wrong with `argv`, from what tyro says about it."""
    wrong, beside = _sections(text)
    see = f"see {prog} --help"
    if found := re.match(r"Unrecognized options: (.+)", wrong):
        culprit = next((word for word in argv if found[1].startswith(word)), found[1])
        return f"unexpected {culprit!r} (text with spaces needs quotes); {see}"
    if found := re.match(r"Error parsing (--\S+): ", wrong):
        metavar = re.search(rf"{re.escape(found[1])} (\S+)", beside)
        expected = _KINDS.get(metavar[1], metavar[1]) if metavar else "something else"
        return f"{found[1]} takes {expected}, not {_value(found[1], argv)!r}"
    if found := re.match(r"[Ii]nvalid choice .* for argument '(.*)'. Expected one of \((.*?),?\)", wrong):
        return f"{found[1]} takes {found[2].replace(chr(39), '')}, not {_value(found[1], argv)!r}"
    if found := re.match(r"Missing value for argument '(--.*?)'", wrong):
        return f"{found[1]} needs a value; {see}"
    if found := re.match(r"Missing from \S+ \S+: (\S+)", wrong):
        return f"{found[1]} is missing; {see}"
    return f"{wrong}; {see}"


def _value(name: str, argv: Sequence[str]) -> str:
    """What the user gave for an option, the last time it was given."""
    values = [after for word, after in itertools.pairwise(argv) if word.replace("_", "-") == name]
    values += [word.partition("=")[2] for word in argv if word.replace("_", "-").startswith(f"{name}=")]
    return values[-1] if values else ""


def _sections(text: str) -> tuple[str, str]:
    """What was wrong, and what tyro says next to it; rules of dashes separate the two, and each stands under a title."""
    parts = [" ".join(part.split()) for part in re.split(r"^ *-{8,} *$", text, flags=re.MULTILINE)]
    return (parts[1], parts[2]) if len(parts) > 2 else (" ".join(parts), "")
