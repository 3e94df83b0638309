"""RESULTS.md, from what instrument.py measured in one or several environments."""

from typing import Any

from measuring import HF, OURS, OWN_FORWARD

INTRODUCTION = """\
# What looking inside costs

Milliseconds (medians); in brackets our time divided by theirs (median over rounds of that round's ratio), both from one
process. Random weights, float32, no gradients, in turn. Versions 3.9 and 4.3 of TransformerLens exclude each other: where a
cell has two figures they are of two runs, in the order below, and a target is met if both met it.

{circumstances}

Written by

    python benchmarks/instrument.py --json tl3.json                 where transformer-lens 3.9 is installed
    python benchmarks/instrument.py --peers-only --json tl4.json    where 4.3 and nnsight are
    python benchmarks/instrument.py --merge tl3.json tl4.json > benchmarks/RESULTS.md
"""

READING = """\
Hugging Face runs SDPA attention in forward passes, and eager attention with hidden states and attentions where activations
are cached. nnsight's cache is the output of every module of that eager model: the pattern, but no scores, z, resid_mid or layer
norm's scale, and nothing for each head. TransformerLens's caches hold what ours does. On AMD processors our matrix products
run through oneDNN (interp_gpt2/linear.py), the others' through MKL. Most of what a cache adds is the kernel handing out a
gigabyte in pages; the rows with freed memory kept are without that (`interp_gpt2.memory.keep_freed_memory()`, which a
process that makes many caches may call).
"""

SUBSETS = """\
## A part costs its part

`run_with_cache` of 4 x 256 tokens, beside the own forward pass, in memory the kernel hands out anew. Beyond its bytes a part
costs what fused kernels leave out: the scores for a pattern, layer norm's scale. 206 MB of everything are the logits, which a
forward pass makes too.
"""

FOOTPRINT = """\
## What a cached pass holds at most

`run_with_cache` of 4 x 256 tokens, each in a process of its own: the bytes of what it returns (206 MB of them logits), the most
that tensors held at once (`interp_gpt2.memory.peak_memory`), and by how much resident memory rose at its highest, which has
oneDNN's own and what malloc leaves between tensors in it too. What `keep` drops is freed at once: beyond what is returned
there is one layer at work (tests/test_memory.py).
"""

IMPORTS = """\
## What imports cost

Seconds of processor time, medians of five processes; at most 0.1 and 0.3 (tests/test_imports.py).
"""


def page(runs: list[dict[str, Any]]) -> str:
    sections = [
        INTRODUCTION.format(circumstances="\n".join(f"- {described(run['circumstances'])}" for run in runs)),
        speeds(runs),
        READING,
        *(section for run in runs if "subsets" in run for section in ours_alone(run)),
    ]
    return "\n\n".join(section.strip() for section in sections) + "\n"


def ours_alone(run: dict[str, Any]) -> list[str]:
    return [
        SUBSETS,
        subsets(run["subsets"]),
        *([FOOTPRINT, footprint(run["footprint"])] if run["footprint"] else []),
        IMPORTS,
        markdown(["", "s"], [[name, f"{seconds:.3f}"] for name, seconds in run["imports"].items()]),
    ]


def described(circumstances: dict[str, str]) -> str:
    return ", ".join(value if name == "machine" else f"{name} {value}" for name, value in circumstances.items())


def speeds(runs: list[dict[str, Any]]) -> str:
    names = [name for run in runs for row in run["rows"] for name in row["milliseconds"] if name != OWN_FORWARD]
    columns = sorted(dict.fromkeys(names), key=lambda name: (name != OURS, name != HF))
    rows = []
    for together in zip(*(run["rows"] for run in runs), strict=True):
        cells = ["; ".join(filter(None, (cell(row, name) for row in together))) for name in columns]
        met = "yes" if all(row["met"] for row in together) else "no"
        rows.append([together[0]["row"], *cells, together[0]["target"], met])
    return markdown(["work", *columns, "target", "met"], rows)


def cell(row: dict[str, Any], name: str) -> str:
    if name not in row["milliseconds"]:
        return ""
    against = row["ratio"].get(OWN_FORWARD if name == OURS else name)
    words = "" if against is None else f" ({against:.2f} x own forward)" if name == OURS else f" ({against:.2f})"
    return rounded(row["milliseconds"][name]) + words


def subsets(measured: list[dict[str, Any]]) -> str:
    whole = next(row for row in measured if row["kept"] == "everything")
    rows = [
        [
            row["kept"],
            f"{row['bytes'] / 1e6:,.1f}",
            f"{100 * row['bytes'] / whole['bytes']:.1f} %",
            rounded(row["milliseconds"]),
            f"{row['ratio']:.2f}",
        ]
        for row in measured
    ]
    return markdown(["kept", "MB", "of everything", "ms", "x own forward"], rows)


def footprint(measured: list[dict[str, Any]]) -> str:
    rows = [[row["kept"], *(f"{row[size] / 1e6:,.0f}" for size in ("returned", "tensors", "resident"))] for row in measured]
    return markdown(["kept", "MB returned", "MB in tensors at most", "MB resident at most"], rows)


def rounded(milliseconds: float) -> str:
    return f"{milliseconds:.3g}" if milliseconds < 100 else f"{milliseconds:.0f}"


def markdown(columns: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows))
