"""A guard against spikes: an update whose loss or gradient norm stands out from the last ones is left out, or noted."""

from typing import Any

import torch
from torch import Tensor

from interp_gpt2.errors import CheckpointError


class Guard:
    """Holds each update against the last `window` ones: a spike lies above their mean + z standard deviations.

    Loss and gradient norm (before clipping) are judged apart; one of them suffices. Until the window is full nothing is a
    spike, and spikes enter it like any other update, so that a change that stays is soon no spike any more (llm.c's
    outlier detector does the same). Everything happens on the device: deciding never waits for it. What is decided is a
    function of the updates so far, and `state` has all of them that still count.
    """

    def __init__(self, z: float, window: int, device: torch.device) -> None:
        self.z, self.seen = z, 0
        self.unlogged: list[int] = []  # numbers of updates found to be spikes since the last row of metrics
        self.last = torch.zeros(2, window, device=device)  # a ring: update number n is in column n % window

    def judge(self, measured: Tensor) -> Tensor:
        """1 if `measured`, (loss, norm), is a spike among the updates before it, else 0; it is then among them."""
        window = self.last.shape[1]
        spike = measured.new_zeros(())
        if self.seen >= window:
            limit = self.last.mean(1) + self.z * self.last.std(1)
            spike = (measured > limit).any().to(measured.dtype)
        self.last[:, self.seen % window] = measured
        self.seen += 1
        return spike

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: float32 values are exact as JSON numbers."""
        return {"seen": self.seen, "last": self.last.tolist(), "unlogged": list(self.unlogged)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`. Raises CheckpointError if it is of another window."""
        last = torch.tensor(state["last"])
        if last.shape != self.last.shape:
            raise CheckpointError(f"the guard's state is {tuple(last.shape)}, not {tuple(self.last.shape)} as guard_window says")
        self.last.copy_(last)
        self.seen, self.unlogged = state["seen"], list(state["unlogged"])
