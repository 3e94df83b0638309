"""GPT-2's merges: found on this machine, else downloaded, and never waited for in silence.

tiktoken would do both, but it waits without end for a network that does not answer, and deletes a file whose hash is
wrong. So the file is read and verified here, and tiktoken is handed its contents.
"""

import contextlib
import hashlib
import os
import queue
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from interp_gpt2.errors import TokenizerError
from interp_gpt2.files import user_cache_dir, written_atomically

URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe"
SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
# The file as tiktoken caches it (the SHA-1 of URL), as OpenAI published it, and as Hugging Face names the same bytes.
NAMES = ("6d1cbeee0f20b3d9449abfede4726ed8212e3aee", "vocab.bpe", "merges.txt")
HEADER = "#version: 0.2\n"

ANSWER_WITHIN_S = 1.5  # to be reached and answered; with imports, an unreachable network is reported within 2 s
STALLED_AFTER_S = 10.0  # between two pieces of a download that has begun: slow is allowed, dead is not


def gpt2_merges() -> list[tuple[str, str]]:
    """The 50,000 merges of GPT-2's BPE, in order of priority, in its printable alphabet of bytes.

    Looked for in $TIKTOKEN_CACHE_DIR, $DATA_GYM_CACHE_DIR, tiktoken's temporary folder and `user_cache_dir()`; a copy
    counts only if its SHA-256 is the published one, and is never changed. Otherwise downloaded and kept in
    `user_cache_dir()`. Raises TokenizerError within 2 seconds if the network does not answer either.
    """
    damaged = []
    for path in _candidates():
        with contextlib.suppress(OSError):  # absent, or not ours to read: the next place may have it
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() == SHA256:
                return parse(content.decode())
            damaged.append(path)
    try:
        content = download(URL)
        if hashlib.sha256(content).hexdigest() != SHA256:
            raise OSError(f"{URL} answered with something else")
    except OSError as error:
        state = f"{damaged[0]} is damaged (its SHA-256 is not {SHA256[:8]}...)" if damaged else "no copy is on this machine"
        raise TokenizerError(
            f"GPT-2's tokenizer needs vocab.bpe: {state}, and it could not be downloaded ({error}); set TIKTOKEN_CACHE_DIR "
            f"to a folder that holds it, as vocab.bpe or {NAMES[0]}, or use the byte or char tokenizer"
        ) from error
    with contextlib.suppress(OSError), written_atomically(user_cache_dir() / "vocab.bpe") as file:
        file.write(content)  # a home that cannot be written costs the next caller a download, nothing else
    return parse(content.decode())


def parse(text: str) -> list[tuple[str, str]]:
    """The merges written in a vocab.bpe: a version line, then one pair a line."""
    return [tuple(line.split(" ")) for line in text.split("\n")[1:-1]]


def are_gpt2s(merges: list[tuple[str, str]]) -> bool:
    """Whether these are exactly the published merges, by the SHA-256 of the file that holds them."""
    text = HEADER + "".join(f"{first} {second}\n" for first, second in merges)
    return hashlib.sha256(text.encode()).hexdigest() == SHA256


def local_copies() -> list[tuple[Path, bool]]:
    """The files on this machine where `gpt2_merges` looks, and whether each is what was published. No network."""
    copies = []
    for path in _candidates():
        with contextlib.suppress(OSError):
            copies.append((path, hashlib.sha256(path.read_bytes()).hexdigest() == SHA256))
    return copies


def _candidates() -> Iterator[Path]:
    named = [os.environ.get("TIKTOKEN_CACHE_DIR"), os.environ.get("DATA_GYM_CACHE_DIR")]
    folders = [*filter(None, named), os.path.join(tempfile.gettempdir(), "data-gym-cache"), user_cache_dir()]
    return (Path(folder) / name for folder in folders for name in NAMES)


def download(url: str, answer_within: float = ANSWER_WITHIN_S) -> bytes:
    """The bytes at `url`, if its server begins to answer within `answer_within` seconds and then never stalls.

    A look-up of a name or a half-open connection cannot be interrupted, so a daemon thread does the waiting and this
    function stops listening to it. Raises OSError, whose text says what happened.
    """
    pieces: queue.SimpleQueue[bytes | OSError | None] = queue.SimpleQueue()
    threading.Thread(target=_fetch, args=(url, pieces), daemon=True).start()
    content = bytearray()
    patience = answer_within
    try:
        while (piece := pieces.get(timeout=patience)) is not None:
            if isinstance(piece, OSError):
                raise OSError(f"the network refused: {type(piece).__name__}") from piece
            content += piece
            patience = STALLED_AFTER_S
    except queue.Empty:
        raise TimeoutError(f"no answer from the network within {patience:g} s") from None
    return bytes(content)


def _fetch(url: str, pieces: "queue.SimpleQueue[bytes | OSError | None]") -> None:
    import requests

    try:
        with requests.get(url, stream=True, timeout=STALLED_AFTER_S) as response:
            response.raise_for_status()
            pieces.put(b"")  # it has answered: from here on a slow line is given its time
            for piece in response.iter_content(1024):
                pieces.put(piece)
        pieces.put(None)
    except OSError as error:  # every error of requests is one
        pieces.put(error)
