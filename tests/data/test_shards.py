"""Many files read as one, from the disk or resident on a device, give what one file gives."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from interp_gpt2.data.sampling import Sampling
from interp_gpt2.data.shards import ResidentStream, ShardedStream
from interp_gpt2.data.streams import Stream, StreamWriter, TokenStream
from interp_gpt2.errors import DataError
from interp_gpt2.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer

LENGTHS = np.random.default_rng(0).integers(1, 40, size=60)
TOKENS = np.random.default_rng(1).integers(0, 251, size=LENGTHS.sum())


def write(path: Path, documents: slice, tokenizer: Tokenizer | None = None, tokens: np.ndarray = TOKENS) -> Path:
    """A file of some of the documents, appended in pieces."""
    ends = np.cumsum([0, *LENGTHS])
    numbers = np.arange(len(LENGTHS))[documents]
    with StreamWriter(path, tokenizer or ByteTokenizer(), {"data": "numbers"}) as writer:
        for piece in np.array_split(numbers, 3):
            writer.append(tokens[ends[piece[0]] : ends[piece[-1] + 1]], LENGTHS[piece])
    return path


@pytest.fixture
def one(tmp_path) -> TokenStream:
    return TokenStream.open(write(tmp_path / "train.tokens", slice(None)))


@pytest.fixture
def many(tmp_path) -> ShardedStream:
    paths = [write(tmp_path / f"{i}.tokens", slice(first, last)) for i, (first, last) in enumerate([(0, 3), (3, 50), (50, 60)])]
    return ShardedStream.open("train", paths, {"data": "numbers"})


@pytest.fixture
def resident(many) -> ResidentStream:
    return ResidentStream.upload(many, "cpu")


def test_a_stream_written_in_pieces_is_the_one_written_at_once(one, tmp_path):
    again = TokenStream.write(tmp_path / "again", TOKENS, np.cumsum([0, *LENGTHS]), ByteTokenizer(), {"data": "numbers"})
    assert again.path.read_bytes() == one.path.read_bytes()


def test_a_writer_that_is_interrupted_or_given_nothing_leaves_no_file(tmp_path):
    with StreamWriter(tmp_path / "empty", ByteTokenizer(), {}) as writer:
        writer.append(TOKENS[:0], LENGTHS[:0])
    with suppress(KeyboardInterrupt), StreamWriter(tmp_path / "half", ByteTokenizer(), {}) as writer:
        writer.append(TOKENS, LENGTHS)
        assert any(tmp_path.iterdir())
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling("epochs"), Sampling("epochs", "masked"), Sampling("random", "aligned")]
)
def test_batches_and_documents_are_the_same_from_one_file_many_files_or_a_device(one, many, resident, sampling):
    for step in range(4):
        where = {"step": step, "batch_size": 12, "n_ctx": 64, "seed": 7, "sampling": sampling}  # longer than the first shard
        batch, documents = one.batch(**where), one.batch_documents(**where)
        for other in (many, resident):
            assert torch.equal(other.batch(**where), batch)
            assert torch.equal(other.batch_documents(**where), documents)
            shares = [other.batch(**where, rank=rank, world=3) for rank in range(3)]
            assert torch.equal(torch.cat(shares), batch)
            shares = [other.batch_documents(**where, rank=rank, world=3) for rank in range(3)]
            assert torch.equal(torch.cat(shares), documents)


def test_the_document_of_each_token_is_counted_from_the_first_of_its_window(one):
    where = {"step": 0, "batch_size": 30, "n_ctx": 50, "seed": 0}
    of_token = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    starts = one.window_starts(**where, rank=0, world=1, sampling=Sampling())
    expected = [of_token[start : start + 51] - of_token[start] + 1 for start in starts]
    assert one.batch_documents(**where).tolist() == [row.tolist() for row in expected]


def test_validation_and_documents_are_the_same_too(one, many, resident):
    windows = torch.cat(list(one.windows(17, 5)))
    for other in (many, resident):
        assert len(other) == len(one)
        assert torch.equal(torch.cat(list(other.windows(17, 9))), windows)
        assert all(torch.equal(a, b) for a, b in zip(other.documents, one.documents, strict=True))
        for n in (1, 5, len(one) - 1, len(one), len(one) + 9):
            np.testing.assert_array_equal(other.head(n), TOKENS[:n])


def test_tokens_above_the_sign_bit_survive_the_upload(tmp_path):
    for n_characters in (2**16, 2**16 + 5):
        tokenizer = CharTokenizer([chr(0x10000 + i) for i in range(n_characters)])
        tokens = np.arange(LENGTHS.sum()) + n_characters - LENGTHS.sum()
        stream = TokenStream.open(write(tmp_path / f"{n_characters}", slice(None), tokenizer, tokens))
        resident = ResidentStream.upload(stream, "cpu")
        assert resident.tokens.element_size() == stream.tokens.itemsize
        assert resident.batch(0, 50, 8, 0).max() > 2**15
        assert torch.equal(resident.batch(0, 50, 8, 0), stream.batch(0, 50, 8, 0))


def test_a_reader_cannot_change_what_the_next_one_sees(one, many, resident):
    for stream in (one, many, resident):
        before = stream.batch(0, 4, 8, 0).clone()
        stream.batch(0, 4, 8, 0).zero_()
        assert torch.equal(stream.batch(0, 4, 8, 0), before)


def test_a_flipped_bit_in_any_shard_is_refused_by_name(many):
    path = many.shards[1].path
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"1\.tokens was altered"):
        ShardedStream.open("train", [shard.path for shard in many.shards], {})
    with pytest.raises(DataError, match="no tokens of the train text"):
        ShardedStream.open("train", [], {})


def test_streams_are_one_kind_of_thing(one, many, resident):
    assert all(isinstance(stream, Stream) for stream in (one, many, resident))
    assert resident.sha256 == many.sha256 != one.sha256
