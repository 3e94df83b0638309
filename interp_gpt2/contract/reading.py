"""Checks of what is recorded."""

import torch
from torch import Tensor

from interp_gpt2.contract.finding import RAISED, Finding, count, farthest, side_by_side
from interp_gpt2.contract.subject import Subject, identity, scaled, scaled_in_place
from interp_gpt2.hooks import default_hook_points

# Of the largest activation at the hook point, or of 1: rounding in float64 and in float32 (as conversions here state it),
# and 8 units of the format's resolution in half precision, twice what the contract's own models were measured to need.
FLOAT64, FLOAT32 = 1e-9, 1e-5
BFLOAT16, FLOAT16 = (8 * torch.finfo(dtype).eps for dtype in (torch.bfloat16, torch.float16))


def values(subject: Subject, point: str) -> Finding:
    return _against_definition(subject, point, torch.float64, FLOAT64)


def float32(subject: Subject, point: str) -> Finding:
    return _against_definition(subject, point, torch.float32, FLOAT32)


def bfloat16(subject: Subject, point: str) -> Finding:
    return _against_definition(subject, point, torch.bfloat16, BFLOAT16)


def float16(subject: Subject, point: str) -> Finding:
    return _against_definition(subject, point, torch.float16, FLOAT16)


def _against_definition(subject: Subject, point: str, dtype: torch.dtype, allowed: float) -> Finding:
    """The definition is always evaluated in float64; what is allowed is for the model's own arithmetic."""
    _, seen = subject.instrument(dtype).record(subject.tokens, [point])
    return farthest([(point, seen[point], subject.by_hand_in(dtype)[point])], allowed)


def watching(subject: Subject, point: str) -> Finding:
    """Alone and with all others: listening to a pattern selects other kernels, which may round differently."""
    instrument = subject.instrument()
    logits, alone = instrument.record(subject.tokens, [point])
    pairs = [("the logits", logits, subject.plain)]
    all_logits, together = instrument.record(subject.tokens)
    pairs.append(("the logits with all recorded", all_logits, subject.plain))
    if point in together:
        pairs.append((point, alone[point], together[point]))
    return farthest(pairs, FLOAT32)


def records_are_yours(subject: Subject, point: str) -> Finding:
    """Everything that shares memory with a recorded tensor is overwritten; no weight and no later pass may notice."""
    instrument = subject.instrument()
    weights = [weight.clone() for weight in instrument.weights()]
    _, seen = instrument.record(subject.tokens, [point])
    seen[point].untyped_storage().fill_(0)
    wrong = ["the weights"] * (not _same(weights, instrument.weights()))
    wrong += ["a later pass"] * (not instrument.run(subject.tokens).equal(subject.plain))
    return count(wrong, "changed ")


def _same(before: list[Tensor], after: list[Tensor]) -> bool:
    return all(one.equal(other) for one, other in zip(before, after, strict=True))


def unknown_names(subject: Subject, point: str) -> Finding:
    """The name with a letter missing, recorded and edited."""
    wrong_name = next(name for i in range(len(point) - 2, 0, -1) if (name := point[:i] + point[i + 1 :]) not in subject.points)
    instrument, accepted = subject.instrument(), []
    attempts = {
        "recording": lambda: instrument.record(subject.tokens, [wrong_name]),
        "editing": lambda: instrument.edit(subject.tokens, {wrong_name: identity}),
    }
    for what, attempt in attempts.items():
        try:
            attempt()
        except RAISED:
            continue
        accepted.append(f"{what} {wrong_name!r}")
    return count(accepted, "accepted ")


# Derivatives ---------------------------------------------------------------------------------------------------------

STEP = 1e-6  # of central differences in float64, whose own error is near 1e-9 here, by curvature and by rounding


def gradients(subject: Subject, point: str) -> Finding:
    """Along a random direction that leaves patterns and scores causal, of the log-probability of a token."""
    instrument, tokens = subject.instrument(torch.float64), subject.tokens
    target = int(tokens[0, 0])

    def metric(logits: Tensor) -> Tensor:
        return logits[:, -1].log_softmax(-1)[:, target].sum()

    _, seen = instrument.record(tokens, [point])
    direction = torch.randn(seen[point].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    if point.endswith((".pattern", ".attn_scores")):
        direction = direction.tril()
    with torch.enable_grad():
        gradient = instrument.gradient(tokens, metric, point)
    predicted = (gradient.masked_fill(direction == 0, 0) * direction).sum()
    up, down = (metric(instrument.edit(tokens, {point: lambda value, s=sign: value + s * STEP * direction})) for sign in (1, -1))
    return farthest([("the derivative", predicted, (up - down) / (2 * STEP))], 1e-6)


def grad_mode(subject: Subject, point: str) -> Finding:
    """Recorded, edited in place and edited by returning: with gradients as without."""
    instrument, pairs = subject.instrument(), []
    for edits in ({}, {point: scaled}, {point: scaled_in_place}):
        without_grad, seen = instrument.record(subject.tokens, None, edits)
        with torch.enable_grad():
            with_grad, seen_with = instrument.record(subject.tokens, None, edits)
        pairs += side_by_side(seen_with, seen)
        pairs.append(("the logits", with_grad, without_grad))
    return farthest(pairs, FLOAT32)


# Sums ----------------------------------------------------------------------------------------------------------------


def identities(subject: Subject) -> Finding:
    """In float32, from recorded values and b_O alone."""
    instrument, default = subject.instrument(), default_hook_points(subject.config)
    names = [point for point in subject.points if point in default or point.endswith(".result")]
    _, seen = instrument.record(subject.tokens, [point for point in names if point not in instrument.missing])
    n_layers = subject.config.n_layers
    if not n_layers:
        return Finding(0.0, FLOAT32, "no layers")
    parts = ("attn_out",) if subject.config.attn_only else ("attn_out", "mlp_out")
    written = [seen[f"blocks.{layer}.{part}"] for layer in range(n_layers) for part in parts]
    stream = torch.stack([seen["embed"], seen["pos_embed"], *written]).sum(0)
    pairs = [("the sum of all parts", stream, seen[f"blocks.{n_layers - 1}.resid_post"])]
    n_pos = subject.tokens.shape[1]
    future = torch.ones(n_pos, n_pos, dtype=torch.bool).triu(1)
    for layer in range(n_layers):
        attn = f"blocks.{layer}.attn"
        pattern = seen[f"{attn}.pattern"]
        pairs.append((f"the rows of {attn}.pattern", pattern.sum(-1), torch.ones_like(pattern[..., 0])))
        ahead = (pattern[..., future] != 0).float()
        pairs.append((f"the future in {attn}.pattern", ahead, torch.zeros_like(ahead)))
        if f"{attn}.result" in seen:
            b_O = subject.weights(torch.float32)[f"{attn}.b_O"].float()
            pairs.append((f"the sum of {attn}.result", seen[f"{attn}.result"].sum(2) + b_O, seen[f"blocks.{layer}.attn_out"]))
    return farthest(pairs, FLOAT32)
