"""Operations counted by hand, and utilisations that are never invented."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from interp_gpt2.config import GPT2Config
from interp_gpt2.model import GPT2
from interp_gpt2.training.flops import causal_flops_per_token, datasheet_flops, measured_matmul, palm_flops_per_token

NANOGPT = GPT2Config(d_vocab=50304)  # its padded vocabulary, in which published figures are given


def test_gpt2_small_by_hand_and_as_published():
    parameters = 124_439_808 - 1024 * 768  # without the positions
    assert palm_flops_per_token(GPT2Config()) == 6 * parameters + 12 * 12 * 12 * 64 * 1024
    assert palm_flops_per_token(NANOGPT) / 1e6 == pytest.approx(855.4, abs=0.05)
    weights = 12 * 12 * 768**2 + 50257 * 768  # of the blocks and the unembedding
    assert causal_flops_per_token(GPT2Config()) == 6 * weights + 6 * 12 * 768 * 1024
    assert causal_flops_per_token(NANOGPT) / 1e6 == pytest.approx(798.0, abs=0.05)


@pytest.mark.parametrize("shape", [{}, {"attn_only": True}, {"tied": False}, {"d_head": 12}, {"d_mlp": 40}])
def test_the_causal_count_is_what_torch_counts_but_for_the_unseen_half_of_attention(shape):
    config = GPT2Config(**{"n_layers": 2, "n_heads": 2, "d_model": 16, "d_vocab": 30, "n_ctx": 8} | shape)
    tokens = torch.zeros(1, 8, dtype=torch.long)
    with FlopCounterMode(display=False) as counted, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        logits = GPT2(config)(tokens)
    counted_forward = counted.get_total_flops() / 8
    attention = 4 * config.n_layers * config.n_heads * config.d_head * config.n_ctx  # torch counts unseen pairs too
    assert causal_flops_per_token(config) / 3 == counted_forward - attention / 2
    assert logits.shape == (1, 8, 30)


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA L40S", 362.05),
    ],
)
def test_a_device_has_its_datasheets_peak_in_bfloat16_alone(name, teraflops):
    assert datasheet_flops(name, "bf16") == teraflops * 1e12
    assert datasheet_flops(name, "fp32") is None


@pytest.mark.parametrize("name", ["AMD EPYC", "NVIDIA H20", "NVIDIA Graphics Device", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"])
def test_a_device_without_a_datasheet_here_has_no_peak(name):
    assert datasheet_flops(name, "bf16") is None


def test_a_measured_product_says_how_fast_of_what_size_and_what_it_cost():
    found = measured_matmul(torch.device("cpu"), "fp32", 1)
    assert 1e8 < found.flops_per_s < 1e14
    assert found.size == 1024
    assert 0 < found.seconds < 60
    assert measured_matmul(torch.device("cpu"), "fp32", 1) is found
