"""What the README says is so: its code runs, its commands exist, its hook points are the model's."""

import os
import re
import shlex
from pathlib import Path

import pytest

from interp_gpt2.cli.command_line import COMMANDS
from interp_gpt2.cli.command_line import run_command as command_line
from interp_gpt2.config import GPT2Config
from interp_gpt2.hooks import default_hook_points, hook_point_names

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_of_the_readme_runs_from_top_to_bottom(monkeypatch):
    monkeypatch.chdir(ROOT)
    scope: dict = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), scope)
    assert not scope["logits"].allclose(scope["edited"])
    assert scope["cache"]["pattern", 1].shape == (8, 2, 64, 64)
    assert scope["same"].config == scope["model"].config


@pytest.mark.parametrize("line", [line for block in blocks("sh") for line in block.splitlines() if "interp-gpt2" in line])
def test_the_commands_of_the_readme_exist_with_their_options(line, capsys):
    words = shlex.split(line.split("&&")[-1], comments=True)
    assert words[0] == "interp-gpt2"
    assert words[1] in COMMANDS
    assert command_line([words[1], "--help"]) == 0
    known = capsys.readouterr().out
    assert all(word in known for word in words[2:] if word.startswith("--"))


def test_the_two_commands_stand_in_the_first_screen():
    first_screen = "\n".join(README.splitlines()[:30])
    assert "pip install -c constraints.txt -e . && interp-gpt2 demo" in first_screen
    assert "pip install -c constraints.txt -e '.[test]' && pytest" in first_screen
    assert len(blocks("python")[0].strip().splitlines()) <= 6


def test_the_table_of_hook_points_is_the_models():
    rows = [line.split("|") for line in README.splitlines() if line.startswith("|") and "(batch" in line]
    shapes, starred, scope = {}, set(), ""
    for _, where, names, shape, _ in rows:
        scope = (re.findall(r"`(.*?)`", where) or [""])[0] if where.strip() else scope
        for name, star in re.findall(r"`(.*?)`(\*?)", names):
            full = (scope + name).replace("{l}", "0")
            shapes[full] = shape.strip()
            starred |= {full} if star else set()
    config = GPT2Config(n_layers=1, n_heads=3, d_model=12, d_head=5, d_mlp=7, d_vocab=11, n_ctx=13)
    assert set(shapes) == set(hook_point_names(config))
    assert starred == set(hook_point_names(config)) - default_hook_points(config)
    sizes = {"batch": 2, "pos": 6, "query": 6, "key": 6, "head": 3, "d_model": 12, "d_head": 5, "d_mlp": 7, "d_vocab": 11, "1": 1}
    from interp_gpt2.model import GPT2

    for name, shape in GPT2(config, device="meta").hook_points(batch=2, pos=6).items():
        assert shape == tuple(sizes[axis.strip()] for axis in shapes[name].strip("()").split(",")), name


def test_the_table_of_speeds_is_the_measured_one():
    measured = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    rows = [line for line in README.splitlines() if line.startswith(("| GPT-2 small", "| the same", "| 2 layers"))]
    numbers = [number for row in rows for cell in row.split("|")[2:] for number in re.findall(r"\d[\d,.]*", cell)]
    assert len(numbers) == 16
    for number in numbers:
        exact = float(number.replace(",", ""))
        assert any(abs(float(found) - exact) <= 0.005 * exact + 0.005 for found in re.findall(r"\d+\.?\d*", measured)), number


def test_files_that_the_readme_names_are_there():
    for name in re.findall(r"`([\w./-]+\.(?:md|ipynb|py|txt))`", README):
        assert (ROOT / name).exists() or name == "my-text.txt", name
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
