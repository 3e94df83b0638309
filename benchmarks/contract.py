"""The hook contract, ours beside TransformerLens's, as a page. Versions 3 and 4 exclude each other, so each writes its part:

    interp-gpt2 contract --against transformer-lens --json tl3.json     where transformer-lens 3.9 is installed
    interp-gpt2 contract --against transformer-lens --json tl4.json     where 4.3 is
    python benchmarks/contract.py tl3.json tl4.json > benchmarks/CONTRACT.md
"""

import json
import sys
from pathlib import Path

from interp_gpt2.contract.markdown import failures, promises
from interp_gpt2.contract.table import Table

INTRODUCTION = """\
# The hook contract

What a researcher may rely on at every hook point, checked on seven small GPT-2s with random weights (two heads; attention
only; one head; scores divided by layer + 1; no biases; as many tokens as n_ctx; matrices large enough for other kernels), all
libraries computing the same weights. `interp-gpt2 contract` runs it on your installation, or on a model of yours;
`interp_gpt2.contract` runs it on any library that answers eight methods.

It is this project's contract. Where TransformerLens breaks a promise it need not be a bug there: it never promised to refuse an
edit that broadcasts, or to mask edited scores again. Where the number surprises, the lists below say what happens.

A cell says how many checks (models times hook points) kept the promise and, where rounding is allowed, the largest deviation
among them, over the largest activation at that hook point; or how many did not keep it.
"""


def page(paths: list[Path]) -> str:
    parts = [json.loads(path.read_text("utf-8")) for path in paths]
    tables = {values["instrument"]: Table.from_dict(values) for part in parts for values in part["tables"]}
    circumstances = "; ".join(", ".join(f"{name} {value}" for name, value in part["circumstances"].items()) for part in parts)
    commands = "\n".join(line for line in (__doc__ or "").splitlines() if line.startswith("    "))
    broken = [f"## {name}\n\n{failures(table)}" for name, table in tables.items() if table.failed]
    sections = [
        f"{INTRODUCTION}\nMeasured with {circumstances}, on the CPU. Written by\n\n{commands}",
        promises(list(tables.values())),
        *broken,
    ]
    return "\n\n".join(sections) + "\n"


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.stdout.write(page([Path(name) for name in sys.argv[1:]]))
