"""What every test of training shares."""

import pytest


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path, monkeypatch):
    """Streams and tokenizers that a test makes are of no other test."""
    monkeypatch.setenv("INTERP_GPT2_CACHE", str(tmp_path / "cache"))
