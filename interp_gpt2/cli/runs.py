"""`interp-gpt2 runs`: the runs in a folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from interp_gpt2.cli.parse import option

if TYPE_CHECKING:
    from interp_gpt2.runs.run import Run

EXAMPLES = ("interp-gpt2 runs", "interp-gpt2 runs /data/my-runs")


@dataclass(frozen=True)
class Runs:
    """The runs in a folder: steps, checkpoints, last losses in nats per token, size on disk."""

    folder: Annotated[tyro.conf.Positional[Path], option("DIR")] = Path("checkpoints")
    """Where to look."""

    def run(self) -> None:
        from interp_gpt2.cli.tables import table
        from interp_gpt2.errors import RunError
        from interp_gpt2.runs.run import SETTINGS, Run

        if not self.folder.is_dir():
            raise RunError(f"there is no folder {self.folder}; `interp-gpt2 demo` and `train` make checkpoints/")
        found = [path.parent for path in sorted(self.folder.glob(f"*/{SETTINGS}"))]
        if not found:
            raise RunError(f"there are no runs in {self.folder}")
        header = ["run", "step", "of", "checkpoints", "loss", "val loss", "size"]
        print(table(header, [_line(Run(path)) for path in found]))


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
