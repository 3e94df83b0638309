"""In every page, `Names` between backticks that are names of the package become links to what is said of them."""

from docutils import nodes
from sphinx.application import Sphinx

from pages.api import short_names, targets


def link_names(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Called for each page when its references are resolved."""
    places: dict[str, str] = app.config.api_targets
    short: dict[str, list[str]] = app.config.api_short_names
    here = f"{docname.removeprefix('generated/api/')}#"
    for literal in list(doctree.findall(nodes.literal)):
        candidates = short.get(literal.astext().removesuffix("()"), [])
        if not candidates or literal.children != [c for c in literal.children if isinstance(c, nodes.Text)]:
            continue
        if any(isinstance(above, nodes.reference | nodes.title) for above in _above(literal)):
            continue
        full = next((one for one in candidates if places[one].startswith(here)), candidates[0])  # a page means its own
        room, _, anchor = places[full].partition("#")
        there = f"generated/api/{room}"
        uri = "" if there == docname else app.builder.get_relative_uri(docname, there)
        link = nodes.reference("", "", internal=True, refuri=f"{uri}#{anchor}", classes=["name"])
        literal.replace_self(link)
        link += literal


def _above(node: nodes.Node) -> list[nodes.Node]:
    found = []
    while node.parent is not None:
        node = node.parent
        found.append(node)
    return found


def setup(app: Sphinx, root: object) -> None:
    """Connects it, with the names of the package below `root`."""
    found = targets(root)
    app.add_config_value("api_targets", found, "env")
    app.add_config_value("api_short_names", short_names(list(found)), "env")
    app.connect("doctree-resolved", link_names)
