"""`interp-gpt2 report`: everything about a run, on one page."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from interp_gpt2.cli.parse import UsageError, option

EXAMPLES = (
    "interp-gpt2 report demo-text",
    "interp-gpt2 report checkpoints/demo-induction --only loss,head_scores --out /tmp/heads",
)


@dataclass(frozen=True)
class Report:
    """Everything about a run as one self-contained page, report.html, its numbers, report.json, and pages of its neurons.

    Opens from disk and needs no network. Sections that cannot be computed say why.
    """

    source: Annotated[tyro.conf.Positional[str], option("RUN")]
    """A run's directory, or its name under checkpoints/; or models that others trained: a folder of steps, someone/name."""
    out: Annotated[Path | None, option("DIR")] = None
    """Where to write; the run's own directory unless given (with --only, a folder in it); of models that others trained,
    report-NAME in this one."""
    data: Annotated[str | None, option("TEXT")] = None
    """A text file or folder to measure on, in place of what the run was trained on; of models that others trained, that is not
    known."""
    only: Annotated[str | None, option("SECTIONS")] = None
    """Some sections, separated by commas: development, loss, loss_by_position, head_scores, lens, attention, probes, neurons,
    neuron_pages, samples."""
    also: Annotated[str | None, option("PANELS")] = None
    """Panels that take long, separated by commas: tuned_lens, learning_coefficient (seconds to minutes a checkpoint)."""
    workers: Annotated[int | None, option("N")] = None
    """Processes for the sweeps over checkpoints; chosen by measuring unless given."""

    def run(self) -> None:
        from interp_gpt2.cli.where import find_run
        from interp_gpt2.errors import CheckpointError
        from interp_gpt2.report.collect import collect_from
        from interp_gpt2.report.development import SLOW
        from interp_gpt2.report.index import INDEX, write_index
        from interp_gpt2.report.neuron_pages import write_neuron_pages
        from interp_gpt2.report.page import write_report
        from interp_gpt2.report.subject import SECTIONS, Subject
        from interp_gpt2.report.words import loss_sentence, verdict
        from interp_gpt2.runs.foreign import ForeignRun
        from interp_gpt2.sweeps import sound_run

        wanted = SECTIONS if self.only is None else _chosen(self.only, SECTIONS, "section")
        also = () if self.also is None else _chosen(self.also, SLOW, "slow panel")
        began = time.monotonic()
        run, _ = find_run(self.source)
        home = Path(f"report-{run.name.replace('/', '-')}") if isinstance(run, ForeignRun) else run.path
        # A part must not take the place of the whole report.
        beside = home if self.only is None else home / f"report-{'-'.join(wanted)}"
        out = beside if self.out is None else self.out
        out.mkdir(parents=True, exist_ok=True)
        sound, left_out = sound_run(run)
        subject = Subject(sound, self.workers, wanted, also, self.data, left_out)
        report = collect_from(subject)
        html, data = write_report(report, out)
        n_pages = write_neuron_pages(subject, report, out)
        print(verdict(report))
        if sentence := loss_sentence(report):
            print(sentence)
        for section, reason in report.omitted.items():
            print(f"without {section}: {reason}")
        pages = f", {data.name} and {n_pages} pages of neurons" if n_pages else f" and {data.name}"
        print(f"wrote {html}{pages} in {time.monotonic() - began:.0f} s")
        if (run.path.parent / INDEX).is_file() and not isinstance(run, ForeignRun):
            print(f"wrote {write_index(run.path.parent)}")
        if left_out:
            told = "; ".join(str(one) for one in left_out)
            raise CheckpointError(f"the report is without {len(left_out)} of {len(run.steps)} checkpoints: {told}")


def _chosen(text: str, known: tuple[str, ...], what: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"there is no {what} {unknown[0]!r}; there are {', '.join(known)}")
    return names
