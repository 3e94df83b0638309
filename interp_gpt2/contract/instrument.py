"""What the contract asks of a library: eight methods around one GPT-2. Ours here, TransformerLens's beside it."""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor

import interp_gpt2
from interp_gpt2.contract.by_hand import Edit
from interp_gpt2.model import GPT2


class Instrument(Protocol):
    """A GPT-2 as some library computes it, with its hook points under our names.

    `missing` names hook points that the library does not have, `exempt` clauses that it promises the opposite of; each
    with the reason. Edits are functions of the value alone, which they may change in place and must return.
    """

    name: str
    missing: Mapping[str, str]
    exempt: Mapping[str, str]

    def run(self, tokens: Tensor) -> Tensor:
        """Logits (batch, pos, d_vocab), nobody listening."""

    def record(
        self, tokens: Tensor, names: Sequence[str] | None = None, edits: Mapping[str, Edit] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits and activations; names None is every hook point that can be recorded beside these edits."""

    def edit(self, tokens: Tensor, edits: Mapping[str, Edit]) -> Tensor:
        """Logits of an edited pass, nothing recorded."""

    def gradient(self, tokens: Tensor, metric: Callable[[Tensor], Tensor], name: str) -> Tensor:
        """The derivative of metric(logits) by the activation at a hook point, as users of the library get it."""

    def weights(self) -> list[Tensor]:
        """The live parameters."""

    def n_hooks(self) -> int:
        """How many hooks the model carries at the moment."""

    def compile(self, backend: Callable) -> None:
        """From now on run compiled, as one graph."""


Build = Callable[[GPT2], Instrument]
"""Makes an instrument of a GPT2's weights, in its dtype. Raises ConversionError for a model the library cannot compute."""


class Ours:
    """interp_gpt2's own model."""

    name = f"interp_gpt2 {interp_gpt2.__version__}"
    missing: ClassVar[Mapping[str, str]] = {}
    exempt: ClassVar[Mapping[str, str]] = {}

    def __init__(self, model: GPT2) -> None:
        self.model = model

    def run(self, tokens: Tensor) -> Tensor:
        return self.model(tokens)

    def record(
        self, tokens: Tensor, names: Sequence[str] | None = None, edits: Mapping[str, Edit] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits, cache = self.model.run_with_cache(tokens, "*" if names is None else list(names), _with_site(edits or {}))
        return logits, dict(cache)

    def edit(self, tokens: Tensor, edits: Mapping[str, Edit]) -> Tensor:
        return self.model.run_with_edits(tokens, _with_site(edits))

    def gradient(self, tokens: Tensor, metric: Callable[[Tensor], Tensor], name: str) -> Tensor:
        logits, cache = self.model.run_with_cache(tokens, name)
        (gradient,) = torch.autograd.grad(metric(logits), cache[name])
        return gradient

    def weights(self) -> list[Tensor]:
        return list(self.model.parameters())

    def n_hooks(self) -> int:
        """Torch's own, since the model keeps none."""
        return sum(len(part._forward_hooks) + len(part._backward_hooks) for part in self.model.modules())

    def compile(self, backend: Callable) -> None:
        self.model.compile(backend=backend, fullgraph=True)


def _with_site(edits: Mapping[str, Edit]) -> dict[str, Callable]:
    return {name: lambda value, site, edit=edit: edit(value) for name, edit in edits.items()}
