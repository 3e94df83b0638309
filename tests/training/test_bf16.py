"""bfloat16 on a CPU: products to its accuracy, and dropout whose masks are as likely as they should be."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from interp_gpt2.config import GPT2Config
from interp_gpt2.model import GPT2
from interp_gpt2.training.bf16 import Bf16Linears, keep_mask

SMALL = GPT2Config(n_layers=2, n_heads=2, d_model=32, d_vocab=20, n_ctx=16)


def gradients(model: GPT2, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("bias", [True, False])
def test_bf16_linears_give_the_gradients_of_float32_to_the_accuracy_of_bf16(bias):
    model = GPT2(GPT2Config(**{**SMALL.to_dict(), "bias": bias}))
    tokens = torch.randint(20, (8, 17), generator=torch.Generator().manual_seed(0))
    exact = gradients(model, tokens)
    with Bf16Linears():
        rounded = gradients(model, tokens)
    for name, gradient in exact.items():
        assert rounded[name].dtype == torch.float32
        error = (rounded[name] - gradient).norm() / gradient.norm()
        assert 0 < error < 0.03, name  # bfloat16 has 8 bits: 0.4 % a rounding, and several follow each other


def test_outside_bf16_linears_nothing_is_rounded():
    model = GPT2(SMALL)
    tokens = torch.zeros(1, 4, dtype=torch.long)
    before = model(tokens)
    with Bf16Linears():
        rounded = model(tokens)
    assert not torch.equal(rounded, before)
    assert torch.equal(model(tokens), before)


def test_a_mask_keeps_as_often_as_it_should_and_is_a_function_of_torchs_generator():
    n = 1_000_003  # four values are drawn at a time
    for p in (0.1, 0.2, 0.5):
        torch.manual_seed(1)
        first, second = keep_mask(torch.Size([n]), p), keep_mask(torch.Size([n]), p)
        for mask in (first, second):
            assert abs(mask.double().mean().item() - (1 - p)) < 5 * math.sqrt(p * (1 - p) / n)
        both = (first & second).double().mean().item()
        assert abs(both - (1 - p) ** 2) < 5 * math.sqrt((1 - p) ** 2 / n)
        neighbours = (first[1:] & first[:-1]).double().mean().item()
        assert abs(neighbours - (1 - p) ** 2) < 5 * math.sqrt((1 - p) ** 2 / n)
        torch.manual_seed(1)
        assert torch.equal(keep_mask(torch.Size([n]), p), first)


def test_dropout_and_its_gradient_are_what_the_mask_says():
    x = torch.randn(7, 9, generator=torch.Generator().manual_seed(0), requires_grad=True)
    torch.manual_seed(3)
    with Bf16Linears():
        dropped = F.dropout(x, 0.25, True)
    dropped.pow(2).sum().backward()
    torch.manual_seed(3)
    keep = keep_mask(x.shape, 0.25)
    assert torch.allclose(dropped, x * keep / 0.75)
    assert torch.allclose(x.grad, 2 * x * keep / 0.75**2)
    with Bf16Linears():
        assert F.dropout(x, 0.25, False) is x or torch.equal(F.dropout(x, 0.25, False), x)


@pytest.mark.parametrize("p", [0.3, 1e-6])
def test_attention_that_drops_is_the_formula_with_its_mask_and_so_are_its_gradients(p):
    draw = torch.Generator().manual_seed(0)
    q, k, v, towards = (torch.randn(2, 3, 16, 8, generator=draw) for _ in range(4))
    inputs = [part.clone().requires_grad_() for part in (q, k, v)]
    torch.manual_seed(5)
    with Bf16Linears():
        out = F.scaled_dot_product_attention(*inputs, is_causal=True, dropout_p=p, scale=0.3)
    (out * towards).sum().backward()

    exact = [part.clone().requires_grad_() for part in (q, k, v)]
    torch.manual_seed(5)
    keep = keep_mask(torch.Size([2, 3, 16, 16]), p)
    scores = 0.3 * exact[0] @ exact[1].mT
    pattern = scores.masked_fill(torch.ones(16, 16).triu(1).bool(), -math.inf).softmax(-1)
    by_formula = (pattern * keep / (1 - p)) @ exact[2]
    (by_formula * towards).sum().backward()
    if p < 1e-3:  # nothing falls out
        assert torch.allclose(by_formula, F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3), atol=1e-5)
    for rounded, full in [(out, by_formula), *((part.grad, other.grad) for part, other in zip(inputs, exact, strict=True))]:
        assert (rounded - full).norm() / full.norm() < 0.01  # 8 bits: 0.4 % a rounding, and several follow each other


def test_a_model_with_dropout_trains_on_the_mean_of_what_it_drops():
    """Over many masks the loss with dropout is that without, to first order in a small p; evaluation drops nothing."""
    model = GPT2(replace(SMALL, dropout=0.02)).train()
    tokens = torch.randint(20, (64, 17), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    with Bf16Linears(), torch.no_grad():
        losses = [F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).item() for _ in range(20)]
        model.eval()
        plain = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).item()
    assert len(set(losses)) == 20
    assert sum(losses) / 20 == pytest.approx(plain, abs=5e-3)
