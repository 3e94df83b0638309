"""The reference of the package, a page a room, from the source as it is written: shapes in signatures, docstrings as Markdown.

Nothing is imported. Public is what has no leading underscore, in a module that has none.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pages.markdown import escaped, fenced, first_sentence, from_docstring, table

WIDTH = 96  # of a signature on one line
LONGEST_VALUE = 6  # lines of a constant that are shown
_SHOWN_DECORATORS = ("property", "cached_property", "classmethod", "staticmethod", "contextmanager", "dataclass", "dataclasses.")


@dataclass(frozen=True)
class Entry:
    """A class, function, method or property. `code` is its head, as written."""

    kind: str  # "class", "function", "method", "property"
    full_name: str  # interp_gpt2.cache.ActivationCache.stack
    code: str
    docstring: str
    members: tuple["Entry", ...] = ()

    @property
    def name(self) -> str:
        return self.full_name.rpartition(".")[2]


@dataclass(frozen=True)
class Module:
    """A module's docstring, its constants as written, and what it defines."""

    name: str
    docstring: str
    constants: str
    entries: tuple[Entry, ...]


def rooms(root: Path) -> list[str]:
    """The rooms of the house, in the order that tests/test_layers.py holds."""
    for node in ast.parse((root / "tests" / "test_layers.py").read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ROOMS":
            return ast.literal_eval(node.value)
    raise LookupError("tests/test_layers.py has no ROOMS")


@cache
def modules(root: Path, room: str) -> list[Module]:
    """The public modules of a room, the room's own first."""
    package = root / "interp_gpt2"
    if (package / f"{room}.py").is_file():
        return [read(package / f"{room}.py", f"interp_gpt2.{room}")]
    paths = sorted(path for path in (package / room).rglob("*.py") if not path.name.startswith("_"))
    names = [".".join(("interp_gpt2", *path.relative_to(package).with_suffix("").parts)) for path in paths]
    return [read(package / room / "__init__.py", f"interp_gpt2.{room}"), *map(read, paths, names)]


def read(path: Path, name: str) -> Module:
    source = path.read_text("utf-8")
    tree = ast.parse(source)
    reader = Reader(source)
    constants = [reader.constant(node) for node in tree.body]
    entries = [entry for node in tree.body for entry in reader.entries(node, name)]
    return Module(name, ast.get_docstring(tree) or "", "\n".join(filter(None, constants)), tuple(entries))


class Reader:
    """Takes pieces out of one source file."""

    def __init__(self, source: str) -> None:
        self.lines = source.split("\n")

    def written(self, node: ast.AST) -> str:
        """An expression as it is written, on one line. (ast.get_source_segment would split the whole file each time.)"""
        lines = [line.encode() for line in self.lines[node.lineno - 1 : node.end_lineno]]  # offsets count bytes
        lines[-1] = lines[-1][: node.end_col_offset]
        lines[0] = lines[0][node.col_offset :]
        return " ".join(b" ".join(lines).decode().split())

    def constant(self, node: ast.stmt) -> str:
        """A public name with a value, with its comment; of a long one the beginning."""
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(target, ast.Name) or not _public(target.id):
            return ""
        lines = [line.replace("  # fmt: skip", "") for line in self.lines[node.lineno - 1 : node.end_lineno]]
        return "\n".join(lines if len(lines) <= LONGEST_VALUE else [*lines[: LONGEST_VALUE - 1], "    ..."])

    def entries(self, node: ast.stmt, scope: str) -> Iterator[Entry]:
        if isinstance(node, ast.ClassDef) and _public(node.name):
            yield self.class_(node, f"{scope}.{node.name}")
        elif isinstance(node, ast.FunctionDef) and _public(node.name):
            yield self.function(node, f"{scope}.{node.name}", "function")

    def class_(self, node: ast.ClassDef, full_name: str) -> Entry:
        """Its head with what it is made from: the fields of a dataclass, or the arguments of `__init__`."""
        bases = ", ".join(self.written(base) for base in [*node.bases, *node.keywords])
        head = [*self.decorators(node), f"class {node.name}({bases}):" if bases else f"class {node.name}:"]
        fields = [part for part in node.body if isinstance(part, ast.AnnAssign) and _public(self.written(part.target))]
        for part in fields:
            head += self.lines[part.lineno - 1 : part.end_lineno]
        setters = [part for part in node.body if isinstance(part, ast.FunctionDef) and "setter" in self.decorated(part)]
        methods = [part for part in node.body if isinstance(part, ast.FunctionDef) and part not in setters]
        if not fields:
            head += [_indented(self.head(part)) for part in methods if part.name == "__init__"]
        members = [self.function(part, f"{full_name}.{part.name}", "method") for part in methods if _public(part.name)]
        return Entry("class", full_name, "\n".join(head).rstrip(":"), ast.get_docstring(node) or "", tuple(members))

    def function(self, node: ast.FunctionDef, full_name: str, kind: str) -> Entry:
        decorators = self.decorators(node)
        if any(each.endswith("property") for each in decorators):
            kind = "property"
        code = "\n".join([*decorators, self.head(node)])
        return Entry(kind, full_name, code, ast.get_docstring(node) or "")

    def decorated(self, node: ast.FunctionDef) -> list[str]:
        """The last words of its decorators."""
        return [self.written(each).rpartition(".")[2] for each in node.decorator_list]

    def decorators(self, node: ast.ClassDef | ast.FunctionDef) -> list[str]:
        written = (self.written(each) for each in node.decorator_list)
        return [f"@{each}" for each in written if each.startswith(_SHOWN_DECORATORS)]

    def head(self, node: ast.FunctionDef) -> str:
        """`def name(arguments) -> result`, an argument a line where one line would be long."""
        returns = f" -> {self.written(node.returns)}" if node.returns else ""
        arguments = self.arguments(node.args)
        line = f"def {node.name}({', '.join(arguments)}){returns}"
        if len(line) <= WIDTH:
            return line
        return "\n".join([f"def {node.name}(", *(f"    {each}," for each in arguments), f"){returns}"])

    def arguments(self, args: ast.arguments) -> list[str]:
        plain = [*args.posonlyargs, *args.args]
        defaults = [None] * (len(plain) - len(args.defaults)) + list(args.defaults)
        out = [self.argument(*each) for each in zip(plain, defaults, strict=True)]
        if args.posonlyargs:
            out.insert(len(args.posonlyargs), "/")
        if args.vararg or args.kwonlyargs:
            out.append("*" + self.argument(args.vararg, None) if args.vararg else "*")
        out += [self.argument(*each) for each in zip(args.kwonlyargs, args.kw_defaults, strict=True)]
        return out + (["**" + self.argument(args.kwarg, None)] if args.kwarg else [])

    def argument(self, arg: ast.arg, default: ast.expr | None) -> str:
        annotation = f": {self.written(arg.annotation)}" if arg.annotation else ""
        if default is None:
            return f"{arg.arg}{annotation}"
        return f"{arg.arg}{annotation}{' = ' if annotation else '='}{self.written(default)}"


def _public(name: str) -> bool:
    return not name.startswith("_")


def _indented(code: str) -> str:
    return "\n".join(f"    {line}" for line in code.splitlines())


# ---------------------------------------------------------------------------------------------------------------------
# As Markdown


def page(room: str, found: list[Module]) -> str:
    """A room's page: for each module a table of what it has, then each in full."""
    parts = ["---\ntocdepth: 2\n---\n", f"# {room}\n", from_docstring(found[0].docstring)]
    if room == "cli":
        parts.append("\nThe commands themselves: {doc}`/generated/commands`.\n")
    if len(found) == 1:
        return "\n".join([*parts, *_body(found[0])])
    rows = [
        [f"{{py:mod}}`{one.name.rpartition('.')[2]} <{one.name}>`", escaped(first_sentence(one.docstring))] for one in found[1:]
    ]
    parts += [table(["module", ""], rows), *_body(found[0])]
    for one in found[1:]:
        short = one.name.removeprefix("interp_gpt2.")
        parts += [f"\n## {short}\n", from_docstring(one.docstring), *_body(one)]
    return "\n".join(parts)


def _body(module: Module) -> list[str]:
    parts = [f"```{{py:module}} {module.name}\n```\n"]
    if module.entries:
        rows = [[f"{{py:obj}}`{one.name} <{one.full_name}>`", escaped(first_sentence(one.docstring))] for one in module.entries]
        parts.append(table(["", ""], rows))
    if module.constants:
        parts.append(fenced(module.constants, "python"))
    for entry in module.entries:
        parts += [_target(entry, module), f"### {escaped(entry.name)}\n", *_described(entry)]
        members = [part for member in entry.members for part in (_target(member, module), *_described(member))]
        if members:
            parts += ["::::{container} members\n", *members, "::::\n"]
    return parts


def _described(entry: Entry) -> list[str]:
    return [fenced(entry.code, "python"), from_docstring(entry.docstring)]


def _target(entry: Entry, module: Module) -> str:
    """An anchor, and a place in the index and the search, that show nothing by themselves."""
    call = "()" if entry.kind in ("function", "method") else ""
    name = entry.full_name.removeprefix(f"{module.name}.")
    return f"```{{py:{entry.kind}}} {name}{call}\n:no-typesetting:\n```\n"


def summary(root: Path) -> str:
    """The page that leads to the rooms, in their order."""
    rows = []
    for room in rooms(root):
        found = modules(root, room)
        rows.append([f"{{doc}}`{room} </generated/api/{room}>`", escaped(first_sentence(found[0].docstring))])
    return table(["room", ""], rows)


def targets(root: Path) -> dict[str, str]:
    """Every full name, of modules too, with the place where it is described: `cache#interp_gpt2.cache.ActivationCache`."""
    found = {}
    for room in rooms(root):
        for module in modules(root, room):
            found[module.name] = f"{room}#module-{module.name}"
            for entry in module.entries:
                for one in (entry, *entry.members):
                    found[one.full_name] = f"{room}#{one.full_name}"
    return found


def short_names(full_names: list[str]) -> dict[str, list[str]]:
    """What may stand for a full name in prose, with those it may stand for, in the order of the rooms: any ending that is nobody
    else's; a class wherever there is one of that name; and a method that several classes have, for that of the noun.

    A bare word that could be an ordinary one (`sweep`, `mean`) is not among them.
    """
    found: dict[str, list[str]] = {}
    for full in full_names:
        parts = full.split(".")
        for n in range(len(parts)):
            found.setdefault(".".join(parts[n:]), []).append(full)
    nouns = ("model.GPT2.", "shortcuts.Shortcuts.", "cache.ActivationCache.", "runs.run.Run.")
    out = {}
    for short, candidates in found.items():
        is_class = short[:1].isupper() and "." not in short
        if not is_class and len(candidates) > 1:
            candidates = [full for full in candidates if full.removeprefix("interp_gpt2.").startswith(nouns)]
        if re.search(r"[._A-Z]", short) and (len(candidates) == 1 or is_class):
            out[short] = candidates
    return out
