"""Many interventions on one run, each computed from where it starts.

An intervention at a layer and a position leaves earlier layers and earlier positions as they were. So `run_patches` starts
every one at its layer, from the streams of the base run; keeps the keys and values of what has not changed; carries many
interventions through the layers as one batch, which later layers' interventions join; and computes logits only where the
metric looks. Equal to the naive loop, one whole pass for each intervention, to rounding (`naive=True` is that loop).
"""

import itertools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp_gpt2.analysis.rows import require_eval
from interp_gpt2.cache import ActivationCache
from interp_gpt2.causal.base_run import BaseRun
from interp_gpt2.causal.chunks import ROWS_UNEMBEDDED, chunks
from interp_gpt2.causal.entries import MID, POST, PRE, Case, enter, logits_with_edits, rerun
from interp_gpt2.causal.metrics import Function, Metric, metric_name, require_metric
from interp_gpt2.causal.patch import END, Patch, patch_edits, require_source
from interp_gpt2.causal.planning import Planning
from interp_gpt2.causal.propagation import Propagation, Rows
from interp_gpt2.errors import AnalysisError
from interp_gpt2.inputs import check_tokens
from interp_gpt2.model import GPT2
from interp_gpt2.passes import EditedGPT2

BUDGET = 2**30  # bytes


@dataclass(frozen=True, eq=False)
class PatchedRuns:
    """The metric of every cell, one intervention on all pairs, and what it took.

    `values` (cell, pair) in the metric's unit, NaN for cells that an interrupt left undone; `base` (pair,) is the run without
    an intervention. `skipped`: nothing differs there, or the metric does not depend on it, so that the value is the base
    run's. A metric of all pairs together has one column. `bytes_used` is the largest batch's estimate; the budget was kept.
    """

    values: Float[Tensor, "cell pair"]
    base: Float[Tensor, "pair"]
    skipped: Bool[Tensor, "cell pair"]
    bytes_used: int
    complete: bool = True


@torch.no_grad()
def run_patches(
    model: GPT2,
    tokens: Int[Tensor, "pair pos"],
    cells: Sequence[Sequence[Patch]],
    metric: Metric | Function,
    source: ActivationCache | Mapping[str, Tensor] | None = None,
    attention_mask: Int[Tensor, "pair pos"] | None = None,
    *,
    budget: int = BUDGET,
    naive: bool = False,
    progress: bool = False,
    base: BaseRun | None = None,
) -> PatchedRuns:
    """The metric after each of `cells`, sets of patches that act together, on every prompt of `tokens`.

    `source` is the cache of another run over tokens of the same shape, where patches without a value of their own read; a
    run of one prompt of that length serves them all.
    `budget` bounds the bytes that a batch of interventions takes beside the base run and the weights. A model with standing
    edits, whose layers only it can run, goes the naive way. `base`: the run of these tokens, where it is known already, with
    what patches at these hook points need. Ctrl-C ends the sweep with what is finished, and a warning.

    Raises AnalysisError, before any intervention runs, for a metric that is not one finite number for each prompt (or for
    all of them), a piece that does not exist, a source that has not kept it, and a budget that holds not one intervention.
    """
    require_eval(model)
    _check(model, tokens, cells, metric, attention_mask)
    placed = [[patch.placed(model.config, tokens.shape[-1]) for patch in cell] for cell in cells]
    for patch in (patch for cell in placed for patch in cell):
        require_source(patch, source)
    if naive or isinstance(model, EditedGPT2):
        return _naively(model, tokens, cells, metric, source, attention_mask, progress)
    if base is None:
        base = BaseRun.of(model, tokens, attention_mask, {patch.name for cell in placed for patch in cell}, source or ())
    sweep = _Sweep(base, metric, source)
    cases, skipped = Planning(base, source, sweep.last.cpu()).cases(placed)
    values = sweep.baseline.expand(len(cells), -1).clone()
    batches = chunks(cases, base, budget, whole_vocabulary=sweep.whole_vocabulary, whole_cells=not sweep.declared)
    complete, done = True, skipped.clone()
    try:
        for batch in _shown([batch.cases for batch in batches], progress):
            sweep.run(batch, values)
            done[[case.cell for case in batch], [case.pair for case in batch]] = True
    except KeyboardInterrupt:
        complete = False
        values[~done if sweep.per_pair else ~done.all(1, keepdim=True)] = math.nan
        warnings.warn(f"interrupted: {int(done.all(1).sum())} of {len(cells)} cells are finished, the others NaN", stacklevel=2)
    _refuse_wrong(values, done if sweep.per_pair else done.all(1, keepdim=True), cells, metric)
    used = max((batch.n_bytes for batch in batches), default=0)
    return PatchedRuns(values, sweep.baseline, skipped if sweep.per_pair else skipped.all(1, keepdim=True), used, complete)


def _check(
    model: GPT2, tokens: Tensor, cells: Sequence[Sequence[Patch]], metric: Metric | Function, attention_mask: Tensor | None
) -> None:
    check_tokens(tokens, model.config, attention_mask, device=model.device)
    for number, cell in enumerate(cells):
        if not isinstance(cell, Sequence) or not all(isinstance(patch, Patch) for patch in cell):
            raise AnalysisError(f"cell {number} is {cell!r}; a cell is a list of patches, of one too: [Patch(...)]")
    require_metric(metric)
    if isinstance(metric, Metric):
        metric.check(len(tokens), model.config.d_vocab)


def _refuse_wrong(values: Tensor, done: Tensor, cells: Sequence[Sequence[Patch]], metric: Metric | Function) -> None:
    """Raises AnalysisError for a finished cell that is not finite, which NaN would pass off as an unfinished one."""
    wrong = (~values.isfinite().cpu() & done).nonzero()
    if len(wrong):
        cell, pair = wrong[0].tolist()
        where = ", ".join(f"{patch.point!r} of layer {patch.layer}" for patch in cells[cell])
        raise AnalysisError(
            f"the metric {metric_name(metric)} is {values[cell, pair].item()} on pair {pair} in cell {cell} (patched: {where}): "
            f"not finite, as in {len(wrong)} cases in all; look at what is patched in"
        )


def _naively(
    model: GPT2,
    tokens: Tensor,
    cells: Sequence[Sequence[Patch]],
    metric: Metric | Function,
    source: Mapping[str, Tensor] | None,
    attention_mask: Tensor | None,
    progress: bool,
) -> PatchedRuns:
    """One whole pass for each cell: the reference, and the way for models whose passes are their own."""
    base = metric_of(metric, model(tokens, attention_mask=attention_mask), attention_mask)
    values, complete, number = base.new_full((len(cells), len(base)), math.nan), True, 0
    try:
        for number, cell in enumerate(_shown(cells, progress)):
            edits = patch_edits(cell, source, model.config, tokens.shape[1])
            logits = model.run_with_edits(tokens, edits, attention_mask)
            values[number] = metric_of(metric, logits, attention_mask)
    except KeyboardInterrupt:
        complete = False
        warnings.warn(f"interrupted: {number} of {len(cells)} cells are finished, the others NaN", stacklevel=3)
    return PatchedRuns(values, base, torch.zeros_like(values, dtype=torch.bool), 0, complete)


def metric_of(metric: Metric | Function, logits: Tensor, attention_mask: Tensor | None = None) -> Float[Tensor, "pair"]:
    """The metric of whole logits: (pair,), or (1,) if it is one of all pairs together. Raises AnalysisError as the sweep."""
    if isinstance(metric, Metric):
        return _finite(metric(logits, attention_mask), metric.name)
    require_metric(metric)
    name, value = metric_name(metric), metric(logits)
    if not isinstance(value, (Tensor, float, int)):
        raise AnalysisError(f"the metric {name} gave {type(value).__name__}; expected a tensor, one number or one for each pair")
    value = torch.as_tensor(value, device=logits.device)
    if value.numel() != 1 and tuple(value.shape) != (len(logits),):
        raise AnalysisError(f"the metric {name} has shape {tuple(value.shape)}; expected one number, or ({len(logits)},)")
    return _finite(value.reshape(-1) if value.is_floating_point() else value.reshape(-1).double(), name)


def _finite(value: Tensor, name: str) -> Tensor:
    if not value.isfinite().all():
        raise AnalysisError(f"the metric {name} is {value.tolist()}: not finite, so that nothing can be compared with it")
    return value


def _shown(work: Sequence, progress: bool) -> Iterator:
    if not progress:
        return iter(work)
    from tqdm.auto import tqdm

    return iter(tqdm(work, desc="patching", delay=1, leave=False))


class _Sweep:
    """What all batches of a sweep share."""

    def __init__(self, base: BaseRun, metric: Metric | Function, source: Mapping[str, Tensor] | None) -> None:
        self.base, self.metric, self.source = base, metric, source
        self.baseline = metric_of(metric, base.logits, base.attention_mask)
        self.declared = isinstance(metric, Metric)
        self.per_pair = self.declared or len(self.baseline) == len(base.tokens)
        self.whole_vocabulary = not self.declared or metric.tokens is None
        n_pairs, n_pos = base.tokens.shape
        ends = metric.positions(n_pairs, n_pos, base.attention_mask) if self.declared else torch.full((n_pairs,), n_pos - 1)
        self.last = ends.to(base.tokens.device)

    def run(self, cases: Sequence[Case], values: Tensor) -> None:
        """Write the metric of these cases into `values`."""
        device = self.base.tokens.device
        pair = torch.tensor([case.pair for case in cases], device=device)
        run = Propagation(self.base, pair, self.last[pair], self.declared)
        ends = [at for at, case in enumerate(cases) if any(patch.layer == END for patch in case.patches)]
        rows = _through_the_layers(run, cases, self.source)
        behind = None
        if ends:
            mine, rows = _divided(rows, ends)
            behind = logits_with_edits(run, mine, ends, [cases[at] for at in ends], self.source)
        if self.declared:
            self._measure(run, cases, rows, ends, behind, values)
        else:
            self._measure_whole(run, cases, rows, dict(zip(ends, behind if ends else (), strict=True)), values)

    def _measure(
        self, run: Propagation, cases: Sequence[Case], rows: Rows | None, ends: list[int], behind: Tensor | None, values: Tensor
    ) -> None:
        cell = torch.tensor([case.cell for case in cases], device=run.pair.device)
        if rows is not None:
            seen = rows.where(rows.pos == run.last[rows.case])
            if len(seen.case):
                pair = run.pair[seen.case]
                values[cell[seen.case], pair] = self.metric.value(self._logits(seen.value, pair), pair)
        if ends:
            pair = run.pair[ends]
            logits = behind[torch.arange(len(ends), device=pair.device), run.last[ends]]
            if self.metric.tokens is not None:
                logits = logits.gather(1, self.metric.tokens.to(pair.device).expand(len(self.last), -1)[pair])
            values[cell[ends], pair] = self.metric.value(logits, pair)

    def _logits(self, stream: Float[Tensor, "case d_model"], pair: Tensor) -> Float[Tensor, "case n"]:
        """Logits of the tokens that the metric reads."""
        model = self.base.model
        if self.metric.tokens is None:
            return model.unembed(stream)
        tokens = self.metric.tokens.to(pair.device).expand(len(self.last), -1)[pair]
        final = model.ln_final(stream)
        bias = None if model.config.tied else model.lm_head.bias
        logits = torch.einsum("cd,cnd->cn", final, model.W_U.T[tokens])
        return logits if bias is None else logits + bias[tokens]

    def _measure_whole(
        self, run: Propagation, cases: Sequence[Case], rows: Rows | None, behind: Mapping[int, Tensor], values: Tensor
    ) -> None:
        """A metric of the whole logits of all pairs: those of one cell after the other."""
        for cell, ends in itertools.groupby(behind, key=lambda at: cases[at].cell):
            logits = self.base.logits.clone()
            for at in ends:
                logits[run.pair[at]] = behind[at]
            values[cell] = metric_of(self.metric, logits, self.base.attention_mask)
        if rows is None:
            return
        cells = torch.tensor([case.cell for case in cases], device=run.pair.device)[rows.case]
        for some in _together(*cells.unique(return_counts=True)):
            where = torch.isin(cells, some)
            mine, changed = rows.where(where), self.base.model.unembed(rows.value[where])
            for cell in some.tolist():
                own = cells[where] == cell
                logits = self.base.logits.clone()
                logits[run.pair[mine.case[own]], mine.pos[own]] = changed[own]
                values[cell] = metric_of(self.metric, logits, self.base.attention_mask)


def _together(cells: Tensor, n_rows: Tensor) -> Iterator[Tensor]:
    """Cells that have no more than ROWS_UNEMBEDDED rows together, or one that has more."""
    start, total = 0, 0
    for at, n in enumerate(n_rows.tolist()):
        if at > start and total + n > ROWS_UNEMBEDDED:
            yield cells[start:at]
            start, total = at, 0
        total += n
    yield cells[start:]


def _through_the_layers(run: Propagation, cases: Sequence[Case], source: Mapping[str, Tensor] | None) -> Rows | None:
    """The rows before the final layer norm that these cases change. Cases join where they start."""
    n_layers = len(run.base.model.blocks)
    entering: dict[tuple[int, int], dict[str, list[int]]] = {}
    rerunning: dict[int, dict[frozenset[str], list[int]]] = {}  # apart by hook points: an edit changes how a block runs
    for at, case in enumerate(cases):
        if case.positions is not None:
            entering.setdefault(case.start, {}).setdefault(case.patches[0].name, []).append(at)
        else:
            for layer in {patch.layer for patch in case.patches} - {END}:
                names = frozenset(patch.name for patch in case.patches if patch.layer == layer)
                rerunning.setdefault(layer, {}).setdefault(names, []).append(at)

    def joined(layer: int, stage: int) -> list[Rows]:
        groups = entering.get((layer, stage), {}).values()
        return [enter(run, ids, [cases[at] for at in ids], source) for ids in groups]

    rows = None
    for layer in range(min([layer for layer, _ in entering] + [*rerunning], default=n_layers), n_layers):
        if layer >= 0:
            rows = Rows.of([rows, *joined(layer, PRE)])
        redone = []
        for again in rerunning.get(layer, {}).values():
            mine, rows = _divided(rows, again)
            redone.append(rerun(run, layer, mine, again, [cases[at] for at in again], source))
        if layer >= 0:
            mid = Rows.of([run.attention(layer, rows) if rows is not None else None, *joined(layer, MID)])
            if mid is not None and run.only_last and layer == n_layers - 1:
                mid = Rows.of([mid.where(mid.pos == run.last[mid.case])])
            rows = None if mid is None else run.mlp(layer, mid)
            rows = Rows.of([rows, *redone, *joined(layer, POST)])
        else:
            rows = Rows.of(redone)
    return rows


def _divided(rows: Rows | None, cases: list[int]) -> tuple[Rows | None, Rows | None]:
    """The rows of these cases, and the rest."""
    if rows is None:
        return None, None
    mine = torch.isin(rows.case, torch.tensor(cases, device=rows.case.device))
    return Rows.of([rows.where(mine)]), Rows.of([rows.where(~mine)])
