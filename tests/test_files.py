"""A file is whole or absent, whatever happens while it is written."""

from pathlib import Path

import pytest

from interp_gpt2.files import user_cache_dir, written_atomically


def test_a_file_takes_its_place_only_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "tokens"
    with written_atomically(path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"


def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "tokens"
    path.write_bytes(b"old")

    def fail() -> None:
        with written_atomically(path) as file:
            file.write(b"half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_cache_is_where_the_platform_or_the_user_wants_it(monkeypatch):
    monkeypatch.setenv("INTERP_GPT2_CACHE", "/somewhere")
    assert user_cache_dir() == Path("/somewhere")
    monkeypatch.delenv("INTERP_GPT2_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert user_cache_dir() == Path("/caches/interp_gpt2")
