"""A dataset as the Hub has them, here a folder laid out like one: streamed, resumed anywhere, its published split held out."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from interp_gpt2.data import hub, naming
from interp_gpt2.data.hub import hub_reader
from interp_gpt2.data.naming import reader_for
from interp_gpt2.data.prepared import open_prepared
from interp_gpt2.data.preparing import Preparation, prepare
from interp_gpt2.data.reading import Validation
from interp_gpt2.errors import DataError

TEXTS = [f"document {i} of the training split" for i in range(900)]
HELD_OUT = [f"document {i} that is held out" for i in range(40)]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Three files of a training split, and one of a validation split."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    data = tmp_path / "dataset" / "data"
    data.mkdir(parents=True)
    splits = [("train", TEXTS[300 * i : 300 * (i + 1)]) for i in range(3)] + [("validation", HELD_OUT)]
    for number, (split, texts) in enumerate(splits):
        table = pyarrow.table({"body": texts, "id": list(range(len(texts)))})
        pyarrow.parquet.write_table(table, data / f"{split}-{number % 3:05d}-of-{3 if split == 'train' else 1:05d}.parquet", 70)
    return tmp_path / "dataset"


def texts_of(chunks) -> list[str]:
    return [text for chunk in chunks for text in chunk.texts]


def test_the_training_split_is_streamed_in_order_after_the_published_validation(folder):
    reader = hub_reader(str(folder), column="body")
    chunks = list(reader.chunks(None))
    assert chunks[0].held_out
    assert list(chunks[0].texts) == HELD_OUT
    assert texts_of(chunks[1:]) == TEXTS
    assert not any(chunk.held_out for chunk in chunks[1:])
    assert reader.how_held_out == "the first 2,000 documents of the published validation split"


def test_streaming_goes_on_from_any_cursor_with_the_very_next_documents(folder, monkeypatch):
    monkeypatch.setattr(hub, "ROWS_AT_ONCE", 130)  # which divides neither a file nor a row group
    reader = reader_for(f"hf:{folder}", column="body")
    chunks = list(reader.chunks(None))
    assert len(chunks) > 6
    for number, chunk in enumerate(chunks):
        rest = list(reader.chunks(json.loads(json.dumps(chunk.cursor))))
        assert [after.texts for after in rest] == [after.texts for after in chunks[number + 1 :]]
        assert [after.first for after in rest] == [after.first for after in chunks[number + 1 :]]


def test_other_rules_of_validation_are_heeded(folder, tmp_path):
    few = hub_reader(str(folder), column="body", validation=Validation(first=7))
    assert list(next(few.chunks(None)).texts) == HELD_OUT[:7]
    share = hub_reader(str(folder), column="body", validation=Validation(share=0.2))
    assert texts_of(share.chunks(None)) == TEXTS
    next((folder / "data").glob("validation*")).unlink()
    first = hub_reader(str(folder), column="body", validation=Validation(first=100))
    prepare(first, tmp_path / "out", Preparation("byte"))
    tokenizer, train, held_out = open_prepared(tmp_path / "out")
    assert [tokenizer.decode(document).strip() for document in held_out.documents] == TEXTS[:100]
    assert [tokenizer.decode(document).strip() for document in train.documents] == TEXTS[100:]
    assert first.how_held_out == "the first 100 documents"


def test_a_column_or_configuration_that_is_not_there_is_refused(folder):
    with pytest.raises(DataError, match="has no column 'text'; it has body, id"):
        list(hub_reader(str(folder)).chunks(None))
    with pytest.raises(DataError, match=r"could not be opened: .*sample-10BT"):
        hub_reader(str(folder), "sample-10BT")


def test_without_a_network_the_file_that_would_serve_is_named(tmp_path, monkeypatch):
    def refuse(dataset: str) -> str:
        raise OSError("Name or service not known")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("INTERP_GPT2_DATA", raising=False)
    monkeypatch.setattr(hub, "_revision", refuse)
    with pytest.raises(
        DataError, match=r"roneneldan/TinyStories could not .* put a copy at data/tinystories/TinyStories-train.txt"
    ):
        reader_for("tinystories")
    with pytest.raises(DataError, match=r"give a text, JSONL or Parquet file of it"):
        reader_for("hf:somebody/something")
    place = tmp_path / naming.PUBLISHED["tinystories"].local()[0]
    place.parent.mkdir(parents=True)
    place.write_text("Once.\n<|endoftext|>\nUpon.\n")
    reader = reader_for("tinystories")
    assert (reader.name, texts_of(reader.chunks(None))) == ("tinystories", ["Once.", "Upon."])
