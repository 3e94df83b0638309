"""From a run to the numbers of its report: each section is a sweep or an analysis, and nothing is shown that is not measured.

A section that this run or this machine cannot give is left out, and `Report.omitted` says why. A damaged checkpoint is
an error, never a gap.
"""

import math
from collections.abc import Callable
from concurrent.futures import Executor

import numpy as np
import torch

from interp_gpt2.analysis.attention_patterns import METRICS, head_label
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

SCORE_WORDS = {
    "induction": ("Induction", "attention to the tokens that followed earlier occurrences of the current token", "attention"),
    "previous_token": ("Previous token", "attention to the token before the current one", "attention"),
    "duplicate_token": ("Duplicate token", "attention to earlier occurrences of the current token", "attention"),
    "first_token": ("First token", "attention to the first token of the sequence", "attention"),
    "entropy": ("Entropy", "spread of the attention over the tokens it can see", "nats"),
}

WEIGHT_SCORES = (  # metric, title, what it measures, its yardstick, the fewest layers that can have it
    (
        "copying",
        "Copying",
        "by the head's weights: does it raise the logit of what it attends to? From -1 to 1",
        ("copying_random_std", "random sd"),
        1,
    ),
    (
        "k_composition_max",
        "K-composition",
        "by weights: how much its keys read of what one earlier head writes",
        ("k_composition_max_untrained", "untrained"),
        2,
    ),
    (
        "q_composition_max",
        "Q-composition",
        "by weights: how much its queries read of what one earlier head writes",
        ("q_composition_max_untrained", "untrained"),
        2,
    ),
    (
        "v_composition_max",
        "V-composition",
        "by weights: how much its values read of what one earlier head writes",
        ("v_composition_max_untrained", "untrained"),
        2,
    ),
)


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
    change, why_none = _phase_change(subject) if made["head_scores"] else (None, "head scores were not computed")
    return schema.Report(
        run=run_facts(subject),
        data=data_facts(subject),
        phase_change=change,
        phase_change_note=why_none,
        inspected=subject.inspected,
        heads=_findings(made["head_scores"]),
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
# Heads


def _head_scores(subject: Subject) -> schema.HeadScores:
    table, config = subject.head_table, subject.run.config
    heads = [head_label(layer, head) for layer in range(config.n_layers) for head in range(config.n_heads)]
    scores = []
    for metric in SCORE_WORDS:
        rows, uniform = table[table.metric == metric], table[table.metric == f"{metric}_uniform"].iloc[0]
        by_head = {
            column: rows.pivot(index="label", columns="step", values=column).loc[heads].to_numpy().tolist()
            for column in ("value", "low", "high")
        }
        title, measures, unit = SCORE_WORDS[metric]
        scores.append(
            schema.HeadScore(
                metric,
                title,
                measures,
                unit,
                float(uniform.value),
                int(uniform.n),
                by_head["value"],
                by_head["low"],
                by_head["high"],
            )
        )
    scores += [_of_weights(subject, heads, *one) for one in WEIGHT_SCORES if config.n_layers >= one[-1]]
    command = subject.command("heads", subject.called, "--all", "--csv", "heads.csv")
    return schema.HeadScores(command, subject.head_sequences.are, subject.steps, heads, scores)


def _of_weights(
    subject: Subject, heads: list[str], metric: str, title: str, measures: str, beside: tuple[str, str], least_layers: int
) -> schema.HeadScore:
    """A score of heads by their weights alone; heads that cannot have it have None."""
    table = subject.weight_table
    rows = table[table.metric == metric].pivot(index="label", columns="step", values="value").reindex(heads)
    values = [[None if math.isnan(value) else value for value in row] for row in rows.to_numpy(dtype=float).tolist()]
    yardstick, name = beside
    level = float(table[(table.metric == yardstick) & (table.step == subject.steps[-1])].value.mean())
    return schema.HeadScore(metric, title, measures, "weights", level, None, values, yardstick=name)


def _findings(section: schema.HeadScores | None) -> dict[str, schema.HeadFinding]:
    """At the last checkpoint, the head with most of each score."""
    if section is None:
        return {}
    found = {}
    for score in section.scores:
        last = [values[-1] for values in score.values]
        if score.name in METRICS and score.unit == "attention":  # the most spread head is no finding
            best = int(np.argmax(last))
            found[score.name] = schema.HeadFinding(section.heads[best], last[best], score.uniform)
    return found


def _phase_change(subject: Subject) -> tuple[schema.PhaseChange | None, str]:
    """The induction score's, on its maximum over heads less the uniform head's; else why none was found."""
    try:
        curve, found = subject.induction, subject.detection
    except AnalysisError as refusal:
        return None, str(refusal)
    change = found.change
    if change is None or found.step_interval is None or found.width_interval is None:
        return None, found.reason.strip("()")
    return schema.PhaseChange(
        step=change.step,
        width=change.width,
        rise=change.rise,
        low=change.low,
        high=change.high,
        resolution=change.resolution,
        step_interval=list(found.step_interval),
        width_interval=list(found.width_interval),
        bic_margin=found.growth.margin,
        p_walk=found.p_walk,
        steps=list(curve.steps),
        values=[value - uniform for value, uniform in zip(curve.values, curve.uniform, strict=True)],
        command=subject.command("heads", subject.called, "--all"),
    ), ""


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
    if not config.n_layers:
        raise AnalysisError("a model of no layers has no attention")
    at_one_step = config.n_layers * config.n_heads * tokens.shape[1] ** 2
    steps = spread_steps(subject.inspected, max(2, ATTENTION_BYTES // at_one_step))
    patterns = []
    with torch.no_grad():
        for step in steps:
            _, cache = subject.run.model(step).run_with_cache(tokens, "*.pattern")
            patterns.append(cache.stack("pattern")[:, 0])
    labels = [subject.tokenizer.labels[token] for token in tokens[0].tolist()]
    findings = _findings(_head_scores(subject))
    notes = {f.label: f"{SCORE_WORDS[name][0].lower()} {f.score:.2f}" for name, f in reversed(findings.items())}
    first = findings["induction"].label if "induction" in findings else ""
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
    "head_scores": _head_scores,
    "lens": _lens,
    "attention": _attention,
    "probes": lambda subject: collect_probes(subject.run, subject.source, subject.workers, subject.section_command("probes")),
    "neurons": lambda subject: collect_neurons(subject.run, subject.source, subject.section_command("neurons")),
    "neuron_pages": collect_neuron_pages,
    "samples": _samples,
}
