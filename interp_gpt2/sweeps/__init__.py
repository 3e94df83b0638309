"""An analysis over the checkpoints of a run: in parallel, kept as it goes, and one tidy table at the end.

    frame = sweep(run, InductionScores(tokens))
    frame = sweep(run, [heads, losses], steps=run.steps[::4], workers=8)
    frame = sweep(run, ["head_scores", "loss_by_position"], executor=client.get_executor())

A result is a file under `<run>/sweeps/`, found again by the checkpoint's hash, the analysis's fingerprint and the code
that computes it. So a repeated sweep reads files, an interrupted one goes on where it stopped, and a changed analysis or
checkpoint is computed anew.
"""

from interp_gpt2.sweeps.executors import n_cores, one_thread_each
from interp_gpt2.sweeps.results import plain_row
from interp_gpt2.sweeps.sound import sound_run
from interp_gpt2.sweeps.sweeping import Swept, attempt_sweep, sweep
from interp_gpt2.sweeps.tables import COLUMNS, load_rows, save_rows, typed
from interp_gpt2.sweeps.tasks import Failure

__all__ = [
    "COLUMNS", "Failure", "Swept", "attempt_sweep", "load_rows", "n_cores", "one_thread_each", "plain_row", "save_rows",
    "sound_run", "sweep", "typed",
]  # fmt: skip
