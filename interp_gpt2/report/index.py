"""The runs in a folder on one page: what each learned, how far it came, when it changed phase, and where its report is."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from interp_gpt2.errors import AnalysisError, InterpGPT2Error, RunError
from interp_gpt2.files import written_atomically
from interp_gpt2.report.from_json import report_from_json
from interp_gpt2.report.inputs import training_config
from interp_gpt2.report.pictures import HEAD_COLOURS, responsive, step_scale
from interp_gpt2.report.schema import Report
from interp_gpt2.report.words import count, verdict
from interp_gpt2.runs.run import SETTINGS, Run
from interp_gpt2.views.html import document, tag
from interp_gpt2.views.svg import LINEAR, STEPS_LINEAR, STEPS_LOG, Chart, Line, Rule, draw

INDEX, REPORT, DATA = "index.html", "report.html", "report.json"


@dataclass(frozen=True)
class Entry:
    """One run of the index. `steps` and `losses` are its validation, in nats per token; `report` is what its report found.

    `problem` says why a run cannot be read; its other fields are then empty.
    """

    name: str
    data: str = ""
    comparable: tuple[str, ...] = ()  # what losses on one axis must share: the data, its tokens, the context
    seed: int | None = None
    n_params: int = 0
    step: int = 0
    n_steps: int = 0
    n_checkpoints: int = 0
    steps: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()
    report: Report | None = None
    note: str = ""
    problem: str = ""

    @property
    def change(self) -> float | None:
        """The step of the phase change that its report found."""
        return self.report.phase_change.step if self.report and self.report.phase_change else None


def entries(folder: Path) -> list[Entry]:
    """The runs directly below a folder, by name. Raises RunError if there are none."""
    found = [path.parent for path in sorted(folder.glob(f"*/{SETTINGS}"))]
    if not found:
        raise RunError(f"there are no runs in {folder}; `interp-gpt2 demo` and `train` make some")
    return [_entry(path) for path in found]


def _entry(path: Path) -> Entry:
    try:
        run = Run(path)
        config, metrics, steps = training_config(run), run.metrics(), run.steps
        validation = {row["step"]: row["val_loss"] for row in metrics if row.get("val_loss") is not None}
        n_params = run.config.n_params if steps else 0
    except (InterpGPT2Error, OSError, ValueError, KeyError) as error:
        return Entry(path.name, problem=str(error))
    at = sorted(validation)
    found = Entry(
        name=path.name,
        data=config.data,
        comparable=(config.data, str(run.settings["data"]), str(run.config.n_ctx if steps else "")),
        seed=run.seed,
        n_params=n_params,
        step=max([*steps[-1:], *(row["step"] for row in metrics[-1:])], default=0),
        n_steps=config.n_steps,
        n_checkpoints=len(steps),
        steps=tuple(at),
        losses=tuple(validation[step] for step in at),
    )
    return _with_report(found, run)


def _with_report(entry: Entry, run: Run) -> Entry:
    path = run.path
    if not (path / REPORT).is_file() or not (path / DATA).is_file():
        return replace(entry, note="no report yet")
    try:
        report = report_from_json((path / DATA).read_text("utf-8"))
    except (AnalysisError, ValueError) as error:
        return replace(entry, note=str(error))
    last = report.run.last_step
    if last not in run.steps or report.hashes.get(f"model at step {last}") != run.checkpoint_hash(last):
        return replace(entry, note="its report is of other checkpoints")
    return replace(entry, report=report, note="" if last == entry.step else f"of step {count(last)}")


def write_index(folder: Path) -> Path:
    """Write index.html into a folder of runs and return its path. The same runs and reports give the same bytes."""
    path = folder / INDEX
    with written_atomically(path) as file:
        file.write(index_page(entries(folder), folder.name).encode())
    return path


def index_page(found: Sequence[Entry], title: str) -> str:
    """The page: a chart of losses for each kind of data, a row for each run that can be read, and those that cannot."""
    readable = [entry for entry in found if not entry.problem]
    alike: dict[tuple[str, ...], list[Entry]] = {}
    for entry in readable:
        alike.setdefault(entry.comparable, []).append(entry)
    charts = [_losses(its) for _, its in sorted(alike.items()) if any(entry.steps for entry in its)]
    body = tag(
        "main",
        {"class": "index"},
        tag("p", {"class": "overline"}, "interp_gpt2 runs"),
        tag("h1", {}, title),
        tag("p", {"class": "note"}, f"{len(readable)} runs. A column’s name sorts by it; a run’s name leads to its report."),
        tag("div", {"class": "scroll listing whole", "tabindex": "0"}, _table(readable)),
        *charts,
        *_unreadable([entry for entry in found if entry.problem]),
    )
    return document(f"{title}: runs", body)


def _table(found: Sequence[Entry]) -> Markup:
    names = ("run", "data", "seed", "parameters", "step", "checkpoints", "loss", "phase change")
    words = {"class": "words"}
    head = [
        tag("th", {"scope": "col"} | (words if name == "data" else {}), tag("button", {"type": "button", "data-sort": ""}, name))
        for name in names
    ]
    head += [tag("th", {"scope": "col"}, "validation"), tag("th", {"scope": "col", "class": "words"}, "found")]
    rows = [_row(i, entry, found) for i, entry in enumerate(found)]
    return tag("table", {"class": "numbers sortable"}, tag("thead", {}, tag("tr", {}, *head)), tag("tbody", {}, *rows))


def _row(i: int, entry: Entry, found: Sequence[Entry]) -> Markup:
    # A folder may be called "a#b", or "javascript:x".
    way = f"./{quote(os.fsencode(entry.name))}/{REPORT}"
    name = tag("a", {"href": way}, entry.name) if entry.report else entry.name
    data = sorted({other.data for other in found}).index(entry.data)
    last = entry.losses[-1] if entry.losses else None
    of = f"{count(entry.step)} of {count(entry.n_steps)}" if entry.step != entry.n_steps else count(entry.step)
    numbers = [
        (entry.seed, str(entry.seed)),
        (entry.n_params, count(entry.n_params)),
        (entry.step, of),
        (entry.n_checkpoints, count(entry.n_checkpoints)),
        (last, "–" if last is None else f"{last:.3f}"),
        (entry.change, "–" if entry.change is None else count(entry.change)),
    ]
    told = verdict(entry.report) if entry.report else ""
    note = tag("span", {"class": "muted"}, entry.note) if entry.note else ""
    return tag(
        "tr",
        {},
        tag("th", {"scope": "row", "data-value": i}, name),
        tag("td", {"data-value": data, "class": "words"}, entry.data),
        *(tag("td", {"data-value": None if value is None else float(value)}, text) for value, text in numbers),
        tag("td", {}, _spark(entry)),
        tag("td", {"class": "words found"}, told, " " if told and note else "", note),
    )


def _spark(entry: Entry) -> Markup | str:
    """The validation loss in the size of a word; the number beside it is its end."""
    if len(entry.steps) < 2:
        return ""
    chart = Chart(
        title=f"Validation loss of {entry.name}",
        x_label="step",
        y_label="",
        lines=[Line("", entry.steps, entry.losses, "c2", name=entry.name)],
        x_scale=LINEAR,
        x_axis=False,
        y_axis=False,
        margins=(2.0, 2.0),
        size=(110, 34),
    )
    return draw(chart)


def _losses(found: Sequence[Entry]) -> Markup:
    """The validation losses of runs on the same data, beside the references of the first of them that has a report."""
    data = found[0].data
    curves = [entry for entry in found if entry.steps]
    lines = [
        Line(
            f"{entry.name} {entry.losses[-1]:.3f}",
            entry.steps,
            entry.losses,
            HEAD_COLOURS[i] if i < len(HEAD_COLOURS) else "rest",
            name=entry.name,
        )
        for i, entry in enumerate(curves)
    ]
    losses = [entry.report.loss for entry in curves if entry.report and entry.report.loss]
    rules = [Rule(f"{one.name} {one.loss:.3f}", one.loss) for one in (losses[0].references if losses else ())]
    changed = any(entry.report and step_scale(entry.report) == STEPS_LINEAR for entry in curves)
    scale = STEPS_LINEAR if changed else STEPS_LOG
    chart = Chart(f"Validation loss on {data}", "step", "nats per token", lines, rules, x_scale=scale, size=(960, 300))
    figure = responsive(chart, replace(chart, size=(420, 300)))
    return tag("section", {}, tag("h2", {}, f"Validation loss on {data}"), figure)


def _unreadable(found: Sequence[Entry]) -> list[Markup]:
    if not found:
        return []
    told = [part for entry in found for part in (tag("dt", {}, entry.name), tag("dd", {}, entry.problem))]
    return [tag("section", {}, tag("h2", {}, "Cannot be read"), tag("dl", {"class": "facts"}, *told))]
