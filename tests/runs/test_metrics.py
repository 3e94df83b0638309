"""metrics.jsonl: each step once, valid JSON, and a torn last line costs nothing."""

import json
from pathlib import Path

import pytest

from interp_gpt2.errors import CheckpointWriteError, RunError
from interp_gpt2.runs.metrics import ONLINE, SAMPLES, append_metrics, read_metrics, truncate_metrics


def test_rows_come_back_in_order(tmp_path: Path) -> None:
    rows = [{"step": step, "loss": 3.0 / (step + 1), "note": "↵"} for step in range(5)]
    for row in rows:
        append_metrics(tmp_path, row)
    assert read_metrics(tmp_path) == rows
    assert read_metrics(tmp_path / "nowhere") == []


def test_what_json_cannot_say_is_null_and_named(tmp_path: Path) -> None:
    append_metrics(tmp_path, {"step": 0, "loss": float("nan"), "grad": float("-inf"), "lr": 0.1})
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=lambda name: pytest.fail(name)) == {
        "step": 0,
        "loss": None,
        "grad": None,
        "lr": 0.1,
        "nonfinite": {"loss": "nan", "grad": "-inf"},
    }


def test_a_torn_last_line_is_not_counted_and_goes_when_truncating(tmp_path: Path) -> None:
    for step in range(4):
        append_metrics(tmp_path, {"step": step})
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-5])  # killed while writing step 3
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 1, 2]
    assert truncate_metrics(tmp_path, last=2) == 0
    append_metrics(tmp_path, {"step": 3})
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 1, 2, 3]


def test_truncating_keeps_each_step_once(tmp_path: Path) -> None:
    for step in (0, 1, 2, 3):
        append_metrics(tmp_path, {"step": step, "loss": None})
    assert truncate_metrics(tmp_path, last=1) == 2
    append_metrics(tmp_path, {"step": 2, "loss": 0.1 + 0.2})
    assert read_metrics(tmp_path) == [{"step": 0, "loss": None}, {"step": 1, "loss": None}, {"step": 2, "loss": 0.1 + 0.2}]


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"loss": 1}', b'{"step": "1"}', b"\xff"])
def test_a_damaged_line_in_the_middle_is_named(line: bytes, tmp_path: Path) -> None:
    append_metrics(tmp_path, {"step": 0})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(line + b"\n")
    append_metrics(tmp_path, {"step": 2})
    with pytest.raises(RunError, match="line 2"):
        read_metrics(tmp_path)


def test_a_row_needs_a_step_and_must_be_json(tmp_path: Path) -> None:
    for row in ({"loss": 1.0}, {"step": 1.0}, {"step": True}, {"step": 1, "x": object()}, {"step": 1, "x": [float("nan")]}):
        with pytest.raises(RunError):
            append_metrics(tmp_path, row)
    assert read_metrics(tmp_path) == []


def test_a_row_that_cannot_be_written_is_an_error_of_files(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(CheckpointWriteError, match=r"metrics.jsonl could not be written.* \(12 bytes needed"):
        append_metrics(tmp_path, {"step": 1})


def test_truncating_reaches_every_log_and_makes_none(tmp_path: Path) -> None:
    for step in (0, 1, 2):
        append_metrics(tmp_path, {"step": step, "text": "a"}, SAMPLES)
    assert truncate_metrics(tmp_path, last=1) == 1
    assert [row["step"] for row in read_metrics(tmp_path, SAMPLES)] == [0, 1]
    assert read_metrics(tmp_path) == []
    assert not (tmp_path / ONLINE).exists()
