"""`interp-gpt2 sweep`: analyses over the checkpoints of a run, as a table."""

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from interp_gpt2.cli.parse import UsageError, option
from interp_gpt2.cli.push import chosen_steps

EXAMPLES = (
    "interp-gpt2 sweep demo-induction --analyses head_scores,loss_by_position --out table.csv",
    "interp-gpt2 sweep demo-induction --analyses lens_by_layer --steps 0,500,2000 --out lens.json",
)


@dataclass(frozen=True)
class Sweep:
    """Write the rows of analyses at every checkpoint of a run, a row for each number, as CSV or JSON.

    Each result is kept as it is computed: a repeated sweep reads it, an interrupted one goes on. A checkpoint that cannot
    be read, or an analysis that fails at one, is named at the end, and the exit code is not 0; the others are in the table.
    """

    source: Annotated[tyro.conf.Positional[str], option("RUN")]
    """A run whose data is on this machine, or one of its checkpoints."""
    analyses: Annotated[str, option("NAMES")]
    """Names separated by commas; a wrong one lists those there are."""
    out: Annotated[Path, option("FILE")]
    """A file to write, .csv or .json."""
    steps: Annotated[str | None, option("STEPS")] = None
    """Some steps, separated by commas; all of them unless given."""
    workers: Annotated[int | None, option("N")] = None
    """Processes; chosen by measuring unless given."""
    dask: Annotated[str | None, option("ADDRESS")] = None
    """The scheduler of a Dask cluster whose workers see the same files, such as tcp://10.0.0.1:8786."""

    def run(self) -> None:
        from interp_gpt2.cli.where import find_run
        from interp_gpt2.sweeps import attempt_sweep, save_rows

        if self.out.suffix not in (".csv", ".json"):
            raise UsageError(f"--out takes a file that ends in .csv or .json, not {self.out.name!r}")
        if self.dask is not None and self.workers is not None:
            raise UsageError("--workers are processes here, and --dask is a cluster; give one of them")
        run, implied = find_run(self.source)
        steps = chosen_steps(self.steps) if self.steps is not None else None if implied is None else [implied]
        names = [name.strip() for name in self.analyses.split(",")]
        with cluster(self.dask) as executor:
            swept = attempt_sweep(run, names, steps, self.workers, executor=executor)
        frame = swept.complete() if swept.frame.empty else swept.frame
        for name, rows in frame.groupby("analysis", sort=False):
            print(f"{name}: {len(rows):,} rows at {rows.step.nunique()} of {len(swept.steps)} steps")
        print(f"wrote {save_rows(frame, self.out)}")
        swept.complete()


@contextmanager
def cluster(address: str | None) -> Iterator[Executor | None]:
    """The executor of a Dask scheduler; None for no address. Raises UsageError where there is none, or no Dask."""
    if address is None:
        yield None
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise UsageError('--dask needs Dask: pip install "interp_gpt2[distributed]"') from error
    try:
        client = Client(address, timeout=10)
    except (OSError, ValueError) as error:
        raise UsageError(f"no Dask scheduler answers at {address}: {error}") from error
    with client:
        yield client.get_executor()
