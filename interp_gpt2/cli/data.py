"""`interp-gpt2 data`: corpora as tokens on disk."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from interp_gpt2.cli.parse import option

if TYPE_CHECKING:
    from interp_gpt2.data.preparing import Progress
    from interp_gpt2.data.reading import Reader

EXAMPLES = (
    "interp-gpt2 data prepare tinystories",
    "interp-gpt2 data prepare fineweb-edu --config sample-10BT --max-tokens 1000000000",
    "interp-gpt2 data prepare my-texts/ --tokenizer bpe:4096 --validation 0.05",
    "interp-gpt2 data prepare hf:owner/name --column content --out data/name",
)


@dataclass(frozen=True)
class Data:
    """Turn texts into shards of tokens that training reads with --data DIR.

    NAME is python-docs, tiny-shakespeare, tinystories or fineweb-edu; PATH a text, JSONL, JSON or Parquet file, or a folder
    of one kind; hf:OWNER/NAME any dataset of the Hugging Face Hub with a column of text. The end-of-text token stands
    between documents. Killed at any moment, the same command goes on, no document lost or doubled.
    """

    action: Annotated[tyro.conf.Positional[Literal["prepare"]], option("prepare")]
    """The one thing it does."""
    data: Annotated[tyro.conf.Positional[str], option("NAME|PATH|hf:DATASET")]
    """What to read."""
    out: Annotated[Path | None, option("DIR")] = None
    """Where to; data/NAME-TOKENIZER unless given, where recipes look for it."""
    tokenizer: Annotated[str, option("KIND")] = "gpt2"
    """gpt2, byte, char, or bpe:4096 to train one of 4,096 tokens."""
    max_tokens: Annotated[int | None, option("N")] = None
    """Stop at the document with which the training part has them."""
    validation: Annotated[str | None, option("SHARE|N")] = None
    """Hold out a share of the documents, such as 0.01, or the first N."""
    config: Annotated[str | None, option("CONFIG")] = None
    """Of a Hub dataset that has several."""
    column: Annotated[str, option("COLUMN")] = "text"
    """Where JSON, Parquet and Hub datasets have their text."""
    threads: Annotated[int | None, option("N")] = None
    """Threads that tokenize; one for each core unless given."""

    def run(self) -> None:
        from interp_gpt2.data.preparing import Preparation, prepare

        how = Preparation(self.tokenizer, self.max_tokens, self.threads)
        reader, out = self.reader(), self.directory()
        for note in reader.notes:
            print(f"note: {note}", file=sys.stderr)
        with _Shown(self.max_tokens) as shown:
            record = prepare(reader, out, how, shown)
        print(
            f"{out}: {record.n_train_tokens:,} training and {record.n_validation_tokens:,} validation tokens, "
            f"{record.n_documents:,} documents"
        )
        print(f"held out: {record.held_out}")
        print(f"next: interp-gpt2 train --data {out}")

    def reader(self) -> "Reader":
        from interp_gpt2.data.naming import reader_for
        from interp_gpt2.data.reading import Validation

        validation = None if self.validation is None else Validation.parse(self.validation)
        return reader_for(self.data, self.config, self.column, validation)

    def directory(self) -> Path:
        """Where the shards go unless --out says: named after the data and the tokenizer."""
        from interp_gpt2.data.source import prepared_place

        name = self.data.removeprefix("hf:") if self.data.startswith("hf:") else Path(self.data).resolve().stem
        return self.out or prepared_place(name.replace("/", "-"), self.tokenizer)


class _Shown:
    """Progress on stderr: one line that is written over in a terminal, else a line every ten seconds."""

    def __init__(self, max_tokens: int | None) -> None:
        self.of = f" of {max_tokens:,}" if max_tokens else ""
        self.live = sys.stderr.isatty()
        self.shown = time.monotonic()
        self.line = ""

    def __enter__(self) -> "_Shown":
        return self

    def __call__(self, progress: "Progress") -> None:
        self.line = (
            f"{progress.n_tokens:,}{self.of} tokens, {progress.n_documents:,} documents, {progress.tokens_per_s:,.0f} tok/s"
        )
        if self.live:
            print(f"\r\x1b[K{self.line}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self.shown > 10:
            self.shown = time.monotonic()
            print(self.line, file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self.line:
            print("\r\x1b[K" * self.live + self.line, file=sys.stderr, flush=True)
