"""A prepared directory serves training like any text, from the disk or a device, window by window or by documents."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from interp_gpt2.data.batches import within_documents
from interp_gpt2.data.preparing import Preparation, prepare
from interp_gpt2.data.reading import Validation, file_reader
from interp_gpt2.data.source import Sampling, find_prepared, load_source, prepared_place
from interp_gpt2.errors import DataError

TEXTS = [f"Tale {i}: a {'very ' * (i % 9)}small cat." for i in range(600)]


@pytest.fixture
def directory(tmp_path) -> Path:
    path = tmp_path / "tales.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    reader = replace(file_reader(path, validation=Validation(first=60)), chunk_characters=1000)
    prepare(reader, tmp_path / "prepared", Preparation("bpe:300", shard_tokens=2000))
    return tmp_path / "prepared"


@pytest.fixture
def source(directory):
    return load_source(str(directory), "bpe:300")


def test_it_gives_batches_validation_documents_references_and_a_fingerprint(source):
    assert source.name == "tales.jsonl"
    batch = source.batch(3, batch_size=8, n_ctx=32, seed=1)
    assert torch.equal(torch.cat([source.batch(3, 8, 32, 1, rank, world=4) for rank in range(4)]), batch)
    end = source.tokenizer.eos_token_id
    held_out = [source.tokenizer.decode(document[:-1]) for document in source.validation_documents()]
    assert held_out == TEXTS[:60]
    assert all(document[-1] == end for document in source.validation_documents())
    assert len(torch.cat(list(source.validation(32, 8)))) == (len(source.held_out) - 1) // 32
    unigram, bigram, _ = source.references(32)
    assert unigram.loss > 2 * bigram.loss
    fingerprint = source.fingerprint()
    assert json.loads(json.dumps(fingerprint)) == fingerprint
    assert {"data", "sha256", "train_sha256", "validation_sha256", "tokenizer_sha256", "n_train_tokens"} <= fingerprint.keys()


def test_the_hash_tells_other_data_apart(source, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"text": text.replace("cat", "dog")}) + "\n" for text in TEXTS))
    prepare(file_reader(other, validation=Validation(first=60)), tmp_path / "dogs", Preparation("byte"))
    again = load_source(str(tmp_path / "prepared"), "bpe:300")
    assert again.fingerprint() == source.fingerprint()
    assert load_source(str(tmp_path / "dogs"), "byte").fingerprint()["sha256"] != source.fingerprint()["sha256"]


def test_references_of_a_long_text_say_on_how_much_of_it_they_were_counted(source, monkeypatch):
    monkeypatch.setattr("interp_gpt2.data.text_source.COUNTED_TOKENS", 500)
    assert f"counted on the first 500 of the {len(source.train):,} training tokens" in source.references(32)[0].note


@pytest.mark.parametrize("order", ["random", "epochs"])
def test_masked_windows_begin_with_a_document_and_their_documents_end_with_the_end_of_text(directory, order):
    source = load_source(str(directory), "bpe:300", sampling=Sampling(order, "masked"))
    end = source.tokenizer.eos_token_id
    batch = source.batch(0, 64, 48, seed=0)
    documents = source.batch_documents(0, 64, 48, seed=0)
    for tokens, of in zip(batch, documents, strict=True):
        assert source.tokenizer.decode(tokens.tolist()).startswith("Tale ")
        assert torch.equal(of[1:] != of[:-1], tokens[:-1] == end)
    predicted = batch[:, 1:][within_documents(documents)]
    assert (predicted == end).any()
    assert (batch[:, :-1][~within_documents(documents)] == end).all()


def test_on_a_device_batches_are_the_same(directory):
    for sampling in (Sampling(), Sampling("epochs", "aligned")):
        source = load_source(str(directory), "bpe:300", sampling=sampling)
        resident = source.to_device("cpu")
        for step in range(5):
            assert torch.equal(resident.batch(step, 8, 40, 2), source.batch(step, 8, 40, 2))
            assert torch.equal(resident.batch_documents(step, 8, 40, 2), source.batch_documents(step, 8, 40, 2))
        assert resident.fingerprint() == source.fingerprint()
        assert torch.equal(torch.cat(list(resident.validation(40, 8))), torch.cat(list(source.validation(40, 8))))
        assert resident.references(40) == source.references(40)


@pytest.mark.gpu
def test_on_a_gpu_batches_are_the_same(directory):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    source = load_source(str(directory), "bpe:300")
    resident = source.to_device("cuda")
    assert resident.batch(0, 8, 40, 2).device.type == "cuda"
    assert torch.equal(resident.batch(0, 8, 40, 2).cpu(), source.batch(0, 8, 40, 2))
    assert torch.equal(resident.batch_documents(0, 8, 40, 2).cpu(), source.batch_documents(0, 8, 40, 2))


def test_drawn_sources_have_one_document_a_sequence_and_no_other_order():
    source = load_source("markov")
    assert torch.equal(source.batch_documents(0, 6, 10, 0, rank=1, world=2), torch.ones(3, 11, dtype=torch.int64))
    assert source.to_device("cpu") is source
    with pytest.raises(DataError, match="markov draws every sequence anew"):
        load_source("markov", sampling=Sampling("epochs"))


def test_another_tokenizer_than_it_was_prepared_with_is_refused(directory):
    for other in ("char", "bpe", "bpe:4096"):
        with pytest.raises(DataError, match=f"prepared with the tokenizer bpe:300, not {other}; ask for bpe:300"):
            load_source(str(directory), other)


def test_a_named_corpus_is_found_where_it_was_prepared_or_the_command_is_said(directory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INTERP_GPT2_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(DataError, match=r"run: interp-gpt2 data prepare tinystories$"):
        load_source("tinystories", "gpt2")
    with pytest.raises(DataError, match=r"elsewhere/fineweb-edu-byte\); run: .* prepare fineweb-edu --tokenizer byte$"):
        load_source("fineweb-edu", "byte")
    (tmp_path / "elsewhere").mkdir()
    directory.rename(tmp_path / "elsewhere" / "tinystories-bpe-300")
    assert load_source("tinystories", "bpe:300").name == "tales.jsonl"
    (tmp_path / "data").mkdir()
    (tmp_path / "elsewhere" / "tinystories-bpe-300").rename(prepared_place("tinystories", "bpe:300"))
    assert find_prepared("tinystories", "bpe:300") == Path("data/tinystories-bpe-300")


def test_a_text_can_be_read_with_a_bpe_trained_on_its_training_part(tmp_path):
    path = tmp_path / "tales.txt"
    path.write_text("\n\n".join(TEXTS * 3))
    source = load_source(str(path), "bpe:280", tmp_path / "streams")
    assert (source.tokenizer.kind, source.tokenizer.d_vocab) == ("bpe", 280)
    assert source.tokenizer.decode([*source.train.tokens, *source.held_out.tokens]) == path.read_text()
