"""What survives: writers killed, system calls that fail, a full disk, flipped bits, signals; counted in large numbers.

    python benchmarks/crashes.py                 everything, about half an hour on two cores
    python benchmarks/crashes.py kills flips     only these
    python benchmarks/crashes.py --n 2           so many trials of each, to see that everything runs
    python benchmarks/crashes.py --write         and put what was counted into benchmarks/CRASHES.md

The tests make the same trials in small numbers. `faults` needs strace, `full_disk` the right to mount; each is left out,
and says so, where it has not got what it needs. Whatever must not happen is counted and raises at the end.
"""

import argparse
import os
import platform
import re
import resource
import tempfile
import time
from collections.abc import Callable
from datetime import date
from inspect import signature
from pathlib import Path

import crashes_activations
import crashes_training
import crashes_writing
import torch

TRIALS: dict[str, Callable[[Path], str]] = {
    trial.__name__: trial
    for trial in (
        crashes_writing.kills,
        crashes_writing.faults,
        crashes_writing.full_disk,
        crashes_writing.flips,
        crashes_writing.races,
        crashes_training.chain,
        crashes_training.signals,
        crashes_training.compiling,
        crashes_activations.store_kills,
        crashes_activations.store_flips,
        crashes_activations.store_readers,
        crashes_activations.store_full_disk,
    )
}


def write_page(found: dict[str, str]) -> None:
    """Put these rows into CRASHES.md, and keep those of other trials."""
    path = Path(__file__).with_name("CRASHES.md")
    rows = dict(re.findall(r"^\| (\w+) \| (.*) \|$", path.read_text(), re.MULTILINE)) if path.exists() else {}
    machine = f"{platform.system()} {platform.release()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    rows |= {name: f"{said} | {date.today()}, {machine}, torch {torch.__version__}" for name, said in found.items()}
    head = ["# Crashes, counted", "", "By `python benchmarks/crashes.py --write`; its first lines say how.", "",
            "| trial | what was counted | when and where |", "|---|---|---|"]  # fmt: skip
    path.write_text("\n".join([*head, *(f"| {name} | {rows[name]} |" for name in TRIALS if name in rows)]) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trials", nargs="*", choices=[*TRIALS, []], default=[])
    parser.add_argument("--n", type=int, help="trials of each kind; default: as many as CRASHES.md has")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if options.write and options.n is not None:
        parser.error("--write puts down the full number of trials; leave --n out")
    how = {} if options.n is None else {"n": options.n}
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name in options.trials or TRIALS:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["INTERP_GPT2_CACHE"] = str(Path(folder) / "cache")
            began = time.monotonic()
            said = TRIALS[name](Path(folder), **(how if "n" in signature(TRIALS[name]).parameters else {}))
        print(f"{name}: {said} ({time.monotonic() - began:.0f} s)", flush=True)
        if options.write and not said.startswith("left out"):
            write_page({name: said})


if __name__ == "__main__":
    main()
