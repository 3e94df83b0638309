"""Documents out of a Hugging Face dataset, streamed: nothing is kept on disk but the tokens."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp_gpt2.data.formats import text_of
from interp_gpt2.data.reading import Chunk, Cursor, Validation
from interp_gpt2.errors import DataError

if TYPE_CHECKING:
    from datasets import IterableDataset

N_HELD_OUT = 2000  # documents: enough to tell losses apart by a hundredth, few enough to be read at every evaluation
ROWS_AT_ONCE = 1000
ANSWER_WITHIN_S = 10.0


@dataclass(frozen=True)
class HubReader:
    """The documents of a dataset's training split, at one revision.

    Where it has a validation split, its first documents are held out, otherwise the training split's own first ones.
    Raises DataError, naming files that would serve, if the dataset cannot be reached.
    """

    dataset: str  # owner/name, or a folder laid out like one
    config: str | None
    column: str
    revision: str | None
    splits: tuple[str, ...]
    chosen: Validation | None = None
    n_bytes: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.dataset if self.config is None else f"{self.dataset} {self.config}"

    @property
    def _published(self) -> bool:
        return "validation" in self.splits and not (self.chosen and self.chosen.share)

    @property
    def validation(self) -> Validation:
        return self.chosen or Validation(first=N_HELD_OUT)

    @property
    def how_held_out(self) -> str:
        if self._published:
            return f"the first {self.validation.first:,} documents of the published validation split"
        if self.validation.first:
            return f"the first {self.validation.first:,} documents"
        return f"{self.validation.share:.3g} of the documents, by the hash of their text"

    def identity(self) -> dict[str, Any]:
        return {"dataset": self.dataset, "config": self.config, "column": self.column, "revision": self.revision}

    def chunks(self, cursor: Cursor | None) -> Iterator[Chunk]:
        at = cursor or {"split": "validation" if self._published else "train", "document": 0}
        if at["split"] == "validation":
            yield from self._held_out()
            at = {"split": "train", "document": 0}
        rows, first = self._split("train"), at["document"]
        if "state" in at:
            rows.load_state_dict(at["state"])
        with _reachable(self.dataset):
            for batch in rows.iter(ROWS_AT_ONCE):
                texts = self._texts(batch, first)
                after = {"split": "train", "document": first + len(texts), "state": rows.state_dict()}
                yield Chunk(texts, after, first, False if self._published else None)
                first += len(texts)

    def _held_out(self) -> Iterator[Chunk]:
        """The published validation documents, in one chunk, so that no cursor stands among them."""
        with _reachable(self.dataset):
            rows = self._split("validation").take(self.validation.first)
            texts = tuple(text for batch in rows.iter(ROWS_AT_ONCE) for text in self._texts(batch, 0))
        yield Chunk(texts, {"split": "train", "document": 0}, 0, True)

    def _texts(self, batch: dict[str, list[Any]], first: int) -> tuple[str, ...]:
        return tuple(text_of(text, f"{self.name}: document {first + i}") for i, text in enumerate(batch[self.column]))

    def _split(self, split: str) -> "IterableDataset":
        import datasets

        with _reachable(self.dataset):
            rows = datasets.load_dataset(self.dataset, self.config, split=split, revision=self.revision, streaming=True)
        if rows.column_names is not None and self.column not in rows.column_names:
            raise DataError(f"{self.name} has no column {self.column!r}; it has {', '.join(rows.column_names)}")
        return rows.select_columns([self.column])


def hub_reader(dataset: str, config: str | None = None, column: str = "text", validation: Validation | None = None) -> HubReader:
    """The reader of a dataset as it is now: its revision is looked up once, and read from then on.

    Raises DataError within seconds where there is no network.
    """
    import datasets

    with _reachable(dataset):
        revision = None if Path(dataset).is_dir() else _revision(dataset)
        splits = tuple(datasets.get_dataset_split_names(dataset, config, revision=revision))
    if "train" not in splits:
        raise DataError(f"{dataset} has no training split; it has {', '.join(splits)}")
    return HubReader(dataset, config, column, revision, splits, validation)


def _revision(dataset: str) -> str:
    from huggingface_hub import HfApi

    found = HfApi().dataset_info(dataset, timeout=ANSWER_WITHIN_S)  # without a network, datasets would try again for 25 s
    assert found.sha is not None
    return found.sha


@contextmanager
def _reachable(dataset: str) -> Iterator[None]:
    """Turns what the network, the Hub and datasets say into one DataError."""
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except (OSError, HTTPError) as error:
        raise DataError(
            f"{dataset} could not be read from the Hugging Face Hub ({type(error).__name__}: {str(error)[:200]}); the same "
            "command goes on where it stopped once it can be, or give a text, JSONL or Parquet file of it in its place"
        ) from error
    except ValueError as error:  # how datasets refuses a configuration
        if isinstance(error, DataError):
            raise
        raise DataError(f"{dataset} could not be opened: {str(error)[:300]}") from error
