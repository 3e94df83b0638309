"""A report read back from report.json: every field in its place, or an error that names the one that is not."""

import json
import types
import typing
from dataclasses import fields, is_dataclass
from typing import Any

from interp_gpt2.errors import AnalysisError
from interp_gpt2.report.schema import FORMAT, Report


def report_from_json(text: str) -> Report:
    """The report in the text of a report.json. Raises AnalysisError for another format, or a field missing or unknown."""
    values = json.loads(text)
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise AnalysisError(
            f"this report.json has format {found!r}, expected {FORMAT!r}; make it again with `interp-gpt2 report`"
        )
    return _read(Report, values, "report")


def _read(kind: Any, value: Any, where: str) -> Any:
    """`value` from JSON as `kind`: a dataclass, a list, dict or union of these, or itself."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        inner = [part for part in typing.get_args(kind) if part is not type(None)]
        return value if value is None or len(inner) > 1 else _read(inner[0], value, where)
    if typing.get_origin(kind) is list:
        (inner,) = typing.get_args(kind)
        return [_read(inner, item, f"{where}[{i}]") for i, item in enumerate(value)]
    if typing.get_origin(kind) is dict:
        inner = typing.get_args(kind)[1]
        return {key: _read(inner, item, f"{where}.{key}") for key, item in value.items()}
    if not is_dataclass(kind):
        return value
    types_of = typing.get_type_hints(kind)
    names = {part.name for part in fields(kind)}
    if set(value) != names:
        odd = ", ".join(sorted(set(value) ^ names))
        raise AnalysisError(f"{where} in report.json does not have the fields of {kind.__name__}; they differ in {odd}")
    return kind(**{name: _read(types_of[name], item, f"{where}.{name}") for name, item in value.items()})
