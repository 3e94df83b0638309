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
edit that broadcasts, or to mask edited scores again.

A cell says how many checks (models times hook points) kept the promise and, where rounding is allowed, the largest deviation
among them, over the largest activation at that hook point; or how many did not keep it.
"""

READING = """\
What stands behind the failures that change results:

- **HookedTransformer 3.9** runs `ln1` three times, for q, k and v: an edit there is called three times, and the derivative
  that is left in a cache is that of the last one alone. After `torch.compile` nothing is recorded, and no edit is made, without
  an error. A name that does not exist is left out of the cache without an error.
- **TransformerBridge 4.3** has `hook_resid_mid` as another name of the input of `ln2`. A returned edit reaches the MLP and not
  the stream, an edit in place reaches both; with `hook_mlp_in` on, `hook_resid_mid` holds what came out of that. In the modes
  with split inputs, an edit in place of one of them reaches the stream that they share. Its masked scores are the lowest float
  instead of -inf, but for compatibility mode.
- **The native model of 4.3** has the pattern in `hook_attn_scores`, and drops edits of it with a warning.
- **In threads**, all of them keep the hooks of a call on the model, where the other threads' calls find them. How many calls
  that spoils differs from run to run; in 4.3 nothing raises.
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
        READING.strip(),
        *broken,
    ]
    return "\n\n".join(sections) + "\n"


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.stdout.write(page([Path(name) for name in sys.argv[1:]]))
