"""What training and reports read from: a source gives batches, a fixed validation split, and reference losses on it."""

import os
import string
from dataclasses import replace
from pathlib import Path

from interp_gpt2.data.corpora import Corpus, load_corpus, split
from interp_gpt2.data.prepared import is_prepared
from interp_gpt2.data.protocol import Reference, Source
from interp_gpt2.data.sampling import RANDOM, Sampling
from interp_gpt2.data.synthetic_sources import MarkovSource, RepeatedSource
from interp_gpt2.data.text_source import TextSource, open_source, prepared_source, tokenized
from interp_gpt2.errors import DataError
from interp_gpt2.files import user_cache_dir
from interp_gpt2.tokenizers import CharTokenizer, Tokenizer, tokenizer_for, tokenizer_named

__all__ = [
    "NAMED_SOURCES", "PREPARED", "MarkovSource", "Reference", "RepeatedSource", "Sampling", "Source", "TextSource",
    "find_prepared", "load_source", "open_source", "prepared_place", "text_in_tokens_of", "tokenized",
]  # fmt: skip

PREPARED = ("tinystories", "fineweb-edu")  # too large to be tokenized on the way: looked for as `data prepare` leaves them
NAMED_SOURCES = ("python-docs", "tiny-shakespeare", "markov", "repeated-random", *PREPARED)  # anything else is a path


def load_source(data: str, tokenizer: str = "char", directory: Path | str | None = None, sampling: Sampling = RANDOM) -> Source:
    """The source called "python-docs", "tiny-shakespeare", "markov" or "repeated-random", or of the text file or folder `data`.

    A name of PREPARED, or the path of a directory that `data.preparing.prepare` made, is read as it was prepared, with the
    `tokenizer` that it was prepared with. Otherwise `tokenizer` is byte, char (made from all of the text, held-out part
    included), gpt2, or bpe:4096 and the like (trained on the training part). A text is tokenized into `directory`, by default
    a folder of `user_cache_dir()`, and streams found there are reused if they verify and are of this very text. `sampling`
    says which windows of a text make up a batch. Raises DataError or TokenizerError.
    """
    if data == "markov":
        if tokenizer != "char":
            raise DataError(
                f"markov chains have a character for each state; leave the tokenizer at char instead of {tokenizer!r}"
            )
        return _drawn(MarkovSource(), sampling)
    if data == "repeated-random":
        alphabet = CharTokenizer(string.ascii_letters + string.digits + "+-")
        return _drawn(RepeatedSource(alphabet if tokenizer == "char" else tokenizer_named(tokenizer)), sampling)
    if data in PREPARED or is_prepared(Path(data).expanduser()):
        found = find_prepared(data, tokenizer) if data in PREPARED else Path(data).expanduser()
        return replace(prepared_source(found, tokenizer), sampling=sampling)
    corpus = load_corpus(data)
    chosen = tokenizer_for(tokenizer, [corpus.text], (document.text for document in split(corpus).train))
    return replace(_tokenized_once(corpus, chosen, directory), sampling=sampling)


def text_in_tokens_of(data: str, tokenizer: Tokenizer) -> TextSource:
    """A text to measure a model on that was not trained on it: `data` as in `load_source`, in the model's own tokens.

    Raises DataError for data that is no text, TokenizerError for text that the tokenizer cannot encode.
    """
    if data in ("markov", "repeated-random", *PREPARED) or is_prepared(Path(data).expanduser()):
        raise DataError(f"{data!r} has tokens of its own; give a text file, a folder of them, python-docs or tiny-shakespeare")
    return _tokenized_once(load_corpus(data), tokenizer, None)


def _tokenized_once(corpus: Corpus, tokenizer: Tokenizer, directory: Path | str | None) -> TextSource:
    default = user_cache_dir() / "streams" / f"{corpus.sha256[:12]}-{tokenizer.sha256[:12]}"
    return tokenized(corpus, tokenizer, Path(directory or default))


def prepared_place(name: str, tokenizer: str) -> Path:
    """Where a corpus is prepared unless told otherwise, in the current directory: data/tinystories-gpt2, for instance."""
    return Path("data") / f"{name}-{tokenizer.replace(':', '-')}"


def find_prepared(name: str, tokenizer: str) -> Path:
    """The directory in which the corpus of that name was prepared, in ./data or $INTERP_GPT2_DATA.

    Raises DataError with the command that prepares it.
    """
    here = prepared_place(name, tokenizer)
    places = [here, *(Path(folder) / here.name for folder in filter(None, [os.environ.get("INTERP_GPT2_DATA")]))]
    for place in places:
        if is_prepared(place):
            return place
    option = "" if tokenizer == "gpt2" else f" --tokenizer {tokenizer}"
    raise DataError(
        f"{name} is not prepared for the tokenizer {tokenizer} (looked for {' and '.join(map(str, places))}); run: "
        f"interp-gpt2 data prepare {name}{option}"
    )


def _drawn(source: Source, sampling: Sampling) -> Source:
    if sampling != RANDOM:
        raise DataError(f"{source.name} draws every sequence anew and has no documents; leave sampling at random windows")
    return source
