"""Steering: a direction that tells two sets of prompts apart, added to the activations of other text.

The direction is the difference of mean activations at one hook point. A steered model is `model.with_edits(vector.edits(4.0))`,
with all its methods, `generate` among them. Turner et al. 2023, "Activation Addition"; Rimsky et al. 2024, "Steering Llama 2
via Contrastive Activation Addition"; Marks and Tegmark 2023, "The Geometry of Truth" (difference of means).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_gpt2.analysis.rows import require_eval
from interp_gpt2.causal.means import batches
from interp_gpt2.causal.positions import Where, checked_positions, chosen_positions, stream_point
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError, EditError
from interp_gpt2.hooks import Edits, Names, Site
from interp_gpt2.inputs import check_tokens, positions_and_visible
from interp_gpt2.model import GPT2

Rule = Literal["last", "mean", "all"]
RULES = ("last", "mean", "all")
Prompts = Int[Tensor, "prompt pos"] | Sequence[Sequence[int]] | Sequence[Int[Tensor, "pos"]]

_NOTHING = 1e-6  # of the activations' own size: what rounding makes of a difference of equals


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """A direction at one hook point. `vector` is (d,), or (pos, d) where each position has one of its own (rule "all").

    Float64, in the activation's own units. `rule` says which tokens of the prompts it is of; "random" for a control.
    """

    vector: Float[Tensor, "*pos d"]
    hook_point: str
    rule: Rule | Literal["random"]
    n_positive: int
    n_negative: int
    config: GPT2Config

    @property
    def norm(self) -> float:
        """Its Euclidean length; over all positions together, where each has its own."""
        return float(self.vector.norm())

    def normalised(self) -> "SteeringVector":
        """The same direction, of length 1."""
        return replace(self, vector=self.vector / self.norm)

    def random(self, seed: int) -> "SteeringVector":
        """A control: a uniformly random direction of the same length, at each position where it has several."""
        drawn = torch.randn(self.vector.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        length = self.vector.norm(dim=-1, keepdim=True)
        return replace(self, vector=drawn / drawn.norm(dim=-1, keepdim=True) * length, rule="random")

    def edits(self, coefficient: float, positions: Where = None) -> Edits:
        """Add `coefficient` times the vector at `positions` (None: everywhere), counted within each text.

        For `run_with_edits`, `with_edits` and generation, where slice(n, None) is what follows a prompt of n tokens. A
        vector of several positions goes to these, from 0 on, and takes no others.
        Raises AnalysisError for a coefficient that is not finite, and positions that no text can have.
        """
        if not isinstance(coefficient, Real) or not math.isfinite(coefficient):
            raise AnalysisError(f"coefficient={coefficient!r} must be a finite number; 0 leaves the model as it is")
        if self.vector.ndim == 2:
            if positions is not None:
                raise AnalysisError(f"this vector goes to its own positions, 0 to {len(self.vector) - 1}; leave positions out")
            positions = range(len(self.vector))
        where = checked_positions(positions, self.config.n_ctx)
        return {self.hook_point: _Adding(float(coefficient) * self.vector, where)}


@dataclass(frozen=True, eq=False)
class _Adding:
    vector: Float[Tensor, "*pos d"]
    positions: slice | tuple[int, ...] | None

    def __call__(self, value: Tensor, site: Site) -> Tensor:
        if value.shape[-1] != self.vector.shape[-1]:
            raise EditError(f"a vector of {self.vector.shape[-1]} numbers cannot be added to {site.name!r}, of {value.shape[-1]}")
        added = self.vector.to(value.device, torch.promote_types(value.dtype, torch.float32))
        at = chosen_positions(self.positions, site)
        if added.ndim == 2:
            added = added[site.positions.clamp(max=len(added) - 1)]  # what lies beyond is not chosen
        if at is not None:
            added = added * at[..., None]
        return (value + added).to(value.dtype)


@torch.no_grad()
def steering_vector(
    model: GPT2,
    positive: Prompts,
    negative: Prompts,
    names: Names,
    rule: Rule = "last",
    batch_size: int = 16,
) -> SteeringVector:
    """The mean activation of the positive prompts less that of the negative ones, at one hook point.

    `names` stands for one hook point of shape (batch, pos, d), such as ("resid_post", 6). `rule`: "last" takes each
    prompt's last token; "mean" the mean over its tokens, so that every prompt counts alike; "all" keeps a vector for each
    position, of prompts that all have one length (with one prompt on each side: activation addition). Prompts are a tensor
    (prompt, pos), or lists of ids of different lengths.

    Raises AnalysisError for no prompts, for one alone on a side (but under "all"), for prompts whose means are equal, and for
    hook points of another shape; else as the model does.
    """
    require_eval(model)
    name = stream_point(model.config, names)
    if rule not in RULES:
        raise AnalysisError(f"rule={rule!r} is unknown; it is 'last', 'mean' or 'all'")
    (positive, masks), (negative, other_masks) = (padded(prompts) for prompts in (positive, negative))
    _check_prompts(positive, masks, negative, other_masks, rule)
    plus, size = _mean_activation(model, positive, masks, name, rule, batch_size)
    minus, _ = _mean_activation(model, negative, other_masks, name, rule, batch_size)
    found = SteeringVector(plus - minus, name, rule, len(positive), len(negative), model.config)
    if not found.vector.isfinite().all():
        raise AnalysisError(f"the activations at {name!r} are not finite; has the model diverged?")
    if found.norm <= _NOTHING * size:
        raise AnalysisError(f"there is no direction: all prompts have the same mean activation at {name!r} (rule {rule!r})")
    return found


def _check_prompts(positive: Tensor, masks: Tensor | None, negative: Tensor, other_masks: Tensor | None, rule: Rule) -> None:
    for what, prompts in (("positive", positive), ("negative", negative)):
        if rule != "all" and len(prompts) < 2:
            raise AnalysisError(
                f"one {what} prompt has no mean beside itself: the difference would be of two texts, in all that they say; "
                "pass more, or rule='all' for one prompt against another, token by token"
            )
    if rule == "all" and (masks is not None or other_masks is not None or positive.shape[1] != negative.shape[1]):
        raise AnalysisError(
            "rule='all' compares prompts token by token, which must have one length; "
            f"positive ones have {_lengths(positive, masks)}, negative ones {_lengths(negative, other_masks)}"
        )


def padded(prompts: Prompts) -> tuple[Int[Tensor, "prompt pos"], Int[Tensor, "prompt pos"] | None]:
    """Tokens padded on the right, and their mask; None where all have one length. Raises AnalysisError for no prompts."""
    if isinstance(prompts, Tensor) and prompts.ndim == 2 and prompts.numel():
        return prompts, None
    text = isinstance(prompts, str) or any(isinstance(row, str) for row in prompts)
    rows = [] if text else [torch.as_tensor(row) for row in prompts]
    if not rows or any(row.ndim != 1 or not row.numel() or row.is_floating_point() for row in rows):
        raise AnalysisError("prompts are a tensor (prompt, pos) or a list of lists of ids, none of them empty; encode text first")
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.nn.utils.rnn.pad_sequence([row.long() for row in rows], batch_first=True)
    mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).long().to(tokens.device)
    return tokens, None if bool(mask.all()) else mask


def _lengths(tokens: Tensor, mask: Tensor | None) -> str:
    found = {tokens.shape[1]} if mask is None else set(mask.sum(1).tolist())
    return " and ".join(map(str, sorted(found))) + " tokens"


def _mean_activation(
    model: GPT2, tokens: Tensor, mask: Tensor | None, name: str, rule: Rule, batch_size: int
) -> tuple[Float[Tensor, "*pos d"], float]:
    """The mean of the prompts' activations under the rule, in float64 on the CPU, and their mean length."""
    total, length = 0.0, 0.0
    for part, part_mask in batches(tokens, mask, batch_size):
        part_mask = None if part_mask is None else part_mask.to(model.device)
        part = part.to(model.device)
        check_tokens(part, model.config, part_mask)
        value = model.run_with_cache(part, name, attention_mask=part_mask)[1][name].cpu().double()
        real = torch.ones(part.shape, dtype=torch.float64) if part_mask is None else part_mask.bool().cpu().double()
        if rule == "last":
            at = positions_and_visible(part.shape[1], part_mask, 0, model.device)[0].expand(part.shape).cpu()
            value = value[torch.arange(len(part)), (at * real).argmax(1)]
        elif rule == "mean":
            value = (value * real[..., None]).sum(1) / real.sum(1, keepdim=True)
        total = total + value.sum(0)
        length += float(value.norm(dim=-1).sum()) if rule != "all" else float(value.flatten(1).norm(dim=-1).sum())
    return total / len(tokens), length / len(tokens)
