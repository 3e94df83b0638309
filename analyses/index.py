"""What does every script here answer on the runs of the demo? Writes the answers into README.md, or checks those that are there.

    python analyses/index.py
    python analyses/index.py --check    # what continuous integration does

The runs are those of tests/data/study, so that their answers are the same everywhere but for rounding; demo-text-small read the
documentation of a Python, and is asked where the same one runs. What is trained or sampled on the way has a wider tolerance. A
number may be off by a share of itself or by so much, whichever is more; words may not, except where the tolerance is wide. Every
script must have written a JSON file and a figure.
"""

import argparse
import ast
import io
import platform
import re
import runpy
import shutil
import sys
import tempfile
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from unittest import mock

import torch

from interp_gpt2 import GPT2, GPT2Config
from interp_gpt2.errors import TokenizerError
from interp_gpt2.runs.checkpoint import save_checkpoint
from interp_gpt2.tokenizers import tokenizer_named

HERE = Path(__file__).parent
PAGE = HERE / "README.md"
STUDY = HERE.parent / "tests/data/study"
BEGIN, END = "<!-- answers, written by index.py: begin -->", "<!-- answers: end -->"
NARROW, WIDE = (0.02, 0.02), (0.25, 0.1)  # (share of the number, absolute)
INDUCTION, CONTROL, TEXT = "demo-induction", "demo-induction-one-layer", "demo-text-small"
RANDOM = "a random model of GPT-2's shape"  # but narrow: what counts is 12 layers of 12 heads
RECORDED = "as recorded in ladder/recorded.json"
PYTHON = "Python " + ".".join(platform.python_version_tuple()[:2])
NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*\.?\d*(?!\w)")


@dataclass(frozen=True)
class Asked:
    """One script, asked of one run. `share` and `absolute` are how far a number of its answer may be off."""

    script: str
    of: str
    options: tuple[str, ...] = ()
    tolerance: tuple[float, float] = NARROW

    @property
    def key(self) -> tuple[str, str]:
        return self.script, self.of

    @property
    def wide(self) -> bool:
        return self.tolerance == WIDE


def of_runs(script: str, *runs: str, options: tuple[str, ...] = (), tolerance: tuple[float, float] = NARROW) -> list[Asked]:
    return [Asked(script, run, options, tolerance) for run in runs]


ASKED = [
    *of_runs("attention_heads", INDUCTION, CONTROL, TEXT),
    *of_runs("logit_lens", INDUCTION, TEXT),
    *of_runs("tuned_lens", INDUCTION, options=("--every", "3"), tolerance=WIDE),
    *of_runs("tuned_lens", TEXT, options=("--every", "3"), tolerance=WIDE),
    *of_runs("in_context_learning", INDUCTION, CONTROL, TEXT),
    *of_runs("ngram_agreement", INDUCTION, CONTROL, TEXT),
    *of_runs("representations", INDUCTION, CONTROL, TEXT),
    *of_runs("llc", INDUCTION, options=("--chains", "2", "--draws", "50", "--sequences", "128"), tolerance=WIDE),
    *of_runs("phase_changes", INDUCTION, CONTROL),
    *of_runs("neuron_probes", TEXT),
    *of_runs("causal_tools", INDUCTION, CONTROL),
    *of_runs("model_diff", INDUCTION, options=("--from-step", "700")),
    *of_runs("model_diff", TEXT, options=("--from-step", "256")),
    *of_runs("train_sae", INDUCTION, options=("--steps", "1000"), tolerance=WIDE),
    Asked("ladder", RECORDED, ("--recorded",)),
    Asked("ioi", RANDOM, ("--pairs", "8"), WIDE),
]


# Asking ---------------------------------------------------------------------------------------------------------------


def answers(wanted: list[Asked], runs: dict[str, Path], folder: Path) -> dict[tuple[str, str], str]:
    found = {}
    for number, asked in enumerate(wanted):
        began = perf_counter()
        found[asked.key] = ask(asked, [str(runs[asked.of])] if asked.of in runs else [], folder / str(number))
        print(f"{perf_counter() - began:5.1f} s  {asked.script}, {asked.of}: {found[asked.key]}", flush=True)
    return found


def ask(asked: Asked, run: list[str], out: Path) -> str:
    """Run a script as from the command line; its answer, once it has written a JSON file and a figure."""
    script, said = HERE / f"{asked.script}.py", io.StringIO()
    argv = [str(script), *run, *asked.options, "--out", str(out)]
    with mock.patch.object(sys, "argv", argv), redirect_stdout(said):
        runpy.run_path(str(script), run_name="__main__")
    told = [line.removeprefix("answer: ") for line in said.getvalue().splitlines() if line.startswith("answer: ")]
    if len(told) != 1:
        raise SystemExit(f"{asked.script} said {len(told)} lines that begin with 'answer: ' instead of one:\n{said.getvalue()}")
    missing = [kind for kind in (".json", ".pdf") if not any(path.suffix == kind for path in out.iterdir())]
    if missing:
        raise SystemExit(f"{asked.script} has written no {' and no '.join(missing)} to {out}")
    return told[0]


def copied(run: Path, folder: Path) -> Path:
    """A run without what was computed of it before, so that all of it is computed here."""
    if not (run / "run.json").is_file():
        raise SystemExit(f"{run} is no run; it belongs to the repository")
    kept = shutil.ignore_patterns("sweeps", "analyses", "tuned-lens", "report*")
    return Path(shutil.copytree(run, folder / run.name, ignore=kept))


def random_model(folder: Path) -> Path:
    config = GPT2Config(d_model=48, n_ctx=64)
    return save_checkpoint(folder, 0, GPT2(config, seed=1).state_dict(), config, 0)


# Comparing ------------------------------------------------------------------------------------------------------------


def apart(asked: Asked, committed: str, found: str) -> str | None:
    """How an answer differs by more than it may; None if it does not."""
    before, now = (NUMBER.findall(answer) for answer in (committed, found))
    if not asked.wide and NUMBER.sub("#", committed) != NUMBER.sub("#", found):
        return "in words"
    if len(before) != len(now):
        return f"in how many numbers it has, {len(before)} and {len(now)}"
    share, absolute = asked.tolerance
    for one, other in zip(before, now, strict=True):
        a, b = (float(number.replace(",", "")) for number in (one, other))
        if abs(a - b) > max(absolute, share * abs(a)):
            return f"{one} is now {other}"
    return None


# The page -------------------------------------------------------------------------------------------------------------


def block(found: dict[tuple[str, str], str]) -> str:
    """Every script's question and command, from its first lines, and its answers."""
    lines = []
    for script in dict.fromkeys(asked.script for asked in ASKED):
        text = ast.get_docstring(ast.parse((HERE / f"{script}.py").read_text())) or ""
        question, command = text.splitlines()[0], re.search(r"^ +(.*analyses/\w+\.py.*?)(?:  .*)?$", text, re.MULTILINE)
        lines += [f"**{question}**  ", f"`{command[1]}`", ""]
        for asked in ASKED:
            if asked.script == script:
                with_options = f" ({' '.join(asked.options)})" if asked.options and asked.of in (INDUCTION, TEXT) else ""
                lines.append(f"- {asked.of}{with_options}: {found[asked.key]}")
        lines.append("")
    return "\n".join([*lines, f"(demo-text-small learned the documentation of {PYTHON}.)", ""])


def committed_answers(page: str) -> dict[tuple[str, str], str]:
    """The answers that the page has, by script and run."""
    found, script = {}, ""
    for line in page.partition(BEGIN)[2].partition(END)[0].splitlines():
        if named := re.match(r"`.*analyses/(\w+)\.py.*`$", line):
            script = named[1]
        elif answer := re.match(r"- (.+?)(?: \(--[^)]*\))?: (.*)$", line):
            found[script, answer[1]] = answer[2]
    return found


# The script -----------------------------------------------------------------------------------------------------------


def why_not(asked: Asked) -> str | None:
    """What a script needs and is not here."""
    if asked.script == "train_sae" and find_spec("sae_lens") is None:
        return "needs SAELens, in its own environment"
    if asked.script == "ioi":
        try:
            tokenizer_named("gpt2")
        except TokenizerError:
            return "needs GPT-2's tokenizer, which is neither here nor to be had"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="SCRIPT", help="ask these alone")
    parser.add_argument("--check", action="store_true", help="write nothing; say what differs, and exit 1 if anything does")
    args = parser.parse_args()
    torch.set_num_threads(1)  # sums are then made in one order
    wanted = [asked for asked in ASKED if args.only is None or asked.script in args.only]
    reasons = {asked.key: reason for asked in wanted if (reason := why_not(asked))}
    page = PAGE.read_text("utf-8")
    committed = committed_answers(page)
    if args.check and PYTHON not in page and any(asked.of == TEXT for asked in wanted):
        reasons |= {asked.key: f"{PYTHON} has another documentation" for asked in wanted if asked.of == TEXT}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = {run: copied(STUDY / run, folder) for run in (INDUCTION, CONTROL, TEXT)}
        runs |= {RANDOM: random_model(folder)} if any(asked.of == RANDOM for asked in wanted) else {}
        found = answers([asked for asked in wanted if asked.key not in reasons], runs, folder / "out")
    for (script, of), reason in reasons.items():
        print(f"not asked: {script}, {of}: {reason}")
    if args.check:
        check(found, committed)
    else:
        write(page, committed | found)


def check(found: dict[tuple[str, str], str], committed: dict[tuple[str, str], str]) -> None:
    if absent := [asked.key for asked in ASKED if asked.key not in committed]:
        raise SystemExit(f"{PAGE} has no answer for {absent}; write it with analyses/index.py")
    differing = {
        asked: why for asked in ASKED if asked.key in found and (why := apart(asked, committed[asked.key], found[asked.key]))
    }
    for asked, why in differing.items():
        print(f"\n{asked.script}, {asked.of}, differs: {why}\n  {PAGE.name}: {committed[asked.key]}\n  now: {found[asked.key]}")
    if differing:
        raise SystemExit(f"\n{len(differing)} of {len(found)} answers differ from {PAGE}; if they should, write it anew")
    print(f"{len(found)} answers are those of {PAGE}")


def write(page: str, found: dict[tuple[str, str], str]) -> None:
    if absent := [asked.key for asked in ASKED if asked.key not in found]:
        raise SystemExit(f"no answer for {absent}, and {PAGE} has none either")
    before, _, rest = page.partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{block(found)}\n{END}{rest.partition(END)[2]}", "utf-8")
    print("wrote", PAGE)


if __name__ == "__main__":
    main()
