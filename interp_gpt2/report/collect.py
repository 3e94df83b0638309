"""From a run to the numbers of its report: each section is a sweep or an analysis, and nothing is shown that is not measured.

A section that this run or this machine cannot give is left out, and `Report.omitted` says why. A damaged checkpoint is
an error, never a gap.
"""

from collections.abc import Callable
from concurrent.futures import Executor

import torch

from interp_gpt2.analysis.logit_lens import logit_lens
from interp_gpt2.analysis.loss import LossByPosition
from interp_gpt2.analysis.rows import reach_95
from interp_gpt2.analysis.sequences import held_out
from interp_gpt2.data.source import MarkovSource
from interp_gpt2.data.synthetic import bayes_bigram, in_context_unigram, losses_of
from interp_gpt2.errors import AnalysisError, DataError, RunError, TokenizerError
from interp_gpt2.generation import generate
from interp_gpt2.report import schema
from interp_gpt2.report.development import collect_development
from interp_gpt2.report.facts import data_facts, hashes, run_facts, versions
from interp_gpt2.report.heads import collect_heads, findings, notes_at_the_end, phase_change
from interp_gpt2.report.inputs import spread_steps
from interp_gpt2.report.neuron_pages import collect_neuron_pages
from interp_gpt2.report.probes import collect_neurons, collect_probes
from interp_gpt2.report.subject import SECTIONS, Subject
from interp_gpt2.runs.run import Run
from interp_gpt2.views.attention import pack_attention
from interp_gpt2.views.lens import pack_lens

POSITION_WORK = 128 * 1_000_000  # sequences x parameters: smaller models are measured on more sequences
POSITION_STEPS = 6
ATTENTION_BYTES = 3_000_000  # of patterns in the page, one byte a weight; beyond it fewer steps are shown
SAMPLE_WORK = 12 * 10_000_000  # steps x parameters: of larger models fewer steps write samples
SAMPLE_TOKENS = 160
SAMPLE_PROMPT_TOKENS = 16
SEED = 0
TEMPERATURE = 0.8


def collect(run: Run, sections: tuple[str, ...] = SECTIONS, workers: int | Executor | None = None) -> schema.Report:
    """Everything a report shows of a run, computed now or found among the results of earlier sweeps.

    `workers` as in `sweep`. Raises RunError for a run without checkpoints, CheckpointError for a damaged one.
    """
    return collect_from(Subject(run, workers, sections))


def collect_from(subject: Subject) -> schema.Report:
    """`collect`, of a subject whose parts the caller goes on to use, such as the histories behind its neurons' pages."""
    run = subject.run
    if not run.steps:
        raise RunError(f"{run.path} has no checkpoints yet; there is nothing to report")
    made: dict[str, object] = {}
    omitted = {f"step {one.step:,}": str(one.error) for one in subject.left_out}
    for section in SECTIONS:
        made[section] = None
        if section not in subject.sections:
            omitted[section] = "not asked for"
            continue
        try:
            made[section] = _MAKERS[section](subject)
        except (AnalysisError, DataError, TokenizerError) as refusal:  # what this run cannot give, in words for the reader
            omitted[section] = str(refusal)
    scored = made["head_scores"]
    change, why_none = phase_change(subject) if scored else (None, "head scores were not computed")
    return schema.Report(
        run=run_facts(subject),
        data=data_facts(subject),
        phase_change=change,
        phase_change_note=why_none,
        inspected=subject.inspected,
        heads=findings(scored.heads, scored.scores) if scored else {},
        omitted=omitted,
        versions=versions(),
        hashes=hashes(subject),
        **made,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Loss


def _loss(subject: Subject) -> schema.Loss:
    """Losses as training logged them; the last checkpoint's measured again, for its standard error."""
    # What training logged is of its own text.
    metrics = [] if subject.training is None or subject.data is not None else subject.run.metrics()
    validation = {row["step"]: row["val_loss"] for row in metrics if "val_loss" in row}
    train = {row["step"]: row["loss"] for row in metrics if "loss" in row}
    references, stderr, measured_on = [], {}, "the whole validation split, as logged in training"
    try:
        source = subject.source
    except DataError as gone:
        if not validation:
            raise
        measured_on += f" (not measured again: {gone})"
    else:
        last = subject.steps[-1]
        scored, everything = source.scored_positions(subject.n_ctx), held_out(source, subject.n_ctx)
        table = subject.sweep(LossByPosition(everything.tokens, tuple(scored)), steps=[last])
        mean = table[table.metric == "mean_loss"].iloc[0]
        validation[last], stderr[last] = float(mean.value), float(mean.high - mean.value) / reach_95(len(everything.tokens))
        references = [schema.Reference(r.name, r.loss, r.stderr, r.n, r.note) for r in source.references(subject.n_ctx)]
        where = "every position" if len(scored) == subject.n_ctx else f"positions {scored.start} to {scored.stop - 1}"
        measured_on = f"{where} of {everything.are}"
    steps = sorted(validation)
    return schema.Loss(
        command=subject.section_command("loss"),
        measured_on=measured_on,
        validation=schema.Curve("validation", steps, [validation[s] for s in steps], [stderr.get(s) for s in steps]),
        train=schema.Curve("training batch (all positions)", list(train), list(train.values())) if train else None,
        references=references,
    )


def _loss_by_position(subject: Subject) -> schema.LossByPosition:
    """On the same sequences for every step and reference."""
    n = min(1024, max(64, POSITION_WORK // subject.run.config.n_params))
    sequences = held_out(subject.source, subject.n_ctx, n)
    steps = spread_steps(subject.steps, POSITION_STEPS)
    table = subject.sweep(LossByPosition(sequences.tokens), steps=steps)
    table = table[table.metric == "loss"].sort_values("position")
    by_step = table.groupby("step").value.apply(list)
    references = []
    if isinstance(subject.source, MarkovSource):
        chains = sequences.tokens
        for name, predict in (("Bayes bigram", bayes_bigram), ("in-context unigram", in_context_unigram)):
            references.append(schema.PositionReference(name, losses_of(predict(chains), chains).mean(0).tolist()))
    return schema.LossByPosition(
        command=subject.section_command("loss_by_position"),
        measured_on=sequences.are,
        steps=steps,
        positions=sorted(table.position.unique().tolist()),
        loss=[by_step[step] for step in steps],
        references=references,
    )


# ---------------------------------------------------------------------------------------------------------------------
# One prompt


def _lens(subject: Subject) -> schema.Lens:
    tokens, steps = _tokens(subject), subject.inspected
    top_k = min(5, subject.run.config.d_vocab)
    lenses = [logit_lens(subject.run.model(step), tokens, top_k=top_k) for step in steps]
    command = subject.command("lens", subject.called, subject.prompt, "--step", steps[-1])
    return schema.Lens(command, subject.prompt, pack_lens(tokens[0], subject.tokenizer.labels, lenses, steps))


def _attention(subject: Subject) -> schema.Attention:
    tokens, config = _tokens(subject), subject.run.config
    notes, first = notes_at_the_end(subject)
    at_one_step = config.n_layers * config.n_heads * tokens.shape[1] ** 2
    steps = spread_steps(subject.inspected, max(2, ATTENTION_BYTES // at_one_step))
    patterns = []
    with torch.no_grad():
        for step in steps:
            _, cache = subject.run.model(step).run_with_cache(tokens, "*.pattern")
            patterns.append(cache.stack("pattern")[:, 0])
    labels = [subject.tokenizer.labels[token] for token in tokens[0].tolist()]
    packed = pack_attention(labels, torch.stack(patterns), steps, notes, first)
    return schema.Attention(subject.section_command("attention"), subject.prompt, packed)


def _samples(subject: Subject) -> schema.Samples:
    """From the beginning of the prompt, cut between words where it has any."""
    begins = subject.tokenizer.decode(_tokens(subject)[0, :SAMPLE_PROMPT_TOKENS].tolist())
    text = begins.rpartition(" ")[0] or begins
    steps = spread_steps(subject.inspected, max(4, SAMPLE_WORK // max(1, subject.run.config.n_params)))
    prompt = torch.tensor([subject.tokenizer.encode(text)], dtype=torch.int64)
    # Beyond n_ctx every token costs a whole pass; within it the cache serves.
    new = max(1, min(SAMPLE_TOKENS, subject.n_ctx - prompt.shape[1]))
    samples = []
    for step in steps:
        tokens = generate(subject.run.model(step), prompt, new, TEMPERATURE, seed=SEED)
        samples.append(schema.Sample(step, subject.tokenizer.decode(tokens[0, prompt.shape[1] :].tolist())))
    options = ("--max-new-tokens", new, "--temperature", TEMPERATURE, "--seed", SEED, "--step", steps[-1])
    command = subject.command("generate", subject.called, text, *options)
    return schema.Samples(command, text, TEMPERATURE, SEED, samples)


def _tokens(subject: Subject) -> torch.Tensor:
    return torch.tensor([subject.tokenizer.encode(subject.prompt)[: subject.n_ctx]], dtype=torch.int64)


_MAKERS: dict[str, Callable[[Subject], object]] = {
    "development": collect_development,
    "loss": _loss,
    "loss_by_position": _loss_by_position,
    "head_scores": collect_heads,
    "lens": _lens,
    "attention": _attention,
    "probes": lambda subject: collect_probes(subject.run, subject.source, subject.workers, subject.section_command("probes")),
    "neurons": lambda subject: collect_neurons(subject.run, subject.source, subject.section_command("neurons")),
    "neuron_pages": collect_neuron_pages,
    "samples": _samples,
}
