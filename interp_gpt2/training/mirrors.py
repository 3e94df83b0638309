"""metrics.jsonl shown elsewhere too: TensorBoard or Weights & Biases. The file stays the truth, and training needs neither.

A mirror runs in a thread of its own. When it fails (no package, no network, no login) or does not come to an end, training
goes on without it and says so once.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Any, Protocol

from interp_gpt2.runs.run import Run
from interp_gpt2.training.events import Event, Logged, Notice, Progress, Started

CLOSING_SECONDS = 30.0  # what is still on its way may take so long at the end


class Writer(Protocol):
    """Where rows go."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files under `<run>/tensorboard`, those after `step` taken back."""

    def __init__(self, run: Run, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WandB:
    """A run of Weights & Biases, the same one when training goes on."""

    def __init__(self, run: Run, step: int) -> None:
        import wandb

        settings = run.settings
        identity = hashlib.sha256(f"{run.name} {settings.get('created')}".encode()).hexdigest()[:16]
        self.run = wandb.init(
            project="interp_gpt2", name=run.name, id=identity, resume="allow", dir=str(run.path), config=settings["config"]
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


WRITERS: dict[str, type[TensorBoard] | type[WandB]] = {"tensorboard": TensorBoard, "wandb": WandB}


class Mirror:
    """Progress that passes everything on, and the logged rows to a writer as well."""

    def __init__(self, tracking: str, run: Run, progress: Progress) -> None:
        self.tracking, self.run, self.progress = tracking, run, progress
        self.tasks: SimpleQueue[tuple[Any, ...] | None] = SimpleQueue()
        self.writer: Writer | None = None  # made and used in the thread
        self.error: BaseException | None = None  # what ended the thread
        self.failed = False
        self.thread = Thread(target=self._work, name=tracking, daemon=True)  # Python's own end does not wait for it
        self.thread.start()

    def __call__(self, event: Event) -> None:
        self.progress(event)
        if isinstance(event, Started):
            self.submit(self._open, event.step)
        elif isinstance(event, Logged):
            numbers = {name: value for name, value in event.row.items() if _is_number(value) and name != "step"}
            self.submit(self._write, event.step, numbers)
        self.look()

    def submit(self, *task: Any) -> None:
        if not self.failed:
            self.tasks.put(task)

    def look(self) -> None:
        """Say what went wrong, once; never wait."""
        if self.error is not None and not self.failed:
            self.failed = True
            reason = f"{type(self.error).__name__}: {self.error}".splitlines()[0]
            self.progress(Notice(f"{self.tracking} shows no more of this run ({reason}); metrics.jsonl has every row"))

    def close(self) -> None:
        """Finish what is under way, for no longer than CLOSING_SECONDS."""
        self.submit(self._close)
        self.tasks.put(None)
        self.thread.join(CLOSING_SECONDS)
        if self.thread.is_alive():
            self.error = TimeoutError(f"not done after {CLOSING_SECONDS:.0f} s")
        self.look()

    def _work(self) -> None:
        with ExitStack() as stack:
            stack.push(self._ended_by)
            for function, *arguments in iter(self.tasks.get, None):
                function(*arguments)

    def _ended_by(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> bool:
        self.error = error  # whatever it is, `look` says it, and it ends the mirror alone
        return True

    def _open(self, step: int) -> None:
        self.writer = WRITERS[self.tracking](self.run, step)

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        if self.writer is not None:
            self.writer.write(step, values)

    def _close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@contextmanager
def mirrored(tracking: str, run: Run, progress: Progress) -> Iterator[Progress]:
    """`progress`, and what `tracking` ("none", "tensorboard", "wandb") adds to it."""
    if tracking == "none":
        yield progress
        return
    mirror = Mirror(tracking, run, progress)
    try:
        yield mirror
    finally:
        mirror.close()
