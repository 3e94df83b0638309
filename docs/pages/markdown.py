"""Small pieces of Markdown."""

import ast
import re
import textwrap
from collections.abc import Iterable, Sequence

_CODE_SPAN = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
_PUNCTUATION = re.compile(r"([\\*_\[\]<>{}#|~$])")


def escaped(text: str) -> str:
    """`text` so that Markdown shows it as it stands; what is between backticks is code, as in a docstring."""
    out, end = [], 0
    for span in _CODE_SPAN.finditer(text):
        out += [_PUNCTUATION.sub(r"\\\1", text[end : span.start()]), span[0]]
        end = span.end()
    return "".join([*out, _PUNCTUATION.sub(r"\\\1", text[end:])])


def fenced(code: str, language: str = "text") -> str:
    """A block of code, with a fence longer than any inside it."""
    longest = max((len(run) for run in re.findall(r"`{3,}", code)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{code.rstrip()}\n{fence}\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(_cell(cell) for cell in line) + " |\n" for line in lines) + "\n"


def _cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.split()))


def first_sentence(docstring: str) -> str:
    """Of the first paragraph. A full stop within "e.g." or "et al." ends nothing."""
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    found = re.match(r".*?(?<!e\.g)(?<!i\.e)(?<! al)(?<!\.\.)[.?!](?=\s|$)", paragraph)
    return found[0] if found else paragraph


def from_docstring(docstring: str) -> str:
    """A docstring as Markdown: prose, lists, and what is indented by four as code."""
    blocks, lines = [], docstring.strip().splitlines()
    while lines:
        if not lines[0].strip():
            lines.pop(0)
            continue
        taken = [lines.pop(0)]
        if taken[0].startswith("    "):
            while lines and (lines[0].startswith("    ") or not lines[0].strip()):
                taken.append(lines.pop(0))
            code = textwrap.dedent("\n".join(taken)).strip("\n")
            blocks.append(fenced(code, "python" if _is_python(code) else "text"))
            continue
        while lines and lines[0].strip():
            taken.append(lines.pop(0))
        blocks.append(escaped("\n".join(taken)) + "\n")
    return "\n".join(blocks)


def _is_python(code: str) -> bool:
    try:
        ast.parse(code)
    except SyntaxError:
        return False
    return any(mark in code for mark in "(=")
