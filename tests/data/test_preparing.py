"""What is prepared holds every document once, whoever interrupts it and whenever."""

import json
import multiprocessing
import random
import resource
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from interp_gpt2.data.corpora import Corpus, Document
from interp_gpt2.data.naming import reader_for
from interp_gpt2.data.prepared import RECORD, Record, open_prepared, read_record
from interp_gpt2.data.preparing import Preparation, encode_chunk, prepare, up_to
from interp_gpt2.data.reading import Chunk, CorpusReader, FileReader, Validation, file_reader
from interp_gpt2.data.source import load_source
from interp_gpt2.errors import DataError, TokenizerError
from interp_gpt2.tokenizers import BPETokenizer, load_tokenizer

TEXTS = [f"Document {i} ☃ {'very ' * (i % 9)}long" for i in range(3000)]
TENTH = Validation(share=0.1)
BYTES = Preparation("byte", n_threads=2, shard_tokens=9000)


@pytest.fixture
def reader(tmp_path) -> FileReader:
    return reader_of(tmp_path / "documents.jsonl", TEXTS)


def reader_of(path: Path, texts: list[str], validation: Validation = TENTH) -> FileReader:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return replace(file_reader(path, validation=validation), chunk_characters=1000)


def documents_in(directory: Path) -> dict[str, list[str]]:
    """The text of every document, by part, in order."""
    tokenizer, *streams = open_prepared(directory)
    end = "\n\n" if tokenizer.eos_token_id is None else "<|endoftext|>"
    texts = {stream.name: [tokenizer.decode(document) for document in stream.documents] for stream in streams}
    assert all(text.endswith(end) for part in texts.values() for text in part)
    return {part: [text.removesuffix(end) for text in found] for part, found in texts.items()}


def test_every_document_is_there_once_in_order_in_one_of_the_parts(reader, tmp_path):
    record = prepare(reader, tmp_path / "out", BYTES)
    found = documents_in(tmp_path / "out")
    held_out = set(found["validation"])
    assert found["train"] == [text for text in TEXTS if text not in held_out]
    assert found["validation"] == [text for text in TEXTS if text in held_out]
    assert len(held_out) == pytest.approx(300, abs=60)
    assert (record.n_documents, record.n_empty, record.complete) == (3000, 0, True)
    assert len(record.train) > 5
    assert record.n_train_tokens == sum(len(text.encode()) + 2 for text in found["train"])


@pytest.mark.parametrize("kind", ["byte", "char", "bpe:280"])
def test_threads_and_the_size_of_shards_change_no_token(reader, tmp_path, kind):
    made = []
    for n_threads, shard_tokens in ((1, 10**8), (3, 5000)):
        directory = tmp_path / f"{n_threads}"
        prepare(reader, directory, Preparation(kind, n_threads=n_threads, shard_tokens=shard_tokens))
        made.append([stream.head(10**9) for stream in open_prepared(directory)[1:]])
    for alone, shared in zip(*made, strict=True):
        np.testing.assert_array_equal(alone, shared)
    assert len(list((tmp_path / "3").glob("train-*.tokens"))) > 3


@dataclass(frozen=True)
class Interrupted(FileReader):
    """Breaks off before its chunk number `breaks_at`, counted from where it begins."""

    breaks_at: int = 10**9

    def chunks(self, cursor: dict | None) -> Iterator[Chunk]:
        for number, chunk in enumerate(super().chunks(cursor)):
            if number == self.breaks_at:
                raise KeyboardInterrupt
            yield chunk


def test_broken_off_at_any_chunk_it_goes_on_to_the_same_shards(reader, tmp_path):
    uninterrupted = prepare(reader, tmp_path / "whole", BYTES)
    fields = {name: getattr(reader, name) for name in ("name", "paths", "column", "chosen", "notes", "chunk_characters")}
    for seed in range(4):
        directory, breaks = tmp_path / f"broken-{seed}", 0
        draw = random.Random(seed)
        while not (directory / RECORD).is_file() or not read_record(directory).complete:
            try:
                prepare(Interrupted(**fields, breaks_at=draw.randrange(60)), directory, BYTES)
            except KeyboardInterrupt:
                breaks += 1
                assert not list(directory.glob(".*.tmp"))
        assert breaks > 2
        assert same_shards(read_record(directory), uninterrupted)
        open_prepared(directory)


def same_shards(one: Record, other: Record) -> bool:
    return (one.train, one.validation, one.n_empty) == (other.train, other.validation, other.n_empty)


def test_killed_again_and_again_no_document_is_lost_or_doubled(tmp_path):
    how = Preparation("byte", n_threads=2, shard_tokens=3000)
    reader = reader_of(tmp_path / "documents.jsonl", TEXTS)
    uninterrupted = prepare(reader, tmp_path / "whole", how)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["interp_gpt2.data.preparing"])
    directory, draw, killed = tmp_path / "killed", random.Random(0), 0
    for _ in range(14):
        process = context.Process(target=prepare, args=(reader, directory, how))
        process.start()
        n_files, more = len(list(directory.glob("train-*"))), draw.randrange(4)
        while process.is_alive() and len(list(directory.glob("train-*"))) < n_files + more:
            time.sleep(0.0005)
        process.join(draw.uniform(0, 0.01))  # and then in the middle of something
        killed += process.is_alive()
        process.kill()
        process.join()
    assert killed >= 7
    assert read_record(directory).n_documents > 0
    assert same_shards(prepare(reader, directory, how), uninterrupted)
    found = documents_in(directory)
    assert sorted(found["train"] + found["validation"]) == sorted(TEXTS)
    named = {shard.file for shard in (*uninterrupted.train, *uninterrupted.validation)}
    ours = {RECORD, "tokenizer.json", "tokenizer_config.json", ".lock"}
    assert {path.name for path in directory.iterdir()} == named | ours


def test_a_finished_directory_is_left_as_it_is(reader, tmp_path):
    prepare(reader, tmp_path / "out", BYTES)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("[!.]*")}
    prepare(reader, tmp_path / "out", BYTES)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("[!.]*")} == before


def test_a_directory_begun_otherwise_in_use_or_with_other_files_is_refused(reader, tmp_path):
    prepare(reader, tmp_path / "out", BYTES)
    with pytest.raises(DataError, match="begun with tokenizer byte, which is now char; delete it"):
        prepare(reader, tmp_path / "out", replace(BYTES, tokenizer="char"))
    with pytest.raises(DataError, match="begun with max_tokens None, which is now 7"):
        prepare(reader, tmp_path / "out", replace(BYTES, max_tokens=7))
    reader.paths[0].write_text(json.dumps({"text": "another"}) + "\n")
    with pytest.raises(DataError, match=r"begun with reader .*documents.jsonl"):
        prepare(reader, tmp_path / "out", BYTES)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not delete")
    with pytest.raises(DataError, match=r"holds other files \(thesis.txt\)"):
        prepare(reader, tmp_path / "mine", BYTES)
    fcntl = pytest.importorskip("fcntl")
    with (tmp_path / "out" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="being prepared by another process"):
            prepare(reader, tmp_path / "out", BYTES)


def test_what_is_incomplete_or_altered_is_not_read(reader, tmp_path):
    out = tmp_path / "out"
    prepare(reader, out, BYTES)
    record = json.loads((out / RECORD).read_text())
    (out / RECORD).write_text(json.dumps({**record, "complete": False}))
    with pytest.raises(DataError, match=r"is not complete: it has .* training tokens so far"):
        open_prepared(out)
    (out / RECORD).write_text(json.dumps(record))
    shard = out / "train-00001.tokens"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"train-00001.tokens was cut short"):
        open_prepared(out)
    shard.write_bytes((out / "train-00002.tokens").read_bytes())
    with pytest.raises(DataError, match=r"is not the file that prepared.json names"):
        open_prepared(out)
    shard.unlink()
    with pytest.raises(DataError, match="train-00001"):
        open_prepared(out)
    with pytest.raises(DataError, match=r"train-00001.tokens is gone"):
        prepare(reader, out, BYTES)
    for damage in ("", "{", "[]", json.dumps({**record, "format": "2"}), json.dumps({**record, "surprise": 1})):
        (out / RECORD).write_text(damage)
        with pytest.raises(DataError, match=r"prepared.json is (damaged|of another format)"):
            open_prepared(out)


def test_max_tokens_are_reached_with_the_last_document(reader, tmp_path):
    record = prepare(reader, tmp_path / "some", replace(BYTES, max_tokens=20_000))
    prepare(reader, tmp_path / "all", BYTES)
    found, everything = documents_in(tmp_path / "some")["train"], documents_in(tmp_path / "all")["train"]
    assert found == everything[: len(found)]
    assert 0 <= record.n_train_tokens - 20_000 < len(found[-1].encode()) + 2
    tokens, lengths = np.arange(10), np.array([4, 3, 3])
    assert [up_to((tokens, lengths), n)[1].tolist() for n in (0, 1, 4, 5, 10, 99)] == [
        [], [4], [4], [4, 3], [4, 3, 3], [4, 3, 3]
    ]  # fmt: skip


def test_the_first_documents_are_held_out_when_a_number_is_asked_for(tmp_path):
    prepare(reader_of(tmp_path / "d.jsonl", TEXTS[:90], Validation(first=37)), tmp_path / "out", BYTES)
    assert documents_in(tmp_path / "out") == {"train": TEXTS[37:90], "validation": TEXTS[:37]}


def test_copies_of_a_document_stay_on_one_side(tmp_path):
    prepare(reader_of(tmp_path / "d.jsonl", TEXTS[:300] * 2), tmp_path / "out", BYTES)
    found = documents_in(tmp_path / "out")
    assert not set(found["train"]) & set(found["validation"])


def test_empty_documents_are_left_out_and_counted_and_too_few_to_hold_out_are_refused(tmp_path):
    reader = reader_of(tmp_path / "d.jsonl", [*TEXTS[:50], "", " \n", *TEXTS[50:100]])
    assert prepare(reader, tmp_path / "out", BYTES).n_empty == 2
    assert sorted(chain(*documents_in(tmp_path / "out").values())) == sorted(TEXTS[:100])
    few = reader_of(tmp_path / "few.jsonl", TEXTS[:3], Validation(share=0.001))
    with pytest.raises(DataError, match=r"none of the 3 documents was held out .* --validation 10"):
        prepare(few, tmp_path / "few", BYTES)


def test_a_document_that_cannot_be_encoded_stops_the_work(tmp_path):
    reader = reader_of(tmp_path / "d.jsonl", [*TEXTS[:50], "half a pair: \ud83e"])
    with pytest.raises(TokenizerError, match="U\\+D83E"):
        prepare(reader, tmp_path / "out", BYTES)


def test_a_full_disk_is_named_and_what_was_written_goes_on(reader, tmp_path, monkeypatch):
    written = []

    def full(self: object, tokens: np.ndarray, lengths: np.ndarray) -> None:
        written.append(len(tokens))
        if len(written) == 40:
            raise OSError(28, "No space left on device")
        append(self, tokens, lengths)

    from interp_gpt2.data.streams import StreamWriter

    append = StreamWriter.append
    with monkeypatch.context() as patch:
        patch.setattr(StreamWriter, "append", full)
        with pytest.raises(DataError, match=r"No space left on device.*the same command goes on"):
            prepare(reader, tmp_path / "out", BYTES)
    assert read_record(tmp_path / "out").n_train_tokens > 0
    assert not list((tmp_path / "out").glob(".*.tmp"))
    prepare(reader, tmp_path / "out", BYTES)
    assert sorted(chain(*documents_in(tmp_path / "out").values())) == sorted(TEXTS)


def test_a_file_that_cannot_be_read_is_named_and_not_the_directory_written_to(reader, tmp_path):
    class Unreadable(FileReader):
        def chunks(self, cursor: dict | None) -> Iterator[Chunk]:
            yield from super().chunks(cursor)
            raise PermissionError(13, "Permission denied", str(self.paths[0]))

    unreadable = Unreadable(reader.name, reader.paths, chosen=reader.chosen)
    with pytest.raises(DataError, match=r"documents.jsonl: Permission denied; .* the same command goes on"):
        prepare(unreadable, tmp_path / "out", BYTES)


def test_a_bpe_is_trained_on_the_training_part_and_saved_with_the_shards(reader, tmp_path):
    record = prepare(reader, tmp_path / "out", replace(BYTES, tokenizer="bpe:300"))
    tokenizer = load_tokenizer(tmp_path / "out")
    found = documents_in(tmp_path / "out")
    assert tokenizer.sha256 == BPETokenizer.train(found["train"], 300).sha256 == record.tokenizer["sha256"]
    assert sorted(found["train"] + found["validation"]) == sorted(TEXTS)


def test_a_prepared_corpus_has_the_tokens_that_training_on_its_name_reads(tmp_path, monkeypatch):
    corpus = Corpus("c", tuple(Document(f"d{i}", f"Document {i}.\n\n") for i in range(200)))
    book = Corpus("book", (Document("book", "".join(f"Line {i}.\n{chr(10) * (i % 3)}" for i in range(900))),))
    for kept in (corpus, book):
        monkeypatch.setattr("interp_gpt2.data.source.load_corpus", lambda data, kept=kept: kept)
        for kind in ("char", "bpe:280"):
            directory = tmp_path / f"{kept.name}-{kind}"
            prepare(CorpusReader(kept), directory, replace(BYTES, tokenizer=kind))
            prepared = load_source(str(directory), kind)
            by_name = load_source("c", kind, tmp_path / f"streams-{directory.name}")
            assert prepared.tokenizer.sha256 == by_name.tokenizer.sha256
            for ours, theirs in ((prepared.train, by_name.train), (prepared.held_out, by_name.held_out)):
                np.testing.assert_array_equal(ours.head(10**6), theirs.head(10**6))
                np.testing.assert_array_equal(ours.offsets.starts, theirs.offsets.starts)


def test_long_texts_are_prepared_as_they_stand_with_an_end_after_each_where_there_are_several(tmp_path):
    (tmp_path / "books").mkdir()
    for name in "ab":
        (tmp_path / "books" / f"{name}.txt").write_text("".join(f"{name} line {i}.\n" for i in range(300)))
    reader = replace(file_reader(tmp_path / "books"), chunk_characters=500)
    prepare(reader, tmp_path / "out", replace(BYTES, tokenizer="bpe:260"))
    tokenizer, train, held_out = open_prepared(tmp_path / "out")
    texts = [tokenizer.decode(stream.head(10**6)).split("<|endoftext|>") for stream in (train, held_out)]
    for part in texts:
        assert [text[:2] for text in part] == ["a ", "b ", ""]
    for number, name in enumerate("ab"):
        assert texts[0][number] + texts[1][number] == (tmp_path / "books" / f"{name}.txt").read_text()


def test_samples_of_published_corpora_give_tiktokens_tokens(shared_data, tmp_path, monkeypatch):
    import tiktoken

    shutil.copytree(shared_data / "tiktoken_cache", tmp_path / "copy")  # tiktoken deletes a file whose hash is wrong
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "copy"))
    theirs = tiktoken.get_encoding("gpt2")
    pages = (shared_data / "fineweb_edu" / "fineweb_edu_sample.jsonl").read_text().splitlines()
    stories = (shared_data / "tinystories" / "decoding-gpt_tinystories_10k.txt").read_text().split("<|endoftext|>")
    samples = {
        "fineweb_edu": [json.loads(page)["text"] for page in pages],
        "tinystories/decoding-gpt_tinystories_10k.txt": [story.strip("\n") for story in stories if story.strip()],
    }
    for name, texts in samples.items():
        directory = tmp_path / name.replace("/", "-")
        prepare(reader_for(str(shared_data / name), validation=Validation(first=5)), directory, Preparation("gpt2", n_threads=2))
        _, train, held_out = open_prepared(directory)
        encoded = [[*theirs.encode_ordinary(text), theirs.eot_token] for text in texts]
        np.testing.assert_array_equal(held_out.head(10**7), np.concatenate(encoded[:5]))
        np.testing.assert_array_equal(train.head(10**7), np.concatenate(encoded[5:]))
        assert train.shards[0].tokens.dtype == np.uint16


def peak_growth(reader: FileReader, directory: Path, results: object) -> None:
    """What preparing adds to the largest memory of this process, in megabytes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    prepare(reader, directory, Preparation("byte", n_threads=1))
    results.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def test_memory_does_not_grow_with_the_text(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["interp_gpt2.data.preparing"])
    results = context.Queue()
    growth = []
    for megabytes in (4, 40):
        path = tmp_path / f"{megabytes}.jsonl"
        line = json.dumps({"text": "words " * 1600}) + "\n"
        path.write_text(line * (megabytes * 1_000_000 // len(line)))
        reader = replace(file_reader(path, validation=Validation(first=1)), chunk_characters=100_000)
        process = context.Process(target=peak_growth, args=(reader, tmp_path / f"out-{megabytes}", results))
        process.start()
        growth.append(results.get(timeout=60))
        process.join()
    assert growth[1] < growth[0] + 8


def test_the_numbers_of_a_preparation_are_checked():
    for field in ("max_tokens", "n_threads", "shard_tokens"):
        with pytest.raises(DataError, match=f"{field}=0 must be at least 1"):
            replace(BYTES, **{field: 0})
    chunk = Chunk(("a", ""), {"document": 2}, held_out=True)
    encoded = encode_chunk(chunk, load_source("repeated-random", "byte").tokenizer, None)
    assert (encoded.train[0].tolist(), encoded.validation[0].tolist(), encoded.n_empty) == ([], [97, 10, 10], 1)
