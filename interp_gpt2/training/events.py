"""What training says while it runs. It prints nothing: whoever started it gets these, also from another process."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp_gpt2.training.disk import DiskNeeded


@dataclass(frozen=True)
class Started:
    """Training goes on from `step` of `n_steps`; a step is one update of the weights.

    `disk` is what its checkpoints need, `micro_batch` how many sequences are computed at once (None: all of a batch).
    """

    step: int
    n_steps: int
    n_params: int
    tokens_per_step: int
    disk: "DiskNeeded | None" = None
    micro_batch: int | None = None


@dataclass(frozen=True)
class Logged:
    """A row of metrics.jsonl, just written."""

    row: dict[str, Any]

    @property
    def step(self) -> int:
        return self.row["step"]


@dataclass(frozen=True)
class Analysed:
    """An online analysis is done, its rows are in online.jsonl; it took `seconds`."""

    step: int
    analysis: str
    seconds: float


@dataclass(frozen=True)
class Saved:
    """A checkpoint is on disk; `resumable` ones hold the optimizer's state too."""

    step: int
    path: Path
    resumable: bool


@dataclass(frozen=True)
class Notice:
    """Something the user should know, in one line."""

    text: str


@dataclass(frozen=True)
class Finished:
    """The last step is done, its checkpoint on disk. `seconds` are those of this call, also those of online analyses."""

    step: int
    seconds: float
    online_seconds: float = 0.0


Event = Started | Logged | Analysed | Saved | Notice | Finished
Progress = Callable[[Event], None]


def silent(event: Event) -> None:
    """Progress for nobody."""
