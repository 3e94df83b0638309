"""What `torchrun` tells each process that it starts, in its environment. Needs no torch."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """Process `rank` of `world`, counted from 0, and `local_rank` among those of its machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0


def place() -> Place:
    """That of this process; without `torchrun` it is the only one."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if not {*names, "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return Place()
    return Place(*(int(os.environ[name]) for name in names))
