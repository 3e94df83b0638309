"""`interp-gpt2 doctor` says what an installation has, and waits for nothing."""

import time

import torch

from interp_gpt2 import cli
from interp_gpt2.cli import doctor


def test_doctor_says_what_is_there_and_never_waits_long(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    (tmp_path / "vocab.bpe").write_text("damaged")
    began = time.monotonic()
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert time.monotonic() - began < 10
    assert f"torch {torch.__version__}" in " ".join(text.split())
    assert f"{tmp_path / 'vocab.bpe'}: damaged" in text
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert cli.main(["doctor"]) == 0
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().out


def test_a_silent_network_is_given_two_seconds(monkeypatch):
    def silent(address, timeout):
        time.sleep(4)
        raise TimeoutError

    monkeypatch.setattr(doctor.socket, "create_connection", silent)
    began = time.monotonic()
    assert not doctor._answers()
    assert time.monotonic() - began < 2.5


def test_doctor_knows_what_works_with_each_transformer_lens():
    assert "HookedTransformer and" in doctor.transformer_lens_line("3.9.0")
    assert "'transformer-lens<4'" in doctor.transformer_lens_line("4.3.0")
    assert "not installed" in doctor.transformer_lens_line(None)
