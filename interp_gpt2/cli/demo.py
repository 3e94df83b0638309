"""`interp-gpt2 demo`: the main job from end to end, on a machine without network, data or GPU."""

import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from interp_gpt2.cli.parse import UsageError, option

if TYPE_CHECKING:
    from interp_gpt2.training.parallel import Job

EXAMPLES = (
    "interp-gpt2 demo",
    "interp-gpt2 demo --out /tmp/demo --seed 1",
    "interp-gpt2 demo --study --resume",
)

DEMO = ("demo-text", "demo-induction")
CONTROLS = ("demo-induction-ordinary-positions", "demo-induction-one-layer")
FURTHER_SEEDS = 2


@dataclass(frozen=True)
class Demo:
    """Train two small GPT-2s side by side, watch circuits form in them, and write a report on each.

    demo-text learns Python's own documentation by characters; demo-induction learns Markov chains that only a model
    that looks back can predict, and its report tells when and in which heads that begins. Under 5 minutes on 2 cores.
    """

    out: Annotated[Path, option("DIR")] = Path("checkpoints")
    """Where the runs go."""
    study: bool = False
    """Also train two controls that should not learn induction in time, and two more seeds (about 3 times as long)."""
    seed: Annotated[int, option("N")] = 0
    """Of the weights and the order of the data."""
    resume: bool = False
    """Go on where an earlier demo stopped."""
    overwrite: bool = False
    """Delete the runs of an earlier demo."""

    def run(self) -> None:
        from interp_gpt2.cli.progress import TrainingBars
        from interp_gpt2.report.index import write_index
        from interp_gpt2.training.parallel import run_all

        began = time.monotonic()
        jobs = self.jobs()
        with TrainingBars([job.name for job in jobs]) as bars:
            runs = run_all(jobs, progress=bars)
        trained = time.monotonic()
        print(f"trained in {trained - began:.0f} s; making {len(runs)} reports", file=sys.stderr, flush=True)
        made = make_reports([run.path for run in runs])
        for name, (finding, _) in zip((run.name for run in runs), made, strict=True):
            print(f"{name}: {finding}")
        print("\nopen these in a browser:")
        for path in [write_index(self.out), *(path for _, path in made)]:
            print(f"  {path}")
        ended = time.monotonic()
        print(f"\n{ended - began:.0f} s in all: {trained - began:.0f} s training, {ended - trained:.0f} s reports")

    def jobs(self) -> list["Job"]:
        """What to train. Raises UsageError where a run is in the way."""
        from interp_gpt2.runs.run import SETTINGS
        from interp_gpt2.training.config import load_recipe
        from interp_gpt2.training.parallel import Job

        if self.resume and self.overwrite:
            raise UsageError("--resume goes on with the runs and --overwrite deletes them; give one of them")
        wanted = [(name, name, self.seed) for name in DEMO]
        if self.study:
            wanted += [(name, name, self.seed) for name in CONTROLS]
            seeds = range(self.seed + 1, self.seed + 1 + FURTHER_SEEDS)
            wanted += [(f"demo-induction-seed{seed}", "demo-induction", seed) for seed in seeds]
        there = [name for name, _, _ in wanted if (self.out / name).exists()]
        if there and not (self.resume or self.overwrite):
            raise UsageError(f"{', '.join(str(self.out / name) for name in there)} already there; --resume goes on with what is "
                             "unfinished, --overwrite trains anew, --out DIR goes elsewhere")  # fmt: skip
        jobs = []
        for name, recipe, seed in wanted:
            begun = self.resume and (self.out / name / SETTINGS).is_file()
            config = replace(load_recipe(recipe), seed=seed)
            jobs.append(Job(name, config, self.out / name, resume=begun, overwrite=self.overwrite))
        return jobs


def make_reports(paths: list[Path]) -> list[tuple[str, Path]]:
    """A finding in a sentence and the report's path, for each run; as many at once as there are cores, one thread each."""
    import multiprocessing

    from interp_gpt2.sweeps import n_cores, one_thread_each

    spawn = multiprocessing.get_context("spawn")
    with (
        one_thread_each(),
        ProcessPoolExecutor(min(n_cores(), len(paths)), mp_context=spawn, initializer=_begin_worker) as executor,
    ):
        return list(executor.map(_make_report, paths))


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once and in silence; a report is soon made again


def _make_report(path: Path) -> tuple[str, Path]:
    from interp_gpt2.report.collect import collect_from
    from interp_gpt2.report.neuron_pages import write_neuron_pages
    from interp_gpt2.report.page import write_report
    from interp_gpt2.report.subject import Subject
    from interp_gpt2.report.words import loss_sentence, verdict
    from interp_gpt2.runs.run import Run

    subject = Subject(Run(path), workers=1)
    report = collect_from(subject)
    html, _ = write_report(report, path)
    write_neuron_pages(subject, report, path)
    return (verdict(report) if report.data.name == "markov" else loss_sentence(report)), html
