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
    """Everything about a run as one self-contained page, report.html, and its numbers, report.json.

    Opens from disk and needs no network. Sections that cannot be computed say why.
    """

    source: Annotated[tyro.conf.Positional[str], option("RUN")]
    """A run's directory, or its name under checkpoints/."""
    out: Annotated[Path | None, option("DIR")] = None
    """Where to write; the run's own directory unless given (with --only, a folder in it)."""
    only: Annotated[str | None, option("SECTIONS")] = None
    """Some sections, separated by commas: loss, loss_by_position, head_scores, lens, attention, probes, neurons, samples."""
    workers: Annotated[int | None, option("N")] = None
    """Processes for the sweeps over checkpoints; chosen by measuring unless given."""

    def run(self) -> None:
        from interp_gpt2.cli.where import find_run
        from interp_gpt2.report.collect import SECTIONS, collect
        from interp_gpt2.report.page import write_report
        from interp_gpt2.report.words import loss_sentence, verdict

        wanted = SECTIONS if self.only is None else tuple(name.strip() for name in self.only.split(","))
        if unknown := [name for name in wanted if name not in SECTIONS]:
            raise UsageError(f"there is no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
        began = time.monotonic()
        run, _ = find_run(self.source)
        # A part must not take the place of the whole report.
        beside = run.path if self.only is None else run.path / f"report-{'-'.join(wanted)}"
        out = beside if self.out is None else self.out
        out.mkdir(parents=True, exist_ok=True)
        report = collect(run, wanted, self.workers)
        html, data = write_report(report, out)
        print(verdict(report))
        if sentence := loss_sentence(report):
            print(sentence)
        for section, reason in report.omitted.items():
            print(f"without {section}: {reason}")
        print(f"wrote {html} and {data.name} in {time.monotonic() - began:.0f} s")
