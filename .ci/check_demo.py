"""Hold a finished demo against what it promises. `python .ci/check_demo.py CHECKPOINTS`"""

import json
import sys
from pathlib import Path


def reference(report: dict, name: str) -> float:
    return next(line["loss"] for line in report["loss"]["references"] if line["name"] == name)


def final_loss(report: dict) -> float:
    return report["loss"]["validation"]["loss"][-1]


def main(checkpoints: Path) -> None:
    induction, text = (json.loads((checkpoints / run / "report.json").read_text()) for run in ("demo-induction", "demo-text"))
    excess = final_loss(induction) - reference(induction, "Bayes bigram")
    margin = reference(text, "trigram") - final_loss(text)
    change = {k: induction["phase_change"][k] for k in ("step", "width", "rise")} if induction["phase_change"] else None
    print(f"demo-induction: {excess:+.3f} nats from the Bayes bigram; phase change {change}")
    print("heads:", {name: (found["label"], round(found["score"], 2)) for name, found in induction["heads"].items()})
    print(f"demo-text: {margin:+.3f} nats better than the trigram; {len(text['run']['checkpoints'])} checkpoints")
    assert excess <= 0.1, "demo-induction must come within 0.1 nats of the Bayes bigram"
    assert induction["phase_change"] is not None, "demo-induction must show its phase change"
    assert induction["heads"]["induction"]["label"].startswith("L1"), "the induction head belongs in layer 1"
    assert margin >= 0.2, "demo-text must beat the character trigram by 0.2 nats"
    assert len(text["run"]["checkpoints"]) >= 20, "demo-text keeps at least 20 checkpoints"
    for run in ("demo-induction", "demo-text"):
        assert (checkpoints / run / "report.html").stat().st_size <= 10_000_000, "a report is at most 10 MB"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
