"""Training in the terminal: a bar a run, or now and then a line where nobody watches."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from interp_gpt2.cli.tables import in_bytes
from interp_gpt2.training.events import Event, Finished, Logged, Notice, Started

if TYPE_CHECKING:
    from tqdm import tqdm


# What is said of a row of metrics. MFU is given against the device's datasheet (PaLM's formula) and against a measured product.
WORDS: dict[str, Callable[[Any], str]] = {
    "tokens": "{:,} tokens".format,
    "loss": "loss {:.3f}".format,
    "val_loss": "val {:.3f}".format,
    "val_bits_per_byte": "{:.3f} bits/byte".format,
    "grad_norm": "norm {:.2f}".format,
    "lr": "lr {:.2g}".format,
    "tokens_per_s": "{:,.0f} tok/s".format,
    "mfu_palm": "MFU {:.1%}".format,
    "mfu_causal": "{:.0%} of measured".format,
    "peak_memory_bytes": in_bytes,
    "data_share": "data {:.0%}".format,
}
BRIEF = ("loss", "val_loss", "tokens_per_s")


class TrainingBars:
    """Shows events by run name, on stderr: bars in a terminal, else a line at every evaluation."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.width = max(map(len, names))
        self.live = sys.stderr.isatty()
        self.bars: dict[str, tqdm] = {}
        self.shown: dict[str, dict[str, float]] = {name: {} for name in names}
        self.n_steps: dict[str, int] = {}
        self.began: dict[str, int] = {}  # the steps that were there already

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
            online = f", of them {event.online_seconds:.1f} s for online analyses" if event.online_seconds else ""
            self.write(f"{name}: {event.step - self.began[name]:,} steps in {event.seconds:.0f} s{online}")

    def start(self, name: str, event: Started) -> None:
        self.n_steps[name], self.began[name] = event.n_steps, event.step
        if not self.live:
            at_once = f", {event.micro_batch:,} sequences at once" if event.micro_batch else ""
            self.write(f"{name}: {event.n_params:,} parameters, step {event.step:,} of {event.n_steps:,}{at_once}")
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
        shown |= {key: row[key] for key in WORDS if row.get(key) is not None}
        if self.live:
            self.bars[name].set_postfix_str(" ".join(_numbers(shown, BRIEF)), refresh=False)
            self.bars[name].update(event.step - self.bars[name].n)
        elif "val_loss" in row:
            self.write(f"{name}: step {event.step:,} of {self.n_steps[name]:,}, {', '.join(_numbers(shown, tuple(WORDS)))}")

    def write(self, line: str) -> None:
        if self.bars:
            next(iter(self.bars.values())).write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)


def _numbers(shown: dict[str, Any], keys: tuple[str, ...]) -> list[str]:
    return [WORDS[key](shown[key]) for key in keys if key in shown]
