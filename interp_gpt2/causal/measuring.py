"""A number for each sequence from its logits: a metric where it looks, or the loss over the whole text."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp_gpt2.causal.metrics import Metric
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError
from interp_gpt2.hooks import Edits, Hooks, resolve_edits
from interp_gpt2.inputs import positions_and_visible
from interp_gpt2.model import GPT2
from interp_gpt2.passes import EditedGPT2

AnyMetric = Metric | Callable[[Tensor], Tensor] | None  # None: the loss


@dataclass(frozen=True, eq=False)
class Measure:
    """What is measured of tokens (sequence, pos). Made by `Measure.of`.

    The loss is of the next token, in nats, averaged over a sequence's real tokens that have one before them. A Metric is
    measured at its position. A plain function needs the logits of all sequences at once: (sequence, pos, d_vocab).
    """

    name: str
    metric: AnyMetric
    tokens: Int[Tensor, "sequence pos"]
    predicted: Bool[Tensor, "sequence pos-1"]
    at: Int[Tensor, "sequence"] | None

    @classmethod
    def of(cls, metric: AnyMetric, tokens: Tensor, attention_mask: Tensor | None, config: GPT2Config) -> "Measure":
        """Raises AnalysisError for a position or TokenError for a token that is not there, or texts that predict nothing."""
        mask = torch.ones_like(tokens) if attention_mask is None else attention_mask
        predicted = (mask[:, 1:] != 0) & (mask[:, 1:] == mask[:, :-1])
        at = None
        if metric is None and not predicted.any(1).all():
            raise AnalysisError("a text of fewer than two tokens predicts nothing, so that it has no loss")
        if isinstance(metric, Metric):
            metric.check(len(tokens), config.d_vocab)
            at = metric.positions(*tokens.shape, attention_mask)
        elif metric is not None and not callable(metric):
            raise AnalysisError(f"a metric is a Metric, a function of the logits, or None for the loss; got {metric!r}")
        name = "loss" if metric is None else getattr(metric, "name", None) or getattr(metric, "__name__", "metric")
        return cls(name, metric, tokens, predicted, at)

    def __call__(self, logits: Float[Tensor, "case pos d_vocab"], of: Int[Tensor, "case"]) -> Float[Tensor, "case"]:
        """The number of each case, float64 on the CPU; `of` says which sequence it is. Raises AnalysisError for NaN."""
        return self._finite(self._measured(logits, of), of)

    def from_layer(
        self,
        model: GPT2,
        stream: Float[Tensor, "case pos d_model"],
        layer: int,
        edits: Edits,
        of: Int[Tensor, "case"],
        attention_mask: Int[Tensor, "case pos"] | None = None,
    ) -> Float[Tensor, "case"]:
        """The same from the stream before a layer, under edits in the blocks from there on.

        Where a Metric looks at one position, only its logits are computed.
        """
        hooks = Hooks(edits=resolve_edits(edits, model.config))
        hooks = hooks.for_positions(positions_and_visible(stream.shape[1], attention_mask, 0, stream.device)[0])
        stream = model.run_blocks(stream, layer, None, hooks, attention_mask)
        if not isinstance(self.metric, Metric) or isinstance(model, EditedGPT2):
            return self(model.unembed(stream, hooks), of)
        at = self.at[of].to(stream.device)
        return self._finite(self._read(model.unembed(stream[torch.arange(len(of)), at]), of), of)

    def _finite(self, found: Tensor, of: Tensor) -> Tensor:
        found = found.detach().cpu().double()
        if not found.isfinite().all():
            raise AnalysisError(f"{self.name} is not a finite number on sequence {int(of[(~found.isfinite()).nonzero()[0, 0]])}")
        return found

    def _read(self, logits: Float[Tensor, "case d_vocab"], of: Int[Tensor, "case"]) -> Float[Tensor, "case"]:
        if self.metric.tokens is not None:
            ids = self.metric.tokens
            logits = logits.gather(1, (ids if len(ids) == 1 else ids[of]).expand(len(of), -1).to(logits.device))
        return self.metric.value(logits, of.to(logits.device))

    def _measured(self, logits: Tensor, of: Tensor) -> Tensor:
        if self.metric is None:
            tokens, predicted = self.tokens[of].to(logits.device), self.predicted[of].to(logits.device)
            losses = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), tokens[:, 1:].long(), reduction="none")
            return losses.double().where(predicted, 0).sum(1) / predicted.sum(1)
        if isinstance(self.metric, Metric):
            return self._read(logits[torch.arange(len(of)), self.at[of].to(logits.device)], of)
        n = len(self.tokens)
        if len(of) != n or not torch.equal(of.cpu(), torch.arange(n)):
            raise AnalysisError(
                f"{self.name!r} is a function of the logits of all {n} sequences at once; "
                f"pass batch_size={n}, or a Metric, which knows whose logits it is given"
            )
        value = self.metric(logits)
        if not isinstance(value, Tensor) or value.shape != (n,):
            what = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise AnalysisError(f"{self.name!r} must give a number for each of {n} sequences; it gave {what}")
        return value
