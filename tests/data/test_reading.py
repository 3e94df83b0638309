"""Files of any kind give their documents in order, and from any cursor on exactly those that come next."""

import json
from itertools import pairwise
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from interp_gpt2.data.corpora import Corpus, Document
from interp_gpt2.data.formats import held_out_from, text_parts
from interp_gpt2.data.naming import reader_for
from interp_gpt2.data.reading import Chunk, CorpusReader, FileReader, Reader, Validation, file_reader
from interp_gpt2.errors import DataError

TEXTS = [f"Story {i} ☃ said: “{'so ' * (i % 7)}”\n\nThe end." for i in range(230)]


def write(folder: Path, kind: str) -> Path:
    """The same documents in two files of a kind, or in one where there are only so many characters."""
    folder.mkdir()
    for name, texts in (("a", TEXTS[:100]), ("b", TEXTS[100:])):
        path = folder / f"{name}.{kind}"
        if kind == "parquet":
            pyarrow.parquet.write_table(pyarrow.table({"id": list(range(len(texts))), "text": texts}), path, row_group_size=30)
        elif kind == "jsonl":
            path.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)))
        elif kind == "json":
            path.write_text(json.dumps(texts))
        else:
            path.write_text("\n<|endoftext|>\n".join(texts))
    return folder


def small_chunks(reader: FileReader, characters: int = 200) -> FileReader:
    return FileReader(reader.name, reader.paths, reader.column, reader.chosen, reader.notes, characters)


def texts_of(chunks: list[Chunk]) -> list[str]:
    return [text for chunk in chunks for text in chunk.texts]


@pytest.fixture(params=["parquet", "jsonl", "json", "txt"])
def reader(request, tmp_path) -> FileReader:
    return small_chunks(file_reader(write(tmp_path / request.param, request.param)))


def test_every_document_is_read_once_in_order_and_numbered(reader):
    chunks = list(reader.chunks(None))
    assert texts_of(chunks) == TEXTS
    assert len(chunks) > 20
    for chunk, after in pairwise(chunks):
        assert chunk.first + len(chunk.texts) == after.first == chunk.cursor["document"]


def test_reading_goes_on_from_any_cursor_with_the_very_next_chunk(reader):
    chunks = list(reader.chunks(None))
    for number, chunk in enumerate(chunks):
        cursor = json.loads(json.dumps(chunk.cursor))
        assert list(reader.chunks(cursor)) == chunks[number + 1 :]


def test_a_hundred_text_files_are_a_document_each(tmp_path):
    for i, text in enumerate(TEXTS[:120]):
        (tmp_path / f"{i:03d}.txt").write_text(text)
    (tmp_path / ".hidden.txt").write_text("no")
    (tmp_path / "README.md").write_text("no")
    reader = small_chunks(file_reader(tmp_path))
    chunks = list(reader.chunks(None))
    assert texts_of(chunks) == TEXTS[:120]
    assert texts_of(reader.chunks(chunks[3].cursor)) == texts_of(chunks[4:])
    assert reader.notes == ("1 files of other kinds were left out: README.md",)


LONG = "".join(
    f"\n{'  ' * (i % 3)}Line {i} of ☃ a long text,\r\nwith  ends of both kinds.{chr(10) * (i % 5)}" for i in range(400)
)


def test_a_long_text_is_parted_where_words_end_and_nothing_is_lost(tmp_path):
    path = tmp_path / "long.txt"
    path.write_bytes(LONG.encode())
    reader = small_chunks(file_reader(path, validation=Validation(share=0.25)))
    chunks = list(reader.chunks(None))
    assert "".join(texts_of(chunks)) == LONG.replace("\r\n", "\n")
    assert not any(chunk.whole for chunk in chunks)
    held_out = "".join(texts_of([chunk for chunk in chunks if chunk.held_out]))
    assert len(held_out) == pytest.approx(len(LONG) / 4, rel=0.1)
    assert [chunk.held_out for chunk in chunks] == sorted(chunk.held_out for chunk in chunks)
    for left, right in pairwise(chunks):
        if left.held_out == right.held_out:
            assert not left.texts[0][-1].isspace()
            assert right.texts[0][0] == "\n"
    for number, chunk in enumerate(chunks):
        assert list(reader.chunks(chunk.cursor)) == chunks[number + 1 :]


def test_the_tokens_of_the_parts_are_those_of_the_whole(shared_data, tmp_path, monkeypatch):
    from interp_gpt2.tokenizers import tokenizer_named

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared_data / "tiktoken_cache"))
    gpt2 = tokenizer_named("gpt2")
    for name, text in (("hard", LONG), ("shakespeare", (shared_data / "tinyshakespeare" / "input.txt").read_text()[:200_000])):
        path = tmp_path / name
        path.write_text(text, newline="")
        for at_least in (50, 1000):
            parts = [part for part, _ in text_parts(path, 0, path.stat().st_size, at_least)]
            assert len(parts) > 20
            assert [token for part in parts for token in gpt2.encode(part)] == gpt2.encode("".join(parts))


def test_a_text_in_one_line_is_one_part_however_long(tmp_path):
    (tmp_path / "line.txt").write_text("word " * 5000)
    parts = [part for part, _ in text_parts(tmp_path / "line.txt", 0, 25_000, 100)]
    assert parts == ["word " * 5000]


def test_the_held_out_end_begins_after_a_blank_line_near_its_share_or_between_characters(tmp_path):
    path = tmp_path / "text"
    path.write_text("line\n" * 80 + "last\n\nfirst\n" + "line\n" * 18)
    assert path.read_text()[held_out_from(path, 0.2) :].startswith("first\n")
    path.write_text("☃" * 1000)
    assert path.read_bytes()[held_out_from(path, 0.1) :].decode()


def test_several_long_texts_are_closed_where_another_follows(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("words and words\n" * 100)
    chunks = list(small_chunks(file_reader(tmp_path)).chunks(None))
    assert [chunk.held_out for chunk in chunks if chunk.closes] == [False, True, False, True]
    alone = small_chunks(file_reader(tmp_path / "a.txt"))
    assert not any(chunk.closes for chunk in alone.chunks(None))


def test_a_corpus_is_read_as_training_by_its_name_divides_it():
    corpus = Corpus("c", tuple(Document(f"d{i}", f"Document {i}.\n\n") for i in range(200)))
    reader: Reader = CorpusReader(corpus)
    chunks = list(reader.chunks(None))
    assert [chunk.held_out for chunk in chunks] == [True, False]
    assert sorted(texts_of(chunks)) == sorted(document.text for document in corpus.documents)
    assert list(reader.chunks(chunks[0].cursor)) == chunks[1:]
    assert list(reader.chunks(chunks[1].cursor)) == []


def test_by_default_a_tenth_is_held_out_but_never_more_than_ten_megabytes(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("short\n")
    assert file_reader(path).validation.share == 0.1
    with path.open("wb") as file:
        file.truncate(10**9)
    path.rename(path.with_suffix(".jsonl"))
    assert file_reader(path.with_suffix(".jsonl")).validation.share == 0.01


def test_validation_is_read_from_a_share_or_a_number():
    assert Validation.parse("0.05") == Validation(share=0.05)
    assert Validation.parse("2000") == Validation(first=2000)
    for wrong in ("", "-1", "1.0", "0", "many", "5%"):
        with pytest.raises(DataError, match="a share of the"):
            Validation.parse(wrong)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"body": "x"}\n', "no text under 'text' \\(it has body\\)"),
        ("a.jsonl", b'{"text": 3}\n', "no text under 'text'"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "line that ends at byte 24 is not JSON"),
        ("a.json", b'{"text": "x"}', "a JSON dict, not an array"),
        ("a.parquet", b"PAR1", "not a Parquet file"),
        ("a.txt", b"", "is empty"),
        ("a.txt", b"abc\xffdef", "not UTF-8 text \\(byte 0xff at 3\\)"),
        ("a.txt", b"abc\0def", "binary file"),
        ("a.jsonl.gz", b"\x1f\x8b", "is packed; unpack it first"),
    ],
)
def test_what_holds_no_text_is_refused_by_name(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}.*{says}"):
        list(file_reader(tmp_path / name).chunks(None))


def test_a_parquet_file_without_the_column_names_those_it_has(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"content": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no column 'text'; it has content"):
        list(file_reader(tmp_path / "a.parquet").chunks(None))
    assert texts_of(file_reader(tmp_path / "a.parquet", "content").chunks(None)) == ["x"]


def test_folders_and_names_that_would_be_guessed_at_are_refused(tmp_path):
    with pytest.raises(DataError, match="there is no text"):
        file_reader(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.jsonl").write_text('{"text": "x"}')
    with pytest.raises(DataError, match=r"holds .jsonl, .txt files; give the folder or file of one kind"):
        file_reader(tmp_path)
    with pytest.raises(DataError, match=r"one long text .* hold out a share"):
        file_reader(tmp_path / "a.txt", validation=Validation(first=3))
    with pytest.raises(DataError, match=r"no file or folder at 'nowhere'; .* tinystories, fineweb-edu, or hf:owner/name"):
        reader_for("nowhere")
    with pytest.raises(DataError, match="leave out --validation"):
        reader_for("python-docs", validation=Validation(first=3))


def test_what_is_held_out_is_said_of_documents_and_of_long_texts(tmp_path):
    (tmp_path / "long.txt").write_text("one text " * 50)
    long = file_reader(tmp_path, validation=Validation(share=0.1))
    assert long.how_held_out == "0.1 of each long text, its end"
    (tmp_path / "marked.txt").write_text("one<|endoftext|>two")
    both = file_reader(tmp_path, validation=Validation(share=0.1))
    assert both.how_held_out == "0.1 of the documents, by the hash of their text, and of each long text, its end"
