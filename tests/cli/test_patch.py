"""`interp-gpt2 patch`: it prints and writes what the library finds, refuses in one line, and keeps what Ctrl-C leaves it."""

import csv
import shutil
from pathlib import Path
from typing import get_args

import pytest
import torch

from interp_gpt2 import cli
from interp_gpt2.causal import activation_patching, chunks, engine
from interp_gpt2.cli import patch as command
from interp_gpt2.model import GPT2
from interp_gpt2.prompts.pairs import PromptPairs

CLEAN, CORRUPTED = "ABCDEABC", "APBDEABC"
WORDS = [CLEAN, CORRUPTED, "--answer", "D", "--wrong", "E"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


def printed(capsys, *words: object) -> str:
    assert cli.main(["patch", *map(str, words)]) == 0
    return capsys.readouterr().out


def refused(capsys, *words: object) -> list[str]:
    """What stands on stderr, of which the last line is the refusal."""
    assert cli.main(["patch", *map(str, words)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert not Path("patching").exists()
    assert err.splitlines()[-1].startswith("interp-gpt2: ")
    return err.splitlines()


def rows_of(path: str) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def pairs(markov_run) -> PromptPairs:
    return PromptPairs.from_text(markov_run.tokenizer(), CLEAN, CORRUPTED, "D", "E")


def test_it_prints_and_writes_what_the_library_finds(capsys, markov_run, pairs):
    text = printed(capsys, *WORDS, "--model", markov_run.path)
    found = activation_patching.get_act_patch_resid_pre(markov_run.model(), pairs)
    lines = text.splitlines()
    assert lines[0] == "chains, step 9: resid_pre, denoising (clean pieces into the corrupted run)"
    assert lines[1] == f"logit difference: {found.clean[0]:.3g} clean, {found.corrupted[0]:.3g} corrupted"
    for layer in (0, 1):
        (line,) = [line.split() for line in lines if line.split()[:1] == [str(layer)] and len(line.split()) == 9]
        for pos, cell in enumerate(line[1:]):
            expected = "-" if found.skipped[layer, pos, 0] else f"{found.normalised[layer, pos]:.2f}".replace("-0.00", "0.00")
            assert cell == expected
    assert [line.split()[0] for line in lines if len(line.split()) == 9][-2:] == ["1", "0"]  # the last layer above
    best = found.top(1).iloc[0]
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("furthest from the corrupted run")) + 3]
    assert table.split() == [best["layer"], *best["pos"].split(), f"{best['normalised']:.3f}", f"{best['value']:.4g}"]
    rows = rows_of("patching/resid_pre-denoising.csv")
    assert [float(row["normalised"]) for row in rows] == pytest.approx(found.normalised.flatten().tolist())
    assert {row["pos"] for row in rows} == {f"{i} {letter}" for i, letter in enumerate(CLEAN)}
    assert Path("patching/resid_pre-denoising.svg").read_text().startswith("<?xml")
    assert 'data-view="patching"' in Path("patching/resid_pre-denoising.html").read_text()


def test_the_first_choices_after_both_prompts_are_the_models(capsys, markov_run, pairs):
    text = printed(capsys, *WORDS, "--model", markov_run.path)
    (line,) = [line for line in text.splitlines() if line.startswith("next token: ")]
    labels = markov_run.tokenizer().labels
    for name, tokens, said in zip(("clean", "corrupted"), (pairs.clean, pairs.corrupted), line[12:].split("; "), strict=True):
        probabilities = markov_run.model()(tokens)[0, -1].detach().softmax(-1)
        assert said.startswith(f"{name} {labels[int(probabilities.argmax())]} {float(probabilities.max()):.2f}")
        assert f" E {float(probabilities[labels.index('E')]):.2f}" in said


def test_a_sweep_a_direction_a_metric_a_step_and_a_format_of_ones_own(capsys, markov_run, pairs):
    words = ["--model", markov_run.path, "--step", 3, "--sweep", "attn_head_out_by_pos", "--direction", "noising"]
    text = printed(capsys, *WORDS, *words, "--metric", "probability", "--figure", "png", "--out", "there", "--top", "3")
    found = activation_patching.get_act_patch_attn_head_out_by_pos(markov_run.model(3), pairs, "probability", "noising")
    rows = rows_of("there/attn_head_out_by_pos-noising.csv")
    assert [float(row["value"]) for row in rows] == pytest.approx(found.mean.flatten().tolist())
    assert Path("there/attn_head_out_by_pos-noising.png").read_bytes().startswith(b"\x89PNG")
    assert "chains, step 3: z, noising" in text
    listed = text.partition("furthest from the clean run")[2].partition("cells have nothing")[0].splitlines()
    assert len([line for line in listed if " H" in line]) == 3


def test_without_a_wrong_answer_the_metric_is_the_log_probability(capsys, markov_run):
    words = [CLEAN, CORRUPTED, "--answer", "D", "--model", markov_run.path]
    assert "\nlog probability: " in printed(capsys, *words)
    said = "a logit difference needs --wrong"
    shutil.rmtree("patching")
    assert said in refused(capsys, *words, "--metric", "logit_difference")[-1]


def test_a_table_that_does_not_fit_says_so(capsys, markov_run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    text = printed(capsys, *WORDS, "--model", markov_run.path)
    assert "(the table of 2 by 8 needs " in text
    assert "columns of the terminal's 40; see the figure)" in text


def test_four_axes_give_a_table_and_no_picture(capsys, markov_run):
    text = printed(capsys, *WORDS, "--model", markov_run.path, "--sweep", "attn_head_pattern_dest_src_pos")
    assert text.splitlines()[-1] == "wrote patching/attn_head_pattern_dest_src_pos-denoising.csv"
    assert [path.suffix for path in Path("patching").iterdir()] == [".csv"]


def test_every_sweep_of_the_library_has_its_name_here():
    of_library = {name.removeprefix("get_act_patch_") for name in vars(activation_patching) if name.startswith("get_act")}
    assert of_library == set(get_args(command.SweepName))


def test_a_published_size_is_asked_for_by_its_name(capsys, markov_run, monkeypatch):
    asked = []
    monkeypatch.setattr(GPT2, "from_pretrained", lambda name: asked.append(name) or markov_run.model())
    monkeypatch.setattr("interp_gpt2.tokenizers.tokenizer_named", lambda name: asked.append(name) or markov_run.tokenizer())
    assert printed(capsys, *WORDS).startswith("gpt2: resid_pre")
    assert asked == ["gpt2", "gpt2"]
    shutil.copytree(markov_run.path, Path("checkpoints") / "gpt2", ignore=shutil.ignore_patterns("sweeps"))
    assert printed(capsys, *WORDS).startswith("gpt2, step 9")  # a run of that name comes first


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([CLEAN, CORRUPTED, "--answer", "DE"], "DE is 2 tokens, D E"),
        ([CLEAN, CORRUPTED, "--answer", "D", "--wrong", "AB"], "AB is 2 tokens, A B"),
        ([CLEAN, CLEAN, "--answer", "D"], "the same tokens"),
        ([CLEAN, "", "--answer", "D"], "the corrupted prompt is empty"),
        ([CLEAN, "ABCxEABC", "--answer", "D"], "the corrupted prompt: cannot encode 'x' (U+0078) at character 3"),
        ([CLEAN, CORRUPTED], "--answer is missing"),
        ([*WORDS, "--sweep", "reisd_pre"], "--sweep takes resid_pre, resid_mid,"),
        ([*WORDS, "--direction", "up"], "--direction takes denoising, noising, not 'up'"),
        ([*WORDS, "--top", "0"], "--top must be at least 1"),
        ([*WORDS, "--bos"], "leave out --bos"),
        ([*WORDS, "--step", "12"], "the nearest is 9"),
        ([CLEAN, CORRUPTED, "--answer", "D", "--wrong", "D"], "both a correct and an incorrect answer"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(words, says, capsys, markov_run):
    (line,) = refused(capsys, *words, "--model", markov_run.path)
    assert says in line


def test_prompts_of_different_length_are_shown_over_each_other(capsys, markov_run):
    *shown, line = refused(capsys, "ABCDE", "ABDE", "--answer", "D", "--model", markov_run.path)
    assert shown == ["clean      A  B  C  D  E", "corrupted  A  B  —  D  E", "                 ^"]
    assert "the clean prompt has 5 tokens and the corrupted one 4; they first differ at position 2" in line


def test_runs_that_the_metric_cannot_tell_apart_are_refused(capsys, markov_run):
    model, tokenizer = markov_run.model(), markov_run.tokenizer()
    ranks = [model(torch.tensor([tokenizer.encode(text)]))[0, -1].argsort(descending=True) for text in (CLEAN, CORRUPTED)]
    (same, *_) = (ranks[0] == ranks[1]).nonzero()[:, 0].tolist()
    answer = tokenizer.decode([int(ranks[0][same])])
    (line,) = refused(capsys, CLEAN, CORRUPTED, "--answer", answer, "--metric", "rank", "--model", markov_run.path)
    assert f"the rank is {same} on the clean prompts and {same} on the corrupted ones: there is nothing to normalise by" in line


# Ctrl-C ---------------------------------------------------------------------------------------------------------------


def interrupted_after(monkeypatch, n_batches: int) -> None:
    """Batches of one cell each, and Ctrl-C in the one after these."""
    run, left = engine._Sweep.run, iter(range(n_batches))

    def once_more(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return run(*arguments)

    monkeypatch.setattr(chunks, "ROWS_ON_CPU", 1)
    monkeypatch.setattr(engine._Sweep, "run", once_more)


def test_ctrl_c_keeps_the_finished_cells(capsys, markov_run, monkeypatch):
    words = ["patch", *WORDS, "--model", str(markov_run.path), "--sweep", "attn_head_out_all_pos"]
    assert cli.main(words) == 0
    whole = rows_of("patching/attn_head_out_all_pos-denoising.csv")
    interrupted_after(monkeypatch, 2)
    capsys.readouterr()
    assert cli.main(words) == 130
    out, err = capsys.readouterr()
    assert err == "interp-gpt2: interrupted: 2 of 4 cells are not done\n"
    rows = rows_of("patching/attn_head_out_all_pos-denoising.csv")
    done = [row for row in rows if row["normalised"]]
    assert len(done) == 2
    assert all(row in whole for row in done)
    assert out.count("×") == 2
    assert out.splitlines()[-1].startswith("wrote ")


def test_ctrl_c_ends_all_sweeps_of_several(capsys, markov_run, monkeypatch):
    interrupted_after(monkeypatch, 5)  # the four cells of "out", and one of "q"
    words = ["patch", *WORDS, "--model", str(markov_run.path), "--sweep", "attn_head_all_pos_every"]
    assert cli.main(words) == 130
    rows = rows_of("patching/attn_head_all_pos_every-denoising.csv")
    assert [row["type"] for row in rows if row["normalised"]] == ["out"] * 4 + ["q"]
    assert "15 of 20 cells are not done" in capsys.readouterr().err


def test_ctrl_c_before_any_cell_writes_nothing(capsys, markov_run, monkeypatch):
    interrupted_after(monkeypatch, 0)
    words = ["patch", *WORDS, "--model", str(markov_run.path), "--sweep", "attn_head_out_all_pos"]
    assert cli.main(words) == 130
    assert capsys.readouterr() == ("", "interp-gpt2: interrupted: 4 of 4 cells are not done\n")
    assert not Path("patching").exists()
