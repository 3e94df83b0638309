"""A user's mistake is one line on stderr and exit code 2; a bug keeps its traceback."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from interp_gpt2 import cli
from interp_gpt2.cli import command_line
from interp_gpt2.cli.command_line import COMMANDS
from interp_gpt2.errors import CheckpointWriteError, DivergenceError

ROOT = Path(cli.__file__).parents[2]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INTERP_GPT2_CACHE", str(tmp_path / "cache"))


def refused(capsys, *words: str, code: int = 2) -> str:
    """The one line that a mistake gives."""
    assert cli.main(list(words)) == code
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("interp-gpt2: ")
    return lines[0].removeprefix("interp-gpt2: ")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["trian"], "there is no command 'trian'; did you mean train?"),
        (["xyzzy"], f"there is no command 'xyzzy'; there are {', '.join(COMMANDS)}"),
        (["train", "--stpes", "5"], "there is no option --stpes; did you mean --steps?"),
        (["train", "--stpes=5"], "there is no option --stpes; did you mean --steps?"),
        (["doctor", "--xyzzy"], "there is no option --xyzzy; see interp-gpt2 doctor --help"),
        (["train", "text", "--steps", "many"], "--steps takes a whole number, not 'many'"),
        (["train", "text", "--steps", "1.5"], "--steps takes a whole number, not '1.5'"),
        (["generate", "r", "p", "--temperature", "it's hot"], '--temperature takes a number, not "it\'s hot"'),
        (["generate", "r", "p", "--top-k"], "--top-k needs a value; see interp-gpt2 generate --help"),
        (["generate", "r"], "PROMPT is missing; see interp-gpt2 generate --help"),
        (["heads"], "RUN is missing; see interp-gpt2 heads --help"),
        (["lens", "r", "Hello", "world"], "unexpected 'world' (text with spaces needs quotes); see interp-gpt2 lens --help"),
        (["convert", "r", "--out", "d"], "--to is missing; see interp-gpt2 convert --help"),
        (["convert", "r", "--out", "d", "--to", "onnx"], "--to takes huggingface, transformer-lens, not 'onnx'"),
        (["train"], None),
        (["train", "demo-txt"], "there is no recipe 'demo-txt'; did you mean 'demo-text'?"),
        (["train", "text", "--resume", "--overwrite"], None),
        (["train", "text", "--resume"], "there is no run at checkpoints/text"),
        (["train", "--data", "nowhere.txt"], None),
        (["train", "markov", "--batch-size", "0"], None),
        (["train", "demo-induction", "--d-model", "65"], None),
        (["train", "demo-induction", "--device", "quantum"], None),
        (["heads", "nowhere"], None),
        (["runs", "nowhere"], None),
        (["report", "nowhere", "--only", "everything"], None),
        (["heads", "r", "--all", "--step", "5"], "--all is every step; leave out --step"),
        (["demo", "--resume", "--overwrite"], None),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(words, line, capsys):
    said = refused(capsys, *words)
    assert said == (line or said)
    assert len(said) > 20


def test_a_run_that_is_not_there_is_answered_with_those_that_are(capsys, markov_run):
    shutil.copytree(markov_run.path, Path("checkpoints") / "chains")
    assert "under checkpoints/ there are chains" in refused(capsys, "lens", "chain", "ABC")
    assert "the nearest is 9" in refused(capsys, "lens", "chains", "ABC", "--step", "12")
    assert cli.main(["lens", "chains", "ABC"]) == 0


def test_a_prompt_that_cannot_be_encoded_names_the_character(capsys, markov_run):
    assert "cannot encode 'x' (U+0078) at character 2" in refused(capsys, "lens", str(markov_run.path), "ABxC")
    assert "no tokens" in refused(capsys, "lens", str(markov_run.path), "")
    assert "n_ctx=16" in refused(capsys, "lens", str(markov_run.path), "A" * 17)
    assert "2 tokens; a target is one" in refused(capsys, "lens", str(markov_run.path), "AB", "--target", "AB")
    assert "temperature" in refused(capsys, "generate", str(markov_run.path), "A", "--temperature", "-1")


def test_a_damaged_checkpoint_is_named_and_the_exit_code_is_4(capsys, markov_run, tmp_path):
    shutil.copytree(markov_run.path, tmp_path / "chains", ignore=shutil.ignore_patterns("sweeps"))
    weights = tmp_path / "chains" / "step-00000009" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "model.safetensors" in refused(capsys, "heads", "chains", code=4)
    assert cli.main(["heads", "chains", "--all"]) == 4
    out, err = capsys.readouterr()
    assert "the best head by step" in out  # of the others
    assert "step 9: " in err
    assert cli.main(["heads", "chains", "--step", "8"]) == 0


def test_a_file_that_cannot_be_written_is_named_and_the_exit_code_is_4(capsys, markov_run, tmp_path):
    (tmp_path / "file").write_text("in the way")
    out = str(tmp_path / "file" / "x")
    assert str(tmp_path / "file") in refused(capsys, "report", str(markov_run.path), "--out", out, code=4)


def test_a_run_directory_that_exists_is_refused(capsys, text_file):
    words = ["train", "--data", str(text_file), "--steps", "2", "--n-layers", "1", "--d-model", "8", "--n-heads", "1"]
    assert cli.main(words) == 0
    capsys.readouterr()
    said = refused(capsys, *words)
    assert "--resume" in said
    assert "--overwrite" in said
    assert cli.main([*words, "--overwrite"]) == 0


def test_a_resume_falls_back_to_the_newest_whole_checkpoint_and_says_so(capsys, text_run, tmp_path):
    shutil.copytree(text_run.path, tmp_path / "tiny", ignore=shutil.ignore_patterns("sweeps"))
    last = tmp_path / "tiny" / "step-00000010"
    (last / "optimizer.safetensors").write_bytes((last / "optimizer.safetensors").read_bytes()[:-1])
    assert cli.main(["train", "--out", "tiny", "--resume"]) == 0
    said = capsys.readouterr().err
    assert "step 10 cannot be resumed from" in said
    assert "optimizer.safetensors is truncated" in said
    assert "step 0 of 10" in said
    whole = (text_run.path / "step-00000010" / "model.safetensors").read_bytes()
    assert (last / "model.safetensors").read_bytes() == whole  # trained again, to the same weights


def test_a_reader_that_leaves_is_no_error():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", "import sys, time; time.sleep(0.5); from interp_gpt2 import cli; sys.exit(cli.main([]))"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=60) == 141


def test_a_demo_in_the_way_is_refused_before_anything_is_trained(capsys):
    (Path("checkpoints") / "demo-text").mkdir(parents=True)
    said = refused(capsys, "demo")
    assert said.startswith("checkpoints/demo-text already there; --resume")
    assert not (Path("checkpoints") / "demo-induction").exists()


def test_divergence_and_failed_writes_have_exit_codes_of_their_own(capsys, monkeypatch):
    def fail(words):
        raise error

    monkeypatch.setattr(command_line, "dispatch", fail)
    error = DivergenceError("training diverged")
    assert refused(capsys, "train", code=3) == "training diverged"
    error = CheckpointWriteError("x could not be written:\nNo space left on device")
    assert refused(capsys, "train", code=4) == "x could not be written: No space left on device"
    error = KeyboardInterrupt()
    assert refused(capsys, "heads", code=130) == "interrupted"


def test_a_bug_keeps_its_traceback_and_debug_gives_one_to_mistakes(monkeypatch):
    with pytest.raises(Exception, match="there is no command 'trian'"):
        cli.main(["trian", "--debug"])
    monkeypatch.setattr(command_line, "dispatch", lambda words: {}["missing"])
    with pytest.raises(KeyError):
        cli.main(["runs"])


def test_ctrl_c_in_training_saves_and_the_same_command_goes_on(text_file, tmp_path):
    command = [sys.executable, "-m", "interp_gpt2", "train", "--data", str(text_file), "--steps", "1500", "--out", "run"]
    command += ["--n-layers", "1", "--d-model", "8", "--n-heads", "1", "--n-ctx", "16", "--threads", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "step-00000008").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert "stopped by SIGINT at step" in last
    assert "--resume" in last
    step = max(int(path.name.removeprefix("step-")) for path in (tmp_path / "run").glob("step-*"))
    assert f"at step {step}," in last
    assert step < 1500
    assert cli.main([*command[3:], "--resume"]) == 0
    assert (tmp_path / "run" / "step-00001500").exists()
