"""Every tokenizer gives back the text it was given, here and in transformers, and says which character it cannot encode."""

import itertools
import json
import pickle
import random
import re
import shutil
import socket
import threading
import time
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from interp_gpt2 import vocab_bpe
from interp_gpt2.errors import TokenizerError
from interp_gpt2.tokenizers import (
    ALPHABET,
    END_OF_TEXT,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    load_tokenizer,
    tokenizer_for,
    tokenizer_named,
    visible,
)

HARD = "Hello  world ,don't  é ☃ 한국 \u200b\u202e\t\r\n\n  \x00\x7f <|endoftext|> 🤗!\n"
GPT2_JSON = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "bos_token_id": None, "eos_token_id": None}


STORIES = [f"Once upon a time, {n} {'little ' * (n % 4)}sledges weren't in {1000 + n} snows.\n\n" for n in range(200)]


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return BPETokenizer.train(STORIES, 300)


@pytest.fixture(params=["byte", "char", "gpt2", "bpe"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param in ("gpt2", "bpe"):
        return request.getfixturevalue(request.param)
    return ByteTokenizer() if request.param == "byte" else CharTokenizer.from_text(HARD)


@pytest.fixture
def nothing_on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine on which no folder holds GPT-2's files."""
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    monkeypatch.delenv("DATA_GYM_CACHE_DIR", raising=False)
    monkeypatch.setenv("INTERP_GPT2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "tmp"))
    return tmp_path


@pytest.fixture
def loopback() -> None:
    """Without even a local network, what a server would answer cannot be tried."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        try:
            socket.create_connection(server.getsockname(), timeout=1).close()
        except OSError as error:
            pytest.skip(f"needs a loopback network ({error})")


@pytest.fixture
def silent_server(loopback):
    """A server that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/vocab.bpe"


def served(body: bytes, piece: int, pause: float) -> str:
    """Address of a server that answers one request with `body`, `piece` bytes at a time."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        with server, server.accept()[0] as connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
            for start in range(0, len(body), piece):
                time.sleep(pause)
                connection.sendall(body[start : start + piece])

    threading.Thread(target=answer, daemon=True).start()
    return f"http://127.0.0.1:{server.getsockname()[1]}/vocab.bpe"


def test_decoding_gives_back_the_text(tokenizer):
    assert tokenizer.decode(tokenizer.encode(HARD)) == HARD
    assert tokenizer.decode(tokenizer.encode("")) == ""


def test_labels_are_printable_distinct_and_one_for_every_token(tokenizer):
    assert len(tokenizer.labels) == len(set(tokenizer.labels)) == tokenizer.d_vocab
    for label in tokenizer.labels:
        assert label.isprintable()
        seen = re.sub("⟨[0-9a-f ]+⟩", "", label)  # bytes in hex are parted by spaces
        assert not {unicodedata.category(character)[0] for character in seen} & set("CZM"), ascii(label)


def read_back(label: str) -> bytes:
    """The bytes a label stands for: the inverse of `visible`, written without it."""
    content = b""
    for in_hex, code, itself in re.findall(r"⟨([0-9a-f ]+)⟩|⟨U\+([0-9A-F]+)⟩|(.)", label):
        if in_hex:
            content += bytes.fromhex(in_hex)
        elif code:
            content += chr(int(code, 16)).encode()
        else:
            content += {"·": b" ", "↵": b"\n", "→": b"\t"}.get(itself, itself.encode())
    return content


def test_a_label_can_be_read_back_into_the_bytes_of_its_token(tokenizer):
    assert [read_back(label) for label in tokenizer.labels] == [tokenizer.token_bytes(i) for i in range(tokenizer.d_vocab)]


def test_whitespace_raw_bytes_and_invisible_characters_are_made_visible():
    assert visible(b" the\n\t") == "·the↵→"
    assert visible(b"\xe2\x80") == "⟨e2 80⟩"
    assert visible("a\u200b\u202eb".encode()) == "a⟨U+200B⟩⟨U+202E⟩b"
    assert visible("\u3164\u00ad".encode()) == "⟨U+3164⟩⟨U+00AD⟩"  # a letter by its category, and nothing to see
    assert visible("·".encode()) == "⟨U+00B7⟩"  # a dot that is really in the text is not mistaken for a space
    assert visible("⟨e2⟩".encode()) != visible(b"\xe2")


def test_a_character_tokenizer_names_the_character_it_does_not_know():
    tokenizer = CharTokenizer.from_text("a sledge in snow")
    with pytest.raises(TokenizerError, match=r"cannot encode '☃' \(U\+2603\) at character 8 "):
        tokenizer.encode("wings a ☃")
    with pytest.raises(TokenizerError, match=r"cannot encode U\+200B at character 1 "):
        tokenizer.encode("a\u200b")


@pytest.mark.parametrize("characters", [[], ["a", "a"], ["ab"], ["\ud800"]])
def test_a_character_tokenizer_refuses_what_is_not_a_set_of_characters(characters):
    with pytest.raises(TokenizerError):
        CharTokenizer(characters)


def test_half_a_surrogate_pair_is_refused_rather_than_replaced(tokenizer):
    with pytest.raises(TokenizerError, match=r"U\+D83E at character 1 "):
        tokenizer.encode("o\ud83e") if tokenizer.kind != "char" else CharTokenizer(["o", "\ud83e"])


def test_decoding_names_a_token_outside_the_vocabulary(tokenizer):
    for token in (tokenizer.d_vocab, -1):
        with pytest.raises(TokenizerError, match=rf"token {token} at position 1 .* {tokenizer.d_vocab}"):
            tokenizer.decode([0, token])


def test_the_hash_tells_tokenizers_apart():
    orders = [CharTokenizer("ab"), CharTokenizer("ba"), CharTokenizer("abc"), ByteTokenizer()]
    orders += [BPETokenizer([("a", "b"), ("b", "c")]), BPETokenizer([("b", "c"), ("a", "b")])]
    assert len({tokenizer.sha256 for tokenizer in orders}) == 6
    assert CharTokenizer("ab").sha256 == CharTokenizer.from_text("baba").sha256


def test_gpt2_is_tiktokens_own_encoding(gpt2, shared_data, tmp_path, monkeypatch):
    import tiktoken

    shutil.copytree(shared_data / "tiktoken_cache", tmp_path / "copy")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "copy"))
    theirs = tiktoken.get_encoding("gpt2")
    for text in (HARD, *random_texts(300)):
        assert gpt2.encode(text) == theirs.encode(text, disallowed_special=())
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.d_vocab == theirs.n_vocab == 50257
    assert [gpt2.token_bytes(i) for i in range(50257)] == [theirs.decode_single_token_bytes(i) for i in range(50257)]


def merged_by_hand(text: str, tokenizer: BPETokenizer) -> list[bytes]:
    """BPE as Sennrich et al. write it: the earliest merge that applies anywhere, everywhere, again and again; words apart."""
    parts = []
    for word in re.findall(r"'(?:[sdmt]|ll|ve|re)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", text):
        symbols = [ALPHABET[byte] for byte in word.encode()]
        while ranks := [tokenizer.merges.index(pair) for pair in itertools.pairwise(symbols) if pair in tokenizer.merges]:
            first, second = tokenizer.merges[min(ranks)]
            merged = []
            while symbols:
                both = symbols[:2] == [first, second]
                merged.append(first + second if both else symbols[0])
                symbols = symbols[2 if both else 1 :]
            symbols = merged
        parts += symbols
    byte_of = {symbol: byte for byte, symbol in ALPHABET.items()}
    return [bytes(byte_of[character] for character in part) for part in parts]


def test_a_trained_bpe_merges_what_its_text_repeats_and_encodes_as_the_paper_says(bpe):
    for text in (*STORIES[:5], "two snowy sledges,  isn't it?\n\n\tOnce"):
        assert [bpe.token_bytes(token) for token in bpe.encode(text)] == merged_by_hand(text, bpe)
    assert len(bpe.encode(STORIES[3])) < len(STORIES[3]) / 3
    pairs = Counter(pair for story in STORIES for word in story.split(" ") for pair in itertools.pairwise(word) if word)
    spaces = Counter((" ", word[0]) for story in STORIES for word in story.split(" ")[1:] if word)
    (first, second), _ = (pairs + spaces).most_common(1)[0]
    assert bpe.token_bytes(256) == (first + second).encode()
    assert (bpe.d_vocab, bpe.eos_token_id) == (300, 299)


def test_training_a_bpe_again_gives_the_same_merges_and_too_small_a_text_says_how_many_it_has(bpe):
    assert BPETokenizer.train(iter(STORIES), 300).merges == bpe.merges
    assert tokenizer_for("bpe:300", (), STORIES).sha256 == bpe.sha256
    with pytest.raises(TokenizerError, match=r"no more than (\d+) tokens; ask for bpe:\1"):
        BPETokenizer.train(["aab aab"], 400)
    with pytest.raises(TokenizerError, match="no room for 256 bytes"):
        BPETokenizer.train(STORIES, 256)
    for wrong in ("bpe", "bpe:", "bpe:many", "bpes:300"):
        with pytest.raises(TokenizerError, match="is bpe:4096"):
            tokenizer_for(wrong, (), STORIES)


def test_documents_are_encoded_by_themselves_with_the_end_of_text_after_each(tokenizer):
    known = "Hello world"
    for documents in ([HARD, "", known, HARD * 3], [known] * 5, [known, f"say {END_OF_TEXT}{END_OF_TEXT}"], []):
        if tokenizer.kind == "char":
            documents = [document for document in documents if "say" not in document]
        tokens, lengths = tokenizer.encode_documents(documents)
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        expected = [tokenizer.encode(document) + end for document in documents]
        assert tokens.tolist() == [token for document in expected for token in document]
        assert lengths.tolist() == [len(document) for document in expected]


def test_a_document_that_cannot_be_encoded_is_refused_among_others(tokenizer):
    broken = "☂" if tokenizer.kind == "char" else "o\ud83e"
    with pytest.raises(TokenizerError, match="cannot encode"):
        tokenizer.encode_documents(["Hello", broken, "world"])


def random_texts(count: int) -> list[str]:
    pick = random.Random(0)
    pieces = [*HARD, *"aetoinsh'  \n\n", "'ll", "'RE", "1234", " ½", "　", "ß", "अक्षर", "𝔘", "١٢", "\u00a0"]
    return ["".join(pick.choices(pieces, k=pick.randint(1, 40))) for _ in range(count)]


@pytest.mark.parametrize("beside_a_model", [False, True])
def test_transformers_reads_a_saved_tokenizer_and_gives_the_same_tokens(tokenizer, tmp_path, beside_a_model):
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    if beside_a_model:  # a GPT-2 config.json would make AutoTokenizer rebuild GPT-2's tokenizer, were it not told otherwise
        (tmp_path / "config.json").write_text(json.dumps(GPT2_JSON | {"vocab_size": tokenizer.d_vocab}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    texts = [HARD, *(random_texts(100) if tokenizer.kind != "char" else [])]
    for text in texts:
        assert theirs.encode(text) == tokenizer.encode(text)
        assert theirs.decode(theirs.encode(text)) == text
    pick = random.Random(1)
    tokens = [pick.randrange(tokenizer.d_vocab) for _ in range(500)]
    assert theirs.decode(tokens) == tokenizer.decode(tokens)
    assert len(theirs) == tokenizer.d_vocab
    assert theirs.eos_token_id == tokenizer.eos_token_id
    assert set(theirs("o")) == {"input_ids", "attention_mask"}


def test_transformers_too_refuses_a_character_the_tokenizer_does_not_know(tmp_path):
    from transformers import AutoTokenizer

    CharTokenizer("ab").save(tmp_path)
    with pytest.raises(Exception, match="vocabulary"):
        AutoTokenizer.from_pretrained(tmp_path).encode("abc")


def test_a_saved_tokenizer_says_what_other_versions_of_transformers_would_guess_wrong(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["clean_up_tokenization_spaces"] is False
    assert config["model_input_names"] == ["input_ids", "attention_mask"]


def test_a_saved_tokenizer_is_read_back_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert (again.kind, again.sha256, again.eos_token_id) == (tokenizer.kind, tokenizer.sha256, tokenizer.eos_token_id)
    assert again.encode(HARD) == tokenizer.encode(HARD)
    assert pickle.loads(pickle.dumps(again)).encode(HARD) == tokenizer.encode(HARD)
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}


def test_gpt2_as_transformers_saves_it_is_read_too(gpt2, tmp_path):
    from transformers import AutoTokenizer

    gpt2.save(tmp_path / "ours")
    AutoTokenizer.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    assert load_tokenizer(tmp_path / "theirs").encode(HARD) == gpt2.encode(HARD)


def test_an_altered_tokenizer_is_refused(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    saved = json.loads(path.read_text())
    vocab = saved["model"]["vocab"]
    first, second = list(vocab)[:2]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    path.write_text(json.dumps(saved))
    with pytest.raises(TokenizerError, match=re.escape(str(path))):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"model": {"vocab": 3}}', '{"model": {"type": "Unigram", "vocab": {}}}']
)
def test_a_damaged_tokenizer_file_is_refused_by_name(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(TokenizerError, match=re.escape(str(tmp_path / "tokenizer.json"))):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match="No such file"):
        load_tokenizer(tmp_path)


def test_an_unknown_tokenizer_name_is_answered_with_the_known_ones():
    with pytest.raises(TokenizerError, match="byte, char or gpt2, or bpe:4096"):
        tokenizer_named("gpt3")
    assert tokenizer_named("byte").kind == "byte"


@pytest.mark.parametrize("variable", ["TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"])
@pytest.mark.parametrize("name", ["6d1cbeee0f20b3d9449abfede4726ed8212e3aee", "merges.txt"])
def test_gpt2_is_found_in_the_folders_tiktoken_uses(shared_data, nothing_on_disk, monkeypatch, variable, name):
    shutil.copy(shared_data / "tiktoken_cache" / vocab_bpe.NAMES[0], nothing_on_disk / name)
    monkeypatch.setenv(variable, str(nothing_on_disk))
    assert tokenizer_named("gpt2").encode("Hello world") == [15496, 995]


def test_without_files_or_an_answering_network_the_error_says_within_two_seconds_what_to_do(
    nothing_on_disk, silent_server, monkeypatch
):
    monkeypatch.setattr(vocab_bpe, "URL", silent_server)
    start = time.perf_counter()
    with pytest.raises(TokenizerError, match=r"no answer .* set TIKTOKEN_CACHE_DIR to a folder .* byte or char"):
        tokenizer_named("gpt2")
    assert time.perf_counter() - start < 2.0


def test_a_network_that_refuses_is_reported_at_once(nothing_on_disk, monkeypatch):
    monkeypatch.setattr(vocab_bpe, "URL", "http://127.0.0.1:1/vocab.bpe")
    with pytest.raises(TokenizerError, match=r"the network refused.* set TIKTOKEN_CACHE_DIR"):
        tokenizer_named("gpt2")


def test_a_damaged_copy_is_named_left_alone_and_not_used(nothing_on_disk, silent_server, monkeypatch):
    copy = nothing_on_disk / vocab_bpe.NAMES[0]
    copy.write_text("#version: 0.2\nh e\n")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(nothing_on_disk))
    monkeypatch.setattr(vocab_bpe, "URL", silent_server)
    monkeypatch.setattr(vocab_bpe.download, "__defaults__", (0.1,))
    with pytest.raises(TokenizerError, match=rf"{re.escape(str(copy))} is damaged"):
        tokenizer_named("gpt2")
    assert copy.read_text() == "#version: 0.2\nh e\n"


def test_a_download_that_is_slow_but_alive_is_given_its_time(loopback):
    body = bytes(range(256)) * 4
    start = time.perf_counter()
    assert vocab_bpe.download(served(body, piece=256, pause=0.15), answer_within=0.3) == body
    assert time.perf_counter() - start > 0.5


def test_a_download_is_verified_and_kept(loopback, shared_data, nothing_on_disk, monkeypatch):
    content = (shared_data / "tiktoken_cache" / vocab_bpe.NAMES[0]).read_bytes()
    monkeypatch.setattr(vocab_bpe, "URL", served(content, piece=1 << 16, pause=0.0))
    assert tokenizer_named("gpt2").encode("Hello world") == [15496, 995]
    assert (nothing_on_disk / "cache" / "vocab.bpe").read_bytes() == content
    assert tokenizer_named("gpt2").encode("Hello world") == [15496, 995]  # the server answers only once


def test_something_else_at_the_address_is_refused(loopback, nothing_on_disk, monkeypatch):
    monkeypatch.setattr(vocab_bpe, "URL", served(b"<html>sign in to this network</html>", piece=100, pause=0.0))
    with pytest.raises(TokenizerError, match="answered with something else"):
        tokenizer_named("gpt2")
    assert not (nothing_on_disk / "cache").exists()
