"""Writes everything that is made, to docs/generated. What would not change is left alone: Sphinx need not read it again."""

from collections.abc import Callable
from pathlib import Path

from pages import api, measured, notebooks, tables

PARTS: dict[str, Callable[[], str]] = {
    "hook-points": tables.hook_points,
    "short-names": tables.short_names,
    "analyses": tables.analyses,
    "prompt-sets": tables.prompt_sets,
    "causal-metrics": tables.causal_metrics,
    "recipes": tables.recipes,
    "sizes": tables.sizes,
    "errors": tables.errors,
    "report-sections": tables.report_sections,
    "false-alarms": tables.false_alarms,
}
MEASURED: dict[str, Callable[[Path], str]] = {
    "instrument": measured.instrument,
    "patching": measured.patching,
    "training": measured.training,
    "contract": measured.contract,
}


def write_all(root: Path, folder: Path) -> None:
    """Every generated page and part. `root` is the repository, `folder` docs/generated."""
    made = {f"parts/{name}.md": make() for name, make in PARTS.items()}
    made |= {f"parts/{name}.md": make(root / "benchmarks") for name, make in MEASURED.items()}
    made |= {f"api/{room}.md": api.page(room, api.modules(root, room)) for room in api.rooms(root)}
    made["parts/rooms.md"] = api.summary(root)
    made["parts/room-list.md"] = _hidden_list([f"/generated/api/{room}" for room in api.rooms(root)])
    made["commands.md"] = tables.commands()
    found = sorted((root / "notebooks").glob("[0-9]*.ipynb"))
    made |= {f"notebooks/{one.stem}.md": notebooks.convert(one, folder / "notebooks") for one in found}
    made["parts/notebooks.md"] = notebooks.summaries(found)
    made["parts/notebook-list.md"] = _hidden_list([f"/generated/notebooks/{one.stem}" for one in found])
    for name, text in made.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
    for path in folder.rglob("*.md"):
        if path.relative_to(folder).as_posix() not in made:
            path.unlink()


def _hidden_list(names: list[str]) -> str:
    return "```{toctree}\n:hidden:\n\n" + "\n".join(names) + "\n```\n"
