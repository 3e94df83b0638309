"""What an analysis that can be swept over checkpoints looks like: a frozen dataclass, called with a model, giving rows."""

import hashlib
import inspect
import math
import sys
from dataclasses import fields, is_dataclass
from functools import lru_cache
from types import CodeType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2

Row = dict[str, Any]

ROW_KEYS = ("metric", "hook_point", "layer", "head", "neuron", "position", "label", "value", "n", "low", "high")

Z_95 = 1.959963984540054  # 95 % of a normal distribution lies within this many standard deviations


class Analysis:
    """Base of the sweepable analyses: a frozen dataclass (`eq=False`) that holds what it reads, tokens included.

    Calling it with a model gives rows, dicts with some of ROW_KEYS; what does not apply is left out. `low` and `high`
    bound a 95 % interval. Two analyses are equal when their fingerprints are.
    """

    name: str

    def __call__(self, model: GPT2) -> list[Row]:
        raise NotImplementedError(f"{type(self).__name__} does not say how to compute its rows; define __call__(self, model)")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the class, of the source of the module that defines it and of every field: what was asked, exactly.

        It is the same in every process. Stored rows are found again by it, so an edited analysis is computed anew.
        """
        return fingerprint(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Analysis) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)


class StackableAnalysis(Analysis):
    """An analysis in two parts, a tensor of the model and the rows of that tensor: what a sweep can do to many models at once.

    `measure` must be made of operations that torch.vmap maps over models, without looking at a value on the way.
    """

    def measure(self, model: GPT2) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not say what it measures; define measure(self, model)")

    def rows_of(self, measured: Tensor, config: GPT2Config) -> list[Row]:
        raise NotImplementedError(f"{type(self).__name__} does not say its rows; define rows_of(self, measured, config)")

    def __call__(self, model: GPT2) -> list[Row]:
        return self.rows_of(self.measure(model), model.config)


def require_eval(model: GPT2) -> None:
    """Refuse a model that would drop activations at random: what an analysis measures must not depend on chance.

    Raises AnalysisError if the model is in training mode and has dropout.
    """
    if model.training and model.config.dropout > 0:
        raise AnalysisError(f"the model is in training mode with dropout {model.config.dropout}; call model.eval() first")


def standard_error(values: Float[Tensor, "n"]) -> float:
    """Standard error of the mean of independent values; NaN of fewer than two."""
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def ratio_of_sums(
    sums: Float[Tensor, "*lead unit"], counts: Float[Tensor, "*#lead unit"]
) -> tuple[Float[Tensor, "*lead"], Float[Tensor, "*lead"]]:
    """Mean per count, sum(sums) / sum(counts), and its standard error with the last axis as the independent units.

    For means over tokens of which some sequences hold more than others: the linearised variance of a ratio (Cochran 1977,
    "Sampling Techniques", 6.3). NaN where nothing was counted; the standard error also where only one unit counts.
    """
    n, units = counts.sum(-1), (counts > 0).sum(-1)
    value = sums.sum(-1) / n
    residual = sums - value.unsqueeze(-1) * counts
    correction = torch.where(units > 1, units / (units - 1).clamp(min=1), math.nan)
    return value, (residual.square().sum(-1) * correction).sqrt() / n


@lru_cache
def reach_95(units: float) -> float:
    """How many standard errors, estimated from `units` independent values, reach 95 % of the means on either side.

    Student's t with units - 1 degrees of freedom: 12.7 for 2, 2.13 for 16, 1.98 for 128, Z_95 for math.inf. NaN below 2.
    """
    from scipy.special import stdtrit

    return Z_95 if math.isinf(units) else float(stdtrit(units - 1, 0.975)) if units > 1 else math.nan


def interval(value: float, stderr: float, units: float = math.inf) -> dict[str, float]:
    """The `low` and `high` of a row: 95 %, from a standard error over `units` independent values. None where that is NaN."""
    reach = reach_95(units) * stderr
    return {} if math.isnan(reach) else {"low": value - reach, "high": value + reach}


def mean_of(values: Float[Tensor, "sequence *pos"]) -> dict[str, float]:
    """`value`, `n`, `low` and `high` of a row: the mean of all values, with sequences as the independent units.

    Of no values `n` alone.
    """
    if not values.numel():
        return {"n": 0}
    mean = float(values.mean())
    return {"value": mean, "n": values.numel(), **interval(mean, standard_error(values.flatten(1).mean(1)), len(values))}


def fingerprint(value: Any) -> str:
    """SHA-256, in hexadecimal, of a dataclass by its fields, tensors by dtype, shape and bytes.

    Raises AnalysisError for a field whose content has no fixed bytes (a function, an open file, a model).
    """
    digest = hashlib.sha256()
    _update(digest, value)
    return digest.hexdigest()


def _update(digest: "hashlib._Hash", value: Any) -> None:
    # Every part is written with its kind and length, so that no two different values write the same bytes.
    if isinstance(value, Tensor):
        raw = value.detach().cpu().contiguous()
        _write(digest, "tensor", f"{raw.dtype} {tuple(raw.shape)}".encode())
        _write(digest, "bytes", raw.reshape(-1).view(torch.uint8).numpy().tobytes())
    elif value is None or isinstance(value, (bool, int, float, str)):
        _write(digest, type(value).__name__, repr(value).encode())
    elif isinstance(value, (tuple, list)):
        _write(digest, "sequence", str(len(value)).encode())
        for part in value:
            _update(digest, part)
    elif isinstance(value, dict):
        _update(digest, [part for item in sorted(value.items()) for part in item])
    elif is_dataclass(value) and not isinstance(value, type):
        cls = type(value)
        _write(digest, "class", f"{cls.__module__}.{cls.__qualname__}".encode())
        _write(digest, "source", _source(cls).encode())
        for field in fields(value):
            _update(digest, field.name)
            _update(digest, getattr(value, field.name))
    else:
        raise AnalysisError(
            f"a field of type {type(value).__name__} has no fixed bytes to tell analyses apart by; "
            "use tensors, numbers, strings, tuples or frozen dataclasses of these"
        )


def _write(digest: "hashlib._Hash", kind: str, content: bytes) -> None:
    digest.update(f"{kind}:{len(content)}:".encode())
    digest.update(content)


def _source(cls: type) -> str:
    try:
        return inspect.getsource(sys.modules[cls.__module__])
    except (OSError, TypeError):  # typed at a prompt or in a notebook: there is no file to read
        return _compiled(cls)


def _compiled(cls: type) -> str:
    """What a class without a source was compiled to, and the functions, classes and plain values of its module that it uses."""
    module, found, ahead = vars(sys.modules[cls.__module__]), {}, [cls]
    while ahead:
        value = ahead.pop()
        if isinstance(value, type):
            ahead += [each for base in value.__mro__ if base.__module__ == cls.__module__ for each in vars(base).values()]
            continue
        value = inspect.unwrap(getattr(value, "fget", None) or getattr(value, "__func__", None) or value)
        code = getattr(value, "__code__", None)
        if code is None or value.__qualname__ in found:
            continue
        found[value.__qualname__] = _code_text(code)
        for name in sorted(_names(code) & module.keys()):
            used = module[name]
            if getattr(used, "__module__", None) == cls.__module__:
                ahead.append(used)
            elif used is None or isinstance(used, (bool, int, float, str, tuple)):
                found[name] = repr(used)
    return repr(sorted(found.items()))


def _code_text(code: CodeType) -> str:
    consts = [
        _code_text(const) if isinstance(const, CodeType) else sorted(map(repr, const)) if isinstance(const, frozenset) else const
        for const in code.co_consts
    ]
    return repr((code.co_code.hex(), consts, code.co_names, code.co_varnames))


def _names(code: CodeType) -> set[str]:
    """Of globals and attributes, in nested functions too."""
    return {*code.co_names}.union(*(_names(const) for const in code.co_consts if isinstance(const, CodeType)))
