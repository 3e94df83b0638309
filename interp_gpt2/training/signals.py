"""Ctrl-C and SIGTERM: finish the step, write a checkpoint, then stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """Training stopped on request. If it had begun, it did so after `step`, and the checkpoint at `path` resumes it exactly.

    A KeyboardInterrupt, so that nothing that handles errors mistakes it for one. `exit_code` is the shell's: 130 for
    Ctrl-C, 143 for SIGTERM.
    """

    def __init__(self, signum: int, step: int | None = None, path: Path | None = None) -> None:
        super().__init__(signum, step, path)  # as args, so that it survives the way from another process
        self.signum, self.step, self.path = signum, step, path

    @property
    def exit_code(self) -> int:
        return 128 + self.signum

    def __str__(self) -> str:
        name = signal.Signals(self.signum).name
        return (
            f"stopped by {name}"
            if self.step is None
            else f"stopped by {name} at step {self.step}, which {self.path} can resume from"
        )


@dataclass
class StopRequest:
    """Which signal has asked training to stop, if one has."""

    signum: int | None = None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """The request that SIGINT or SIGTERM makes during the block; a second SIGINT is a KeyboardInterrupt at once.

    The handlers there were come back at the end. A SIGINT that was ignored stays so, as nohup and background jobs expect,
    and outside the main thread, where Python allows no handlers, no request is ever made.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(signum: int, frame: FrameType | None) -> None:
        if request.signum is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        request.signum = signum

    before = {
        signum: signal.signal(signum, note)
        for signum in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(signum) is not signal.SIG_IGN
    }
    try:
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
