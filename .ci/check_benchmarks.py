"""Run every benchmark in small, so that none rots, and hold what it writes against the pages made of it. No speeds.

    python .ci/check_benchmarks.py                       all
    python .ci/check_benchmarks.py instrument patching   these

A table that a script prints must have the rows of the one on its page, and no column that the page has not; the others must have
the fields that their pages were written from. What is not installed here (nnsight, the other TransformerLens) is named.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
RUN = "tests/data/study/demo-induction-one-layer"
JSON = "{json}"  # where a script is to write its numbers
VERSION = re.compile(r" \d+(\.\d+)+")


@dataclass(frozen=True)
class Made:
    """What a script said, and the numbers it wrote."""

    said: str
    numbers: Any

    def has(self, *fields: str, at: tuple[str | int, ...] = ()) -> str:
        value = self.numbers
        for key in at:
            value = value[key]
        missing = [field for field in fields if field not in value]
        assert not missing, f"no {', '.join(missing)} among {', '.join(map(str, value))}"
        return f"{len(fields)} fields" + (f" of {' / '.join(map(str, at))}" if at else "")


Check = Callable[[Made], str]


# Tables ---------------------------------------------------------------------------------------------------------------

Table = tuple[list[str], list[str]]  # what stands above, and what stands first in each row


def tables(text: str) -> list[Table]:
    """The Markdown tables of a text, without the versions in their names."""
    found: list[Table] = []
    before = ""
    for line in VERSION.sub("", text).splitlines():
        cells = [cell.strip() for cell in line.strip("| \n").split("|")] if line.startswith("|") else []
        if cells and not before.startswith("|"):
            found.append((cells, []))
        elif cells and not re.fullmatch(r"[|\s:-]+", line):
            found[-1][1].append(line.split("|")[1].strip())
        before = line
    return found


def same_tables(page: str, rows: bool = True) -> Check:
    def check(made: Made) -> str:
        theirs, ours = tables((BENCHMARKS / page).read_text()), tables(made.said)
        assert ours, f"no table:\n{made.said}"
        for columns, names in ours:
            alike = [table for table in theirs if set(columns) <= set(table[0]) and (not rows or table[1] == names)]
            assert alike, f"{page} has no table with the columns {columns} and the rows {names}"
            absent = [column for column in alike[0][0] if column not in columns]
            if absent:
                print(f"  not installed here, so left out of {page}'s table by {columns[0]!r}: {', '.join(absent)}")
        return f"{len(ours)} tables are {page}'s"

    return check


def all_of(*checks: Check) -> Check:
    return lambda made: "; ".join(check(made) for check in checks)


# What each script is run with, and what it must have made -------------------------------------------------------------


def numbers(*fields: str, at: tuple[str | int, ...] = ()) -> Check:
    return lambda made: made.has(*fields, at=at)


def words(pattern: str) -> Check:
    def check(made: Made) -> str:
        assert re.search(pattern, made.said), f"it does not say {pattern!r}:\n{made.said}"
        return "says what its page says"

    return check


def trials(made: Made) -> str:
    """Of crashes.py: those that were asked for, each counted or left out with its reason."""
    told = dict(re.findall(r"^(\w+): (.+) \(\d+ s\)$", made.said, re.MULTILINE))
    page = re.findall(r"^\| (\w+) \| \d", (BENCHMARKS / "CRASHES.md").read_text(), re.MULTILINE)
    assert told, made.said
    assert set(told) <= set(page), sorted(set(told) - set(page))
    left = [name for name, said in told.items() if said.startswith("left out")]
    return f"{len(told)} of {len(page)} trials" + (f", left out: {', '.join(left)}" if left else "")


def rows_named(page: str, *names: str) -> Check:
    """The page has these rows, which are made by hand of what the script says."""

    def check(made: Made) -> str:
        text = (BENCHMARKS / page).read_text()
        assert all(name in text and name in made.said for name in names), f"{names} are not both said and on {page}"
        return f"rows of {page}"

    return check


TRIALS = ("kills", "flips", "races", "chain", "signals", "store_kills", "store_flips", "store_readers")
SCRIPTS: dict[str, tuple[list[str], Check]] = {
    "instrument": (
        ["--tiny", "--rounds", "1", "--json", JSON],
        all_of(same_tables("RESULTS.md"), numbers("circumstances", "rows", "subsets", "footprint", "imports")),
    ),
    "patching": (
        ["--tiny", "--rounds", "1", "--growth", "--json", JSON],
        all_of(same_tables("PATCHING.md"), numbers("circumstances", "patching", "growth")),
    ),
    "edge_attribution": (
        ["--tiny", "--rounds", "1", "--json", JSON],
        all_of(
            numbers("milliseconds", "ratio", "peak_bytes", "target", at=("rows", 0)),
            rows_named("PATCHING.md", "EAP", "EAP, a function of whole logits", "attribution patching, z by position"),
        ),
    ),
    "exactness": (["--tiny", "--tokens", "2", "16"], same_tables("EXACTNESS.md", rows=False)),
    "generation": (
        ["--tiny", "--rounds", "1", "--json", JSON],
        all_of(
            numbers("milliseconds", "ratio", "target", at=("results", 1)),
            rows_named("EXACTNESS.md", "64 greedy tokens, float32", "64 greedy tokens, bfloat16"),
        ),
    ),
    "validation": (["--tiny"], words(r"tokens \d+ µs, names and edits \d+ µs: [\d.]+ % of [\d.]+ ms")),
    "training": (
        ["--rounds", "1", "--only", "tiny-shakespeare-cpu", "--json", JSON],
        all_of(
            numbers("nanoGPT", "interp_gpt2, float32", "interp_gpt2", at=("results", 0, "tokens_per_s")),
            numbers("date", "machine", "torch"),
        ),
    ),
    "prepare": (
        ["--rounds", "1", "--megabytes", "1", "--json", JSON],
        numbers("tokens", "tokens_per_s", "ratio", at=("results", 0)),
    ),
    "growth": (["--tiny", "--rounds", "1", "--json", JSON], same_tables("TRAINING.md")),
    "saving": (["--tiny", "--tokens", "1x64", "--saves", "1"], words(r"copied [\d.]+%, lost -?[\d.]+%, all of it [\d.]+%")),
    "exits": (["--runs", "1", "--json", JSON], numbers("call", "command", at=("exit_codes",))),
    "crashes": (["--n", "2", *TRIALS], trials),
    "probes": (
        ["--tokens", "512", "--layers", "1", "--json", JSON],
        all_of(numbers("circumstances", "neurons", "parts", "apart", "bound", "met"), numbers("forward", "exact", at=("parts",))),
    ),
    "activations": (
        ["--rows", "8192", "--tokens", "256"],
        words(r'(?s)"4,096 random rows, ms".*"in order, MB/s".*"writing, MB/s".*"beside the pass".*random rows: [\d.]+ ms'),
    ),
    "sweeps": (
        ["--tiny", "--checkpoints", "2", "--sequences", "1", "--rounds", "1", "--json", JSON],
        all_of(numbers("gain", "gain_with_start", "met", at=("processes",)), numbers("share", at=("io",)), numbers("stacking")),
    ),
    "contract": ([JSON], same_tables("CONTRACT.md")),
}


def needs(script: str) -> str | None:
    """What a script cannot do without and is not here."""
    if script == "prepare":
        from interp_gpt2.errors import TokenizerError
        from interp_gpt2.tokenizers import GPT2Tokenizer

        try:
            GPT2Tokenizer()
        except TokenizerError:
            return "GPT-2's tokenizer is neither here nor to be had"
    return None


def run(script: str, folder: Path) -> None:
    options, check = SCRIPTS[script]
    path, began = folder / f"{script}.json", perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    commands = [[str(BENCHMARKS / f"{script}.py"), *(str(path) if word == JSON else word for word in options)]]
    if script == "contract":  # the page is made of what the command has written
        commands.insert(0, ["-m", "interp_gpt2", "contract", RUN, "--quick", "--json", str(path)])
    for command in commands:
        done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    try:
        found = check(Made(done.stdout, json.loads(path.read_text()) if path.is_file() else None))
    except AssertionError as error:
        raise SystemExit(f"{' '.join(commands[-1])}: {error}") from error
    print(f"{perf_counter() - began:5.1f} s  {script}: {found}", flush=True)


def main() -> None:
    scripts = {path.stem for path in BENCHMARKS.glob("*.py") if '__name__ == "__main__"' in path.read_text()} - {"footprint"}
    assert scripts == set(SCRIPTS), f"not run here, or gone: {scripts ^ set(SCRIPTS)}"  # footprint is run by instrument
    wanted = sys.argv[1:] or list(SCRIPTS)
    reasons = {script: reason for script in wanted if (reason := needs(script))}
    for script, reason in reasons.items():
        print(f"left out: {script}: {reason}")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as two:
        os.environ["INTERP_GPT2_CACHE"] = str(Path(folder) / "cache")
        list(two.map(lambda script: run(script, Path(folder)), [script for script in wanted if script not in reasons]))


if __name__ == "__main__":
    main()
