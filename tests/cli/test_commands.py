"""The commands, as a user runs them: what they print is what the library computes."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from interp_gpt2 import cli
from interp_gpt2.analysis.attention_patterns import head_scores
from interp_gpt2.analysis.logit_lens import logit_lens
from interp_gpt2.analysis.sequences import HEAD_SEQUENCES, held_out
from interp_gpt2.cli import demo
from interp_gpt2.cli.command_line import COMMANDS
from interp_gpt2.cli.parse import parse
from interp_gpt2.errors import InterpGPT2Error
from interp_gpt2.generation import generate
from interp_gpt2.model import GPT2
from interp_gpt2.report.from_json import report_from_json
from interp_gpt2.report.subject import SECTIONS
from interp_gpt2.runs.manifest import read_manifest
from interp_gpt2.runs.run import Run
from interp_gpt2.sweeps import load_rows
from interp_gpt2.training.config import load_recipe

ROOT = Path(cli.__file__).parents[2]
HEAVY = {"torch", "numpy", "pandas", "transformers", "matplotlib", "sklearn", "datasets", "transformer_lens", "jinja2"}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def printed(capsys, *words: object) -> str:
    assert cli.main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def table(text: str) -> dict[str, list[str]]:
    """The lines of an aligned table by their first word."""
    return {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}


def as_process(*words: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment)


# Help -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_that_the_command_understands(command, capsys):
    text = printed(capsys, command, "--help")
    assert text.startswith(f"usage: interp-gpt2 {command}")
    assert f"\n  interp-gpt2 {command}" in text.partition("example")[2]
    assert "╭" not in text
    prose = text.partition("\nexample")[0]
    assert max(map(len, prose.splitlines())) <= 80


def test_every_command_is_in_the_overview(capsys):
    text = printed(capsys)
    assert text == printed(capsys, "--help")
    assert all(f"\n  {name:<9} {does}\n" in text for name, does in COMMANDS.items())
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_takes_less_than_half_a_second(command):
    words = ["--help"] if command is None else [command, "--help"]
    took = []
    for _ in range(3):  # processor time, of the quickest: other tests run beside this one
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = as_process("-m", "interp_gpt2", *words)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.returncode == 0
        if took[-1] < 0.5:
            return
    pytest.fail(f"--help took {min(took):.2f} s of processor time")


def test_help_and_usage_errors_import_nothing_heavy():
    calls = "; ".join(f"cli.main([{name!r}, '--help']); cli.main([{name!r}, '--xyzzy'])" for name in COMMANDS)
    code = f"import sys; from interp_gpt2 import cli; {calls}; print(sorted(set(sys.modules) & {HEAVY!r}), file=sys.stderr)"
    assert as_process("-c", code).stderr.splitlines()[-1] == "[]"


# Looking ----------------------------------------------------------------------------------------------------------------


def test_heads_prints_the_scores_beside_the_uniform_heads(capsys, markov_run):
    rows = table(printed(capsys, "heads", markov_run.path))
    scores = head_scores(markov_run.model(), held_out(markov_run.source(), 16, HEAD_SEQUENCES).inputs)
    for place, metric in enumerate(("previous_token", "duplicate_token", "induction", "first_token", "entropy")):
        score = scores[metric]
        assert rows["uniform"][place] == f"{score.uniform:.3f}"
        assert rows["best"][place] == score.best[0]
        for label in ("L0H0", "L0H1", "L1H0", "L1H1"):
            assert rows[label][place] == f"{score.value[int(label[1]), int(label[3])]:.3f}"


def test_heads_of_all_steps_go_to_a_table(capsys, markov_run, tmp_path):
    text = printed(capsys, "heads", markov_run.path, "--all", "--csv", "heads.csv")
    assert "induction: no phase change" in text
    assert text.splitlines()[-1] == "wrote heads.csv"
    frame = load_rows(tmp_path / "heads.csv")
    assert list(frame.step.unique()) == markov_run.steps
    last = frame[(frame.step == 9) & (frame.metric == "induction")]
    best = last.loc[last.value.idxmax()]
    assert f"{best.value:.3f} {best.label}" in next(line for line in text.splitlines() if line.startswith("9 "))
    once = printed(capsys, "heads", markov_run.path, "--step", "4", "--csv", "step4.csv")
    assert "step 4" in once
    assert set(load_rows(tmp_path / "step4.csv").step) == {4}


def test_a_checkpoint_and_a_name_are_other_ways_to_say_a_run(capsys, markov_run, tmp_path):
    shutil.copytree(markov_run.path, tmp_path / "checkpoints" / "chains")
    wanted = printed(capsys, "heads", markov_run.path, "--step", "4")
    assert printed(capsys, "heads", markov_run.checkpoint(4)) == wanted
    assert printed(capsys, "heads", "chains", "--step", "4") == wanted
    assert printed(capsys, "heads", "chains/step-00000004") == wanted


def test_lens_prints_the_layers_from_the_last_to_the_embedding(capsys, markov_run):
    text = printed(capsys, "lens", markov_run.path, "ABCABC", "--target", "D")
    tokenizer, model = markov_run.tokenizer(), markov_run.model()
    tokens = torch.tensor([tokenizer.encode("ABCABC")])
    lens = logit_lens(model, tokens, torch.full_like(tokens, tokenizer.encode("D")[0]))
    lines = text.splitlines()
    assert lines[2].split() == list("ABCABC")
    for line, layer in zip(lines[3:6], (2, 1, 0), strict=True):
        assert line.split() == [lens.labels[layer], *(tokenizer.labels[token] for token in lens.top_tokens[layer, 0, :, 0])]
    for line, layer in zip(lines[-3:], (2, 1, 0), strict=True):
        rank, probability, kl, entropy = line.split()[1:5]
        assert int(rank) == lens.target_rank[layer, 0, -1]
        assert probability == f"{float(lens.target_probability[layer, 0, -1]):.3f}"
        assert (kl, entropy) == (f"{float(lens.kl[layer, 0, -1]):.2f}", f"{float(lens.entropy[layer, 0, -1]):.2f}")


def test_what_is_printed_fits_in_80_columns(capsys, text_run, markov_run):
    prompt = "The cat sat on a mat and so did it"[: text_run.config.n_ctx].lower()
    texts = [printed(capsys, "lens", text_run.path, prompt), printed(capsys, "heads", text_run.path)]
    texts += [printed(capsys, "heads", markov_run.path, "--all"), printed(capsys, "runs", text_run.path.parent)]
    assert "positions do not fit in 80 columns" in texts[0]
    assert max(len(line) for text in texts for line in text.splitlines()[1:]) <= 80


def test_generate_is_the_librarys_generate(capsys, text_run):
    text = printed(capsys, "generate", text_run.path, "the cat", "--max-new-tokens", 12, "--seed", 3, "--top-k", 5)
    tokenizer = text_run.tokenizer()
    tokens = generate(text_run.model(), torch.tensor([tokenizer.encode("the cat")]), 12, top_k=5, seed=3)
    assert text == tokenizer.decode(tokens[0].tolist()) + "\n"
    greedy = printed(capsys, "generate", text_run.path, "the cat", "--temperature", 0, "--step", 1)
    assert greedy == printed(capsys, "generate", text_run.checkpoint(1), "the cat", "--temperature", 0, "--seed", 9)


def test_runs_lists_steps_losses_and_sizes(capsys, markov_run):
    row = table(printed(capsys, "runs", markov_run.path.parent))["chains"]
    last = markov_run.metrics()[-1]
    assert row[:5] == ["9", "9", "10", f"{last['loss']:.3f}", f"{last['val_loss']:.3f}"]


def test_runs_have_a_page_that_a_new_report_brings_up_to_date(capsys, markov_run, tmp_path):
    shutil.copytree(markov_run.path, tmp_path / "all" / "chains", ignore=shutil.ignore_patterns("report*"))
    assert "wrote all/index.html" in printed(capsys, "runs", "all", "--page")
    assert "no report yet" in (tmp_path / "all" / "index.html").read_text("utf-8")
    assert "wrote all/index.html" in printed(capsys, "report", "all/chains", "--workers", 1)
    assert 'href="./chains/report.html"' in (tmp_path / "all" / "index.html").read_text("utf-8")


def test_report_names_what_it_wrote_and_its_sweeps_are_not_done_twice(capsys, markov_run, tmp_path):
    text = printed(capsys, "report", markov_run.path, "--out", "here", "--workers", 1)
    assert text.startswith("No phase change found")
    assert "without probes: markov is no text" in text
    assert "wrote here/report.html, report.json and 12 pages of neurons in" in text
    report = report_from_json((tmp_path / "here" / "report.json").read_text("utf-8"))
    assert report.run.name == "chains"
    before = {path: path.stat().st_mtime_ns for path in (markov_run.path / "sweeps").rglob("*.json")}
    printed(capsys, "report", markov_run.path, "--out", "here")
    assert {path: path.stat().st_mtime_ns for path in (markov_run.path / "sweeps").rglob("*.json")} == before


def test_a_part_of_a_report_does_not_take_the_place_of_the_whole(capsys, markov_run, tmp_path):
    shutil.copytree(markov_run.path, tmp_path / "chains")
    assert "wrote chains/report-loss-lens/report.html" in printed(capsys, "report", "chains", "--only", "loss,lens")
    assert not (tmp_path / "chains" / "report.html").exists()
    report = report_from_json((tmp_path / "chains" / "report-loss-lens" / "report.json").read_text("utf-8"))
    assert report.omitted.keys() == set(SECTIONS) - {"loss", "lens"}


# Training and converting -------------------------------------------------------------------------------------------------


def test_train_takes_its_config_from_the_recipe_and_the_options(capsys, text_file):
    words = ["--steps", 3, "--n-layers", 1, "--n-heads", 2, "--d-model", 8, "--n-ctx", 16, "--seed", 5, "--checkpoint-every", 3]
    text = printed(capsys, "train", "--data", text_file, *words)
    assert "wrote checkpoints/made-up-seed5: 4 checkpoints" in text
    assert "next: interp-gpt2 report checkpoints/made-up-seed5" in text
    run = Run(Path("checkpoints") / "made-up-seed5")
    assert run.steps == [0, 1, 2, 3]
    config = run.settings["config"]
    recipe = load_recipe("text").to_dict()
    assert {name: config[name] for name in ("lr", "batch_size", "schedule")} == {
        name: recipe[name] for name in ("lr", "batch_size", "schedule")
    }
    assert (run.config.d_head, run.config.d_mlp, config["seed"], config["n_steps"]) == (4, 32, 5, 3)
    words[1] = 4
    assert "5 checkpoints" in printed(capsys, "train", "--data", text_file, *words, "--resume")


def test_options_and_set_change_the_recipe_and_nothing_else():
    from interp_gpt2.cli.train import Train
    from interp_gpt2.training.config import load_recipe

    words = ("--tokens-per-step", "4096", "--micro-batch", "auto", "--optimizer", "muon", "--schedule", "wsd")
    more = ("--tracking", "wandb", "--online", "induction_heads, in_context_learning", "--online-every", "50", "--n-heads", "4")
    settings = ("weight_decay=0", "model.dropout=0.1", "decay_shape=linear", "betas=[0.8, 0.9]", "checkpoints.at=[3]")
    given = [word for setting in (*settings, "guard_z=6.0") for word in ("--set", setting)]
    config = parse(Train, ["demo-induction", *words, *more, *given], "interp-gpt2 train").config().to_dict()
    changed = {name for name, value in load_recipe("demo-induction").to_dict().items() if value != config[name]}
    assert changed == {
        "micro_batch", "optimizer", "schedule", "tracking", "online", "online_every", "model", "weight_decay", "decay_shape",
        "betas", "checkpoints", "guard_z",
    }  # fmt: skip
    assert config["batch_size"] == 4096 // 64
    assert config["online"] == ["induction_heads", "in_context_learning"]
    assert (config["model"]["n_heads"], config["model"]["d_head"], config["model"]["dropout"]) == (4, 16, 0.1)
    assert (config["checkpoints"]["at"], config["checkpoints"]["every"], config["micro_batch"]) == ([3], 50, "auto")
    assert parse(Train, ["text", "--tokenizer", "bpe:300"], "interp-gpt2 train").config().tokenizer == "bpe:300"
    assert parse(Train, ["text", "--micro-batch", "8"], "interp-gpt2 train").config().micro_batch == 8


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--set", "guard_zz=1"), "did you mean 'guard_z'"),
        (("--set", "model.drop=1"), "did you mean 'dropout'"),
        (("--set", "modle.dropout=1"), "did you mean 'model'"),
        (("--set", "dropout"), "--set takes FIELD=VALUE"),
        (("--set", "lr=1", "--set", "lr.x=1"), "--set gives lr a value and then a field, x"),
        (("--set", "lr=quick"), "lr='quick' is not of type float"),
        (("--tokens-per-step", "1000"), "--tokens-per-step 1000 is no multiple of n_ctx=128; 896 is"),
        (("--tokens-per-step", "1024", "--batch-size", "8"), "say the same thing"),
        (("--micro-batch", "half"), "micro_batch='half' must be a number of sequences from 1, or 'auto'"),
    ],
)
def test_a_change_that_means_nothing_is_refused(words, said):
    from interp_gpt2.cli.train import Train

    with pytest.raises(InterpGPT2Error) as refusal:
        parse(Train, ["text", *words], "interp-gpt2 train").config()
    assert said in str(refusal.value)


def test_resuming_needs_only_the_directory(capsys, markov_run, tmp_path):
    shutil.copytree(markov_run.path, tmp_path / "chains")
    assert "wrote chains: 11 checkpoints" in printed(capsys, "train", "--out", "chains", "--resume", "--steps", 10)


def test_another_width_leaves_what_a_recipe_sets_apart_and_moves_what_follows_from_it(tmp_path):
    from interp_gpt2.cli.train import Train

    recipe = tmp_path / "mine.toml"
    for apart, expected in (("", (6, 96)), ("d_mlp = 24", (6, 24)), ("d_head = 5", (5, 96)), ("d_mlp = 24\nd_head = 5", (5, 24))):
        recipe.write_text(f"[model]\nd_model = 16\nn_heads = 2\n{apart}\n")
        model = parse(Train, [str(recipe), "--d-model", "24", "--n-heads", "4"], "interp-gpt2 train").config().model
        assert (model.d_head, model.d_mlp) == expected, apart


def test_a_recipe_that_says_otherwise_than_the_run_that_goes_on_is_said_to_be_unheeded(capsys, text_file):
    Path("mine.toml").write_text(
        f"data = '{text_file.name}'\nn_steps = 2\nlr = 1e-3\n[model]\nn_layers = 1\nn_heads = 1\nd_model = 8\nn_ctx = 16\n"
    )
    shutil.copy(text_file, text_file.name)
    printed(capsys, "train", "mine.toml", "--out", "run", "--seed", 3)
    assert cli.main(["train", "mine.toml", "--out", "run", "--seed", "3", "--steps", "3", "--resume"]) == 0
    assert "as it was begun" not in capsys.readouterr().err
    Path("mine.toml").write_text(Path("mine.toml").read_text().replace("lr = 1e-3", "lr = 5e-3"))
    assert cli.main(["train", "mine.toml", "--out", "run", "--seed", "3", "--steps", "4", "--resume"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "as it was begun" in line]
    assert said == ["run: goes on as it was begun, with lr=0.001; mine.toml says 0.005"]
    assert Run(Path("run")).settings["config"]["lr"] == 1e-3
    assert cli.main(["train", "nonsense", "--out", "run", "--resume"]) == 2


def test_a_converted_model_is_loaded_by_transformers_with_the_same_logits(capsys, text_run):
    transformers = pytest.importorskip("transformers")
    assert 'from_pretrained("hf")' in printed(capsys, "convert", text_run.path, "--to", "huggingface", "--out", "hf", "--step", 4)
    loaded = transformers.GPT2LMHeadModel.from_pretrained("hf", attn_implementation="eager").eval()
    tokens = torch.tensor([text_run.tokenizer().encode("the cat sat")])
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, text_run.model(4)(tokens), atol=1e-5, rtol=0)
    assert printed(capsys, "generate", "hf", "the cat") == printed(capsys, "generate", text_run.checkpoint(4), "the cat")


def test_a_step_that_was_not_kept_is_trained_again_and_written(capsys, text_run):
    words = ("convert", text_run.path, "--to", "huggingface", "--recompute")
    assert 7 not in text_run.steps
    assert "step 7, trained again" in printed(capsys, *words, "--out", "again", "--step", 7)
    printed(capsys, *words, "--out", "stored", "--step", 8)
    hashes = [read_manifest(path).files["model.safetensors"].sha256 for path in (Path("stored"), text_run.checkpoint(8))]
    assert hashes[0] == hashes[1]
    assert cli.main(["convert", str(text_run.path), "--to", "huggingface", "--recompute", "--out", "last"]) == 2
    assert "--recompute needs --step" in capsys.readouterr().err
    assert cli.main(["convert", str(text_run.path), "--to", "huggingface", "--recompute", "--out", "x", "--step", "11"]) == 2
    assert "its steps are 0 to 10" in capsys.readouterr().err


def test_a_model_converted_for_transformer_lens_is_loaded_by_it(capsys, text_run):
    from interp_gpt2.convert.transformer_lens import from_hooked_state_dict

    safetensors = pytest.importorskip("safetensors.torch")
    printed(capsys, "convert", text_run.checkpoint(4), "--to", "transformer-lens", "--out", "tl")
    state = safetensors.load_file("tl/state_dict.safetensors")
    fields = json.loads(Path("tl/config.json").read_text())
    assert {"n_layers", "d_model", "act_fn", "normalization_type"} <= fields.keys()
    back = from_hooked_state_dict(state, text_run.config)
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), text_run.model(4).parameters(), strict=True))


def test_what_hugging_face_cannot_compute_is_not_written_for_it(capsys, tmp_path, make_gpt2, config):
    model = make_gpt2(replace(config, attn_only=True, d_vocab=256))
    model.save(tmp_path / "attention-only")
    from interp_gpt2.tokenizers import ByteTokenizer

    ByteTokenizer().save(tmp_path / "attention-only")
    assert cli.main(["convert", "attention-only", "--to", "huggingface", "--out", "hf"]) in (2, 4)
    assert not (tmp_path / "hf").exists()
    assert isinstance(GPT2.from_pretrained, object)


# The demo ----------------------------------------------------------------------------------------------------------------


def test_the_demo_trains_two_models_and_writes_two_reports(capsys, monkeypatch, tmp_path):
    def small(name):
        recipe = load_recipe(name)
        model = replace(recipe.model, d_model=16, d_head=8, d_mlp=64, n_heads=2, n_ctx=16)
        return replace(recipe, data="markov", model=model, n_steps=3, batch_size=2)

    monkeypatch.setattr("interp_gpt2.training.config.load_recipe", small)
    text = printed(capsys, "demo", "--out", "runs")
    for name in demo.DEMO:
        assert f"  runs/{name}/report.html" in text
        assert (tmp_path / "runs" / name / "report.json").exists()
        assert f"{name}: Whether it changed phase cannot be told" in text
    assert re.search(r"\d+ s in all: \d+ s training, \d+ s reports", text)
    again = demo.Demo(out=Path("runs"), study=True, resume=True, seed=0).jobs()
    assert [(job.name, job.resume) for job in again] == [
        ("demo-text", True),
        ("demo-induction", True),
        ("demo-induction-ordinary-positions", False),
        ("demo-induction-one-layer", False),
        ("demo-induction-seed1", False),
        ("demo-induction-seed2", False),
    ]
    assert [job.config.seed for job in again] == [0, 0, 0, 0, 1, 2]
