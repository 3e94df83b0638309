"""Sampling from a model, one token at a time, with a KV cache."""

import torch
from torch import Tensor

from interp_gpt2.errors import ConfigError
from interp_gpt2.inputs import check_tokens
from interp_gpt2.model import GPT2, KVCache


@torch.no_grad()
def generate(
    model: GPT2,
    tokens: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop_token: int | None = None,
) -> Tensor:
    """`tokens` (batch, pos) followed by up to `max_new_tokens` sampled ones: (batch, pos + new).

    Temperature 0 takes the most probable token; otherwise logits are divided by `temperature`, cut to the `top_k`
    largest, then to the smallest set of tokens that holds `top_p` of the probability, in this order. `seed` alone fixes
    the result. A row that has produced `stop_token` is filled with it; generation ends when every row has. Past n_ctx
    the window slides: each token is predicted from the n_ctx before it, without the cache, since positions shift.
    """
    check_tokens(tokens[:, : model.config.n_ctx], model.config)
    if model.training and model.config.dropout:
        raise ConfigError("the model is in training mode, where dropout would make its samples noise; call model.eval()")
    _check_sampling(max_new_tokens, temperature, top_k, top_p)
    draw = torch.Generator(tokens.device)
    draw.manual_seed(torch.seed() if seed is None else seed)
    ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    past, fresh = KVCache(), tokens
    for _ in range(max_new_tokens):
        if tokens.shape[1] <= model.config.n_ctx:
            logits = model(fresh, past=past)[:, -1]
        else:
            logits = model(tokens[:, -model.config.n_ctx :])[:, -1]
        fresh = sample(logits, temperature, top_k, top_p, draw)[:, None]
        if stop_token is not None:
            fresh = fresh.masked_fill(ended[:, None], stop_token)
            ended |= fresh[:, 0] == stop_token
        tokens = torch.cat([tokens, fresh], dim=1)
        if ended.all():
            break
    return tokens


def sample(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, draw: torch.Generator) -> Tensor:
    """One token for each row of logits (batch, d_vocab): (batch,)."""
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial(next_token_probs(logits, temperature, top_k, top_p), 1, generator=draw)[:, 0]


def next_token_probs(logits: Tensor, temperature: float, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """The distribution sampled from: (batch, d_vocab), rows summing to 1, zero where top_k or top_p cut."""
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        kth = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    probs = logits.softmax(-1)
    if top_p is not None and top_p < 1:
        ranked, order = probs.sort(descending=True)
        beyond = ranked.cumsum(-1) - ranked >= top_p  # the mass before this token already suffices
        probs = probs.masked_fill(beyond.gather(-1, order.argsort(-1)), 0)
        probs = probs / probs.sum(-1, keepdim=True)
    return probs


def _check_sampling(max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None) -> None:
    if max_new_tokens < 0:
        raise ConfigError(f"max_new_tokens={max_new_tokens} is negative")
    if temperature < 0:
        raise ConfigError(f"temperature={temperature} is negative; 0 takes the most probable token")
    if top_k is not None and top_k < 1:
        raise ConfigError(f"top_k={top_k} keeps no token; it must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise ConfigError(f"top_p={top_p} must be above 0 and at most 1")
