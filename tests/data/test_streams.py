"""A token stream gives back what was written, its batches depend on (seed, step) alone, and damage is refused by name."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from interp_gpt2.data.streams import HEADER_BYTES, TokenStream
from interp_gpt2.errors import DataError
from interp_gpt2.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer


@pytest.fixture
def stream(tmp_path) -> TokenStream:
    return write(tmp_path / "train.tokens", np.arange(1000) % 251)


def write(path: Path, tokens: np.ndarray, tokenizer: Tokenizer | None = None) -> TokenStream:
    offsets = np.array([0, len(tokens) // 3, len(tokens)])
    return TokenStream.write(path, tokens, offsets, tokenizer or ByteTokenizer(), {"data": "Zahlen ⟨1⟩"})


def test_a_stream_gives_back_its_tokens_documents_and_description(stream):
    again = TokenStream.open(stream.path)
    np.testing.assert_array_equal(again.tokens, np.arange(1000) % 251)
    assert [len(document) for document in again.documents] == [333, 667]
    assert torch.equal(torch.cat(again.documents), torch.arange(1000) % 251)
    assert again.tokenizer == ByteTokenizer().sha256
    assert again.about == {"data": "Zahlen ⟨1⟩"}
    assert len(again) == 1000


def test_tokens_take_two_bytes_unless_the_vocabulary_needs_four(tmp_path):
    characters = [chr(0x10000 + i) for i in range(2**16 + 1)]
    for tokenizer, itemsize in ((CharTokenizer(characters[:-1]), 2), (CharTokenizer(characters), 4)):
        last = tokenizer.d_vocab - 1
        stream = write(tmp_path / "s", np.array([0, last, 1]), tokenizer)
        assert stream.tokens.dtype.itemsize == itemsize
        assert stream.tokens.tolist() == [0, last, 1]


def test_batches_are_windows_of_the_stream_and_a_pure_function_of_seed_and_step(stream):
    batch = stream.batch(step=5, batch_size=8, n_ctx=16, seed=3)
    assert batch.shape == (8, 17)
    assert batch.dtype == torch.int64
    assert ((batch[:, 1:] - batch[:, :-1]) % 251 == 1).all()
    stream.batch(step=6, batch_size=8, n_ctx=16, seed=3)
    assert torch.equal(TokenStream.open(stream.path).batch(step=5, batch_size=8, n_ctx=16, seed=3), batch)
    assert not torch.equal(stream.batch(step=6, batch_size=8, n_ctx=16, seed=3), batch)
    assert not torch.equal(stream.batch(step=5, batch_size=8, n_ctx=16, seed=4), batch)


def test_the_shares_of_all_ranks_are_the_batch_of_one_process(stream):
    whole = stream.batch(step=2, batch_size=12, n_ctx=10, seed=0)
    for world in (2, 3, 12):
        assert torch.equal(torch.cat([stream.batch(2, 12, 10, 0, rank, world) for rank in range(world)]), whole)
    with pytest.raises(DataError, match="12 sequences cannot be shared equally by 5"):
        stream.batch(2, 12, 10, 0, rank=0, world=5)


def test_every_window_of_the_stream_can_be_drawn_the_first_and_the_last_included(tmp_path):
    stream = write(tmp_path / "s", np.arange(12))
    drawn = stream.batch(step=0, batch_size=500, n_ctx=8, seed=0)
    assert set(drawn[:, 0].tolist()) == {0, 1, 2, 3}
    assert stream.batch(0, 4, n_ctx=11, seed=0).tolist() == [list(range(12))] * 4


def test_validation_windows_predict_every_token_once_but_the_first_and_what_is_left_over(stream):
    batches = list(stream.windows(n_ctx=30, batch_size=7))
    windows = torch.cat(batches)
    assert windows.shape == (33, 31)
    assert [len(batch) for batch in batches] == [7, 7, 7, 7, 5]
    np.testing.assert_array_equal(windows[:, 1:].flatten(), np.arange(1, 991) % 251)


def test_a_stream_shorter_than_one_window_says_what_it_needs(stream):
    for read in (lambda: stream.batch(0, 1, n_ctx=1000, seed=0), lambda: list(stream.windows(1000, 4))):
        with pytest.raises(DataError, match=r"train text has 1000 tokens and n_ctx=1000 needs at least 1001; .* smaller n_ctx"):
            read()
    assert stream.batch(0, 1, n_ctx=999, seed=0).shape == (1, 1000)


@pytest.mark.parametrize("tokens", [[], [256], [-1]])
def test_tokens_the_tokenizer_does_not_have_are_not_written(tmp_path, tokens):
    with pytest.raises(DataError, match="each from 0 to 255"):
        write(tmp_path / "s", np.array(tokens, dtype=np.int64))
    assert not (tmp_path / "s").exists()


def test_a_folder_that_cannot_be_written_is_named_with_what_to_set(tmp_path):
    (tmp_path / "file").write_text("where the folder should be")
    with pytest.raises(DataError, match=r"cannot be written to .*file .* INTERP_GPT2_CACHE"):
        write(tmp_path / "file" / "s", np.arange(3))


def test_a_changed_bit_anywhere_in_the_contents_is_refused(stream):
    content = stream.path.read_bytes()
    for position in range(HEADER_BYTES, len(content), 97):
        stream.path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(DataError, match=re.escape(str(stream.path))):
            TokenStream.open(stream.path)


def test_a_stream_cut_short_or_extended_is_refused(stream):
    content = stream.path.read_bytes()
    for damaged in (b"", content[:10], content[:HEADER_BYTES], content[:-1], content + b"\0", b"x" + content[1:]):
        stream.path.write_bytes(damaged)
        with pytest.raises(DataError, match=re.escape(str(stream.path))):
            TokenStream.open(stream.path)


@pytest.mark.parametrize(("old", "new"), [(b'"n_tokens": 1000', b'"n_tokens": "xx"'), (b'"dtype"', b'"dtypo"'), (b"{", b"[")])
def test_a_damaged_header_is_refused(stream, old, new):
    stream.path.write_bytes(stream.path.read_bytes().replace(old, new, 1))
    with pytest.raises(DataError, match=re.escape(str(stream.path))):
        TokenStream.open(stream.path)


def test_a_missing_stream_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"no token stream at .*nowhere"):
        TokenStream.open(tmp_path / "nowhere")
