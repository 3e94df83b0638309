"""`interp-gpt2 data prepare`, and training on what it made."""

import json
import re
from pathlib import Path

import pytest

from interp_gpt2 import cli
from interp_gpt2.data.source import load_source
from interp_gpt2.runs.run import Run


@pytest.fixture(autouse=True)
def in_a_folder_with_texts(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("INTERP_GPT2_DATA", raising=False)
    rows = ({"body": f"Tale {i}: a {'very ' * (i % 9)}small cat."} for i in range(600))
    Path("tales.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = cli.main(list(words))
    return code, *capsys.readouterr()


PREPARE = ("data", "prepare", "tales.jsonl", "--column", "body", "--tokenizer", "byte")


def test_preparing_says_what_it_made_and_what_to_do_next(capsys):
    code, out, err = run(capsys, *PREPARE, "--validation", "60", "--threads", "1")
    assert code == 0
    source = load_source("data/tales-byte", "byte")
    lines = out.splitlines()
    counts = f"{len(source.train):,} training and {len(source.held_out):,} validation tokens, 600 documents"
    assert lines == [
        f"data/tales-byte: {counts}",
        "held out: the first 60 documents",
        "next: interp-gpt2 train --data data/tales-byte",
    ]
    assert re.search(r"[\d,]+ tokens, 600 documents, [\d,]+ tok/s\n$", err)
    assert run(capsys, *PREPARE, "--validation", "60") == (0, out, "")


def test_training_reads_a_prepared_directory_with_its_own_tokenizer(capsys):
    run(capsys, *PREPARE, "--max-tokens", "9000", "--out", "tales")
    shape = [
        "--n-layers",
        "1",
        "--n-heads",
        "1",
        "--d-model",
        "8",
        "--n-ctx",
        "32",
        "--steps",
        "2",
        "--batch-size",
        "2",
        "--device",
        "cpu",
    ]
    code, _, err = run(capsys, "train", "--data", "tales", *shape)
    assert code == 0, err
    trained = Run(Path("checkpoints/tales"))
    assert trained.settings["config"]["tokenizer"] == "byte"
    assert trained.source().fingerprint() == load_source("tales", "byte").fingerprint()
    code, _, err = run(capsys, "train", "--data", "tales", "--tokenizer", "char", "--out", "other", *shape)
    assert (code, "prepared with the tokenizer byte, not char" in err) == (2, True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["data"], "is missing"),
        (["data", "delete", "x"], "prepare"),
        (["data", "prepare"], "is missing"),
        (["data", "prepare", "nowhere.txt"], "no file or folder at 'nowhere.txt'"),
        (["data", "prepare", "tales.jsonl", "--tokenizer", "byte"], "no text under 'text' (it has body)"),
        ([*PREPARE, "--validation", "5%"], "'5%' is neither a share"),
        ([*PREPARE, "--max-tokens", "0"], "max_tokens=0 must be at least 1"),
        ([*PREPARE[:-1], "word"], "no tokenizer is called 'word'"),
        ([*PREPARE[:-1], "bpe:40000"], "ask for bpe:"),
    ],
)
def test_mistakes_are_told_in_one_line(capsys, words, says):
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1
