"""Path patching: what one part of the model tells another directly, and nothing it tells the rest.

Two passes over the base prompts. In the first, the senders write what they wrote in the other run, every other head writes
what it wrote in the base run, and the receivers' inputs are read off. In the second, the receivers read those inputs, and
everything behind them is computed as it comes. MLPs between sender and receiver are recomputed in the first pass, as in
Wang et al. 2022, "Interpretability in the Wild" (`mlps="recomputed"`), or write what they wrote in the base run, which
leaves the direct path alone (`mlps="frozen"`).

Goldowsky-Dill et al. 2023, "Localizing Model Behavior with Path Patching". Senders and receivers have the labels of
`causal.graph`: "L0H3", "mlp 0" and "embed" write; "L1H2.q", "mlp 1" and "logits" read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_gpt2.analysis.rows import require_eval
from interp_gpt2.cache import ActivationCache
from interp_gpt2.causal.activation_patching import Direction, MetricName, metric_named, refuse_equal
from interp_gpt2.causal.engine import BUDGET, PatchedRuns, metric_of, run_patches
from interp_gpt2.causal.graph import Graph, Node
from interp_gpt2.causal.metrics import Function, Metric, metric_name
from interp_gpt2.causal.patch import Patch
from interp_gpt2.causal.result import PatchingResult
from interp_gpt2.errors import AnalysisError
from interp_gpt2.hooks import NO_HOOKS
from interp_gpt2.model import GPT2
from interp_gpt2.passes import refuse_edited
from interp_gpt2.prompts.pairs import PromptPairs

MLPs = Literal["recomputed", "frozen"]
Labels = str | Sequence[str]


def path_patching(
    model: GPT2,
    pairs: PromptPairs,
    senders: str | Sequence[Labels],
    receivers: Labels,
    metric: Metric | Function | MetricName = "logit_difference",
    direction: Direction = "noising",
    *,
    mlps: MLPs = "recomputed",
    budget: int = BUDGET,
    progress: bool = False,
) -> PatchingResult:
    """The metric when each of `senders`, one label or several together, tells `receivers` what it told them in the other run.

        path_patching(model, pairs, ["L0H1", ["L0H1", "L0H2"]], "L1H0.k")

    The result's axis is "sender". "noising" is the literature's direction: the base prompts are the clean ones. `budget`
    bounds the bytes of a batch, besides the two runs.

    Raises AnalysisError for labels that are no senders or receivers, and a sender that writes after every receiver has read;
    else as `activation_patching`.
    """
    groups = [
        [label] if isinstance(label, str) else list(label) for label in ([senders] if isinstance(senders, str) else senders)
    ]
    if not groups or not all(groups):
        raise AnalysisError("name at least one sender in every group, such as 'L0H1', 'mlp 0' or 'embed'")
    found, ends, chosen = _patched(model, pairs, groups, receivers, metric, direction, mlps, budget, progress)
    return PatchingResult(
        found.values.cpu(),
        ("sender",),
        {"sender": tuple(" + ".join(group) for group in groups)},
        *(end.cpu() for end in ends),
        found.skipped,
        direction,
        metric_name(chosen),
        f"path to {receivers if isinstance(receivers, str) else ', '.join(receivers)}",
        found.bytes_used,
        found.complete,
    )


def get_path_patch_head_to_heads(
    model: GPT2,
    pairs: PromptPairs,
    receivers: Labels,
    metric: Metric | Function | MetricName = "logit_difference",
    direction: Direction = "noising",
    *,
    mlps: MLPs = "recomputed",
    budget: int = BUDGET,
    progress: bool = False,
) -> PatchingResult:
    """(layer, head): every head before the last receiver, as sender to `receivers`, inputs such as ["L9H6.q", "L9H9.q"]."""
    last = max((node.layer for node in _receivers(model, receivers) if node.layer is not None), default=model.config.n_layers)
    senders = _heads_before(last, model, receivers)
    return _by_head(
        path_patching(model, pairs, senders, receivers, metric, direction, mlps=mlps, budget=budget, progress=progress), last
    )


def get_path_patch_head_to_final_resid_post(
    model: GPT2,
    pairs: PromptPairs,
    metric: Metric | Function | MetricName = "logit_difference",
    direction: Direction = "noising",
    *,
    mlps: MLPs = "recomputed",
    budget: int = BUDGET,
    progress: bool = False,
) -> PatchingResult:
    """(layer, head): every head as sender to the logits: what it tells them past all other heads."""
    senders = _heads_before(model.config.n_layers, model, "logits")
    found = path_patching(model, pairs, senders, "logits", metric, direction, mlps=mlps, budget=budget, progress=progress)
    return _by_head(found, model.config.n_layers)


def _heads_before(layer: int, model: GPT2, receivers: Labels) -> list[str]:
    if layer == 0:
        raise AnalysisError(f"no head writes before {receivers!r} reads")
    return [f"L{earlier}H{head}" for earlier in range(layer) for head in range(model.config.n_heads)]


def _by_head(result: PatchingResult, n_layers: int) -> PatchingResult:
    """The same result with an axis for layers and one for heads in place of senders."""
    n_heads = len(result.values) // n_layers
    return replace(
        result,
        values=result.values.unflatten(0, (n_layers, n_heads)),
        skipped=result.skipped.unflatten(0, (n_layers, n_heads)),
        axes=("layer", "head"),
        labels={"layer": tuple(map(str, range(n_layers))), "head": tuple(f"H{head}" for head in range(n_heads))},
    )


@torch.no_grad()
def _patched(
    model: GPT2,
    pairs: PromptPairs,
    senders: list[list[str]],
    receivers: Labels,
    metric: Metric | Function | MetricName,
    direction: Direction,
    mlps: MLPs,
    budget: int,
    progress: bool,
) -> tuple[PatchedRuns, tuple[Tensor, Tensor], Metric | Function]:
    """Every sender group's cell, the metric of the clean and the corrupted run, and the metric itself."""
    require_eval(model)
    refuse_edited(model, "path patched")
    if mlps not in ("recomputed", "frozen") or direction not in ("denoising", "noising"):
        raise AnalysisError(f"mlps={mlps!r} is 'recomputed' or 'frozen', direction={direction!r} 'noising' or 'denoising'")
    pairs.check(model.config)
    pairs = pairs.to(model.device)
    readers = _receivers(model, receivers)
    writers = [_senders(model, group, readers) for group in senders]
    mask = pairs.attention_mask
    names = ["embed", "pos_embed", "*resid_pre", "*attn_out", "*attn.z", *([] if model.config.attn_only else ["*mlp_out"])]
    clean_logits, clean = model.run_with_cache(pairs.clean, names, attention_mask=mask)
    corrupted_logits, corrupted = model.run_with_cache(pairs.corrupted, names, attention_mask=mask)
    chosen = metric_named(metric, pairs, clean_logits) if isinstance(metric, str) else metric
    ends = metric_of(chosen, clean_logits, mask), metric_of(chosen, corrupted_logits, mask)
    refuse_equal(*ends, chosen)
    noising = direction == "noising"
    base, source, tokens = (clean, corrupted, pairs.clean) if noising else (corrupted, clean, pairs.corrupted)
    # With heads frozen positions do not meet: to the logits, only the metric's own position matters.
    alone = isinstance(chosen, Metric) and readers[0].kind == "logits"
    only = chosen.positions(*tokens.shape, mask).to(tokens.device) if alone else None
    first = _FirstPass(model, base, source, readers, mlps == "frozen", only)
    found = []
    size = max(1, budget // 2 // first.bytes_of_case(tokens))
    for start in range(0, len(writers), size):
        cells = first.patches(writers[start : start + size], tokens)
        found.append(run_patches(model, tokens, cells, chosen, None, mask, budget=budget, progress=progress))
        if not found[-1].complete:
            break
    return _joined(found, len(writers)), ends, chosen


def _joined(found: list[PatchedRuns], n_cells: int) -> PatchedRuns:
    """The batches of cells as one, with NaN for those that were not reached."""
    values, skipped = torch.cat([each.values for each in found]), torch.cat([each.skipped for each in found])
    missing = n_cells - len(values)
    values = torch.cat([values, values.new_full((missing, values.shape[1]), torch.nan)])
    skipped = torch.cat([skipped, skipped.new_zeros(missing, skipped.shape[1])])
    return PatchedRuns(
        values, found[0].base, skipped, max(each.bytes_used for each in found), all(each.complete for each in found)
    )


def _receivers(model: GPT2, labels: Labels) -> list[Node]:
    if model.config.n_layers == 0:
        raise AnalysisError("a model without layers has no paths but the one from the embeddings to the logits")
    graph = Graph.of(model.config)
    labels = [labels] if isinstance(labels, str) else list(labels)
    if not labels:
        raise AnalysisError("name at least one receiver, such as 'L1H0.k' or 'logits'")
    nodes = [graph.receivers[graph.receiver_index(label)] for label in labels]
    if "logits" in labels and len(labels) > 1:
        raise AnalysisError("'logits' read the whole stream, what other receivers make of it included; make it the only receiver")
    return nodes


def _senders(model: GPT2, labels: list[str], receivers: list[Node]) -> list[Node]:
    graph = Graph.of(model.config)
    seen = max(graph.n_upstream[graph.receiver_index(node)] for node in receivers)
    for label in labels:
        if graph.sender_index(label) >= seen:
            raise AnalysisError(
                f"{label!r} writes after {', '.join(map(str, receivers))} have read: there is no path between them"
            )
    return [Node.from_label(label) for label in labels]


@dataclass(frozen=True, eq=False)
class _FirstPass:
    """The base run with other senders and frozen heads: what the receivers then read, as patches for the second pass."""

    model: GPT2
    base: ActivationCache
    source: ActivationCache
    receivers: list[Node]
    frozen: bool
    only: Int[Tensor, "pair"] | None  # the one position of each pair that matters; None: all

    def _cached(self, run: ActivationCache, leaf: str, layer: int | None = None) -> Float[Tensor, "pair pos ..."]:
        value = run[leaf] if layer is None else run[leaf, layer]
        return value if self.only is None else value[torch.arange(len(value), device=value.device), self.only][:, None]

    def patches(self, cases: list[list[Node]], tokens: Int[Tensor, "pair pos"]) -> list[list[Patch]]:
        """For each case, a set of senders, the patches of the receivers' inputs."""
        n_layers = self.model.config.n_layers
        cells: list[list[Patch]] = [[] for _ in cases]
        stop = max(n_layers if node.layer is None else node.layer for node in self.receivers)
        stream = self._cached(self.base, "resid_pre", 0)
        stream = stream.expand(len(cases), *stream.shape).clone()
        for at, senders in enumerate(cases):
            if any(node.kind == "embed" for node in senders):
                for name in ("embed", "pos_embed"):
                    stream[at] += self._cached(self.source, name) - self._cached(self.base, name)
        for layer in range(min(stop + 1, n_layers)):
            self._read_by_heads(layer, stream, cells)
            if layer < stop or any(node.kind == "mlp" and node.layer == layer for node in self.receivers):
                self._attention(layer, stream, cases)
                stream = self._mlp(layer, stream, cases, cells)
        if self.receivers[0].kind == "logits":
            for at, cell in enumerate(cells):
                cell.append(Patch("resid_post", n_layers - 1, value=self._placed(stream[at], tokens.shape[1])))
        return cells

    def _placed(self, stream: Float[Tensor, "pair pos d_model"], n_pos: int) -> Float[Tensor, "pair n_pos d_model"]:
        """The final stream at every position; where only one matters, the others are as good as any."""
        return stream if self.only is None else stream.expand(-1, n_pos, -1)

    def _read_by_heads(self, layer: int, stream: Float[Tensor, "case pair pos d_model"], cells: list[list[Patch]]) -> None:
        for which in ("q", "k", "v"):
            heads = [node.head for node in self.receivers if (node.kind, node.layer, node.input) == ("head", layer, which)]
            if not heads:
                continue
            block = self.model.blocks[layer]
            read = block.attn.project(block.ln1(stream.flatten(0, 1)))["qkv".index(which)].unflatten(0, stream.shape[:2])
            for at, cell in enumerate(cells):
                cell.append(Patch(which, layer, heads=heads, value=read[at]))

    def _attention(self, layer: int, stream: Float[Tensor, "case pair pos d_model"], cases: list[list[Node]]) -> None:
        """Add what attention wrote in the base run, and of heads that are senders what they wrote in the other one."""
        attn = self.model.blocks[layer].attn
        stream += self._cached(self.base, "attn_out", layer)
        for at, senders in enumerate(cases):
            heads = [node.head for node in senders if (node.kind, node.layer) == ("head", layer)]
            if heads:
                z = self._cached(self.base, "z", layer)
                change = torch.zeros_like(z)
                change[:, :, heads] = (self._cached(self.source, "z", layer) - z)[:, :, heads]
                stream[at] += change.flatten(2) @ attn.proj.weight.T

    def _mlp(
        self, layer: int, stream: Float[Tensor, "case pair pos d_model"], cases: list[list[Node]], cells: list[list[Patch]]
    ) -> Float[Tensor, "case pair pos d_model"]:
        block = self.model.blocks[layer]
        if block.attn_only:
            return stream
        if any((node.kind, node.layer) == ("mlp", layer) for node in self.receivers):
            for at, cell in enumerate(cells):
                cell.append(Patch("mlp_in", layer, value=stream[at].clone()))
        written = self._cached(self.base, "mlp_out", layer)
        if not self.frozen:
            started = self._started(layer, cases)
            fresh = block.mlp(block.ln2(stream[started].flatten(0, 1)), NO_HOOKS)
            written = written.expand(len(cases), *written.shape).clone()
            written[started] = fresh.view_as(written[started])
        stream = stream + written
        for at, senders in enumerate(cases):
            if any((node.kind, node.layer) == ("mlp", layer) for node in senders):
                mine = written if self.frozen else written[at]
                stream[at] += self._cached(self.source, "mlp_out", layer) - mine
        return stream

    def _started(self, layer: int, cases: list[list[Node]]) -> list[int]:
        """The cases in which something has changed by the time this layer's MLP reads."""

        def writes(node: Node) -> float:
            return -1 if node.kind == "embed" else node.layer + (0.5 if node.kind == "mlp" else 0)

        return [at for at, senders in enumerate(cases) if min(map(writes, senders)) <= layer]

    def bytes_of_case(self, tokens: Int[Tensor, "pair pos"]) -> int:
        """What a case takes while its first pass runs: streams, an MLP's activations, and the patches it ends in."""
        config = self.model.config
        kept = config.d_model * sum(1 for _ in self.receivers)
        mlp = 0 if config.attn_only or self.frozen else 2 * config.d_mlp
        element_size = self.base["embed"].element_size()
        n_rows = tokens.numel() if self.only is None else len(tokens)
        return n_rows * (6 * config.d_model + mlp + kept) * element_size
