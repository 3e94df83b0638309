"""What the README says is so: its code runs, its commands exist, its hook points are the model's, its numbers were measured."""

import os
import re
import runpy
import shlex
import signal
from collections.abc import Callable
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


def test_files_that_the_readme_names_are_there():
    for name in re.findall(r"`([\w./-]+\.(?:md|ipynb|py|txt))`", README):
        assert (ROOT / name).exists() or name == "my-text.txt", name
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


# Numbers --------------------------------------------------------------------------------------------------------------
# Every number in the README's prose and tables is in one of CLAIMS: words around it, as a regular expression, and a function of
# the numbers that holds them against their source. What stands in code or is part of a name (GPT-2, float32) is no number.

PROSE = re.sub(r"```.*?```|^ {4}.*?$|`[^`\n]*`", " ", README, flags=re.DOTALL | re.MULTILINE)
PROSE = " ".join(PROSE.split())
NUMBER = re.compile(r"(?<!\w)(?<!\w-)(?<!\d[.,])\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?(?!\w)")
MS = r" \| ([\d.,]+) \| ?([\d.,]*)(?: \([a-z, ]+\))? \| ([\d.,]+) \|"  # three cells of the table of speeds


def cells(page: str, first: str, number: int = 0) -> list[str]:
    """A row of a table in benchmarks/, by how its first cell begins; of several the one of that number."""
    lines = [line[1:-1].strip() for line in (ROOT / "benchmarks" / page).read_text().splitlines() if line.startswith("|")]
    found = [row for row in (re.split(r" *\| *", line) for line in lines) if row[0].strip("* ").startswith(first)]
    assert len(found) > number, f"{page} has {len(found)} rows that begin with {first!r}"
    return found[number]


def rounds_to(measured: str, said: str) -> bool:
    """Whether what was measured, to as many digits as are said, is what is said."""
    unit = 10 ** -len(said.partition(".")[2])
    return abs(float(measured.replace(",", "")) - float(said.replace(",", ""))) <= 0.5 * unit + 1e-9


def requires_python(version: str) -> bool:
    return f'requires-python = ">={version}"' in (ROOT / "pyproject.toml").read_text()


def is_tested(version: str) -> bool:
    """A version of TransformerLens that CI installs, or the beginning of one."""
    pinned = re.search(r"^transformer-lens==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    other = re.search(r"'transformer-lens==(.*?)'", (ROOT / ".ci/run").read_text())
    return any(f"{installed[1]}.".startswith(f"{version}.") for installed in (pinned, other))


def measured_by_ci(*minutes: str) -> bool:
    """.ci/run takes the three times, and check_times.py, which reads these words, fails where they are off by more than 2."""
    claimed = runpy.run_path(str(ROOT / ".ci/check_times.py"))["claimed"]()
    assert "python .ci/check_times.py demo=$demo tests=$tests installing=$installing" in (ROOT / ".ci/run").read_text()
    return [60 * float(said) for said in minutes] == list(claimed.values())


def heads_of_the_demo_are_in(previous_token: str, induction: str) -> bool:
    from interp_gpt2 import Run
    from interp_gpt2.analysis.attention_patterns import head_scores

    run = Run(ROOT / "tests/data/study/demo-induction")
    tokens = next(run.source().validation(run.config.n_ctx, 16))[:, :-1]
    scores = head_scores(run.model(), tokens, ("previous_token", "induction"))
    said = {"previous_token": previous_token, "induction": induction}
    return all(scores[name].best[0].startswith(f"L{layer}H") for name, layer in said.items())


def same_however_it_is_run(tolerance: str) -> bool:
    """The contract's rows about recording, editing nothing, gradients, compiling and threads: all hold, and how far apart."""
    rows = ("watching", "identity edit", "grad mode", "compiled", "threads reading", "threads editing")
    held = [cells("CONTRACT.md", f"{row}**")[1] for row in rows]
    apart = [float(worst) for cell in held for worst in re.findall(r"worst ([\d.e-]+)", cell)]
    return all("hold" in cell and "fail" not in cell for cell in held) and max(apart) <= float(tolerance)


def names_notebooks(*said: str) -> bool:
    """Their numbers are those of the files, and their names begin as the files' do ("01 a tour": 01_tour.ipynb)."""
    files = [path.stem.partition("_") for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))]
    titles = [title.lower().removeprefix("a ").partition(",")[0] for title in said[1::2]]
    names = list(zip(said[::2], titles, strict=True))
    return names == [(number, title.replace("_", " ")) for number, _, title in files]


def no_kill_lost(n: str) -> bool:
    return all(said in cells("CRASHES.md", "kills")[1] for said in (f"{n} kills", "0 corrupt", "0 acknowledged lost"))


def patching(theirs: str, ours: str, apart: str) -> bool:
    """The first sweep, prompts that differ from their first token on, beside TransformerLens 4.3's."""
    _, _, differ_at, _, seconds, _, lens, values, *_ = cells("PATCHING.md", "resid_pre", 2)
    assert differ_at == "0"
    same = max(map(float, values.split(";"))) <= float(apart)
    return same and rounds_to(lens, theirs) and rounds_to(seconds.split()[0], ours)


def speed(row: str, *said: str) -> bool:
    """Milliseconds of ours, Hugging Face and TransformerLens 3.9, from the first of the two runs; "" is what is not said."""
    measured = [re.split(r"; | \(", cell)[0] for cell in cells("RESULTS.md", row)[1:4]]
    return all(rounds_to(exact, text) for exact, text in zip(measured, said, strict=True) if text)


def speeds_of_gpt2_small(batch: str, pos: str, *said: str) -> bool:
    caching = f"{batch} x {pos}"
    rows = (f"forward, {caching} tokens", f"cache every activation, {caching}", "the same with per-head results")
    return all(speed(row, *said[3 * i : 3 * i + 3]) for i, row in enumerate(rows))


def speeds_of_two_layers(layers: str, width: str, batch: str, pos: str, *said: str) -> bool:
    model, tokens = f"{layers} layers, d_model {width}", f"{batch} x {pos}"
    return speed(f"{model}: forward, {tokens}", *said[:3]) and speed(f"{model}: cache every activation, {tokens}", *said[3:])


CLAIMS: dict[str, Callable[..., bool]] = {
    r"with Python (\S+) or newer": requires_python,
    r"the demo takes (\S+) minutes and the tests take (\S+), after about (\S+) minutes of installing": measured_by_ci,
    r"a previous-token head forms in layer (\d) and an induction head in layer (\d),": heads_of_the_demo_are_in,
    r"results are the same \(to (\S+) in float32\) recorded or not": same_however_it_is_run,
    r"(\S+) parameters at the small size": lambda said: f"{GPT2Config().n_params:,}" == said,
    r"logits equal Hugging Face's to (\S+),": lambda said: float(cells("EXACTNESS.md", "as initialised")[2]) <= float(said),
    r"equals TransformerLens (\S+)'s by name": is_tested,
    r"\(batch, pos, (1)\)": lambda said: True,  # that table is held against the model above
    "calls in them: " + ", ".join([r"(\d+) (.*?)"] * 7) + r"\.": names_notebooks,
    r"survive kill -(\d) and": lambda said: int(said) == signal.SIGKILL,
    r"(\S+) kills, none lost": no_kill_lost,
    r"TransformerLens needs (\S+) s for takes (\S+) s, equal to whole passes within (\S+) \(": patching,
    r"\((\S+) forward passes at the small size\)": lambda said: rounds_to(cells("PATCHING.md", "EAP")[1], said),
    r"TransformerLens (\d) removed": is_tested,
    r"both are tested: (\S+)'s own": is_tested,
    r"Hugging Face \| TransformerLens (\S+) \|": is_tested,
    rf"GPT-2 small, (\d) x (\d+) tokens: forward{MS} \| the same, caching every activation{MS}"
    rf" \| the same, with per-head results{MS}": speeds_of_gpt2_small,
    rf"GPT-2 small, (\d) x (\d+) tokens: forward{MS} \| \d+ layers": lambda batch, pos, *said: speed(
        f"forward, {batch} x {pos} tokens", *said
    ),
    rf"(\d+) layers, d_model (\d+), (\d) x (\d+): forward{MS} \| the same, caching every activation{MS}": speeds_of_two_layers,
    r"TransformerLens (\S+) and nnsight are in": is_tested,
}


def test_every_number_of_the_readme_has_a_source():
    covered = {at for claim in CLAIMS for match in re.finditer(claim, PROSE) for i in range(len(match.groups()))
               for at in range(*match.span(i + 1))}  # fmt: skip
    bare = [match for match in NUMBER.finditer(PROSE) if not set(range(*match.span())) <= covered]
    told = [f"{match[0]} in '... {PROSE[max(0, match.start() - 60) : match.end() + 40]} ...'" for match in bare]
    assert not told, "numbers without a source; measure them and add them to CLAIMS:\n" + "\n".join(told)


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_number_of_the_readme_is_its_sources(claim):
    found = list(re.finditer(claim, PROSE))
    assert found, "the README no longer says it: take it out of CLAIMS"
    for match in found:
        assert CLAIMS[claim](*match.groups()), f"its source does not have what the README says: {match[0]!r}"
