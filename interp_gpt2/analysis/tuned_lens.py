"""The tuned lens: what each layer's stream would predict after the best affine map into the last layer's own terms.

The logit lens reads an earlier stream as if it were the last one, although layers may write in directions of their own. The
tuned lens learns, for each layer l, an affine map of the stream before it is unembedded,

    lens_l(h) = unembed(h + h @ A_l + b_l),    trained to lessen KL(model's output || lens_l) over the run's own data,

with the model fixed; it starts from A = 0, b = 0, the logit lens. Belrose et al. 2023, "Eliciting Latent Predictions from
Transformers with the Tuned Lens". What it finds is what an affine map *can* find in a stream, not what the model does with it.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_gpt2.analysis.logit_lens import LogitLens, logit_lens_of, next_tokens, residual_streams, stream_labels
from interp_gpt2.analysis.rows import Analysis, Row, mean_of, reach_95, require_eval, standard_error
from interp_gpt2.analysis.sequences import OWN_DRAWS
from interp_gpt2.data.source import Source
from interp_gpt2.errors import AnalysisError, ConfigError
from interp_gpt2.model import GPT2


@dataclass(frozen=True)
class LensTraining:
    """How a tuned lens is trained: Adam with a learning rate falling evenly to 0, on `n_positions` new positions a step."""

    n_steps: int = 300
    n_positions: int = 1024
    lr: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_steps < 1 or self.n_positions < 1 or self.lr <= 0 or self.seed < 0:
            raise ConfigError(f"a lens is trained for 1 step or more, on 1 position or more, with lr > 0 and seed >= 0: {self}")


STANDARD = LensTraining()


@dataclass(frozen=True, eq=False)
class TunedLens:
    """Affine maps of all streams but the last: `A[l]` and `b[l]` are of stream l ("embed", "L0", ...), added to the stream."""

    A: Float[Tensor, "layer d_model d_model"]
    b: Float[Tensor, "layer d_model"]

    def translated(self, streams: Float[Tensor, "layer+1 *pos d_model"]) -> Float[Tensor, "layer+1 *pos d_model"]:
        """Every stream in the terms of the last one, which stays as it is.

        Raises AnalysisError for streams of another model's shape.
        """
        if (len(streams) - 1, streams.shape[-1]) != tuple(self.b.shape):
            raise AnalysisError(f"streams {tuple(streams.shape)} do not fit a lens of {tuple(self.b.shape)} (layer, d_model)")
        moved = [self.one(layer, stream) for layer, stream in enumerate(streams[:-1])]
        return torch.stack([*moved, streams[-1]])

    def one(self, layer: int, stream: Float[Tensor, "*pos d_model"]) -> Float[Tensor, "*pos d_model"]:
        """One translated stream; 0 is "embed"."""
        A, b = self.A[layer].to(stream), self.b[layer].to(stream)
        return stream + stream @ A + b


def lens_windows(source: Source, n_ctx: int, training: LensTraining) -> Int[Tensor, "batch pos"]:
    """Enough windows of a source's training data for every step to see new ones."""
    n_sequences = -(-training.n_positions // n_ctx)
    draws = (source.batch(step, n_sequences, n_ctx, training.seed + OWN_DRAWS) for step in range(training.n_steps))
    return torch.cat([tokens[:, :-1].cpu() for tokens in draws])


def fit_tuned_lens(model: GPT2, tokens: Int[Tensor, "batch pos"], training: LensTraining = STANDARD) -> TunedLens:
    """A lens of each layer, trained on `tokens`, which are gone through in order and again where they are too few.

    The same model, tokens and settings give the same lens (on the same versions and device). Logits of one layer's
    `n_positions` exist at a time. Raises AnalysisError for a model without layers, or if the loss is not finite.
    `stored.tuned_lens_of_store` reads the streams from disk instead.
    """
    parts = batches_of(len(tokens), tokens.shape[1], training)
    return fit_lens(model, (residual_streams(model, tokens[part]).flatten(1, 2) for part in parts), training)


def fit_lens(model: GPT2, batches: Iterable[Float[Tensor, "layer+1 pos d_model"]], training: LensTraining) -> TunedLens:
    """The same on the streams of these positions, a batch for each step. Of more than `n_positions` the first are taken."""
    require_eval(model)
    n_layers, d_model = model.config.n_layers, model.config.d_model
    if n_layers == 0:
        raise AnalysisError("a model of no layers has no earlier stream to tune a lens for")
    A = torch.zeros(n_layers, d_model, d_model, device=model.device)
    b = torch.zeros(n_layers, d_model, device=model.device)
    lens = TunedLens(A.requires_grad_(), b.requires_grad_())
    optimizer = torch.optim.Adam([A, b], lr=training.lr, betas=(0.9, 0.99))
    for step, streams in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = training.lr * (1 - step / training.n_steps)
        streams = streams[:, : training.n_positions]
        with torch.no_grad():
            final = model.unembed(streams[-1]).float().log_softmax(-1)
        A.grad, b.grad = torch.zeros_like(A), torch.zeros_like(b)
        for layer in range(n_layers):
            with torch.enable_grad():
                ours = model.unembed(lens.one(layer, streams[layer])).float().log_softmax(-1)
                loss = torch.nn.functional.kl_div(ours, final, log_target=True, reduction="batchmean")
                grads = torch.autograd.grad(loss, [A, b])
            if not loss.isfinite():
                raise AnalysisError(
                    f"the lens of {stream_labels(n_layers)[layer]} diverged at step {step}; lower LensTraining.lr"
                )
            A.grad += grads[0]
            b.grad += grads[1]
        optimizer.step()
    return TunedLens(A.detach(), b.detach())


def batches_of(n_sequences: int, n_pos: int, training: LensTraining) -> Iterator[Int[Tensor, "some"]]:
    """Which sequences each step sees: all of them in a random order, and again where they are too few."""
    n = min(n_sequences, -(-training.n_positions // n_pos))
    order = torch.randperm(n_sequences, generator=torch.Generator().manual_seed(training.seed))
    for step in range(training.n_steps):
        yield order[torch.arange(step * n, (step + 1) * n) % n_sequences]


def tuned_lens(
    model: GPT2,
    lens: TunedLens,
    tokens: Int[Tensor, "batch pos"],
    targets: Int[Tensor, "batch pos"] | None = None,
    top_k: int = 5,
) -> LogitLens:
    """The tuned lens at every layer and position of `tokens`: as `logit_lens`, and so it is read and shown alike."""
    streams = lens.translated(residual_streams(model, tokens))
    return logit_lens_of(model, streams, next_tokens(tokens) if targets is None else targets, top_k)


# ---------------------------------------------------------------------------------------------------------------------
# What comes of it


def settling_depth(top_tokens: Int[Tensor, "layer batch pos"]) -> Int[Tensor, "batch pos"]:
    """From which stream on the most probable token is the model's own: 0 at the embedding, at most n_layers.

    The least i with top_tokens[j] = top_tokens[-1] for all j >= i. Belrose et al. 2023, "prediction depth", after Baldock et
    al. 2021, "Deep Learning Through the Lens of Example Difficulty".
    """
    agrees = (top_tokens == top_tokens[-1]).flip(0).cumprod(0)
    return len(top_tokens) - agrees.sum(0)


@dataclass(frozen=True, eq=False)
class LensComparison:
    """Both lenses on the same positions: mean KL(output || lens) of each stream but the last, in nats.

    `stderr` is that of the difference, with the `n_sequences` as units.
    """

    labels: tuple[str, ...]
    logit_kl: Float[Tensor, "layer"]
    tuned_kl: Float[Tensor, "layer"]
    stderr: Float[Tensor, "layer"]
    n_sequences: float = math.inf

    @property
    def not_better(self) -> tuple[str, ...]:
        """Layers where the tuned lens is not nearer to the output beyond chance (a one-sided 97.5 % bound)."""
        better = self.tuned_kl + reach_95(self.n_sequences) * self.stderr < self.logit_kl
        return tuple(label for label, held in zip(self.labels, better.tolist(), strict=True) if not held)

    @property
    def verdict(self) -> str:
        if not self.not_better:
            return "the tuned lens is nearer to the output than the logit lens at every layer"
        worse = [
            f"{label} ({tuned:.4f} nats, logit lens {logit:.4f})"
            for label, tuned, logit in zip(self.labels, self.tuned_kl.tolist(), self.logit_kl.tolist(), strict=True)
            if label in self.not_better
        ]
        return f"the tuned lens is NOT nearer to the output at {', '.join(worse)}: train it longer or read the logit lens there"


def compare_lenses(logit: LogitLens, tuned: LogitLens) -> LensComparison:
    """The two lenses' KL by layer, from both of them on the same held-out tokens."""
    difference = (tuned.kl - logit.kl)[:-1].mean(2)  # (layer, batch)
    stderr = torch.tensor([standard_error(of_layer) for of_layer in difference], dtype=torch.float64)
    means = (lens.kl[:-1].mean((1, 2)) for lens in (logit, tuned))
    return LensComparison(logit.labels[:-1], *means, stderr, difference.shape[1])


def lens_rows(model: GPT2, lens: TunedLens, tokens: Int[Tensor, "batch pos"], batch_size: int = 16) -> list[Row]:
    """Rows of a lens on held-out tokens, with the logit lens's beside them.

    By layer: "tuned_kl" and "lens_kl" (nats, to the output), "tuned_minus_lens_kl" with a 95 % interval over sequences
    (below 0 where the tuned lens is better), "tuned_loss" and "tuned_top1" (of the next token). Over all layers:
    "tuned_settling_depth" and "lens_settling_depth" (streams; 0 is the embedding), beside "settling_depth_last", the depth
    if nothing were settled before the end; "tuned_not_better", how many layers have no better tuned lens.
    """
    parts = tokens.split(batch_size)
    logit, tuned = (
        [
            logit_lens_of(model, streams, next_tokens(part), 1)
            for part in parts
            for streams in [translate(residual_streams(model, part))]
        ]
        for translate in (lambda streams: streams, lens.translated)
    )
    kl, tuned_kl = (torch.cat([one.kl for one in many], 1) for many in (logit, tuned))
    tops, tuned_tops = (torch.cat([one.top_tokens[..., 0] for one in many], 1) for many in (logit, tuned))
    measured = {
        "lens_kl": kl,
        "tuned_kl": tuned_kl,
        "tuned_minus_lens_kl": tuned_kl - kl,
        "tuned_loss": torch.cat([-one.target_log_probability[..., :-1] for one in tuned], 1),
        "tuned_top1": torch.cat([(one.target_rank[..., :-1] == 0).double() for one in tuned], 1),
    }
    rows: list[Row] = []
    for metric, values in measured.items():
        for i, (label, hook_point) in enumerate(zip(logit[0].labels, logit[0].hook_points, strict=True)):
            where = {"hook_point": hook_point, "label": label} | ({"layer": i - 1} if i else {})
            rows.append({"metric": metric, **where, **mean_of(values[i])})
    for metric, top in (("lens_settling_depth", tops), ("tuned_settling_depth", tuned_tops)):
        rows.append({"metric": metric, **mean_of(settling_depth(top).double())})
    rows.append({"metric": "settling_depth_last", "value": model.config.n_layers})
    bounds = [mean_of(of_layer).get("high", math.nan) for of_layer in (tuned_kl - kl)[:-1]]
    return [*rows, {"metric": "tuned_not_better", "value": sum(not bound < 0 for bound in bounds), "n": len(bounds)}]


@dataclass(frozen=True, eq=False)
class TunedLensByLayer(Analysis):
    """A lens trained at each checkpoint on `training_tokens` and judged on `tokens`, which it has not seen: see `lens_rows`.

    The lens itself is not kept; `lens_files.trained_lens` keeps it in the run.
    """

    training_tokens: Int[Tensor, "batch pos"]
    tokens: Int[Tensor, "batch pos"]
    training: LensTraining = STANDARD
    name: str = "tuned_lens"

    @classmethod
    def of(
        cls,
        source: Source,
        tokens: Int[Tensor, "batch pos"],
        training: LensTraining = STANDARD,
    ) -> "TunedLensByLayer":
        """Trained on a source's training data."""
        return cls(lens_windows(source, tokens.shape[1], training), tokens, training)

    def __call__(self, model: GPT2) -> list[Row]:
        return lens_rows(model, fit_tuned_lens(model, self.training_tokens, self.training), self.tokens)


@dataclass(frozen=True, eq=False)
class SettlingDepth(Analysis):
    """`settling_depth` of the logit lens for a sweep: its mean, "lens_settling_depth", with a 95 % interval over sequences.

    Beside it "settling_depth_last", the depth if nothing were settled before the end, and for each stream the share of
    positions that have settled by then, "lens_settled".
    """

    tokens: Int[Tensor, "batch pos"]
    batch_size: int = 16
    name: str = "settling_depth"

    def __call__(self, model: GPT2) -> list[Row]:
        parts = self.tokens.split(self.batch_size)
        lenses = [logit_lens_of(model, residual_streams(model, part), next_tokens(part), 1) for part in parts]
        depth = settling_depth(torch.cat([lens.top_tokens[..., 0] for lens in lenses], 1))
        rows: list[Row] = [
            {"metric": "lens_settling_depth", **mean_of(depth.double())},
            {"metric": "settling_depth_last", "value": model.config.n_layers},
        ]
        for i, (label, hook_point) in enumerate(zip(lenses[0].labels, lenses[0].hook_points, strict=True)):
            where = {"hook_point": hook_point, "label": label} | ({"layer": i - 1} if i else {})
            rows.append({"metric": "lens_settled", **where, **mean_of((depth <= i).double())})
        return rows
