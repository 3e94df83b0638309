"""`interp-gpt2 runs`: the runs in a folder."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from interp_gpt2.cli.parse import option

if TYPE_CHECKING:
    from interp_gpt2.runs.run import Run

EXAMPLES = ("interp-gpt2 runs", "interp-gpt2 runs /data/my-runs --page")
_DAMAGED = 4


@dataclass(frozen=True)
class Runs:
    """The runs in a folder: steps, checkpoints, last losses in nats per token, size on disk."""

    folder: Annotated[tyro.conf.Positional[Path], option("DIR")] = Path("checkpoints")
    """Where to look."""
    page: bool = False
    """Also write index.html there: losses, phase changes, and the way to each report."""

    def run(self) -> int:
        from interp_gpt2.cli.tables import table
        from interp_gpt2.errors import InterpGPT2Error, RunError
        from interp_gpt2.runs.run import SETTINGS, Run

        if not self.folder.is_dir():
            raise RunError(f"there is no folder {self.folder}; `interp-gpt2 demo` and `train` make checkpoints/")
        found = [path.parent for path in sorted(self.folder.glob(f"*/{SETTINGS}"))]
        if not found:
            raise RunError(f"there are no runs in {self.folder}")
        header, lines, damaged = ["run", "step", "of", "checkpoints", "loss", "val loss", "size"], [], []
        for path in found:
            try:
                lines.append(_line(Run(path)))
            except InterpGPT2Error as error:  # one damaged run must not hide the others
                damaged.append(f"{path.name} cannot be read: {error}")
        if lines:
            print(table(header, lines))
        if self.page:
            from interp_gpt2.report.index import write_index

            print(f"\nwrote {write_index(self.folder)}")
        for problem in damaged:
            print(f"interp-gpt2: {' '.join(problem.split())}", file=sys.stderr)
        return _DAMAGED if damaged else 0


def _line(run: "Run") -> list[str]:
    from interp_gpt2.cli.tables import cut, in_bytes
    from interp_gpt2.report.inputs import training_config

    metrics = run.metrics()
    steps = run.steps
    last = max([*steps[-1:], *(row["step"] for row in metrics[-1:])], default=0)
    size = sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file())
    losses = [next((row[key] for row in reversed(metrics) if row.get(key) is not None), None) for key in ("loss", "val_loss")]
    shown = ["-" if loss is None else f"{loss:.3f}" for loss in losses]
    return [cut(run.name, 30), f"{last:,}", f"{training_config(run).n_steps:,}", str(len(steps)), *shown, in_bytes(size)]
