"""Where training runs and how it multiplies."""

import threading

import pytest
import torch
import torch.nn.functional as F

from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import ConfigError
from interp_gpt2.model import GPT2
from interp_gpt2.training import machine
from interp_gpt2.training.config import TrainConfig
from interp_gpt2.training.machine import Bf16Linears, Machine, cpu_threads
from interp_gpt2.training.signals import stop_requests

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


@pytest.mark.parametrize(
    ("flags", "d_model", "precision"),
    [
        ("fpu avx512_bf16", 64, "bf16"),
        ("fpu amx_bf16", 128, "bf16"),
        ("fpu avx2", 64, "fp32"),
        ("fpu avx512_bf16", 32, "fp32"),
        ("", 64, "fp32"),
    ],
)
def test_auto_precision_is_bf16_where_the_processor_has_it_and_the_model_is_wide_enough_to_gain(
    monkeypatch, flags, d_model, precision
):
    monkeypatch.setattr(machine, "cpu_facts", lambda: {"flags": flags})
    config = TrainConfig(device="cpu", model=GPT2Config(n_layers=1, n_heads=2, d_model=d_model))
    assert Machine.for_config(config).precision == precision
    assert Machine.for_config(TrainConfig(device="cpu", precision="fp32")).precision == "fp32"


def test_a_device_nobody_has_heard_of_is_a_config_error():
    with pytest.raises(ConfigError, match="device='gpu' cannot be used here"):
        Machine.for_config(TrainConfig(device="gpu"))


def test_threads_are_set_for_the_block_only():
    before = torch.get_num_threads()
    with cpu_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_outside_the_main_thread_no_signal_is_handled():
    seen = []

    def work() -> None:
        with stop_requests() as stop:
            seen.append(stop.signum)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None]
