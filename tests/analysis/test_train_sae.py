"""The script that trains a sparse autoencoder with SAELens: one that recovers the model's loss, saved as SAELens reads it."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "analyses/train_sae.py"
RUN = ROOT / "tests/data/study/demo-induction"


def test_its_help_needs_no_sae_lens() -> None:
    shown = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True, check=True)
    assert "pip install -e '.[sae]'" in shown.stdout


def test_a_small_autoencoder_carries_most_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    sae_lens = pytest.importorskip("sae_lens", reason="needs sae-lens")
    words = [str(SCRIPT), str(RUN), "--out", str(tmp_path), "--steps", "100", "--tokens", "20000", "--features", "256"]
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(str(SCRIPT), run_name="__main__")
    record = json.loads((tmp_path / "sae-blocks.0.resid_post.json").read_text())
    scores = {row["metric"]: row["value"] for row in record["scores"]}
    assert record["tokens"] == 20032
    assert scores["l0"] <= 8
    assert scores["loss_recovered_from_mean"] > 0.9
    assert scores["loss_clean"] < scores["loss_mean"]
    saved = sae_lens.SAE.load_from_disk(str(tmp_path / "sae-blocks.0.resid_post"))
    assert (saved.cfg.d_sae, saved.cfg.metadata.hook_name) == (256, "blocks.0.hook_resid_post")
    assert "loss" in capsys.readouterr().out
