"""The memory that a cached pass takes at most, and what imports cost, each in a process of its own.

    python benchmarks/footprint.py CASE [tiny]    one case, in this process, as JSON; of a small model

Linux only: the kernel's own high-water mark of resident memory, reset before the pass.
"""

import ctypes
import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from interp_gpt2 import GPT2, GPT2Config
from interp_gpt2.hooks import Names, Part
from interp_gpt2.memory import peak_memory

CASES: dict[str, tuple[Names, Part | None]] = {
    "nothing": ([], None),
    "everything": (None, None),
    "everything, in float16": (None, Part(dtype=torch.float16)),
    "everything, at the last token": (None, Part(pos_slice=-1)),
    "every pattern": ("*.pattern", None),
    "every pattern, of the last query": ("*.pattern", Part(pos_slice=-1)),
}

TIMED = """
import time
{first}
start = time.process_time()
{then}
print(time.process_time() - start)
"""


def all_cases(tiny: bool = False) -> list[dict[str, Any]]:
    """The most memory that a pass over 4 x 256 tokens takes, and what it returns, in bytes. Empty where it is unknown."""
    if not sys.platform.startswith("linux"):
        return []
    return [{"kept": name, **json.loads(run(__file__, name, *(["tiny"] if tiny else [])))} for name in CASES]


@torch.no_grad()
def one_case(name: str, config: GPT2Config) -> dict[str, int]:
    names, keep = CASES[name]
    model = GPT2(config).eval()
    tokens = torch.randint(config.d_vocab, (4, 256), generator=torch.Generator().manual_seed(0))
    model(tokens[:, :8])  # kernels and tables that any first pass makes
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)  # else the pass begins in what making the model has left
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again here
    logits, cache = model.run_with_cache(tokens, names, keep=keep)
    found = {"returned": bytes_of([logits, *cache.values()]), "resident": resident("VmHWM") - before}
    del logits, cache
    return found | {"tensors": peak_memory(lambda: model.run_with_cache(tokens, names, keep=keep))}


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """What they hold, each storage once: resid_post of a layer is resid_pre of the next."""
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def resident(what: str) -> int:
    return 1024 * int(re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def imports(n: int = 5) -> dict[str, float]:
    """CPU seconds, medians of n processes."""

    def seconds(first: str, then: str) -> float:
        return median(float(run("-c", TIMED.format(first=first, then=then))) for _ in range(n))

    return {
        "import interp_gpt2": seconds("", "import interp_gpt2"),
        "from interp_gpt2 import GPT2, after import torch": seconds("import torch", "from interp_gpt2 import GPT2"),
        "import torch": seconds("", "import torch"),
    }


def run(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1] in CASES:
        size = GPT2Config(n_layers=2, n_heads=4, d_model=64, d_vocab=1000) if sys.argv[2:] == ["tiny"] else GPT2Config()
        print(json.dumps(one_case(sys.argv[1], size)))
    else:
        sys.exit(f"{__doc__}\nCASE is one of {', '.join(map(repr, CASES))}")
