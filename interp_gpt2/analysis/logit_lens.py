"""The logit lens: what the model would predict if it stopped after an earlier layer.

Each residual stream is normalised anew by the model's own final layer norm and unembedded, so the last layer's lens is
the model's output. (Direct logit attribution, which freezes the final layer norm's scale to split one logit into
parts, is another measurement and not here.) nostalgebraist 2020, "interpreting GPT: the logit lens"; Belrose et al.
2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens", for the KL to the final layer.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_gpt2.analysis.rows import Analysis, Row, mean_of, require_eval
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2

NO_TARGET = -1  # in `targets` and `target_rank`: this position predicts a token that is not there

_CHUNK = 2**22  # logits held at once: 32 MiB in float64


@dataclass(frozen=True, eq=False)
class LogitLens:
    """What each layer's stream predicts at each position. Probabilities in float64; KL and entropy in nats.

    Layers are the streams before the first block ("embed") and after each ("L0", "L1", ...), n_layers + 1 of them, at
    `hook_points`. Where `targets` is NO_TARGET, `target_rank` is NO_TARGET and the target's probability NaN.
    Ties go to the lower token id, in ranks and in top tokens alike.
    """

    labels: tuple[str, ...]
    hook_points: tuple[str, ...]
    targets: Int[Tensor, "batch pos"]
    top_tokens: Int[Tensor, "layer batch pos k"]
    top_probabilities: Float[Tensor, "layer batch pos k"]
    target_rank: Int[Tensor, "layer batch pos"]  # 0 is the most probable token
    target_log_probability: Float[Tensor, "layer batch pos"]
    kl: Float[Tensor, "layer batch pos"]  # KL(final || lens); 0 at the last layer
    entropy: Float[Tensor, "layer batch pos"]  # in [0, ln d_vocab]

    @property
    def target_probability(self) -> Float[Tensor, "layer batch pos"]:
        return self.target_log_probability.exp()


def next_tokens(tokens: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
    """The token each position predicts; NO_TARGET at the last, whose next token is not there."""
    return torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], NO_TARGET)], dim=1)


def logit_lens(
    model: GPT2, tokens: Int[Tensor, "batch pos"], targets: Int[Tensor, "batch pos"] | None = None, top_k: int = 5
) -> LogitLens:
    """The lens at every layer and position of `tokens`, with ranks and probabilities of `targets` (default: next tokens).

    Raises AnalysisError where `logit_lens_of` does, TokenError where the model does.
    """
    return logit_lens_of(model, residual_streams(model, tokens), next_tokens(tokens) if targets is None else targets, top_k)


@torch.no_grad()
def residual_streams(model: GPT2, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "layer batch pos d_model"]:
    """The stream before block 0 and after each block: n_layers + 1 entries, at `stream_hook_points`."""
    require_eval(model)
    tokens = tokens.to(model.device)
    streams = [model.embed(tokens)]
    for layer in range(model.config.n_layers):
        streams.append(model.run_blocks(streams[-1], layer, layer + 1))
    return torch.stack(streams)


def stream_hook_points(n_layers: int) -> tuple[str, ...]:
    """Where `residual_streams` come from; a model of no layers has one stream, the unembedding's input."""
    before = "blocks.0.resid_pre" if n_layers else "embed + pos_embed"
    return (before, *(f"blocks.{layer}.resid_post" for layer in range(n_layers)))


def stream_labels(n_layers: int) -> tuple[str, ...]:
    """How the streams are written on an axis: embed, L0, L1, ..."""
    return ("embed", *(f"L{layer}" for layer in range(n_layers)))


@torch.no_grad()
def logit_lens_of(
    model: GPT2,
    streams: Float[Tensor, "layer batch pos d_model"],
    targets: Int[Tensor, "batch pos"],
    top_k: int = 5,
) -> LogitLens:
    """The lens on residual streams, of which the last is taken for the model's output (edited ones will do).

    At most 2^22 logits exist at a time. KL(final || lens) = sum_v p_final(v) (ln p_final(v) - ln p_lens(v)).

    Raises AnalysisError if the shapes disagree, a target is not in the vocabulary, `top_k` is larger than it, or the
    logits are not finite (a diverged model has no ranks).
    """
    _check(model, streams, targets, top_k)
    n_layers, batch, n_pos = streams.shape[:3]
    shape = (n_layers, batch, n_pos)
    lens = LogitLens(
        labels=stream_labels(n_layers - 1),
        hook_points=stream_hook_points(n_layers - 1),
        targets=targets.cpu(),
        top_tokens=torch.empty(*shape, top_k, dtype=torch.long),
        top_probabilities=torch.empty(*shape, top_k, dtype=torch.float64),
        target_rank=torch.empty(shape, dtype=torch.long),
        target_log_probability=torch.empty(shape, dtype=torch.float64),
        kl=torch.empty(shape, dtype=torch.float64),
        entropy=torch.empty(shape, dtype=torch.float64),
    )
    for part in logit_chunks(batch, n_pos, model.config.d_vocab):
        final = lens_log_probabilities(model, streams[-1][part])
        for layer in range(n_layers):
            log_probs = lens_log_probabilities(model, streams[layer][part])
            at = (layer, *part)
            lens.top_tokens[at], lens.top_probabilities[at] = _top(log_probs, top_k)
            lens.target_rank[at], lens.target_log_probability[at] = _target(log_probs, targets[part])
            lens.kl[at] = (final.exp() * (final - log_probs)).sum(-1)
            lens.entropy[at] = -(log_probs.exp() * log_probs).sum(-1)
    return lens


def _check(model: GPT2, streams: Tensor, targets: Tensor, top_k: int) -> None:
    if streams.ndim != 4 or streams.shape[1:3] != targets.shape:
        shapes = f"streams {tuple(streams.shape)} and targets {tuple(targets.shape)}"
        raise AnalysisError(f"{shapes} are not (layer, batch, pos, d_model) and (batch, pos)")
    d_vocab = model.config.d_vocab
    if not 1 <= top_k <= d_vocab:
        raise AnalysisError(f"top_k={top_k} of a vocabulary of {d_vocab} tokens; pass 1 to {d_vocab}")
    if ((targets < NO_TARGET) | (targets >= d_vocab)).any():
        raise AnalysisError(f"a target is not in the vocabulary: ids are 0 to {d_vocab - 1}, and {NO_TARGET} for no target")


def logit_chunks(batch: int, n_pos: int, d_vocab: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of (batch, pos) whose logits fit in a chunk: whole sequences, or stretches of one where these are too long."""
    pos_step = max(1, min(n_pos, _CHUNK // d_vocab))
    batch_step = max(1, _CHUNK // (d_vocab * n_pos))
    for b in range(0, batch, batch_step):
        for p in range(0, n_pos, pos_step):
            yield slice(b, b + batch_step), slice(p, p + pos_step)


def lens_log_probabilities(model: GPT2, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
    """What the model would predict from this stream, in float64. Raises AnalysisError if it is not finite."""
    logits = model.unembed(resid)
    # Float64 from here on, which Apple's GPUs lack: in float32 the KL of nearly equal predictions comes out negative.
    logits = (logits.cpu() if logits.device.type == "mps" else logits).double()
    if not logits.isfinite().all():
        raise AnalysisError("the lens's logits are not finite: the model has diverged, and tokens have no ranks")
    return logits.log_softmax(-1)


def _top(log_probs: Tensor, k: int) -> tuple[Tensor, Tensor]:
    left, found = log_probs.clone(), []
    for _ in range(k):  # argmax takes the first of equals, which topk does not promise
        found.append(left.argmax(-1, keepdim=True))
        left.scatter_(-1, found[-1], -math.inf)
    tokens = torch.cat(found, -1)
    return tokens, log_probs.gather(-1, tokens).exp()


def _target(log_probs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    targets = targets.to(log_probs.device)[..., None]
    its_own = log_probs.gather(-1, targets.clamp(min=0))
    lower_ids = torch.arange(log_probs.shape[-1], device=log_probs.device) < targets
    rank = ((log_probs > its_own) | ((log_probs == its_own) & lower_ids)).sum(-1)
    missing = targets[..., 0] == NO_TARGET
    return rank.masked_fill(missing, NO_TARGET), its_own[..., 0].masked_fill(missing, math.nan)


# ---------------------------------------------------------------------------------------------------------------------
# For sweeps.


@dataclass(frozen=True, eq=False)
class LensByLayer(Analysis):
    """Means of the lens over many sequences, a row for each layer and metric, with a 95 % interval over sequences.

    Metrics: "lens_loss" (nats per token, of the next token), "lens_top1" (share of next tokens ranked 0), "lens_rank",
    "lens_kl" (nats, to the final layer) and "lens_entropy" (nats); beside them, once each, what a layer that knows nothing
    has: "lens_loss_uniform" = "lens_entropy_uniform" = ln d_vocab, "lens_top1_uniform" = 1 / d_vocab, "lens_rank_uniform" =
    (d_vocab - 1) / 2, and "lens_kl_uniform" = ln d_vocab less the final layer's entropy, its KL to even odds. `label` is the
    layer's: embed, L0, L1, ... ("embed" has no layer number).
    """

    tokens: Int[Tensor, "batch pos"]
    batch_size: int = 16
    name: str = "lens_by_layer"

    def __call__(self, model: GPT2) -> list[Row]:
        lenses = [logit_lens(model, part, top_k=1) for part in self.tokens.split(self.batch_size)]
        d_vocab, left_open = model.config.d_vocab, torch.cat([lens.entropy[-1] for lens in lenses])
        knows_nothing = {
            "lens_loss": math.log(d_vocab),
            "lens_top1": 1 / d_vocab,
            "lens_rank": (d_vocab - 1) / 2,
            "lens_kl": math.log(d_vocab) - float(left_open.mean()),
            "lens_entropy": math.log(d_vocab),
        }
        rows: list[Row] = [{"metric": f"{metric}_uniform", "value": value} for metric, value in knows_nothing.items()]
        measured = {
            "lens_loss": [-lens.target_log_probability[..., :-1] for lens in lenses],
            "lens_top1": [(lens.target_rank[..., :-1] == 0).double() for lens in lenses],
            "lens_rank": [lens.target_rank[..., :-1].double() for lens in lenses],
            "lens_kl": [lens.kl for lens in lenses],
            "lens_entropy": [lens.entropy for lens in lenses],
        }
        for metric, parts in measured.items():
            values = torch.cat(parts, dim=1)  # (layer, batch, pos)
            for where, of_layer in zip(_places(lenses[0]), values, strict=True):
                rows.append({"metric": metric, **where, **mean_of(of_layer)})
        return rows


@dataclass(frozen=True, eq=False)
class LensOfPrompt(Analysis):
    """The lens on one sequence, (1, pos), position by position.

    Metrics: "target_probability" and "target_rank" (of the next token: none at the last position), "lens_kl",
    "lens_entropy", "top_token" (its id) and "top_probability".
    """

    tokens: Int[Tensor, "1 pos"]
    name: str = "lens_of_prompt"

    def __post_init__(self) -> None:
        if self.tokens.ndim != 2 or len(self.tokens) != 1:
            raise AnalysisError(f"tokens must be one sequence (1, pos), not {tuple(self.tokens.shape)}")

    def __call__(self, model: GPT2) -> list[Row]:
        lens = logit_lens(model, self.tokens, top_k=1)
        measured = {
            "target_probability": lens.target_probability[:, 0, :-1],
            "target_rank": lens.target_rank[:, 0, :-1],
            "lens_kl": lens.kl[:, 0],
            "lens_entropy": lens.entropy[:, 0],
            "top_token": lens.top_tokens[:, 0, :, 0],
            "top_probability": lens.top_probabilities[:, 0, :, 0],
        }
        return [
            {"metric": metric, **where, "position": position, "value": value, "n": 1}
            for metric, values in measured.items()
            for where, of_layer in zip(_places(lens), values.tolist(), strict=True)
            for position, value in enumerate(of_layer)
        ]


def _places(lens: LogitLens) -> Sequence[Row]:
    """The row keys of each layer of a lens. The stream before the first block is no layer's output, and has no number."""
    return [
        {"hook_point": hook_point, "label": label} | ({"layer": i - 1} if i else {})
        for i, (hook_point, label) in enumerate(zip(lens.hook_points, lens.labels, strict=True))
    ]
