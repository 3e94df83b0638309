"""The documentation: its code runs, its tables are the package's and the benchmarks', its pages build without a network."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any
from urllib.parse import unquote

import pytest
import torch

from interp_gpt2.config import GPT2Config
from interp_gpt2.convert.huggingface import to_huggingface
from interp_gpt2.hooks import default_hook_points, hook_point_names, tl_name
from interp_gpt2.model import GPT2
from interp_gpt2.runs.checkpoint import save_weights
from interp_gpt2.tokenizers import CharTokenizer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "generated" not in path.parts)
WITH_CODE = [path for path in PAGES if "```python" in path.read_text("utf-8")]


@pytest.fixture(scope="module")
def made() -> Any:
    """The generators, which lie beside the pages and are no part of the package."""
    sys.path.insert(0, str(DOCS))
    from pages import api, markdown, measured, tables

    yield type("Made", (), {"api": api, "markdown": markdown, "measured": measured, "tables": tables})
    sys.path.remove(str(DOCS))


# ------------------------------------------------------------------------------------------------------- code on pages


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the pages' code runs: as in a clone, with what it takes from elsewhere."""
    folder = tmp_path_factory.mktemp("clone")
    copytree(ROOT / "tests" / "data" / "study", folder / "tests" / "data" / "study", ignore=ignore_patterns("sweeps"))
    _nanogpt_folder(folder / "out-shakespeare-char")
    _cached_repository(folder / "hub", "stanford-crfm/alias-gpt2-small-x21", (0, 1000))
    return folder


def _nanogpt_folder(folder: Path) -> None:
    model = GPT2(GPT2Config(n_layers=1, n_heads=2, d_model=8, d_vocab=65, n_ctx=8, act_fn="gelu"))
    turned = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    state = {name: t.T.contiguous() if name.endswith(turned) else t for name, t in to_huggingface(model).state_dict().items()}
    args = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 8, "vocab_size": 65, "bias": True, "dropout": 0.0}
    folder.mkdir()
    torch.save({"model": state, "model_args": args, "iter_num": 2000, "config": {}}, folder / "ckpt.pt")


def _cached_repository(cache: Path, repo: str, steps: tuple[int, ...]) -> None:
    """A cache laid out as the Hub's: a snapshot for each commit, a file for each branch."""
    config = GPT2Config(n_layers=1, n_heads=2, d_model=8, d_vocab=5, n_ctx=6)
    home = cache / f"models--{repo.replace('/', '--')}"
    for step in steps:
        commit = f"{step:040x}"
        save_weights(home / "snapshots" / commit, GPT2(config, seed=step).state_dict(), config, CharTokenizer("abcde"))
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs" / f"checkpoint-{step}").write_text(commit)


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda path: path.stem)
def test_the_code_of_a_page_runs_from_top_to_bottom(page: Path, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.chdir(clone)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(clone / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("INTERP_GPT2_CACHE", str(clone / "cache"))
    scope = {"__name__": "__main__"}
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL), start=1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), scope)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(DOCS).as_posix())
def test_the_commands_and_files_that_a_page_names_are_there(page: Path) -> None:
    from interp_gpt2.cli.command_line import COMMANDS

    text = page.read_text("utf-8")
    for command in re.findall(r"interp-gpt2 ([a-z]+)", text):
        assert command in COMMANDS, command
    for name in re.findall(r"`((?:analyses|benchmarks|notebooks|interp_gpt2)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name
    for name, options in re.findall(r"^```\{(?:include|literalinclude)\} (\S+)\n(.*?)```", text, re.MULTILINE | re.DOTALL):
        if "generated/" not in name:
            included = (page.parent / name).read_text("utf-8")
            for mark in re.findall(r'^:(?:start|end)-(?:after|at|before): "(.*)"$', options, re.MULTILINE):
                assert mark in included, f"{name} has no {mark!r}"


# ---------------------------------------------------------------------------------------------- tables from the package


def test_the_table_of_hook_points_is_the_models(made: Any) -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in made.tables.hook_points().splitlines()[2:]]
    config = GPT2Config(n_layers=1, n_heads=4, d_model=20, d_head=3, d_mlp=17, d_vocab=11, n_ctx=13)
    sizes = {
        "1": 1,
        "batch": 2,
        "pos": 7,
        "query": 7,
        "key": 7,
        "head": 4,
        "d_head": 3,
        "d_vocab": 11,
        "d_mlp": 17,
        "d_model": 20,
    }
    named = {row[0].strip("`").replace("{l}", "0"): row[1:] for row in rows if row}
    assert list(named) == list(hook_point_names(config))
    for name, shape in GPT2(config, device="meta").hook_points(batch=2, pos=7).items():
        axes, theirs, notes = named[name]
        assert shape == tuple(sizes[axis.strip()] for axis in axes.strip("()").split(",")), name
        assert theirs.strip("`").replace("{l}", "0") == tl_name(name)
        assert ("on request" in notes) == (name not in default_hook_points(config))
    for note, bare in {"attn_only": {"attn_only": True}, "layer_norm": {"layer_norm": False}}.items():
        left = set(hook_point_names(GPT2Config.from_dict(config.to_dict() | bare)))
        assert {name for name, (*_, notes) in named.items() if f"`{note}`" in notes} == set(named) - left


def test_every_name_in_the_registries_has_a_row(made: Any) -> None:
    from interp_gpt2 import errors
    from interp_gpt2.analysis.registry import REGISTRY
    from interp_gpt2.cli.command_line import COMMANDS
    from interp_gpt2.prompts.named import PROMPT_SETS
    from interp_gpt2.training.config import RECIPES

    def first_column(table: str) -> list[str]:
        return [line.split("|")[1].strip(" `") for line in table.splitlines()[2:] if line]

    assert first_column(made.tables.analyses()) == list(REGISTRY)
    assert first_column(made.tables.prompt_sets()) == list(PROMPT_SETS)
    assert first_column(made.tables.recipes()) == list(RECIPES)
    kinds = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert set(first_column(made.tables.errors())) == kinds
    page = made.tables.commands()
    assert re.findall(r"^## (\w+)$", page, re.MULTILINE) == list(COMMANDS)
    assert "--dask ADDRESS" in page


def test_false_alarm_rates_are_those_of_the_docstring(made: Any) -> None:
    from interp_gpt2.analysis import phase_changes

    numbers = re.findall(r"\d[\d,]*", made.tables.false_alarms())
    assert len(numbers) >= 20
    assert set(numbers) <= set(re.findall(r"\d[\d,]*", phase_changes.__doc__ or ""))


# -------------------------------------------------------------------------------------------------------------- the API


def test_signatures_are_shown_as_they_are_written(made: Any) -> None:
    (module,) = made.api.modules(ROOT, "weights")
    (entry,) = [one for one in module.entries if one.name == "W_Q"]
    assert entry.code == 'def W_Q(model: GPT2) -> Float[Tensor, "layer head d_model d_head"]'
    page = made.api.page("weights", [module])
    assert 'Float[Tensor, "layer head d_model d_head"]' in page
    assert "{py:function} W_Q()" in page


def test_what_is_public_is_there_and_nothing_else(made: Any) -> None:
    found = made.api.targets(ROOT)
    assert {place.partition("#")[0] for place in found.values()} == set(made.api.rooms(ROOT))
    assert {"interp_gpt2.model.GPT2.run_with_cache", "interp_gpt2.analysis.logit_lens.logit_lens"} <= set(found)
    assert not [name for name in found if "._" in name]
    import interp_gpt2

    for name in ("GPT2", "GPT2Config", "ActivationCache", "InterpGPT2Error", "Part", "Run", "sweep"):
        home = getattr(interp_gpt2, name).__module__
        assert f"{home}.{name}" in found


def test_an_argument_of_every_kind_keeps_its_place(made: Any) -> None:
    import ast

    head = "def f(a: int, /, b='x', *c: str, d: Float[Tensor, \"n\"] | None=None, e, **g) -> tuple[int, ...]"
    shown = made.api.Reader(f"{head}: ...").head(ast.parse(f"{head}: ...").body[0])
    assert shown == "def f(a: int, /, b='x', *c: str, d: Float[Tensor, \"n\"] | None = None, e, **g) -> tuple[int, ...]"


def test_a_docstring_is_shown_as_it_stands(made: Any) -> None:
    shown = made.markdown.from_docstring("A *b* of `x * y` <c> [d](e) {l}.\n\n    f(1)\n\nEnd_of_it.")
    assert shown.split("\n\n")[0] == r"A \*b\* of `x * y` \<c\> \[d\](e) \{l\}."
    assert "```python\nf(1)\n```" in shown
    assert made.markdown.first_sentence("What e.g. heads do, after Olsson et al. 2022. More.") == (
        "What e.g. heads do, after Olsson et al. 2022."
    )


def test_links_are_made_for_names_that_mean_one_thing(made: Any) -> None:
    short = made.api.short_names(list(made.api.targets(ROOT)))
    assert short["run_with_cache"] == ["interp_gpt2.model.GPT2.run_with_cache"]
    assert short["ActivationCache"][0] == "interp_gpt2.cache.ActivationCache"  # and the drop-in's, on its own page
    assert "mean" not in short  # an ordinary word
    assert "to_frame" not in short  # many classes have one


# -------------------------------------------------------------------------------------------------------- the comparison

FIGURE = re.compile(r"\d[\d,.]*(?:e-?\d+)?")


def figures(text: str) -> set[str]:
    return {found.rstrip(".,") for found in FIGURE.findall(text)}


def test_every_figure_of_the_comparison_is_in_what_the_benchmarks_wrote(made: Any) -> None:
    folder = ROOT / "benchmarks"
    sources = {name: (folder / f"{name}.md").read_text("utf-8") for name in ("RESULTS", "PATCHING", "TRAINING", "CONTRACT")}
    parts = {"RESULTS": "instrument", "PATCHING": "patching", "TRAINING": "training", "CONTRACT": "contract"}
    for name, part in parts.items():
        shown = getattr(made.measured, part)(folder)
        if part == "contract":
            shown, counts = re.subn(r"\| \*\*kept.*\n", "", shown)
            assert counts == 1
        assert len(figures(shown)) > 20, part
        assert figures(shown) <= figures(sources[name]), part
        assert re.search(r"\d{4}-\d\d-\d\d", shown), f"{part} says no date"
    prose = re.sub(r"```\{include\}.*?```", "", (DOCS / "comparison.md").read_text("utf-8"), flags=re.DOTALL)
    versions = {"3.9", "4.3", "0.8"}  # transformer-lens, nnsight
    assert figures(re.sub(r"(?i)gpt-?2", "", prose)) <= versions


def test_promises_kept_are_counted_as_the_contract_has_them(made: Any) -> None:
    lines = [line for line in (ROOT / "benchmarks" / "CONTRACT.md").read_text("utf-8").splitlines() if line.startswith("| **")]
    columns = list(zip(*(line.strip("| ").split(" | ") for line in lines), strict=True))[1:]
    (kept,) = [line for line in made.measured.contract(ROOT / "benchmarks").splitlines() if "kept, of all" in line]
    expected = [f"{sum(' hold' in cell for cell in column)} of {sum('not applicable' not in cell for cell in column)}"
                for column in columns]  # fmt: skip
    assert re.findall(r"\d+ of \d+", kept) == expected


def test_a_figure_that_is_no_longer_there_stops_the_build(made: Any, tmp_path: Path) -> None:
    text = (ROOT / "benchmarks" / "RESULTS.md").read_text("utf-8")
    (tmp_path / "RESULTS.md").write_text(text.replace("| nnsight", "| another"), "utf-8")
    with pytest.raises(LookupError, match=r"RESULTS\.md has no table with the columns .*nnsight"):
        made.measured.instrument(tmp_path)


# ------------------------------------------------------------------------------------------------------------- the build

SPHINX = [name for name in ("sphinx", "furo", "myst_parser") if find_spec(name) is None]


@pytest.mark.skipif(bool(SPHINX), reason=f"needs the extra `docs`: no {', '.join(SPHINX)}")
@pytest.mark.skipif("BUILD_DOCS" not in os.environ, reason="half a minute: BUILD_DOCS=1 pytest tests/test_docs.py")
def test_the_site_builds_without_a_warning_and_asks_the_network_for_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(tmp_path / "html")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    pages = sorted((tmp_path / "html").rglob("*.html"))
    assert len(pages) > 60
    for page in pages:
        text = page.read_text("utf-8")
        loads = re.findall(r"<(?:script|img|iframe|source|embed|object)\b[^>]*?(?:src|data)=\"([^\"]+)\"", text)
        loads += re.findall(r"<link\b(?![^>]*rel=\"(?:canonical|license)\")[^>]*?href=\"([^\"]+)\"", text)
        assert not [one for one in loads if re.match(r"(?:https?:)?//", one)], page.name
    assert not _dead_links(pages)
    for sheet in (tmp_path / "html" / "_static").rglob("*.css"):
        assert not re.findall(r"url\(\s*['\"]?(?:https?:)?//|@import", sheet.read_text("utf-8")), sheet.name


def _dead_links(pages: list[Path]) -> list[str]:
    """Links to pages, and to places on them, that are not there."""
    texts = {page: re.sub(r'srcdoc="[^"]*"', "", page.read_text("utf-8")) for page in pages}
    ids = {page: set(re.findall(r'\bid="([^"]+)"', text)) for page, text in texts.items()}
    dead = []
    for page, text in texts.items():
        for link in re.findall(r'<a\b[^>]*?href="([^"]+)"', text):
            name, _, anchor = map(unquote, link.partition("#"))
            there = (page.parent / name).resolve() if name else page
            gone = not there.exists() or (anchor and anchor not in ids.get(there, ()))
            if gone and not re.match(r"https?:|mailto:", link):
                dead.append(f"{page.name}: {link}")
    return dead
