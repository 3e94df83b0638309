"""Who is measured beside us, on the same weights: Hugging Face, and what is installed of TransformerLens and nnsight."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from measuring import HF, installed
from torch import Tensor, nn

from interp_gpt2 import GPT2
from interp_gpt2.convert.huggingface import to_huggingface
from interp_gpt2.convert.transformer_lens import to_hooked_transformer, to_transformer_bridge

Call = Callable[[Tensor], Any]


@dataclass(frozen=True)
class Peer:
    """`cache` keeps as many activations as the library offers in one call; None is what it does not offer."""

    name: str
    forward: Call
    cache: Call
    cache_with_results: Call | None = None


def peers_of(model: GPT2) -> list[Peer]:
    """Each peer around its own copy of the weights, so that nobody's hooks stand in another's way."""
    lens = installed("transformer-lens")
    found = [hugging_face(model)]
    if lens and lens.startswith("3."):
        found.append(transformer_lens(f"TransformerLens {lens} HookedTransformer", model, to_hooked_transformer))
    elif lens:
        found.append(transformer_lens(f"TransformerLens {lens} bridge", model, to_transformer_bridge))
    if installed("nnsight"):
        found.append(nnsight_of(model))
    return found


def hugging_face(model: GPT2) -> Peer:
    """SDPA attention in forward passes; eager attention where hidden states and attentions are kept."""
    sdpa, eager = to_huggingface(model), eager_copy(model)
    return Peer(
        HF,
        lambda tokens: sdpa(tokens, use_cache=False),
        lambda tokens: eager(tokens, use_cache=False, output_hidden_states=True, output_attentions=True),
    )


def eager_copy(model: GPT2) -> nn.Module:
    eager = to_huggingface(model)
    eager.set_attn_implementation("eager")
    return eager


def transformer_lens(name: str, model: GPT2, convert: Callable[[GPT2], Any]) -> Peer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        lens, with_results = convert(model), convert(model)
    with_results.set_use_attn_result(True)
    return Peer(name, lens, lens.run_with_cache, with_results.run_with_cache)


def nnsight_of(model: GPT2) -> Peer:
    """nnsight around Hugging Face's model. Its cache is every module's output, eager attention's pattern among them:
    no scores, no z, no layer norm's scale or value before the gain, no resid_mid, and q, k and v in one tensor."""
    from nnsight import NNsight

    sdpa, eager = NNsight(to_huggingface(model)), NNsight(eager_copy(model))

    def forward(tokens: Tensor) -> Tensor:
        with sdpa.trace(tokens, use_cache=False):
            logits = sdpa.output.logits.save()
        return logits

    def cache(tokens: Tensor) -> Any:
        with eager.trace(tokens, use_cache=False) as tracer:
            kept = tracer.cache()
        return kept

    return Peer(f"nnsight {installed('nnsight')}", forward, cache)
