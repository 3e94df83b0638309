"""What training shows as it goes: bars in a terminal, lines elsewhere."""

import re
import sys

from interp_gpt2.cli.progress import TrainingBars
from interp_gpt2.training.events import Finished, Logged, Notice, Started


def test_progress_tells_the_steps_of_this_call(capsys):
    with TrainingBars(["a"]) as bars:
        bars("a", Started(90, 100, 5000, 64))
        bars("a", Finished(100, 1.2))
    assert capsys.readouterr().err.splitlines()[-1] == "a: 10 steps in 1 s"


def test_progress_without_a_terminal_is_lines(capsys):
    with TrainingBars(["a", "bb"]) as bars:
        bars("a", Started(0, 100, 5000, 64))
        bars("a", Logged({"step": 10, "loss": 2.0}))
        measured = {"mfu_palm": 0.4123, "mfu_causal": 0.51, "peak_memory_bytes": 3_200_000_000, "data_share": 0.02}
        row = {"step": 50, "tokens": 3200, "loss": 1.5, "lr": 6e-4, "grad_norm": 0.8, "tokens_per_s": 12345.6} | measured
        bars("a", Logged(row | {"val_loss": 1.6, "val_bits_per_byte": 2.1}))
        bars("bb", Notice("something to know"))
        bars("a", Finished(100, 12.3))
    assert capsys.readouterr().err.splitlines() == [
        "a: 5,000 parameters, step 0 of 100",
        "a: step 50 of 100, 3,200 tokens, loss 1.500, val 1.600, 2.100 bits/byte, norm 0.80, lr 0.0006, 12,346 tok/s, "
        "MFU 41.2%, 51% of measured, 3.2 GB, data 2%",
        "bb: something to know",
        "a: 100 steps in 12 s",
    ]


def test_progress_in_a_terminal_is_a_bar_a_run(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with TrainingBars(["a", "bb"]) as bars:
        for name in ("a", "bb"):
            bars(name, Started(0, 100, 5000, 64))
        bars("a", Logged({"step": 50, "loss": 1.5, "val_loss": 1.6, "tokens_per_s": 12345.6}))
    shown = capsys.readouterr().err
    assert re.search(r"a +50%\|.*50/100.*loss 1.500 val 1.600 12,346 tok/s", shown)
    assert re.search(r"bb +0%", shown)
