"""Which metrics of a run changed phase, when, and do its seeds agree?

    python analyses/phase_changes.py checkpoints/demo-induction
    python analyses/phase_changes.py checkpoints/demo-induction checkpoints/demo-induction-seed-1 --metric in_context_learning
    python analyses/phase_changes.py --false-alarms 1000

The best head of the induction score and the curves of the named analysis, each with the step of its change and a bootstrap
interval; many curves are looked at, and how many would pass by chance is said. The figure has a row for each curve that changed:
the step, its interval as a line, the width as a band. With --false-alarms, how many curves of noise and of random walks pass
instead.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from interp_gpt2 import Run, sweep
from interp_gpt2.analysis.attention_patterns import HeadScores
from interp_gpt2.analysis.development import best_head_curve, phase_change
from interp_gpt2.analysis.phase_changes import AcrossSeeds, Detection, curves_of, detect
from interp_gpt2.analysis.registry import REGISTRY, RUN_REGISTRY, analysis_of_run
from interp_gpt2.analysis.sequences import held_out
from interp_gpt2.views import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEMO_STEPS = (0, 64, 300, 500, 600, 700, 750, 800, 900, 1100, 1500, 2000)
SHOWN = 24  # curves in the figure
DENSE_STEPS = tuple(sorted({0, *(2**i for i in range(12)), *range(0, 2601, 50)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--analysis", choices=(*REGISTRY, *RUN_REGISTRY), default="in_context_learning")
    parser.add_argument("--metric", help="one metric of that analysis alone")
    parser.add_argument("--false-alarms", type=int, metavar="N", help="curves of noise of each kind")
    parser.add_argument("--out", type=Path, help="default: RUN/analyses of the first run")
    args = parser.parse_args()
    if args.false_alarms:
        return false_alarms(args.false_alarms)
    if not args.runs:
        parser.error("name a run, or --false-alarms N")

    found = {str(path): detections(Run(path), args.analysis, args.metric) for path in args.runs}
    print("answer:", "; ".join(dated(Path(run).name, curves) for run, curves in found.items()))
    for run, curves in found.items():
        changed = {curve: one for curve, one in curves.items() if one.change is not None}
        print(f"{run}: {len(changed)} of {len(curves)} curves changed phase (up to {0.01 * len(curves):.1f} would by chance)")
        shown = changed if len(curves) > 8 else curves
        print("".join(f"  {curve}: {one.verdict}\n" for curve, one in shown.items()), end="")
    for curve in next(iter(found.values())) if len(found) > 1 else ():
        print(f"{curve}: {AcrossSeeds({run: curves[curve] for run, curves in found.items() if curve in curves}).verdict}")

    out = args.out or args.runs[0] / "analyses"
    out.mkdir(parents=True, exist_ok=True)
    path = out / "phase_changes.json"
    path.write_text(
        json.dumps({run: {name: row(one) for name, one in curves.items()} for run, curves in found.items()}, indent=1)
    )
    print("wrote", path, *figures.save(timeline(found), out / "phase_changes.pdf"))


def timeline(found: dict[str, dict[str, Detection]]) -> "Figure":
    """A row for each curve that changed phase in some run, the earliest first; a colour for each run."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    steps = {}
    for curves in found.values():
        for curve, one in curves.items():
            if one.change is not None:
                steps.setdefault(curve, one.change.step)
    rows = sorted(steps, key=steps.get)[:SHOWN]
    n_curves = len({curve for curves in found.values() for curve in curves})
    with rc_context(figures.STYLE):
        figure = Figure(figsize=(figures.COLUMN * 1.3, 1.1 + 0.2 * max(2, len(rows))), layout="constrained")
        axes, keys = figure.subplots(), []
        for i, (run, curves) in enumerate(found.items()):
            colour, label = figures.COLOURS[i % len(figures.COLOURS)], Path(run).name
            for y, curve in enumerate(rows):
                one, at = curves.get(curve), y + 0.6 * ((i + 1) / (len(found) + 1) - 0.5)
                if one is None or one.change is None:
                    continue
                change = one.change
                axes.plot([change.step + side * change.width / 2 for side in (-1, 1)], [at, at], color=colour, alpha=0.25,
                          linewidth=5, solid_capstyle="butt", label=f"{label}: width of {curve}")  # fmt: skip
                axes.plot(one.step_interval, [at, at], color=colour, linewidth=1, label=f"{label}: 95 % of {curve}")
                axes.plot([change.step], [at], "o", color=colour, markersize=3, label=f"{label}: {curve}")
            keys.append(axes.plot([], [], "o", color=colour, markersize=3)[0])
        axes.set_title(
            f"{len(steps)} of {n_curves} curves changed phase" + (f"; the first {SHOWN}" if len(steps) > SHOWN else "")
        )
        axes.set_yticks(range(len(rows)), rows, parse_math=False)
        axes.set(xlabel="step", ylim=(max(len(rows), 1) - 0.5, -0.5))
        axes.set_xlim(left=0)
        if len(found) > 1:
            axes.legend(keys, [Path(run).name for run in found], frameon=False, fontsize=6)
    return figure


def dated(name: str, curves: dict[str, Detection]) -> str:
    """Of one run: how many curves changed phase, the best head's first, and when."""
    changed = {curve: one for curve, one in curves.items() if one.change is not None and one.step_interval is not None}
    when = [f"{curve} at step {one.change.step:.0f} ({one.step_interval[0]:.0f} to {one.step_interval[1]:.0f})"
            for curve, one in changed.items()]  # fmt: skip
    return f"{name}: {len(changed)} of {len(curves)} curves changed phase" + "".join(f", {one}" for one in when[:3])


def detections(run: Run, analysis: str, metric: str | None) -> dict[str, Detection]:
    """Of the induction score's best head, less the uniform head's, and of every curve of an analysis."""
    source, n_ctx = run.source(), run.config.n_ctx
    heads = best_head_curve(sweep(run, HeadScores(held_out(source, n_ctx, 32).inputs, ("induction",))))
    found = {"induction, best head": detect(heads.steps, heads.values, heads.uniform, least_rise=0.2)}
    table = sweep(run, analysis_of_run(analysis, run, source, n_ctx))
    for (name, label), (steps, values) in curves_of(table).items():
        if np.ptp(values) > 0 and metric in (None, name):  # a yardstick does not change
            found[f"{name} {label}".strip()] = detect(steps, values)
    return found


def row(found: Detection) -> dict[str, object]:
    change = found.change
    dated = None if change is None else {"step": change.step, "width": change.width, "rise": change.rise}
    intervals = {"step_interval": found.step_interval, "width_interval": found.width_interval, "found_again": found.found_again}
    return {"change": dated, **intervals, "p_walk": found.p_walk, "verdict": found.verdict}


def false_alarms(n: int) -> None:
    """How many curves without a change pass: `detect`, and beside it the logistic's BIC alone (`development.phase_change`)."""
    for steps in (DEMO_STEPS, DENSE_STEPS):
        for kind in ("white noise", "random walk"):
            passed, by_bic_alone = 0, 0
            for i in range(n):
                values = np.random.default_rng(i).normal(size=len(steps))
                values = values if kind == "white noise" else values.cumsum()
                passed += detect(steps, values, n_bootstrap=0).change is not None
                unit = np.ptp(values)
                by_bic_alone += any(phase_change(steps, sign * values / unit) is not None for sign in (1, -1))
            told = f"{passed} of {n} pass ({by_bic_alone} by BIC alone)"
            print(f"{kind}, {len(steps)} checkpoints: {told}", flush=True)


if __name__ == "__main__":
    main()
