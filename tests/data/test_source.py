"""Sources give the same batches, validation and references every time, and references are on what a model is judged on."""

import json
import math

import numpy as np
import pytest
import torch

from interp_gpt2.data.corpora import Corpus, Document
from interp_gpt2.data.ngrams import NGramModel
from interp_gpt2.data.source import MarkovSource, RepeatedSource, load_source, open_source, tokenized
from interp_gpt2.data.synthetic import bayes_bigram, losses_of
from interp_gpt2.errors import DataError, TokenizerError
from interp_gpt2.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer, load_tokenizer

TEXT = "".join(f"Paragraph {i} says that {i} is {'even' if i % 2 == 0 else 'odd'}.\n\n" for i in range(400))


@pytest.fixture
def text_path(tmp_path) -> str:
    (tmp_path / "numbers.txt").write_text(TEXT)
    return str(tmp_path / "numbers.txt")


@pytest.fixture
def source(text_path, tmp_path):
    return load_source(text_path, "char", tmp_path / "run")


@pytest.fixture(params=["text", "markov", "repeated-random"])
def any_source(request):
    return request.getfixturevalue("source") if request.param == "text" else load_source(request.param)


def test_batches_are_pure_functions_and_ranks_share_them(any_source):
    whole = any_source.batch(3, batch_size=8, n_ctx=16, seed=1)
    assert whole.shape == (8, 17)
    assert whole.dtype == torch.int64
    assert 0 <= whole.min() <= whole.max() < any_source.tokenizer.d_vocab
    shares = [any_source.batch(3, 8, 16, 1, rank, world=4) for rank in range(4)]
    assert torch.equal(torch.cat(shares), whole)
    assert not torch.equal(any_source.batch(4, 8, 16, 1), whole)
    assert not torch.equal(any_source.batch(3, 8, 16, 2), whole)
    with pytest.raises(DataError, match="shared equally"):
        any_source.batch(3, 8, 16, 1, rank=0, world=3)


def test_validation_is_the_same_in_any_batches_and_cannot_be_changed_by_who_reads_it(any_source):
    one = torch.cat(list(any_source.validation(n_ctx=16, batch_size=64)))
    for batch in any_source.validation(n_ctx=16, batch_size=100):
        batch.zero_()
    assert torch.equal(torch.cat(list(any_source.validation(n_ctx=16, batch_size=7))), one)
    assert one.shape[1] == 17


def test_references_are_finite_explained_and_on_scored_positions(any_source):
    scored = any_source.scored_positions(16)
    n_validation = len(torch.cat(list(any_source.validation(16, 64))))
    for reference in any_source.references(16):
        assert math.isfinite(reference.loss)
        assert reference.note
        assert reference.n == n_validation * len(scored)


def test_fingerprints_are_json_repeatable_and_name_the_versions(any_source):
    fingerprint = any_source.fingerprint()
    assert json.loads(json.dumps(fingerprint)) == fingerprint == any_source.fingerprint()
    assert {"data", "sha256", "tokenizer_sha256", "python", "numpy"} <= fingerprint.keys()


def test_a_text_is_divided_into_training_and_validation_without_loss_or_overlap(source):
    assert source.tokenizer.decode([*source.train.tokens, *source.held_out.tokens]) == TEXT
    assert len(source.held_out) == pytest.approx(len(TEXT) / 10, rel=0.05)
    documents = source.validation_documents()
    assert torch.equal(torch.cat(documents), torch.from_numpy(source.held_out.tokens.astype(np.int64)))
    for document in documents:
        assert source.tokenizer.decode(document).startswith("Paragraph ")


def test_the_character_vocabulary_covers_the_held_out_text_too(tmp_path):
    corpus = Corpus("ends in ☃", (Document("d", "plain text\n\n" * 50 + "☃"),))
    source = tokenized(corpus, CharTokenizer.from_text(corpus.text), tmp_path)
    assert "☃" in source.tokenizer.decode(source.held_out.tokens)


def test_a_second_load_reuses_the_streams_and_a_damaged_one_is_made_again(source, text_path, tmp_path):
    path = tmp_path / "run" / "train.tokens"
    written = path.stat().st_mtime_ns
    load_source(text_path, "char", tmp_path / "run")
    assert path.stat().st_mtime_ns == written
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert load_source(text_path, "char", tmp_path / "run").train.sha256 == source.train.sha256
    assert path.read_bytes() == content


def test_streams_of_another_text_or_tokenizer_are_not_mistaken_for_this_one(source, text_path, tmp_path):
    as_bytes = load_source(text_path, "byte", tmp_path / "run")
    assert as_bytes.tokenizer.decode(as_bytes.train.tokens[:9].tolist()) == "Paragraph"
    (tmp_path / "numbers.txt").write_text(TEXT.replace("Para", "Mono"))
    changed = load_source(text_path, "char", tmp_path / "run")
    assert changed.tokenizer.decode(changed.train.tokens[:9].tolist()) == "Monograph"
    assert changed.fingerprint()["sha256"] != source.fingerprint()["sha256"]


def test_a_source_can_be_opened_again_when_its_text_is_gone(source, text_path, tmp_path):
    source.tokenizer.save(tmp_path / "run")
    (tmp_path / "numbers.txt").unlink()
    again = open_source(tmp_path / "run", load_tokenizer(tmp_path / "run"))
    assert again.fingerprint() == source.fingerprint()
    assert torch.equal(again.batch(0, 4, 16, 0), source.batch(0, 4, 16, 0))
    with pytest.raises(DataError, match="of this byte tokenizer"):
        open_source(tmp_path / "run", ByteTokenizer())


def test_text_references_are_ngram_losses_on_the_validation_windows(source):
    references = source.references(n_ctx=32)
    windows = torch.cat(list(source.validation(32, 64)))
    model = NGramModel.fit(source.train.tokens, source.tokenizer.d_vocab)
    assert [reference.name for reference in references] == ["unigram", "bigram", "trigram"]
    assert references[0].loss > references[1].loss > references[2].loss
    # The bigram needs one token of context, which every position of a window has: so it can be computed window by window.
    by_window = np.stack([model.token_losses(window.numpy(), order=2) for window in windows])
    assert references[1].loss == pytest.approx(by_window.mean())
    assert references[1].stderr == pytest.approx(by_window.mean(1).std(ddof=1) / len(windows) ** 0.5)
    assert "Witten-Bell" in references[2].note


def test_whole_documents_end_with_the_end_of_text_token_where_the_tokenizer_has_one(tmp_path):
    documents = tuple(Document(f"d{i}", f"Document {i}.\n\n") for i in range(200))
    source = tokenized(Corpus("many", documents), BPETokenizer([]), tmp_path)
    parts = source.train.documents + source.validation_documents()
    assert len(parts) == 200
    assert all((part == 256).nonzero().tolist() == [[len(part) - 1]] for part in parts)
    assert {source.tokenizer.decode(part[:-1]) for part in parts} == {document.text for document in documents}


def test_gpt2_tokens_of_a_cut_text_are_those_of_the_uncut_text(shared_data, text_path, tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared_data / "tiktoken_cache"))
    source = load_source(text_path, "gpt2", tmp_path / "run")
    cut = len(source.tokenizer.decode(source.train.tokens))
    assert source.train.tokens.tolist() == source.tokenizer.encode(TEXT[:cut])
    assert source.held_out.tokens.tolist() == source.tokenizer.encode(TEXT[cut:])
    assert all(source.tokenizer.decode(document).startswith("Paragraph ") for document in source.validation_documents())


def test_markov_references_are_on_the_second_half_of_4096_held_out_chains():
    source = MarkovSource()
    bayes, unigram = source.references(n_ctx=64)
    chains = torch.cat(list(source.validation(64, 1000)))
    assert chains.shape == (4096, 65)
    by_hand = losses_of(bayes_bigram(chains), chains)[:, 32:64]
    assert bayes.loss == pytest.approx(by_hand.mean().item())
    assert bayes.n == unigram.n == 4096 * 32
    assert list(source.scored_positions(64)) == list(range(32, 64))
    assert bayes.loss + 20 * bayes.stderr < unigram.loss
    assert source.tokenizer.decode(chains[0, :3]).isupper()
    assert source.validation_documents() == []


def test_copying_is_perfect_from_the_first_repeat_on():
    source = RepeatedSource(ByteTokenizer(), period=5)
    (tokens,) = source.validation(n_ctx=12, batch_size=2000)
    perfect, uniform = source.references(n_ctx=12)
    predictable = (tokens[:, 5:] == tokens[:, :-5]).all(0).sum().item()  # positions 4 .. 11 predict a repeated token
    assert predictable == 8
    assert perfect.loss == pytest.approx((12 - predictable) / 12 * math.log(256))
    assert uniform.loss == pytest.approx(math.log(256))


def test_without_a_directory_streams_are_kept_in_the_users_cache(text_path, tmp_path, monkeypatch):
    monkeypatch.setenv("INTERP_GPT2_CACHE", str(tmp_path / "cache"))
    source = load_source(text_path)
    assert source.train.path.is_relative_to(tmp_path / "cache" / "streams")
    assert load_source(text_path, "byte").train.path != source.train.path


def test_names_and_tokenizers_that_do_not_exist_are_refused(text_path, tmp_path):
    with pytest.raises(DataError, match="no file or folder at 'nowhere'"):
        load_source("nowhere")
    with pytest.raises(TokenizerError, match="no tokenizer is called 'word'"):
        load_source(text_path, "word", tmp_path)
    with pytest.raises(DataError, match="leave the tokenizer at char"):
        load_source("markov", "gpt2")


def test_a_text_shorter_than_the_context_says_so(source):
    with pytest.raises(DataError, match=r"validation text has .* needs at least 100001"):
        list(source.validation(100_000, 4))
    with pytest.raises(DataError, match="validation text"):
        source.references(100_000)
