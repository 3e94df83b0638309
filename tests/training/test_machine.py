"""Where training runs and how it multiplies."""

import threading

import pytest
import torch

from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import ConfigError
from interp_gpt2.training import machine
from interp_gpt2.training.config import TrainConfig
from interp_gpt2.training.machine import Machine, cpu_threads
from interp_gpt2.training.signals import stop_requests


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
