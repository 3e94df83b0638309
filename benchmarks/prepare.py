"""Preparing data beside nanoGPT's way, on the same documents and cores, in turns, in one run.

    python benchmarks/prepare.py                       a table
    python benchmarks/prepare.py --json out.json       every number

Ours is `interp_gpt2.data.preparing.prepare` from a Parquet file. nanoGPT's way is written after its public description
(data/openwebtext/prepare.py): `datasets.map` over `num_proc` processes, which call tiktoken's encode_ordinary and append the
end-of-text token to each document's list, then the lists joined batch by batch into a memory-mapped file of uint16. It is
given the documents already loaded, which we read from disk, and so many batches that each has as many documents as one of
its 1,024 has of OpenWebText; its own number is timed too, for it costs more on a small corpus. Imports are not timed;
that both wrote the same tokens is checked. On a busy machine --cpu-time counts processor time.

Documents are those of $INTERP_GPT2_DATA (stories of TinyStories, pages of FineWeb-Edu) or of Python's own documentation,
said again until they fill --megabytes; nothing here remembers a text that it has seen.
"""

import argparse
import json
import os
import platform
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter

os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet

from interp_gpt2.data.corpora import python_docs
from interp_gpt2.data.prepared import open_prepared
from interp_gpt2.data.preparing import Preparation, prepare
from interp_gpt2.data.reading import Validation, file_reader
from interp_gpt2.tokenizers import GPT2Tokenizer

NANOGPT_BATCHES, OPENWEBTEXT_DOCUMENTS = 1024, 8_013_769
ENCODING = GPT2Tokenizer()._encoding  # tiktoken's, as nanoGPT calls it; forked processes have it from here
TARGET = 1.5  # ours divided by theirs, in tokens per second


def corpora() -> dict[str, list[str]]:
    """Documents by the name of where they are from."""
    folder = Path(os.environ.get("INTERP_GPT2_DATA", Path(__file__).parents[2] / "shared" / "data"))
    stories = folder / "tinystories" / "decoding-gpt_tinystories_10k.txt"
    pages = folder / "fineweb_edu" / "fineweb_edu_sample.jsonl"
    found = {}
    if stories.is_file():
        found["TinyStories"] = [text.strip("\n") for text in stories.read_text("utf-8").split("<|endoftext|>") if text.strip()]
    if pages.is_file():
        found["FineWeb-Edu"] = [json.loads(line)["text"] for line in pages.read_text("utf-8").splitlines()]
    return found or {"python-docs": [document.text for document in python_docs().documents]}


def ours(parquet: Path, n_workers: int, directory: Path) -> Path:
    """Our way; returns the prepared directory."""
    prepare(file_reader(parquet, validation=Validation(first=1)), directory, Preparation(n_threads=n_workers))
    return directory


def nanogpt_way(documents: datasets.Dataset, n_workers: int, directory: Path, n_batches: int) -> Path:
    """nanoGPT's way; returns the file of tokens."""
    tokenized = documents.map(_process, remove_columns=["text"], num_proc=n_workers, load_from_cache_file=False)
    n_tokens = np.sum(tokenized["len"], dtype=np.uint64)
    path = directory / "train.bin"
    written = np.memmap(path, dtype=np.uint16, mode="w+", shape=(int(n_tokens),))
    filled = 0
    for batch in range(n_batches):
        rows = tokenized.shard(num_shards=n_batches, index=batch, contiguous=True).with_format("numpy")
        tokens = np.concatenate(rows["ids"])
        written[filled : filled + len(tokens)] = tokens
        filled += len(tokens)
    written.flush()
    return path


def _process(example: dict[str, str]) -> dict[str, object]:
    tokens = ENCODING.encode_ordinary(example["text"])
    tokens.append(GPT2Tokenizer.eos_token_id)
    return {"ids": tokens, "len": len(tokens)}


def measure(name: str, texts: list[str], options: argparse.Namespace) -> dict[str, object]:
    """Seconds of each way, in turns, and what follows from their medians."""
    clock = processor_seconds if options.cpu_time else perf_counter
    size = sum(len(text.encode()) for text in texts)
    texts = texts * max(1, round(options.megabytes * 1e6 / size))
    n_batches = max(1, round(len(texts) * NANOGPT_BATCHES / OPENWEBTEXT_DOCUMENTS))
    took: dict[str, list[float]] = {"ours": [], "nanoGPT": [], "nanoGPT, 1,024 batches": []}
    with tempfile.TemporaryDirectory() as folder:
        parquet = Path(folder) / "documents.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), parquet, row_group_size=1000)
        documents = datasets.load_dataset("parquet", data_files=str(parquet), split="train", cache_dir=folder)
        for turn in range(options.rounds):
            ways = {
                "ours": lambda to: ours(parquet, options.workers, to),
                "nanoGPT": lambda to: nanogpt_way(documents, options.workers, to, n_batches),
            }
            if turn == 0:
                ways["nanoGPT, 1,024 batches"] = lambda to: nanogpt_way(
                    documents, options.workers, to, min(len(texts), NANOGPT_BATCHES)
                )
            made = {}
            for way, run in ways.items():
                to = Path(folder) / f"{turn}-{way}"
                to.mkdir()
                began = clock()
                made[way] = run(to)
                took[way].append(clock() - began)
            n_tokens = _same(made["ours"], made["nanoGPT"])
    speeds = {way: n_tokens / median(seconds) for way, seconds in took.items()}
    ratio = speeds["ours"] / speeds["nanoGPT"]
    return {"corpus": name, "documents": len(texts), "tokens": n_tokens, "seconds": took, "tokens_per_s": speeds, "ratio": ratio}


def processor_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def _same(ours: Path, theirs: Path) -> int:
    _, train, held_out = open_prepared(ours)
    tokens = np.concatenate([held_out.head(len(held_out)), train.head(len(train))])
    if not np.array_equal(tokens, np.memmap(theirs, dtype=np.uint16, mode="r")):
        raise SystemExit("the tokens differ from nanoGPT's")
    return len(tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write every number here")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=float, default=40)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="our threads, their processes")
    parser.add_argument("--cpu-time", action="store_true", help="processor time of all threads and processes, not the clock's")
    options = parser.parse_args()
    machine = f"{os.cpu_count()} x {platform.processor() or platform.machine()}"
    facts = {"date": date.today().isoformat(), "machine": machine, "workers": options.workers, "cpu_time": options.cpu_time}
    facts |= {name: version(name) for name in ("interp_gpt2", "tiktoken", "datasets", "pyarrow")}
    results = []
    print(f"{facts['machine']}, {options.workers} threads or processes\n")
    print("| corpus | tokens | ours, tokens/s | nanoGPT's way | with 1,024 batches | ours divided by nanoGPT's | target |")
    print("|---|---|---|---|---|---|---|")
    for name, texts in corpora().items():
        result = measure(name, texts, options)
        results.append(result)
        speeds = " | ".join(f"{speed:,.0f}" for speed in result["tokens_per_s"].values())
        print(f"| {name} | {result['tokens']:,} | {speeds} | {result['ratio']:.1f} | {TARGET} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps({**facts, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
