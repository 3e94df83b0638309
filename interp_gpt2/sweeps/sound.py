"""Which checkpoints of a run can be looked at together: those that are whole, and of one model."""

from interp_gpt2.errors import CheckpointError, ConversionError, RunError
from interp_gpt2.runs.run import Run
from interp_gpt2.sweeps.sweeping import kind_of
from interp_gpt2.sweeps.tasks import Failure, failure


def sound_run(run: Run) -> tuple[Run, tuple[Failure, ...]]:
    """The run with its sound checkpoints alone, and a failure for each that is damaged or another model than the last sound one.

    Every byte that a manifest vouches for is read; of models that others trained, the configs. Raises RunError for a run
    without checkpoints, the last one's error if none is sound.
    """
    if not run.steps:
        raise RunError(f"{run.name} has no checkpoints yet")
    failures: dict[int, Failure] = {}
    for step in run.steps:
        try:
            run.verify(step)
        except (CheckpointError, ConversionError, RunError) as error:
            failures[step] = failure(step, None, error)
    whole = [step for step in run.steps if step not in failures]
    if not whole:
        raise failures[max(failures)].error
    kind = kind_of(run, whole)
    for step in whole:
        try:
            kind.refuse_other(run, step, run.config_at(step))
        except CheckpointError as error:
            failures[step] = failure(step, None, error)
    return run.without(failures), tuple(failures[step] for step in sorted(failures))
