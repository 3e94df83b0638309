"""A run's own record, whatever else mirrors it: JSONL files, a line as each thing happens, each step once.

metrics.jsonl has a line per logged step, online.jsonl one per analysis made while training, samples.jsonl one per text.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interp_gpt2.errors import RunError
from interp_gpt2.files import written_atomically
from interp_gpt2.runs.durable import write_errors_named

METRICS, ONLINE, SAMPLES = "metrics.jsonl", "online.jsonl", "samples.jsonl"
LOGS = (METRICS, ONLINE, SAMPLES)


def append_metrics(run_dir: Path | str, row: Mapping[str, Any], log: str = METRICS) -> None:
    """Add one line and hand it to the system, so that it outlives this process.

    `row` has an int under "step". JSON has no NaN or infinity: such a value is null, and "nonfinite" says which it was.
    Raises RunError for a row that is not JSON, CheckpointWriteError where it cannot be written.
    """
    if type(row.get("step")) is not int:
        raise RunError(f"a row of metrics needs a whole number under 'step', got {row.get('step')!r}")
    nonfinite = {name: str(value) for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)}
    if nonfinite:
        row = {**row, **dict.fromkeys(nonfinite), "nonfinite": nonfinite}
    path = Path(run_dir) / log
    try:
        line = (json.dumps(row, allow_nan=False) + "\n").encode("ascii")
    except (TypeError, ValueError) as error:
        raise RunError(f"the metrics of step {row['step']} are not JSON: {error}") from error
    with write_errors_named(path, len(line)), path.open("ab") as file:
        file.write(line)


def read_metrics(run_dir: Path | str, log: str = METRICS) -> list[dict[str, Any]]:
    """Every row in the order written. A last line that a killed process left unfinished is not counted.

    Raises RunError naming the line for anything else that is not a row.
    """
    path = Path(run_dir) / log
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is unfinished, or nothing
        try:
            row = json.loads(line)
        except ValueError as error:
            raise RunError(f"{path}, line {number} is damaged: {error}") from error
        if not isinstance(row, dict) or type(row.get("step")) is not int:
            raise RunError(f"{path}, line {number} is not a row of metrics: it has no whole number under 'step'")
        rows.append(row)
    return rows


def truncate_metrics(run_dir: Path | str, last: int) -> int:
    """Keep the rows of steps up to and including `last` in each of LOGS; resuming writes the others anew. Returns how many go."""
    gone = 0
    for log in LOGS:
        rows = read_metrics(run_dir, log)
        kept = [row for row in rows if row["step"] <= last]
        if log == METRICS or (Path(run_dir) / log).exists():
            with written_atomically(Path(run_dir) / log) as file:  # also when nothing goes: an unfinished line must
                file.writelines(json.dumps(row).encode("ascii") + b"\n" for row in kept)
        gone += len(rows) - len(kept)
    return gone
