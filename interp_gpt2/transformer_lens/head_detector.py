"""detect_head: how much of a head's attention is where a head of some kind would put it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp_gpt2.analysis.attention_patterns import duplicate_token_targets, induction_targets, previous_token_targets
from interp_gpt2.errors import AnalysisError
from interp_gpt2.transformer_lens.activation_cache import ActivationCache
from interp_gpt2.transformer_lens.utils import is_lower_triangular

if TYPE_CHECKING:
    from interp_gpt2.transformer_lens.hooked_transformer import HookedTransformer

HEADS = {
    "previous_token_head": previous_token_targets,
    "duplicate_token_head": duplicate_token_targets,
    "induction_head": induction_targets,
}
HEAD_NAMES = list(HEADS)
Heads = Sequence[tuple[int, int]] | Mapping[int, Sequence[int]] | None


def detect_head(
    model: "HookedTransformer",
    seq: str | list[str],
    detection_pattern: Float[Tensor, "query key"] | str,
    heads: Heads = None,
    cache: ActivationCache | None = None,
    *,
    exclude_bos: bool = False,
    exclude_current_token: bool = False,
    error_measure: Literal["mul", "abs"] = "mul",
) -> Float[Tensor, "layer head"]:
    """A score of every head, or of `heads` (the others are -1), against a pattern of zeros and ones or one by name.

    "mul": the share of attention inside the pattern, in [0, 1]. "abs": 1 less the sum of |attention - pattern| over the
    number of queries, rounded to 3 digits, in [-1, 1]. Of several texts, the mean. The names are in HEAD_NAMES. A cache has
    no batch axis. Raises AnalysisError for a pattern that is not (query, key) and lower triangular.
    """
    if error_measure not in ("mul", "abs"):
        raise AnalysisError(f"error_measure={error_measure!r} is not one of 'mul', 'abs'")
    if isinstance(seq, list):
        if cache is not None:
            raise AnalysisError("one cache cannot serve several texts; pass one text, or leave the cache out")
        given = {"exclude_bos": exclude_bos, "exclude_current_token": exclude_current_token, "error_measure": error_measure}
        return torch.stack([detect_head(model, text, detection_pattern, heads, **given) for text in seq]).mean(0)
    tokens = model.to_tokens(seq)
    target = _pattern(detection_pattern, tokens).to(model.cfg.device)
    if cache is None:
        _, cache = model.run_with_cache(tokens, remove_batch_dim=True)
    scores = -torch.ones(model.cfg.n_layers, model.cfg.n_heads)
    for layer, head in _pairs(model, heads):
        scores[layer, head] = compute_head_attention_similarity_score(
            cache["pattern", layer][head],
            target,
            exclude_bos=exclude_bos,
            exclude_current_token=exclude_current_token,
            error_measure=error_measure,
        )
    return scores


def _pairs(model: "HookedTransformer", heads: Heads) -> list[tuple[int, int]]:
    if heads is None:
        heads = {layer: range(model.cfg.n_heads) for layer in range(model.cfg.n_layers)}
    return [(layer, head) for layer, some in heads.items() for head in some] if isinstance(heads, Mapping) else list(heads)


def compute_head_attention_similarity_score(
    attention_pattern: Float[Tensor, "query key"],
    detection_pattern: Float[Tensor, "query key"],
    *,
    exclude_bos: bool,
    exclude_current_token: bool,
    error_measure: Literal["mul", "abs"],
) -> float:
    """The score of one head; see `detect_head`. What is excluded counts on neither side."""
    counted = torch.ones_like(attention_pattern)
    if exclude_bos:
        counted[:, 0] = 0
    if exclude_current_token:
        counted.fill_diagonal_(0)
    if error_measure == "mul":
        attention = attention_pattern * counted
        return ((attention * detection_pattern).sum() / attention.sum()).item()
    difference = ((attention_pattern - detection_pattern).abs() * counted).sum() / len(attention_pattern)
    return 1 - round(difference.item(), 3)


def get_previous_token_head_detection_pattern(tokens: Tensor) -> Float[Tensor, "query key"]:
    return previous_token_targets(tokens)[0].float()


def get_duplicate_token_head_detection_pattern(tokens: Tensor) -> Float[Tensor, "query key"]:
    return duplicate_token_targets(tokens)[0].float()


def get_induction_head_detection_pattern(tokens: Tensor) -> Float[Tensor, "query key"]:
    return induction_targets(tokens)[0].float()


def _pattern(pattern: Tensor | str, tokens: Tensor) -> Float[Tensor, "query key"]:
    if isinstance(pattern, str):
        if pattern not in HEADS:
            raise AnalysisError(f"detection_pattern={pattern!r} is not one of {', '.join(HEADS)}, nor a tensor")
        return HEADS[pattern](tokens)[0].float()
    if not is_lower_triangular(pattern) or len(pattern) != tokens.shape[-1]:
        raise AnalysisError(
            f"the detection pattern has shape {tuple(pattern.shape)}; expected a lower triangular matrix of {tokens.shape[-1]} "
            "queries and keys, the tokens of the text with its BOS"
        )
    return pattern
