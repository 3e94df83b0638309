"""`interp-gpt2 contract`: whether the instrument keeps its promises."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from interp_gpt2.cli.parse import UsageError, option

if TYPE_CHECKING:
    from interp_gpt2.contract.subject import Case
    from interp_gpt2.contract.table import Table

EXAMPLES = (
    "interp-gpt2 contract --quick",
    "interp-gpt2 contract demo-text --step 512",
    "interp-gpt2 contract --against transformer-lens --json contract.json",
)

SHOWN = 12  # broken promises; --json has all


@dataclass(frozen=True)
class Contract:
    """Hold the model to the hook contract: what a cache holds, what an edit does, what nothing may change.

    Every promise is checked at every hook point: of small models with random weights, or of RUN's model on random tokens.
    A line has the largest deviation that was measured, over the largest activation there, and the largest that
    keeps the promise; with 0 allowed it is equality to the bit, or a count. Exits with 1 if a promise is broken.
    """

    source: Annotated[tyro.conf.Positional[str | None], option("RUN")] = None
    """A run, one of its checkpoints, or a model's directory."""
    step: Annotated[int | None, option("STEP")] = None
    """A checkpoint's step; the last one unless given."""
    quick: bool = False
    """Leave out the largest model, or the layers between the first and the last; compile one only, call less."""
    against: Literal["transformer-lens"] | None = None
    """Hold the installed TransformerLens to the same contract, for comparison."""
    json: Annotated[Path | None, option("FILE")] = None
    """Write every check to this file."""

    def run(self) -> int:
        from interp_gpt2.contract.check import check
        from interp_gpt2.contract.instrument import Ours

        cases = self._cases()
        tables = [check(Ours, cases, quick=self.quick)]
        print(shown(tables[0]))
        if self.against:
            from interp_gpt2.contract.transformer_lens import builders

            for build in builders().values():
                tables.append(check(build, cases, quick=self.quick))
                print(f"\n{shown(tables[-1])}")
        if self.json is not None:
            _write(self.json, tables)
            print(f"\nwrote {self.json}")
        return 1 if tables[0].failed else 0

    def _cases(self) -> "list[Case] | None":
        from interp_gpt2.cli.where import open_model
        from interp_gpt2.contract.subject import case_of

        if self.source is None:
            if self.step is not None:
                raise UsageError("--step is a checkpoint of RUN; say which run")
            return None
        opened = open_model(self.source, self.step)
        return [case_of(opened.title, opened.model)]


def shown(table: "Table") -> str:
    """A line for each promise; beneath them, where they were broken."""
    from interp_gpt2.cli.tables import cut
    from interp_gpt2.cli.tables import table as columns
    from interp_gpt2.contract.markdown import number

    summaries, models = table.summary(), list(dict.fromkeys(result.case for result in table.results))
    lines = []
    for s in summaries:
        measured = [number(s.worst) if s.holds else "-", "-" if s.allowed is None else number(s.allowed)]
        lines.append([s.clause, str(s.holds), str(s.fails), *measured])
    kept, failed = sum(not s.fails for s in summaries), table.failed
    text = f"{table.instrument} on {models[0] if len(models) == 1 else f'{len(models)} small models'}: "
    text += f"{kept} of {len(summaries)} promises kept in {sum(s.holds + s.fails for s in summaries):,} checks\n\n"
    text += columns(["", "hold", "fail", "worst", "allowed"], lines)
    how = [r.note or f"{number(r.deviation)} where {number(r.allowed)} is allowed" for r in failed]
    where = [f"{r.clause} at {r.hook_point or 'the model'}, {r.case}" for r in failed]
    broken = [cut(f"{place}: {what}", 80) for place, what in zip(where, how, strict=True)]
    if len(broken) > SHOWN:
        broken[SHOWN:] = [f"and {len(broken) - SHOWN} more, which --json writes"]
    return "\n".join([text, "", *broken]) if broken else text


def _write(path: Path, tables: "list[Table]") -> None:
    import json
    import platform
    from datetime import date
    from importlib.metadata import version

    import torch

    facts = {
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        **{name: version(name) for name in ("torch", "transformers", "transformer-lens")},
    }
    content = {"circumstances": facts, "tables": [table.to_dict() for table in tables]}
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", "utf-8")
