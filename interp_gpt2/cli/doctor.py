"""`interp-gpt2 doctor`: what this installation has, and what works with it."""

import os
import platform
import socket
import sys
import threading
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

EXAMPLES = ("interp-gpt2 doctor",)

HUB = ("huggingface.co", 443)
ANSWER_WITHIN_S = 1.5
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
# fmt: off
PACKAGES = ("torch", "transformers", "transformer-lens", "numpy", "safetensors", "tokenizers", "tiktoken", "datasets",
            "scikit-learn", "pandas", "matplotlib", "tyro")
# fmt: on


@dataclass(frozen=True)
class Doctor:
    """Versions, devices, tokenizer files and network of this installation. Changes nothing."""

    def run(self) -> None:
        import interp_gpt2
        from interp_gpt2.cli.tables import table

        facts = [
            ["interp_gpt2", interp_gpt2.__version__],
            ["Python", f"{platform.python_version()} ({sys.executable})"],
            ["platform", platform.platform()],
            *([name, installed(name) or "not installed"] for name in PACKAGES),
            *_devices(),
            ["TransformerLens", transformer_lens_line(installed("transformer-lens"))],
            *_tokenizers(),
            *_network(),
        ]
        print("\n".join(line for line in table(["", ""], facts, left=2).splitlines() if line.strip()))


def installed(name: str) -> str | None:
    """A package's version, without importing it."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def transformer_lens_line(found: str | None) -> str:
    """What works with this version of TransformerLens."""
    if found is None:
        return "not installed: conversions to it need `pip install 'transformer-lens<4'`"
    if int(found.split(".")[0]) < 4:
        return f"{found}: HookedTransformer and TransformerBridge"
    return f"{found}: TransformerBridge; HookedTransformer left in 4.0 (`pip install 'transformer-lens<4'` has it)"


def _devices() -> list[list[str]]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    rows = [["CPU", f"{cores} cores usable, {torch.get_num_threads()} threads in torch, {_cpu_bf16()}"]]
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        rows.append([f"GPU {index}", f"{found.name}, {found.total_memory / 1e9:.0f} GB, {bf16}"])
    if len(rows) == 1:
        rows.append(["GPU", "Apple's, through MPS" if torch.backends.mps.is_available() else "none that torch can use"])
    return rows


def _cpu_bf16() -> str:
    """Whether matrix products in bf16 are done by the hardware: Linux says so, other systems do not."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        return "bf16 in hardware: unknown"
    fast = [name for name in ("amx_bf16", "avx512_bf16", "bf16") if name in flags.split()]
    return f"bf16 in hardware ({fast[0]})" if fast else "no bf16 in hardware"


def _tokenizers() -> list[list[str]]:
    from interp_gpt2.errors import TokenizerError
    from interp_gpt2.tokenizers import GPT2_D_VOCAB, tokenizer_named
    from interp_gpt2.vocab_bpe import local_copies

    rows = [["byte, char", "built in"]]
    copies = local_copies()
    for path, sound in copies:
        rows.append(["GPT-2 BPE", f"{path}: {'verified by SHA-256' if sound else 'damaged; delete it'}"])
    if not any(sound for _, sound in copies):
        missing = "no copy on this machine; first use downloads it, or set TIKTOKEN_CACHE_DIR to a folder with vocab.bpe"
        return [*rows, ["GPT-2 BPE", missing]]
    try:
        loaded = tokenizer_named("gpt2")
    except TokenizerError as error:
        return [*rows, ["GPT-2 BPE", str(error)]]
    works = loaded.d_vocab == GPT2_D_VOCAB and loaded.encode("Hello world") == [15496, 995]
    return [*rows, ["", f"{loaded.d_vocab:,} entries, {'encodes as published' if works else 'but encodes wrongly'}"]]


def _network() -> list[list[str]]:
    offline = [name for name in OFFLINE if os.environ.get(name, "0").lower() in ("1", "true", "yes", "on")]
    if offline:
        return [["network", f"not asked: {', '.join(offline)} is set"]]
    state = "reachable" if _answers() else f"does not answer within {ANSWER_WITHIN_S} s; only Hub names need it"
    return [["network", f"Hugging Face Hub {state}"]]


def _answers() -> bool:
    """Whether a connection can be opened. A name look-up cannot be interrupted, so a daemon thread does the waiting."""
    answered = threading.Event()

    def ask() -> None:
        try:
            socket.create_connection(HUB, timeout=ANSWER_WITHIN_S).close()
        except OSError:
            return
        answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_WITHIN_S)
    return answered.is_set()
