"""Where attention heads look: scores in [0, 1] by head, each beside what a head attending evenly would score.

Each score but the entropy is the attention that goes, on average over queries, to a set of target keys. Queries without
a target do not count. A query's targets are told by the tokens alone, so the uniform head is exact: it puts
1 / (number of keys up to q) on each. With `attention_mask` (batch, pos), 1 for tokens and 0 for padding on either
side, padding is neither a query nor a key.

Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; Olsson et al. 2022, "In-context Learning and
Induction Heads".
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp_gpt2.analysis.rows import Analysis, Row, interval, ratio_of_sums, require_eval
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2

Targets = Bool[Tensor, "batch query key"]
Tokens = Int[Tensor, "batch pos"]
Mask = Int[Tensor, "batch pos"] | Bool[Tensor, "batch pos"]
Pattern = Float[Tensor, "batch head query key"]


@dataclass(frozen=True, eq=False)
class HeadScore:
    """One score of every head, (head,) or (layer, head), in float64.

    `uniform` is the score of a head attending evenly to k <= q on the same tokens, `n` the number of queries averaged
    over, `stderr` the standard error with the `n_sequences` that hold one as the units (NaN for a single one): queries of
    one sequence are not independent.
    """

    metric: str
    value: Float[Tensor, "*layer head"]
    stderr: Float[Tensor, "*layer head"]
    uniform: float
    n: int
    n_sequences: int

    @property
    def best(self) -> tuple[str, float]:
        """Label and value of the highest-scoring head of a (layer, head) score: ("L1H0", 0.71)."""
        if self.value.ndim != 2:
            raise AnalysisError(f"this {self.metric} score has shape {tuple(self.value.shape)}; a best head needs (layer, head)")
        layer, head = divmod(int(self.value.argmax()), self.value.shape[1])
        return head_label(layer, head), float(self.value[layer, head])


def head_label(layer: int, head: int) -> str:
    """How heads are written everywhere: L1H0."""
    return f"L{layer}H{head}"


# ---------------------------------------------------------------------------------------------------------------------
# Targets: which keys a perfect head of this kind would look at.


def previous_token_targets(tokens: Tokens, attention_mask: Mask | None = None) -> Targets:
    """{q - 1}."""
    return _visible(tokens, attention_mask).tril(-1).triu(-1)


def duplicate_token_targets(tokens: Tokens, attention_mask: Mask | None = None) -> Targets:
    """{k < q: token[k] = token[q]}: earlier occurrences of the current token."""
    return (_visible(tokens, attention_mask) & (tokens[:, :, None] == tokens[:, None, :])).tril(-1)


def induction_targets(tokens: Tokens, attention_mask: Mask | None = None) -> Targets:
    """{k <= q: token[k - 1] = token[q]}: what followed earlier occurrences of the current token (prefix matching)."""
    # Shifted by one key, the duplicates are the tokens after them: k - 1 < q, so k = q is among the targets.
    duplicates = duplicate_token_targets(tokens, attention_mask)
    return torch.cat([torch.zeros_like(duplicates[:, :, :1]), duplicates[:, :, :-1]], dim=2)


def first_token_targets(tokens: Tokens, attention_mask: Mask | None = None) -> Targets:
    """{0}, for q > 0: the first query can look nowhere else. In a padded sequence 0 is the first real token."""
    real = _real(tokens, attention_mask)
    first = real & (real.cumsum(1) == 1)
    return (_visible(tokens, attention_mask) & first[:, None, :]).tril(-1)


def repeated_sequence_targets(tokens: Tokens, period: int) -> Targets:
    """{q - period + 1} for q >= period: in text that repeats every `period` tokens, what came next last time.

    Raises AnalysisError if the tokens do not repeat with that period, or hold less than one token of a second one.
    """
    if not 1 <= period < tokens.shape[1]:
        raise AnalysisError(f"{tokens.shape[1]} tokens cannot repeat with period {period}; pass at least period + 1 of them")
    if not torch.equal(tokens[:, period:], tokens[:, :-period]):
        raise AnalysisError(f"the tokens do not repeat with period {period}: token[q] = token[q - period] must hold throughout")
    pos = torch.arange(tokens.shape[1], device=tokens.device)
    targets = (pos[None, :] == pos[:, None] - period + 1) & (pos[:, None] >= period)
    return targets.expand(len(tokens), -1, -1)


def _visible(tokens: Tokens, attention_mask: Mask | None) -> Bool[Tensor, "batch query key"]:
    """Which keys each query sees."""
    real = _real(tokens, attention_mask)
    return (real[:, :, None] & real[:, None, :]).tril()


def _real(tokens: Tokens, attention_mask: Mask | None) -> Bool[Tensor, "batch pos"]:
    """Which positions hold a token."""
    if attention_mask is None:
        return torch.ones_like(tokens, dtype=torch.bool)
    real = attention_mask.to(tokens.device).bool()
    if real.shape != tokens.shape:
        raise AnalysisError(f"attention_mask has shape {tuple(real.shape)}; the tokens have {tuple(tokens.shape)}")
    if ((real.int().diff(dim=1) == 1).sum(1) + real[:, 0].int() > 1).any():
        raise AnalysisError("attention_mask has padding between tokens; put all of it on one side")
    return real


TARGETS: dict[str, Callable[[Tokens, Mask | None], Targets]] = {
    "previous_token": previous_token_targets,
    "duplicate_token": duplicate_token_targets,
    "induction": induction_targets,
    "first_token": first_token_targets,
}
METRICS = (*TARGETS, "entropy")


# ---------------------------------------------------------------------------------------------------------------------
# Scores of one layer's pattern.


def previous_token_score(pattern: Pattern, tokens: Tokens, attention_mask: Mask | None = None) -> HeadScore:
    """Attention to the token before: mean over q >= 1 of pattern[q, q - 1]. In [0, 1].

    Raises AnalysisError if no sequence has a second token.
    """
    return _score(_Plan.of(["previous_token"], tokens, attention_mask), pattern, tokens)


def duplicate_token_score(pattern: Pattern, tokens: Tokens, attention_mask: Mask | None = None) -> HeadScore:
    """Attention to earlier occurrences of the current token.

    Mean over queries q that have one of sum(pattern[q, k] for k < q with tokens[k] == tokens[q]). In [0, 1].

    Raises AnalysisError if no token occurs twice in a sequence.
    """
    return _score(_Plan.of(["duplicate_token"], tokens, attention_mask), pattern, tokens)


def induction_score(pattern: Pattern, tokens: Tokens, attention_mask: Mask | None = None) -> HeadScore:
    """Attention to the tokens that followed earlier occurrences of the current token.

    Mean over queries q that have one of sum(pattern[q, k] for k <= q with tokens[k-1] == tokens[q]). In [0, 1].
    Olsson et al. 2022, "In-context Learning and Induction Heads" (prefix matching).

    Raises AnalysisError if no token occurs twice in a sequence.
    """
    return _score(_Plan.of(["induction"], tokens, attention_mask), pattern, tokens)


def first_token_score(pattern: Pattern, tokens: Tokens, attention_mask: Mask | None = None) -> HeadScore:
    """Attention to the first token: mean over q >= 1 of pattern[q, 0]. In [0, 1]. Query 0 has nowhere else to look.

    Raises AnalysisError if no sequence has a second token.
    """
    return _score(_Plan.of(["first_token"], tokens, attention_mask), pattern, tokens)


def entropy_score(pattern: Pattern, tokens: Tokens, attention_mask: Mask | None = None) -> HeadScore:
    """Spread of attention, in nats: mean over q >= 1 of -sum(pattern[q, k] ln pattern[q, k]).

    In [0, mean of ln(q + 1)], and the upper end is the uniform head's. Query 0 has no choice and does not count.

    Raises AnalysisError if no sequence has a second token.
    """
    return _score(_Plan.of(["entropy"], tokens, attention_mask), pattern, tokens)


def repeated_sequence_score(pattern: Pattern, tokens: Tokens, period: int) -> HeadScore:
    """Attention to what came next one period ago: mean over q >= period of pattern[q, q - period + 1]. In [0, 1].

    For text that repeats every `period` tokens, such as random tokens said twice. Where a token occurs several times
    within a period this asks for one place, while `induction_score` accepts them all.
    Olsson et al. 2022, "In-context Learning and Induction Heads" (repeated random tokens).

    Raises AnalysisError if the tokens do not repeat with that period.
    """
    return _score(_Plan.of_period(tokens, period), pattern, tokens)


def uniform_pattern(tokens: Tokens, attention_mask: Mask | None = None) -> Float[Tensor, "batch 1 query key"]:
    """The pattern of a head that attends evenly to the keys k <= q: the yardstick of every score. Float64."""
    seen = _visible(tokens, attention_mask)[:, None].double()
    return seen / seen.sum(-1, keepdim=True).clamp(min=1)


def _score(plan: "_Plan", pattern: Pattern, tokens: Tokens) -> HeadScore:
    batch, _, query, key = pattern.shape
    if (batch, query) != tuple(tokens.shape) or query != key:
        raise AnalysisError(f"pattern {tuple(pattern.shape)} is not (batch, head, query, key) for tokens {tuple(tokens.shape)}")
    (score,) = _to_scores(plan.metrics, plan.measure(pattern), plan.uniform, plan.n).values()
    return score


# ---------------------------------------------------------------------------------------------------------------------
# Scores of a whole model, in one pass.


def head_scores(
    model: GPT2,
    tokens: Tokens,
    metrics: Sequence[str] = METRICS,
    attention_mask: Mask | None = None,
    batch_size: int = 16,
) -> dict[str, HeadScore]:
    """Scores (layer, head) by metric: "previous_token", "duplicate_token", "induction", "first_token", "entropy".

    One pass for all of them; each layer's pattern is reduced where it arises, so that no two layers' patterns exist
    at once. Raises AnalysisError for an unknown metric or one that no query qualifies for.
    """
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown:
        raise AnalysisError(f"there is no head score {unknown[0]!r}; there are {', '.join(METRICS)}")
    parts = tokens.cpu().split(batch_size)
    masks = [None] * len(parts) if attention_mask is None else attention_mask.cpu().split(batch_size)
    plans = (_Plan.of(metrics, part, mask) for part, mask in zip(parts, masks, strict=True))
    return _scores_in_one_pass(model, plans)


def repeated_sequence_scores(model: GPT2, tokens: Tokens, period: int, batch_size: int = 16) -> HeadScore:
    """`repeated_sequence_score` of every head, (layer, head)."""
    plans = (_Plan.of_period(part, period) for part in tokens.cpu().split(batch_size))
    return _scores_in_one_pass(model, plans)["repeated_sequence"]


@torch.no_grad()
def _scores_in_one_pass(model: GPT2, plans: Iterable["_Plan"]) -> dict[str, HeadScore]:
    require_eval(model)
    if model.config.n_layers == 0:
        raise AnalysisError("a model of no layers has no heads to score")
    sums, uniform, n = [], [], []
    for plan in plans:
        mask = None if plan.attention_mask is None else plan.attention_mask.to(model.device)
        _, cache = model.run_with_cache(plan.tokens.to(model.device), "*.pattern", keep=plan.measure, attention_mask=mask)
        sums.append(cache.stack("pattern").transpose(0, 1))  # (metric, layer, batch, head)
        uniform.append(plan.uniform)
        n.append(plan.n)
    return _to_scores(plan.metrics, torch.cat(sums, 2), torch.cat(uniform, 1), torch.cat(n, 1))


@dataclass(frozen=True, eq=False)
class HeadScores(Analysis):
    """`head_scores` for a sweep: a row for each metric and head, and one "<metric>_uniform" row for the uniform head.

    Rows have metric, hook_point, layer, head, label ("L1H0"), value, n (queries) and a 95 % interval over sequences;
    the uniform head's have only metric, value and n.
    """

    tokens: Tokens
    metrics: tuple[str, ...] = METRICS
    batch_size: int = 16
    name: str = "head_scores"

    def __call__(self, model: GPT2) -> list[Row]:
        scores = head_scores(model, self.tokens, self.metrics, batch_size=self.batch_size)
        return [row for score in scores.values() for row in _rows(score)]


@dataclass(frozen=True, eq=False)
class RepeatedSequenceScores(Analysis):
    """`repeated_sequence_scores` for a sweep; rows as those of `HeadScores`."""

    tokens: Tokens
    period: int
    batch_size: int = 16
    name: str = "repeated_sequence_scores"

    def __call__(self, model: GPT2) -> list[Row]:
        return _rows(repeated_sequence_scores(model, self.tokens, self.period, self.batch_size))


def _rows(score: HeadScore) -> list[Row]:
    rows: list[Row] = [{"metric": f"{score.metric}_uniform", "value": score.uniform, "n": score.n}]
    stderr = score.stderr.tolist()
    for layer, values in enumerate(score.value.tolist()):
        for head, value in enumerate(values):
            where = {"hook_point": f"blocks.{layer}.attn.pattern", "layer": layer, "head": head, "label": head_label(layer, head)}
            measured = {"value": value, "n": score.n, **interval(value, stderr[layer][head], score.n_sequences)}
            rows.append({"metric": score.metric, **where, **measured})
    return rows


@dataclass(frozen=True, eq=False)
class _Plan:
    """What to measure on these tokens, by metric: each query's targets (for the entropy, the keys that give it a choice)."""

    tokens: Tokens
    attention_mask: Mask | None
    targets: dict[str, Targets]

    @classmethod
    def of(cls, metrics: Sequence[str], tokens: Tokens, attention_mask: Mask | None) -> "_Plan":
        return cls(tokens, attention_mask, {metric: TARGETS.get(metric, _earlier)(tokens, attention_mask) for metric in metrics})

    @classmethod
    def of_period(cls, tokens: Tokens, period: int) -> "_Plan":
        return cls(tokens, None, {"repeated_sequence": repeated_sequence_targets(tokens, period)})

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(self.targets)

    @property
    def n(self) -> Int[Tensor, "metric batch"]:
        """Queries that count."""
        return torch.stack([target.any(-1).sum(-1) for target in self.targets.values()]).cpu()

    @property
    def uniform(self) -> Float[Tensor, "metric batch"]:
        """What `measure` gives for a head that attends evenly."""
        return self.measure(uniform_pattern(self.tokens, self.attention_mask))[..., 0]

    def measure(self, pattern: Pattern) -> Float[Tensor, "metric batch head"]:
        """Sums over queries, on the CPU in float64: a mean over thousands of queries should not depend on their order."""
        sums = []
        for metric, target in self.targets.items():
            target = target.to(pattern.device)[:, None]  # (batch, 1, query, key)
            if metric == "entropy":
                by_query = -torch.special.xlogy(pattern, pattern).sum(-1)  # xlogy is 0 at 0, where p ln p would be NaN
                by_query = torch.where(target.any(-1), by_query, 0)
            else:
                by_query = torch.where(target, pattern, 0).sum(-1)  # (batch, head, query)
            sums.append(by_query.cpu().double().sum(-1))
        return torch.stack(sums)


def _earlier(tokens: Tokens, attention_mask: Mask | None) -> Targets:
    return _visible(tokens, attention_mask).tril(-1)


def _to_scores(
    metrics: Sequence[str],
    sums: Float[Tensor, "metric *layer batch head"],
    uniform: Float[Tensor, "metric batch"],
    n: Int[Tensor, "metric batch"],
) -> dict[str, HeadScore]:
    """Means over all queries, from each sequence's sum and number of queries, with the standard errors of these ratios."""
    scores = {}
    for i, metric in enumerate(metrics):
        n_queries = int(n[i].sum())
        if n_queries == 0:
            repeats = metric in ("duplicate_token", "induction")
            why = "no token occurs twice in a sequence" if repeats else "no sequence has a second token"
            raise AnalysisError(f"no query qualifies for the {metric} score: {why}; pass longer sequences")
        value, stderr = ratio_of_sums(sums[i].transpose(-1, -2), n[i].double())
        uniform_value, n_sequences = float(uniform[i].sum()) / n_queries, int((n[i] > 0).sum())
        scores[metric] = HeadScore(metric, value, stderr, uniform_value, n_queries, n_sequences)
    return scores
