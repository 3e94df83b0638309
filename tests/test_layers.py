"""The house: a file imports only from rooms above its own; heavy libraries are imported where they are used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "interp_gpt2"

# From top to bottom. Files of one room may import each other; a lower room may import any higher one.
ROOMS = [
    "errors", "files", "memory", "config", "hooks", "hf_format", "factored", "cache", "kv_cache", "initialisation", "inputs",
    "linear", "shortcuts", "model", "passes", "weights", "folding", "planted", "generation", "vocab_bpe", "tokenizers",
    "convert", "data", "runs", "activations", "prompts", "analysis", "causal", "sweeps", "training", "views", "report",
    "contract", "transformer_lens", "cli",
]  # fmt: skip

# Conveniences that face upward: one line each, importing inside the method. (file, what it imports)
UPWARD: set[tuple[str, str]] = {
    ("runs/run.py", "training"),
    ("shortcuts.py", "runs"),
    ("shortcuts.py", "generation"),
    ("shortcuts.py", "weights"),
    ("shortcuts.py", "passes"),
    ("shortcuts.py", "model"),
}

HEAVY = {
    "transformers", "transformer_lens", "datasets", "matplotlib", "sklearn", "pandas", "scipy", "huggingface_hub", "tiktoken",
}  # fmt: skip


def sources() -> list[Path]:
    doors = (PACKAGE / "__init__.py", PACKAGE / "__main__.py")
    return sorted(path for path in PACKAGE.rglob("*.py") if path not in doors)


def imports(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_files_import_only_from_rooms_above_their_own():
    wrong = []
    for path in sources():
        for name in imports(ast.parse(path.read_text())):
            if not name.startswith("interp_gpt2."):
                continue
            target = name.split(".")[1]
            if target not in ROOMS:
                continue  # a public name taken from the package itself
            downward = ROOMS.index(target) > ROOMS.index(room_of(path))
            if downward and (path.relative_to(PACKAGE).as_posix(), target) not in UPWARD:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong


def test_every_room_has_a_place_in_the_order():
    assert {room_of(path) for path in sources()} <= set(ROOMS)


def test_heavy_libraries_are_imported_where_they_are_used():
    wrong = []
    for path in sources():
        tree = ast.parse(path.read_text())
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        heavy = [name for name in imports(top) if name.split(".")[0] in HEAVY]
        wrong += [f"{path.relative_to(PACKAGE)} imports {name} at the top" for name in heavy]
    assert not wrong


def test_only_the_command_line_prints():
    wrong = []
    for path in sources():
        if room_of(path) == "cli" or path == PACKAGE / "transformer_lens/utils.py":  # test_prompt's only result is what it prints
            continue
        calls = (node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
        wrong += [str(path.relative_to(PACKAGE)) for func in calls if isinstance(func, ast.Name) and func.id == "print"]
    assert not wrong


def test_no_file_is_longer_than_four_hundred_lines():
    assert not [f"{path.name}: {n}" for path in sources() if (n := len(path.read_text().splitlines())) > 400]


def test_nothing_unpickles_or_swallows_errors():
    wrong = []
    for path in sources():
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if not isinstance(node, ast.ExceptHandler):
                continue
            everything = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            if everything and ast.unparse(node.body[-1]) != "raise":  # tidying up and raising again swallows nothing
                wrong.append(f"{path.name}:{node.lineno} catches everything")
        picklers = [name for name in imports(tree) if name.split(".")[0] in ("pickle", "dill", "joblib")]
        wrong += [f"{path.name} imports {name}" for name in picklers if name != "pickle.UnpicklingError"]
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                safe = any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in node.keywords)
                wrong += [] if safe else [f"{path.name}:{node.lineno} torch.load without weights_only=True"]
    assert not wrong


@pytest.mark.parametrize("module", ["interp_gpt2", "interp_gpt2.config", "interp_gpt2.training.config", "interp_gpt2.cli"])
def test_importing_costs_no_torch(module):
    code = f"import sys, {module}; assert not {{'torch', 'transformers', 'matplotlib', 'pandas'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_exists():
    import interp_gpt2

    for name in interp_gpt2.__all__:
        assert getattr(interp_gpt2, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'GPT3'"):
        interp_gpt2.GPT3  # noqa: B018
