"""A readable, exact GPT-2 whose every activation can be read and edited, and what one needs to watch it learn.

Names load on first use, so that `import interp_gpt2` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from interp_gpt2.cache import ActivationCache as ActivationCache
    from interp_gpt2.config import SIZES as SIZES
    from interp_gpt2.config import GPT2Config as GPT2Config
    from interp_gpt2.errors import InterpGPT2Error as InterpGPT2Error
    from interp_gpt2.hooks import Part as Part
    from interp_gpt2.model import GPT2 as GPT2
    from interp_gpt2.runs.run import Run as Run
    from interp_gpt2.sweeps import sweep as sweep

__version__ = "0.1.0"

_HOME = {
    "ActivationCache": "interp_gpt2.cache",
    "GPT2": "interp_gpt2.model",
    "GPT2Config": "interp_gpt2.config",
    "InterpGPT2Error": "interp_gpt2.errors",
    "Part": "interp_gpt2.hooks",
    "Run": "interp_gpt2.runs.run",
    "SIZES": "interp_gpt2.config",
    "sweep": "interp_gpt2.sweeps",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'interp_gpt2' has no attribute {name!r}; it has {', '.join(sorted(_HOME))}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
