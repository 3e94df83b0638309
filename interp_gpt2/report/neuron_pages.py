"""The pages of neurons beside a report: what the report says of each, and the files."""

from collections.abc import Sequence
from pathlib import Path

from interp_gpt2.analysis.neuron_history import NeuronHistory
from interp_gpt2.report import schema
from interp_gpt2.report.subject import Subject
from interp_gpt2.views.neurons import save_neuron_pages

FOLDER = "neurons"
_SHOWN = 5  # promoted tokens, and as many suppressed ones


def collect_neuron_pages(subject: Subject) -> schema.NeuronPages:
    """A line for each neuron that has a page. Raises as `Subject.histories` does."""
    histories, labels = subject.histories, subject.tokenizer.labels
    return schema.NeuronPages(
        command=subject.section_command("neuron_pages"),
        measured_on=subject.neuron_sequences.are,
        step=histories[0].last.step,
        history=[record.step for record in histories[0].records],
        pages=[_page(history, labels) for history in histories],
    )


def _page(history: NeuronHistory, labels: Sequence[str]) -> schema.NeuronPage:
    record, effect = history.last, history.last.effect
    promoted, suppressed = ([labels[token] for token, _ in side[:_SHOWN]] for side in (effect.promoted, effect.suppressed))
    return schema.NeuronPage(history.label, record.frequency, record.highest, effect.kurtosis, promoted, suppressed)


def write_neuron_pages(subject: Subject, report: schema.Report, folder: Path) -> int:
    """Write the pages that a report links to into `folder`/neurons, and return how many: 0 if it has no such section."""
    if report.neuron_pages is None:
        return 0
    known = {f"{page.label}.html" for page in report.neuron_pages.pages}
    for path in (folder / FOLDER).glob("L*N*.html"):  # of an earlier report
        if path.name not in known:
            path.unlink()
    save_neuron_pages(
        subject.histories, subject.tokenizer.labels, folder / FOLDER, report.run.name, report.neuron_pages.measured_on
    )
    return len(subject.histories)
