"""Training in the terminal: a bar a run, or now and then a line where nobody watches."""

import sys
from typing import TYPE_CHECKING, Any

from interp_gpt2.cli.tables import in_bytes
from interp_gpt2.training.events import Event, Finished, Logged, Notice, Saved, Started

if TYPE_CHECKING:
    from tqdm import tqdm


class TrainingBars:
    """Shows events by run name, on stderr: bars in a terminal, else a line at every evaluation."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.width = max(map(len, names))
        self.live = sys.stderr.isatty()
        self.bars: dict[str, tqdm] = {}
        self.shown: dict[str, dict[str, float]] = {name: {} for name in names}
        self.n_steps: dict[str, int] = {}

    def __enter__(self) -> "TrainingBars":
        return self

    def __exit__(self, *_: object) -> None:
        for bar in self.bars.values():
            bar.close()

    def __call__(self, name: str, event: Event) -> None:
        if isinstance(event, Started):
            self.start(name, event)
        elif isinstance(event, Logged):
            self.log(name, event)
        elif isinstance(event, Notice):
            self.write(f"{name}: {event.text}")
        elif isinstance(event, Finished) and not self.live:
            self.write(f"{name}: {event.step:,} steps in {event.seconds:.0f} s")
        elif isinstance(event, (Saved, Finished)):
            return

    def start(self, name: str, event: Started) -> None:
        self.n_steps[name] = event.n_steps
        if not self.live:
            self.write(f"{name}: {event.n_params:,} parameters, step {event.step:,} of {event.n_steps:,}")
        if event.disk is not None and event.disk.checkpoints:
            sizes = f"{in_bytes(event.disk.total)}, of {in_bytes(event.disk.free)} free"
            self.write(f"{name}: {event.disk.checkpoints:,} checkpoints to come take at most {sizes}")
        if not self.live:
            return
        from tqdm import tqdm

        self.bars[name] = tqdm(
            desc=name.ljust(self.width),
            total=event.n_steps,
            initial=event.step,
            position=self.names.index(name),
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {remaining}{postfix}",
            dynamic_ncols=True,
            mininterval=0.2,
        )

    def log(self, name: str, event: Logged) -> None:
        row, shown = event.row, self.shown[name]
        shown |= {key: row[key] for key in ("loss", "val_loss", "tokens_per_s") if row.get(key) is not None}
        if self.live:
            self.bars[name].set_postfix_str(" ".join(_numbers(shown)), refresh=False)
            self.bars[name].update(event.step - self.bars[name].n)
        elif "val_loss" in row:
            self.write(f"{name}: step {event.step:,} of {self.n_steps[name]:,}, {', '.join(_numbers(shown))}")

    def write(self, line: str) -> None:
        if self.bars:
            next(iter(self.bars.values())).write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)


def _numbers(shown: dict[str, Any]) -> list[str]:
    words = {"loss": "loss {:.3f}", "val_loss": "val {:.3f}", "tokens_per_s": "{:,.0f} tok/s"}
    return [words[key].format(shown[key]) for key in words if key in shown]
