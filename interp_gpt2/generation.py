"""Sampling from a model, one token at a time, with a KV cache.

`generate` gives the whole text, `stream` each token as it comes, `generate_with_cache` what the model saw on the way. Edits
act in every step of `model.with_edits(edits)`, and mean what they mean in one pass over the whole text, since they are told
absolute positions. Batches of unequal prompts are padded on the left, with an attention mask.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from interp_gpt2.cache import ActivationCache
from interp_gpt2.errors import ConfigError, ContextLengthError, TokenError
from interp_gpt2.hooks import NO_HOOKS, Hooks, Keep, Names, resolve
from interp_gpt2.inputs import check_mask, check_tokens
from interp_gpt2.model import GPT2, KVCache


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, and when a text ends.

    Temperature 0 takes the most probable token; otherwise logits are divided by `temperature`, cut to the `top_k` largest
    (and what ties with the last of them), then to the smallest set of tokens that holds `top_p` of the probability, in
    this order. `seed` alone fixes the result; None draws one, and leaves torch's own generator as it is. A row that has
    produced `stop_token` is filled with it. Raises ConfigError for values that mean nothing.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop_token: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature={self.temperature} must be finite and not negative; 0 takes the most probable token")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k={self.top_k} keeps no token; it must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p} must be above 0 and at most 1")


def generate(
    model: GPT2,
    tokens: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop_token: int | None = None,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """`tokens` (batch, pos) followed by up to `max_new_tokens` sampled ones: (batch, pos + new).

    The sampling arguments are those of `Sampling`. Generation ends early when every row has produced `stop_token`.
    `attention_mask` (batch, pos) is 0 at padding, which stands on the left; each row is continued as it would be alone
    (but for chance: the rows share one generator).
    Past n_ctx the window slides: each token is predicted from the n_ctx before it, without the cache, since positions
    shift. Raises TokenError for tokens or a mask that do not fit, ConfigError for dropout that is on.
    """
    sampling = Sampling(temperature, top_k, top_p, seed, stop_token)
    steps = stream(model, tokens, max_new_tokens, sampling, attention_mask)
    return torch.cat([tokens, *(new[:, None].to(tokens.dtype) for new in steps)], dim=1)


def stream(
    model: GPT2,
    tokens: Tensor,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    attention_mask: Tensor | None = None,
    past: KVCache | None = None,
) -> Iterator[Tensor]:
    """The tokens that `generate` would append, each as soon as it is known: (batch,) every time. `sampling`: Sampling().

        for token in stream(model, tokens, 100): print(tokenizer.decode(token.tolist()), end="")

    `past` is the KV cache to use: empty, or holding the keys and values of the first `past.n_pos` of `tokens`. It may be
    read and patched before and between tokens; what is generated next attends to what it then holds. It cannot outlive
    the context, so that ContextLengthError is raised at once if tokens and new ones exceed n_ctx. Raises as `generate`.
    """
    _check(model, tokens, max_new_tokens, attention_mask, past)
    _check_stop(model, sampling)
    past = KVCache() if past is None else past
    return _steps(model, tokens, max_new_tokens, sampling or Sampling(), attention_mask, past, lambda: NO_HOOKS)


def generate_with_cache(
    model: GPT2,
    tokens: Tensor,
    max_new_tokens: int,
    names: Names | None = None,
    sampling: Sampling | None = None,
    keep: Keep | None = None,
    attention_mask: Tensor | None = None,
) -> tuple[Tensor, list[ActivationCache]]:
    """What `generate` returns, and the activations of every step, one cache for each new token.

    The first cache is of the whole prompt, each further one of the one token that it read: `caches[3]["pattern", 0]` is
    (batch, head, 1, key), where keys are all tokens so far. (Past n_ctx, of the whole window again.) `names` and `keep`
    are those of `run_with_cache`. Raises HookNameError for names that match nothing, else as `generate`.
    """
    record, heard = resolve(names, model.config), []

    def listen() -> Hooks:
        heard.append(Hooks(record, keep=keep))
        return heard[-1]

    _check(model, tokens, max_new_tokens, attention_mask, None)
    _check_stop(model, sampling)
    steps = _steps(model, tokens, max_new_tokens, sampling or Sampling(), attention_mask, KVCache(), listen)
    whole = torch.cat([tokens, *(new[:, None].to(tokens.dtype) for new in steps)], dim=1)
    return whole, [ActivationCache(hooks.cache, model.config.n_layers) for hooks in heard]


def _steps(
    model: GPT2,
    tokens: Tensor,
    max_new_tokens: int,
    sampling: Sampling,
    mask: Tensor | None,
    past: KVCache,
    listen: Callable[[], Hooks],
) -> Iterator[Tensor]:
    n_ctx, fresh = model.config.n_ctx, tokens[:, past.n_pos :]
    draw = torch.Generator(tokens.device)
    draw.manual_seed(draw.seed() if sampling.seed is None else sampling.seed)
    ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    for _ in range(max_new_tokens):
        with torch.no_grad():  # not around the yield: it would reach the caller's own code
            if tokens.shape[1] <= n_ctx:
                logits = model(fresh, listen(), mask, past)[:, -1]
            else:
                logits = model(tokens[:, -n_ctx:], listen(), None if mask is None else mask[:, -n_ctx:])[:, -1]
            new = sample(logits, sampling.temperature, sampling.top_k, sampling.top_p, draw)
        if sampling.stop_token is not None:
            new = new.masked_fill(ended, sampling.stop_token)
            ended |= new == sampling.stop_token
        fresh = new[:, None]
        tokens = torch.cat([tokens, fresh], dim=1)
        mask = None if mask is None else torch.cat([mask, mask[:, -1:]], dim=1)
        yield new
        if ended.all():
            return


def sample(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, draw: torch.Generator) -> Tensor:
    """One token for each row of logits (batch, d_vocab): (batch,)."""
    if temperature == 0:
        wide = torch.promote_types(logits.dtype, torch.float32)  # exact, and on the CPU faster than in bfloat16
        return logits.to(wide).argmax(-1)
    return torch.multinomial(next_token_probs(logits, temperature, top_k, top_p), 1, generator=draw)[:, 0]


def next_token_probs(logits: Tensor, temperature: float, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """The distribution sampled from: (batch, d_vocab), rows summing to 1, zero where top_k or top_p cut."""
    logits = logits.float()
    temperature = max(temperature, torch.finfo(torch.float32).tiny)  # a smaller one would round to 0, and 0/0 is no logit
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature  # at most 0: no temperature makes it infinite
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


def _check(model: GPT2, tokens: Tensor, max_new_tokens: int, attention_mask: Tensor | None, past: KVCache | None) -> None:
    n_ctx = model.config.n_ctx
    plain = isinstance(tokens, Tensor) and tokens.ndim == 2
    check_tokens(tokens[:, -n_ctx:] if plain else tokens, model.config, device=model.device)
    check_mask(attention_mask, tuple(tokens.shape))
    if attention_mask is not None and not attention_mask[:, -1].all():
        raise TokenError("the last column of attention_mask is 0 somewhere: new tokens follow it, so pad on the left")
    if max_new_tokens < 0:
        raise ConfigError(f"max_new_tokens={max_new_tokens} is negative")
    if model.training and model.config.dropout:
        raise ConfigError("the model is in training mode, where dropout would make its samples noise; call model.eval()")
    if past is None:
        return
    if past.n_pos >= tokens.shape[1]:
        raise TokenError(
            f"the KV cache has seen {past.n_pos} tokens, of {tokens.shape[1]} given; "
            "pass all tokens, with one at least that is new to it"
        )
    n_read = tokens.shape[1] + max_new_tokens - 1
    if n_read > n_ctx:
        raise ContextLengthError(
            f"{n_read} tokens would be read, more than n_ctx={n_ctx}, beyond which a KV cache means nothing; "
            f"pass max_new_tokens={max(n_ctx - tokens.shape[1] + 1, 0)} or no past"
        )


def _check_stop(model: GPT2, sampling: Sampling | None) -> None:
    stop = None if sampling is None else sampling.stop_token
    if stop is not None and not 0 <= stop < model.config.d_vocab:
        raise TokenError(f"stop_token={stop} can never come: ids are 0 to {model.config.d_vocab - 1}")
