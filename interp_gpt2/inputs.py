"""What a pass reads: tokens within the vocabulary and the context, and where padding stands among them."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import ContextLengthError, TokenError

_TRUSTED: ContextVar[bool] = ContextVar("trusted tokens", default=False)


@contextmanager
def trusted_tokens() -> Iterator[None]:
    """Passes within the block take the ids in their tokens as they are: whoever opens it has looked at them.

    Looking at what is on a GPU waits for everything that it has been told to compute.
    """
    before = _TRUSTED.set(True)
    try:
        yield
    finally:
        _TRUSTED.reset(before)


def positions_and_visible(
    n_pos: int, attention_mask: Tensor | None, n_past: int, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Absolute positions of the tokens, (pos,) or (batch, pos); and which keys their queries see (None: plain causal).

    With a mask, a token sees what has its own number and stands at or before it, and counts its position among these.
    """
    n_keys = n_past + n_pos
    if attention_mask is None and (not n_past or n_pos == 1):  # a single query sees every key
        return torch.arange(n_past, n_keys, device=device), None
    visible = torch.ones(n_pos, n_keys, dtype=torch.bool, device=device).tril(n_past)  # (query, key)
    if attention_mask is None:
        return torch.arange(n_past, n_keys, device=device), visible
    documents = attention_mask.long()
    real = documents != 0
    visible = visible & (documents[:, n_past:, None] == documents[:, None, :])
    positions = (visible.sum(-1) - 1).where(real[:, n_past:], 0)  # counted within its own document
    return positions, (visible & real[:, None, :])[:, None]  # (batch, 1, query, key)


def check_tokens(
    tokens: Tensor,
    config: GPT2Config,
    attention_mask: Tensor | None = None,
    n_past: int = 0,
    device: torch.device | None = None,
) -> None:
    """Refuse, before any compute, tokens that are no (batch, pos) tensor of ids below d_vocab, at most n_ctx of them.

    `device` is where they must be, unless it is None.
    """
    if not isinstance(tokens, Tensor):
        raise TokenError(f"tokens must be a tensor (batch, pos) of ids, not {type(tokens).__name__}; encode text first")
    if tokens.dtype not in (torch.int64, torch.int32):
        raise TokenError(f"tokens must be int64 (or int32), not {str(tokens.dtype).removeprefix('torch.')}")
    if tokens.ndim != 2:
        hint = "; pass tokens[None] for one sequence" if tokens.ndim == 1 else ""
        raise TokenError(f"tokens must be (batch, pos), not of shape {tuple(tokens.shape)}{hint}")
    if device is not None and tokens.device != device:
        raise TokenError(f"tokens are on {tokens.device}, the model is on {device}; pass tokens.to({str(device)!r})")
    if not tokens.numel():
        raise TokenError(f"there are no tokens: shape {tuple(tokens.shape)}; a pass needs at least one token")
    n_pos = n_past + tokens.shape[1]
    if n_pos > config.n_ctx:
        raise ContextLengthError(
            f"{n_pos} tokens do not fit in n_ctx={config.n_ctx}; "
            + (f"{n_past} are in the KV cache already" if n_past else f"pass tokens[:, :{config.n_ctx}]")
        )
    check_mask(attention_mask, (tokens.shape[0], n_pos))
    if attention_mask is not None and attention_mask.device != tokens.device:
        raise TokenError(f"attention_mask is on {attention_mask.device}, the tokens are on {tokens.device}")
    if tokens.is_meta or _TRUSTED.get():
        return
    low, high = (int(end) for end in tokens.aminmax())
    if low < 0 or high >= config.d_vocab:
        wrong = low if low < 0 else high
        batch, pos = (tokens == wrong).nonzero()[0].tolist()
        raise TokenError(f"token {wrong} at batch {batch}, pos {pos} is not in the vocabulary: ids are 0 to {config.d_vocab - 1}")


def check_mask(attention_mask: Tensor | None, shape: tuple[int, int]) -> None:
    """Refuse an attention mask that is not (batch, pos) whole numbers or booleans for the tokens it goes with."""
    if attention_mask is None:
        return
    if not isinstance(attention_mask, Tensor):
        raise TokenError(f"attention_mask must be a tensor (batch, pos), not {type(attention_mask).__name__}")
    if tuple(attention_mask.shape) != shape:
        raise TokenError(f"attention_mask has shape {tuple(attention_mask.shape)}; expected {shape}")
    if attention_mask.is_floating_point():
        dtype = str(attention_mask.dtype).removeprefix("torch.")
        raise TokenError(f"attention_mask is {dtype}; it must hold whole numbers or booleans, 0 at padding")
