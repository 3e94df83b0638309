"""The table that a sweep ends in: its columns, their types, and files that keep every float exactly."""

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp_gpt2.analysis.rows import ROW_KEYS, Row
from interp_gpt2.errors import AnalysisError, CheckpointError, RunError
from interp_gpt2.files import written_atomically
from interp_gpt2.runs.run import Run

if TYPE_CHECKING:
    from pandas import DataFrame

COLUMNS = ("run", "seed", "step", "tokens", "analysis", *ROW_KEYS)
_INTEGERS = ("seed", "step", "tokens", "layer", "head", "neuron", "position", "n")
_FLOATS = ("value", "low", "high")


def table_of(run: Run, found: Iterable[tuple[int, str, list[Row]]]) -> "DataFrame":
    """The rows of each (step, analysis) in the columns of a sweep; seed and tokens are null where a run does not know them."""
    import pandas

    records: list[dict[str, Any]] = []
    name, seed, tokens = run.name, _seed(run), {}
    for step, analysis, rows in found:
        if step not in tokens:
            tokens[step] = _tokens(run, step)
        where = {"run": name, "seed": seed, "step": step, "tokens": tokens[step], "analysis": analysis}
        records += [{**where, **row} for row in rows]
    return typed(pandas.DataFrame(records, columns=list(COLUMNS)))


def _seed(run: Run) -> int | None:
    try:
        return run.seed
    except RunError:
        return None


def _tokens(run: Run, step: int) -> int | None:
    try:
        return run.tokens_seen(step)
    except (RunError, CheckpointError):
        return None


def typed(frame: "DataFrame") -> "DataFrame":
    """The columns of a sweep in their order and with their types."""
    kinds = {column: "Int64" if column in _INTEGERS else "float64" if column in _FLOATS else "string" for column in COLUMNS}
    return frame[list(COLUMNS)].astype(kinds)


def save_rows(frame: "DataFrame", path: Path | str) -> Path:
    """Write a sweep's table as CSV or JSON records, by the name's ending, every float exactly; nulls are empty or null."""
    path = Path(path)
    if path.suffix == ".csv":
        text = frame.to_csv(index=False)
    elif path.suffix == ".json":
        text = json.dumps(frame.astype(object).where(frame.notna(), None).to_dict("records"), ensure_ascii=False, indent=1)
    else:
        raise AnalysisError(f"a table is saved as .csv or .json, not as {path.name!r}")
    with written_atomically(path) as file:
        file.write(text.encode())
    return path


def load_rows(path: Path | str) -> "DataFrame":
    """The table that `save_rows` wrote, with the column types of `sweep`."""
    import pandas

    text = Path(path).read_text("utf-8")
    if Path(path).suffix == ".json":
        records = json.loads(text)
    else:  # not by pandas, whose reader may miss a float by its last bit
        kinds = dict.fromkeys(COLUMNS, str) | dict.fromkeys(_INTEGERS, int) | dict.fromkeys(_FLOATS, float)
        rows = csv.DictReader(io.StringIO(text, newline=""))
        records = [{name: kinds[name](cell) if cell else None for name, cell in row.items()} for row in rows]
    return typed(pandas.DataFrame(records, columns=list(COLUMNS)))
