"""A model under test: its instrument in each precision, its definition beside it, and the edits that are tried on it."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from interp_gpt2.config import GPT2Config
from interp_gpt2.contract.by_hand import Edit, by_hand, without
from interp_gpt2.contract.instrument import Build, Instrument
from interp_gpt2.convert.transformer_lens import hooked_state_dict
from interp_gpt2.hooks import hook_point_names
from interp_gpt2.model import GPT2


@dataclass(frozen=True)
class Case:
    """A model that the contract is held against: what it is called, and the tokens (batch of 2, pos) it reads."""

    title: str
    model: GPT2
    tokens: Tensor


def small_cases(quick: bool = False) -> list[Case]:
    """Seven small models with random weights: what GPT-2s differ in, and matrices large enough for other kernels.

    Without that last one when `quick`.
    """
    shapes = {
        "two heads": {},
        "attention only": {"attn_only": True},
        "one head": {"n_heads": 1},
        "inverse-layer scaling": {"scale_attn_by_inverse_layer_idx": True},
        "no biases": {"bias": False},
        "as long as n_ctx": {"n_ctx": 6},
    }
    sizes = {"n_layers": 2, "n_heads": 2, "d_model": 16, "d_vocab": 29, "n_ctx": 9}
    cases = [case_of(title, drawn(GPT2Config(**sizes | changes)), n_pos=6) for title, changes in shapes.items()]
    if quick:
        return cases
    wide = GPT2Config(n_layers=1, n_heads=2, d_model=256, d_vocab=300, n_ctx=32)
    return [*cases, case_of("wide matrices", drawn(wide, 0.05), n_pos=32)]


def case_of(title: str, model: GPT2, n_pos: int = 12) -> Case:
    """A model, which is copied, on random tokens."""
    config = model.config
    tokens = torch.randint(config.d_vocab, (2, min(n_pos, config.n_ctx)), generator=torch.Generator().manual_seed(1))
    return Case(title, copy.deepcopy(model).float().cpu().eval(), tokens)


def drawn(config: GPT2Config, std: float = 0.2) -> GPT2:
    """A model whose every parameter matters: at GPT-2's own initialisation biases are 0, gains 1, and patterns uniform."""
    model, draw = GPT2(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(std * torch.randn(weight.shape, generator=draw))
    return model


@dataclass
class Subject:
    """A case and the library that computes it. What is expensive is made once; `renew` after a promise was broken."""

    case: Case
    build: Build
    calls: int = 25  # of each of four threads
    _instruments: dict[torch.dtype, Instrument] = field(default_factory=dict)

    @property
    def tokens(self) -> Tensor:
        return self.case.tokens

    @property
    def here(self) -> int:
        """The position that edits are made at: with a past and a future, where there is room for them."""
        return self.tokens.shape[1] // 2

    @property
    def config(self) -> GPT2Config:
        return self.case.model.config

    @cached_property
    def points(self) -> tuple[str, ...]:
        return hook_point_names(self.config)

    def instrument(self, dtype: torch.dtype = torch.float32) -> Instrument:
        if dtype not in self._instruments:
            self._instruments[dtype] = self.fresh(dtype)
        return self._instruments[dtype]

    def fresh(self, dtype: torch.dtype = torch.float32) -> Instrument:
        """An instrument of its own weights, that nobody has used."""
        return self.build(copy.deepcopy(self.case.model).to(dtype))

    def renew(self) -> None:
        """Instruments that keep nothing of what was done to the last ones."""
        self._instruments.clear()

    @cached_property
    def plain(self) -> Tensor:
        """Logits of an instrument that did nothing else, in float32."""
        return self.fresh().run(self.tokens)

    def weights(self, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """The model's weights in float64, after rounding to `dtype`."""
        state = hooked_state_dict(self.case.model)
        return {name: weight.to(dtype).double() for name, weight in state.items()}

    def by_hand(self, edits: Mapping[str, Edit] | None = None, removed: str | None = None) -> dict[str, Tensor]:
        """The definition in float64, with edits, or without one part."""
        weights = self._weights if removed is None else without(self._weights, removed)
        return by_hand(self.tokens, weights, self.config, edits)

    def by_hand_in(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The definition in float64, of the weights as `dtype` has them."""
        if dtype not in self._by_hand_in:
            self._by_hand_in[dtype] = by_hand(self.tokens, self.weights(dtype), self.config)
        return self._by_hand_in[dtype]

    @cached_property
    def _weights(self) -> dict[str, Tensor]:
        return self.weights()

    @cached_property
    def _by_hand_in(self) -> dict[torch.dtype, dict[str, Tensor]]:
        return {}


# Edits ---------------------------------------------------------------------------------------------------------------


def identity(value: Tensor) -> Tensor:
    return value


def zero(value: Tensor) -> Tensor:
    return torch.zeros_like(value)


def scaled(value: Tensor) -> Tensor:
    """An edit that suits every hook point: factors in [0.5, 1.5] keep masked scores at -inf and patterns causal."""
    return value * _factors(value)


def scaled_in_place(value: Tensor) -> Tensor:
    return value.mul_(_factors(value))


def _factors(value: Tensor) -> Tensor:
    """The same for every tensor of this shape, without drawing numbers, which torch.compile would not take into its graph."""
    return (1 + 0.5 * torch.arange(value.numel(), dtype=torch.float64).sin()).view(value.shape).to(value.dtype)


def nudged(point: str, here: int) -> Edit:
    """Another number, positive and larger, at one entry of the first sequence at one position.

    The position of scores and patterns is the query, and the entry is the key at position 0, which every query sees.
    """

    def edit(value: Tensor) -> Tensor:
        value = value.clone()
        at = (0, slice(None), here, 0) if is_by_query(point) else (0, here, ..., 0)
        value[at] = value[at].abs() + 1
        return value

    return edit


def is_by_query(point: str) -> bool:
    """Is this (batch, head, query, key)?"""
    return point.endswith((".attn_scores", ".pattern"))


# Measures ------------------------------------------------------------------------------------------------------------


def deviation(value: Tensor, expected: Tensor) -> float:
    """Largest difference, over the largest finite magnitude expected or 1; infinite for another shape, NaN or infinity."""
    if value.shape != expected.shape:
        return float("inf")
    value, expected = value.detach().double(), expected.detach().double()
    difference = (value - expected).abs().masked_fill(value == expected, 0)  # inf - inf is no difference
    finite = expected.abs().masked_fill(~expected.isfinite(), 0)
    found = difference.max().item() / max(1.0, finite.max().item())
    return float("inf") if found != found else found


def moved(point: str, before: Tensor, after: Tensor, least: float = 0.0) -> Tensor:
    """Which positions differ, (batch, pos): to the bit, or by more than `least` of 1 + magnitude."""
    differs = after != before
    if least:
        differs &= (after - before).abs() > least * (1 + before.abs())
    differs = differs.transpose(1, 2) if is_by_query(point) else differs  # (batch, pos, ...)
    return differs.flatten(2).any(-1)
