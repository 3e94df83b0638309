"""Whole HTML pages that need nothing but themselves: escaping and the security policy.

Text from a model, a tokenizer or a file is hostile until shown otherwise: a training text may well contain
`</script><img src=x onerror=alert(1)>`. The first wall is escaping, everywhere: `markupsafe` for text, `json_script` for
data. The second is a Content-Security-Policy that allows one style sheet and one script, both by their SHA-256, and no
network at all; so no page here may hold a style="" or an on*="" attribute.
"""

import base64
import hashlib
import json
import math
import unicodedata
from functools import cache
from importlib.resources import files
from typing import Any

from markupsafe import Markup, escape

STYLES = ("base.css", "charts.css", "views.css", "circuit.css", "patching.css", "report.css", "neurons.css")
SCRIPTS = ("common.js", "charts.js", "attention.js", "lens.js", "circuit.js", "patching.js", "neurons.js", "report.js")

# Characters that reorder or hide the text around them (bidirectional controls, zero-width characters and joiners).
_DECEPTIVE = {"Cf", "Cc", "Cs", "Zl", "Zp"}


def printable(text: str) -> str:
    """`text` with every character that could hide or reorder others written out, as in `⟨202e⟩`; newlines and tabs stay.

    Lone surrogates, which UTF-8 cannot hold, are written out too, so the result can always be saved.
    """
    return "".join(
        f"⟨{ord(char):x}⟩" if unicodedata.category(char) in _DECEPTIVE and char not in "\n\t" else char for char in text
    )


def tag(name: str, attributes: dict[str, Any], *children: Any) -> Markup:
    """One element, every attribute and every child that is not already markup escaped; attributes of None are left out."""
    pairs = [Markup(' {}="{}"').format(key, _attribute(value)) for key, value in attributes.items() if value is not None]
    inside = Markup("").join(child if isinstance(child, Markup) else escape(printable(str(child))) for child in children)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), Markup("").join(pairs), inside)


def _attribute(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else printable(str(value))


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: numbers that are not finite become None, so that no reader sees `NaN`."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def json_script(value: Any) -> Markup:
    """`value`, its strings made `printable`, as a `<script type="application/json">` that no string in it can leave."""
    text = json.dumps(_shown(plain(value)), allow_nan=False, separators=(",", ":"))  # ASCII: json escapes the rest
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup('<script type="application/json">{}</script>').format(Markup(text))


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(key): _shown(item) for key, item in value.items()}
    return [_shown(item) for item in value] if isinstance(value, list) else value


@cache
def asset(name: str) -> str:
    """The text of a style sheet or script that lies in views/assets."""
    text = files("interp_gpt2.views").joinpath("assets", name).read_text(encoding="utf-8")
    return text.replace("\r\n", "\n")  # browsers hash the text after normalising newlines


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def document(title: str, body: Markup) -> str:
    """A whole page: `body` with the toolkit's style and script, allowed by hash, and everything else forbidden.

    The same arguments give the same bytes. Raises nothing; `title` is escaped.
    """
    style = "\n".join(asset(name) for name in STYLES)
    script = "(() => {\n'use strict';\n" + "\n".join(asset(name) for name in SCRIPTS) + "\n})();"
    policy = f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; base-uri 'none'; form-action 'none'"
    page = Markup(
        "<!DOCTYPE html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        "<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>\n{body}\n<script>{script}</script>\n</body>\n</html>\n"
    ).format(policy=Markup(policy), title=printable(title), style=Markup(style), body=body, script=Markup(script))
    return str(page)  # a Markup would escape what is replaced in it
