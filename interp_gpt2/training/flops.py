"""Floating-point operations of training, counted two ways, and what they are held against.

Two utilisations are told, because people compare by the first and learn from the second: the PaLM formula over the
datasheet's peak (Chowdhery et al. 2022, "PaLM", appendix B; nanoGPT's `estimate_mfu` is the same formula), and the
products that a causal model needs over what this device was just seen to multiply.
"""

import time
from dataclasses import dataclass
from functools import lru_cache

import torch

from interp_gpt2.config import GPT2Config
from interp_gpt2.linear import linear

# Dense bfloat16 TFLOP/s with float32 accumulation, from NVIDIA's datasheets; where those give the rate with sparsity, half
# of it. The first name that the device's contains counts. A device that is not here has no utilisation by datasheet.
DATASHEET_TFLOPS = {
    "H200 NVL": 835.5,
    "H200": 989.4,
    "H100 NVL": 835.5,
    "H100 PCIe": 756.0,
    "H100": 989.4,
    "A100": 312.0,
    "L40S": 362.05,
    "RTX 4090": 165.2,
}

MEASURING_SECONDS = 0.1
_SIZES = {"cpu": 1024, "cuda": 8192}  # of the square matrices; larger ones are no faster


def palm_flops_per_token(config: GPT2Config) -> float:
    """6 (N - N_pos) + 12 n_layers n_heads d_head n_ctx: forward and backward, in operations per token.

    N counts every parameter, the unembedding once, and N_pos the positions' embedding. Attention counts all n_ctx^2 pairs,
    seen or not. GPT-2 small: 855.2 million; with nanoGPT's 50,304 rows of vocabulary 855.4.
    """
    embedded = config.n_ctx * config.d_model
    attention = 12 * config.n_layers * config.n_heads * config.d_head * config.n_ctx
    return 6.0 * (config.n_params - embedded) + attention


def causal_flops_per_token(config: GPT2Config) -> float:
    """6 N_products + 6 n_layers n_heads d_head n_ctx: what a causal model's matrix products need, per token.

    N_products are the weights that multiply: blocks and unembedding, not the embeddings, which are looked up, nor biases
    and gains. A query sees n_ctx / 2 keys on average. GPT-2 small: 797.8 million; with 50,304 rows 798.0.
    """
    width = config.n_heads * config.d_head
    block = 4 * config.d_model * width + (0 if config.attn_only else 2 * config.d_model * config.d_mlp)
    products = config.n_layers * block + config.d_vocab * config.d_model
    return 6.0 * products + 6 * config.n_layers * width * config.n_ctx


def datasheet_flops(device_name: str, precision: str) -> float | None:
    """Peak operations per second of a device by its datasheet; None where no figure fits it.

    That is on a CPU, on a GPU that DATASHEET_TFLOPS lacks or that is a slice of one (MIG), and in float32, for which
    datasheets give several.
    """
    if precision != "bf16" or "MIG" in device_name.split():
        return None
    return next((peak * 1e12 for name, peak in DATASHEET_TFLOPS.items() if name in device_name), None)


@dataclass(frozen=True)
class MeasuredMatmul:
    """The fastest of several products of square matrices of `size`, in operations per second; measuring took `seconds`."""

    flops_per_s: float
    size: int
    seconds: float


@lru_cache(maxsize=8)
def measured_matmul(device: torch.device, precision: str, threads: int) -> MeasuredMatmul:
    """How fast `device` multiplies now: about a tenth of a second, once in a process for each precision and thread count."""
    began = time.perf_counter()
    size = _SIZES.get(device.type, 2048)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    with torch.no_grad():
        linear(left, right)  # the first call sets things up
        fastest = _seconds(left, right)
        while time.perf_counter() - began < MEASURING_SECONDS:
            fastest = min(fastest, _seconds(left, right))
    return MeasuredMatmul(2 * size**3 / fastest, size, time.perf_counter() - began)


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    if left.device.type != "cuda":
        began = time.perf_counter()
        linear(left, right)  # by the library that the model's own products use
        return time.perf_counter() - began
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    linear(left, right)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000
