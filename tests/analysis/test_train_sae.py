"""The script that trains a sparse autoencoder with SAELens: one that recovers the model's loss, saved as SAELens reads it."""

import importlib.util
import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "analyses/train_sae.py"
RUN = ROOT / "tests/data/study/demo-induction"


def test_its_help_needs_no_sae_lens() -> None:
    shown = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True, check=True)
    assert "pip install -e '.[sae]'" in shown.stdout


class Trained(torch.nn.Module):
    """What SAELens would give: here a dictionary of positive and negative directions of the stream, which carries it whole."""

    cfg = SimpleNamespace(metadata=SimpleNamespace(hook_name="blocks.0.hook_resid_post"))

    def encode(self, activation: torch.Tensor) -> torch.Tensor:
        return torch.cat([activation, -activation], -1).relu()

    def decode(self, features: torch.Tensor) -> torch.Tensor:
        plus, minus = features.chunk(2, -1)
        return plus - minus


def test_what_is_trained_is_scored_and_its_strongest_features_have_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    spec = importlib.util.spec_from_file_location("train_sae", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    seen = []
    monkeypatch.setattr(script, "trained", lambda dataset, args: seen.append(dataset) or Trained())
    monkeypatch.setattr(sys, "argv", ["train_sae.py", str(RUN), "--out", str(tmp_path), "--tokens", "2000"])
    script.main()
    (dataset,) = seen
    assert list(dataset.columns) == ["blocks.0.hook_resid_post"]
    record = json.loads((tmp_path / "sae-blocks.0.resid_post.json").read_text())
    scores = {row["metric"]: row["value"] for row in record["scores"]}
    assert scores["loss_recovered_from_mean"] == pytest.approx(1, abs=1e-4)
    pages = sorted(path.name for path in (tmp_path / "sae-blocks.0.resid_post-features").iterdir())
    assert len(pages) == script.SHOWN + 1
    assert "L0F" in pages[0]
    assert "Features of blocks.0.resid_post" in (tmp_path / "sae-blocks.0.resid_post-features" / "index.html").read_text("utf-8")
    assert "answer: blocks.0.resid_post" in capsys.readouterr().out


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
    pages = sorted(path.name for path in (tmp_path / "sae-blocks.0.resid_post-features").iterdir())
    assert len(pages) == 21
    assert pages[0].startswith("L0F")
