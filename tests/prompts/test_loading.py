"""A user's own pairs are read as they stand, and what is wrong with a row is said with its place."""

import csv

import pytest
import torch

from interp_gpt2.errors import DataError, TokenError
from interp_gpt2.prompts.loading import Columns, pairs_from_csv, pairs_from_dataset, pairs_from_rows
from interp_gpt2.prompts.pairs import PromptPairs
from interp_gpt2.tokenizers import ByteTokenizer

BYTES = ByteTokenizer()
ROWS = [
    {"clean": 'She said, "yes', "corrupted": 'She said, "not', "correct": " ", "incorrect": "!", "note": "quoted"},
    {"clean": "two\nlines", "corrupted": "2wo\nlines", "correct": ".", "incorrect": ",", "note": ""},
    {"clean": " é", "corrupted": " è", "correct": "[", "incorrect": "]", "note": ""},
]


def written(path, rows, encoding="utf-8"):
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def same(found, expected):
    for name in ("clean", "corrupted", "correct", "incorrect"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    assert found.labels == expected.labels


@pytest.fixture
def expected():
    columns = ([row[name] for row in ROWS] for name in ("clean", "corrupted", "correct", "incorrect"))
    return PromptPairs.from_text(BYTES, *columns)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_csv_file_gives_its_texts_to_the_last_space(tmp_path, expected, encoding):
    same(pairs_from_csv(BYTES, written(tmp_path / "pairs.csv", ROWS, encoding)), expected)


def test_rows_at_hand_and_a_dataset_give_the_same(tmp_path, expected):
    datasets = pytest.importorskip("datasets")
    same(pairs_from_rows(BYTES, ROWS), expected)
    dataset = datasets.Dataset.from_list(ROWS)
    same(pairs_from_dataset(BYTES, dataset), expected)
    same(pairs_from_dataset(BYTES, dataset.to_iterable_dataset(), n=2), expected[:2])
    (tmp_path / "mine").mkdir()
    dataset.to_parquet(tmp_path / "mine" / "train.parquet")
    same(pairs_from_dataset(BYTES, str(tmp_path / "mine"), n=2), expected[:2])


def test_columns_may_have_other_names_and_incorrect_answers_may_be_missing(tmp_path):
    columns = Columns("good", "bad", "answer", None)
    rows = [{"bad": "ax", "answer": "c", "good": "ab"}]
    pairs = pairs_from_csv(BYTES, written(tmp_path / "pairs.csv", rows), columns)
    assert pairs.clean.tolist() == [list(b"ab")]
    assert pairs.incorrect.shape == (1, 0)
    same(pairs_from_rows(BYTES, rows, columns), pairs)


def test_a_cell_may_hold_several_answers(tmp_path):
    row = {"clean": "ab", "corrupted": "ac", "correct": '["x", "y"]', "incorrect": "["}
    pairs = pairs_from_csv(BYTES, written(tmp_path / "pairs.csv", [row]))
    assert pairs.correct.tolist() == [[ord("x"), ord("y")]]
    assert pairs.incorrect.tolist() == [[ord("[")]]
    same(pairs_from_rows(BYTES, [row | {"correct": ["x", "y"]}]), pairs)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty; its first line must name the columns clean, corrupted, correct, incorrect"),
        (b"clean,corrupted,correct\n", "has no column 'incorrect' (did you mean 'correct'?); it has clean, corrupted, correct"),
        (b"Clean;corrupted\n", "has no column 'clean'"),
        (b"clean,corrupted,correct,incorrect\n", "there are no rows"),
        (b"clean,corrupted,correct,incorrect,clean\n", "more than one column 'clean'"),
        (b"clean,corrupted,correct,incorrect\nab,ac,x,y\n\nab,ac,x\n", "line 4 has 3 cells, and there are 4 columns"),
        (b"clean,corrupted,correct,incorrect\nab,ac,x,y,z\n", "line 2 has 5 cells"),
        (
            b"clean,corrupted,correct,incorrect\nab,ac,x,y\nab,acd,x,y\n",
            "line 3: the clean prompt has 2 tokens and the corrupted",
        ),
        (b"clean,corrupted,correct,incorrect\n\nab,,x,y\n", "line 3: the corrupted prompt is empty"),
        (b"clean,corrupted,correct,incorrect\nab,ab,x,y\n", "line 2'): the clean and the corrupted prompt are the same"),
        (b"clean,corrupted,correct,incorrect\nab,ac,x,x\n", "line 2'): token 120 (x) is both"),
        (b"clean,corrupted,correct,incorrect\nab,ac,xx,x\n", "line 2: xx is 2 tokens"),
        (b"clean,corrupted,correct,incorrect\na\0b,a\0c,x,y\n", "holds U+0000"),
        (b'clean,corrupted,correct,incorrect\nab,ac,x,y\n"ab"c,ac,x,y\n', "line 3 is not CSV"),
        (b'clean,corrupted,correct,incorrect\n"ab,ac,x,y\n', "is not CSV: unexpected end of data"),
        (b"clean,corrupted,correct,incorrect\n\xe9b,ac,x,y\n", "is not UTF-8 text (byte 0xe9)"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(tmp_path, content, said):
    path = tmp_path / "pairs.csv"
    path.write_bytes(content)
    with pytest.raises((DataError, TokenError)) as error:
        pairs_from_csv(BYTES, path)
    assert said in str(error.value)
    assert "pairs.csv" in str(error.value) or said in ("there are no rows",)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.csv cannot be read \(No such file"):
        pairs_from_csv(BYTES, tmp_path / "nothing.csv")
    with pytest.raises(DataError, match="cannot be read"):
        pairs_from_csv(BYTES, tmp_path)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"clean": "ab", "corrupted": "ac", "correct": "x"}, "row 1 has no column 'incorrect'"),
        ({"clean": None, "corrupted": "ac", "correct": "x", "incorrect": "y"}, "row 1: the clean prompt is NoneType"),
        ({"clean": "ab", "corrupted": float("nan"), "correct": "x", "incorrect": "y"}, "row 1: the corrupted prompt is float"),
        ({"clean": "ab", "corrupted": "ac", "correct": None, "incorrect": "y"}, "row 1: the correct answer is NoneType"),
        ({"clean": "ab", "corrupted": "ac", "correct": [], "incorrect": "y"}, "row 1') has no correct answer"),
        ("ab", "row 1 is str, not a dictionary with clean, corrupted"),
    ],
)
def test_what_is_wrong_with_a_row_is_said_with_its_number(row, said):
    good = {"clean": "ab", "corrupted": "ac", "correct": "x", "incorrect": "y"}
    with pytest.raises((DataError, TokenError)) as error:
        pairs_from_rows(BYTES, [good, row])
    assert said in str(error.value)


def test_a_dataset_that_cannot_be_reached_is_an_error_at_once(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def refuse(*args, **options):
        raise ConnectionError("no network")

    monkeypatch.setattr(hub.HfApi, "dataset_info", refuse)
    with pytest.raises(DataError, match=r"the test split of dataset someone/pairs could not be read .*no network"):
        pairs_from_dataset(BYTES, "someone/pairs", split="test")
