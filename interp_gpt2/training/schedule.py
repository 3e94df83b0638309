"""What changes with the step: the learning rate, and when a checkpoint is kept."""

import math
from collections.abc import Iterable
from itertools import count

from interp_gpt2.training.config import Checkpoints, TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of update `step`, counted from 0.

    It rises in equal steps to `lr` over the first `warmup_steps` updates. Then "constant" stays there, and "cosine"
    falls along half a cosine from `lr` to `min_lr`, which the last update would be followed by. "wsd" (warm-up, stable,
    decay) stays and falls in the last `decay_fraction` of the steps, by 1 - progress ("linear") or 1 - sqrt(progress)
    ("1-sqrt"), progress being the share of the decay that is over.

    Hu et al. 2024, "MiniCPM" (WSD); Hägele et al. 2024, "Scaling Laws and Compute-Optimal Training Beyond Fixed Training
    Durations" (1-sqrt over the last fifth: about as good as a cosine of the same length).
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    begins = config.warmup_steps
    if config.schedule == "wsd":
        begins = max(begins, config.n_steps - round(config.decay_fraction * config.n_steps))
    progress = min(1.0, max(0.0, (step - begins) / max(1, config.n_steps - begins)))
    return config.min_lr + (config.lr - config.min_lr) * _left(config, progress)


def _left(config: TrainConfig, progress: float) -> float:
    """How much is left of the way from lr to min_lr: 1 at progress 0, 0 at 1."""
    if config.schedule == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    return 1 - (math.sqrt(progress) if config.decay_shape == "1-sqrt" else progress)


def checkpoint_steps(checkpoints: Checkpoints, n_steps: int) -> frozenset[int]:
    """The steps from 0 to `n_steps` whose weights are kept: the union of the schedules, and both ends.

    Step s is the model after s updates, so step 0 is the model at initialisation. Those of `resume_steps` are kept too.
    """
    steps = {0, n_steps, *checkpoints.at}
    if checkpoints.per_doubling:
        steps |= log_spaced(checkpoints.per_doubling, n_steps)
    if checkpoints.pythia:
        steps |= log_spaced(1, min(512, n_steps)) | set(range(1000, n_steps + 1, 1000))
    if checkpoints.every:
        steps.update(range(0, n_steps + 1, checkpoints.every))
    return frozenset(step for step in steps | piecewise(checkpoints.piecewise) if step <= n_steps)


def resume_steps(checkpoints: Checkpoints, n_steps: int) -> frozenset[int]:
    """The steps whose checkpoints hold the optimizer's state when they are written."""
    return anchor_steps(checkpoints, n_steps) | {n_steps, *range(0, n_steps, checkpoints.resume_every)}


def anchor_steps(checkpoints: Checkpoints, n_steps: int) -> frozenset[int]:
    """The steps whose checkpoints hold it for good: i n_steps / anchors, rounded down, for i from 0."""
    return frozenset(i * n_steps // checkpoints.anchors for i in range(checkpoints.anchors))


def piecewise(pieces: Iterable[tuple[int, int]]) -> set[int]:
    """Multiples of `every` up to and including `last`, for each piece (every, last) from where the one before ended.

    Stanford CRFM's GPT-2s were kept at [[10, 100], [50, 2000], [100, 20000], [1000, 400000]] (Karamcheti et al. 2021).
    """
    steps, before = set(), 0
    for every, last in pieces:
        steps.update(range((before // every + 1) * every, last + 1, every))
        before = last
    return steps


def log_spaced(per_doubling: int, n_steps: int) -> set[int]:
    """0 and 2^(i / per_doubling), rounded, up to `n_steps`: 0, 1, 2, 4, 8, ... for one checkpoint per doubling."""
    return {0, *_up_to(n_steps, (round(2 ** (i / per_doubling)) for i in count()))}


def _up_to(last: int, steps: Iterable[int]) -> Iterable[int]:
    for step in steps:
        if step > last:
            return
        yield step
