"""Tables read off the package itself, so that they cannot say anything else than it does."""

import contextlib
import inspect
import io
import os
import re
from dataclasses import fields, is_dataclass, replace
from typing import get_args
from unittest import mock

from pages.markdown import escaped, fenced, first_sentence, table

# Different for every axis, so that a size tells which it is.
_SIZES = {"batch": 2, "pos": 6, "head": 3, "d_model": 12, "d_head": 5, "d_mlp": 7, "d_vocab": 11}


def hook_points() -> str:
    """Every hook point with its shape, from a pass of a model with a layer on the meta device."""
    from interp_gpt2.config import GPT2Config
    from interp_gpt2.hooks import default_hook_points, hook_point_names, tl_name
    from interp_gpt2.model import GPT2

    sizes = {name: _SIZES[name] for name in ("d_model", "d_head", "d_mlp", "d_vocab")}
    config = GPT2Config(n_layers=1, n_heads=_SIZES["head"], n_ctx=13, **sizes)
    bare = {
        "not with `attn_only`": hook_point_names(replace(config, attn_only=True)),
        "not without `layer_norm`": hook_point_names(replace(config, layer_norm=False)),
    }
    recorded = default_hook_points(config)
    rows = []
    for name, shape in GPT2(config, device="meta").hook_points(_SIZES["batch"], _SIZES["pos"]).items():
        notes = [] if name in recorded else ["on request"]
        notes += [note for note, has in bare.items() if name not in has]
        shown = name.replace("blocks.0.", "blocks.{l}.")
        rows.append([f"`{shown}`", axes(name, shape), f"`{tl_name(shown)}`", "; ".join(notes)])
    return table(["hook point", "shape", "in TransformerLens's spelling", ""], rows)


def axes(name: str, shape: tuple[int, ...]) -> str:
    """The names of a hook point's axes, from their sizes."""
    known = {size: axis for axis, size in _SIZES.items()} | {1: "1"}
    found = [known[size] for size in shape]
    if found[-2:] == ["pos", "pos"]:
        found[-2:] = ["query", "key"]
    return f"({', '.join(found)})"


def short_names() -> str:
    """Short tuples and what they stand for."""
    from interp_gpt2.hooks import full_name

    asked = [("pattern", 3), ("resid_post", -1), ("post", 0), ("scale", 4, "ln1"), ("scale",), ("embed",)]
    rows = [[f"`{key if len(key) > 1 else key[0]!r}`", f"`{full_name(*key, n_layers=12)}`"] for key in asked]
    return table(["in a model of 12 layers", "is"], rows)


def analyses() -> str:
    """The registry: what can be swept, and logged in training, by name."""
    from interp_gpt2.analysis.registry import REGISTRY

    rows = [[f"`{name}`", escaped(one.measures), f"{one.n_sequences}"] for name, one in REGISTRY.items()]
    return table(["name", "measures", "held-out sequences"], rows)


def prompt_sets() -> str:
    """The named sets of prompts."""
    from interp_gpt2.prompts.named import PROMPT_SETS

    rows = [[f"`{name}`", escaped(first_sentence(inspect.getdoc(make) or ""))] for name, make in PROMPT_SETS.items()]
    return table(["name", "a pair"], rows)


def causal_metrics() -> str:
    """Every metric of `causal.metrics` by name."""
    from interp_gpt2.causal import metrics

    rows = []
    for name, made in vars(metrics).items():
        if inspect.isfunction(made) and not name.startswith("_") and made.__annotations__.get("return") is metrics.Metric:
            link = f"{{py:obj}}`{name} <interp_gpt2.causal.metrics.{name}>`"
            rows.append([link, escaped((inspect.getdoc(made) or "").split("\n\n")[0])])
    return table(["metric", ""], rows)


def report_sections() -> str:
    """What report.json holds, section by section."""
    from interp_gpt2.report import schema

    rows = []
    for each in fields(schema.Report):
        kinds = [one for one in (each.type, *get_args(each.type)) if is_dataclass(one)]
        if kinds:
            rows.append([f"`{each.name}`", escaped(first_sentence(inspect.getdoc(kinds[0]) or ""))])
    return table(["section", ""], rows)


def sizes() -> str:
    """The published sizes."""
    from interp_gpt2.config import SIZES

    rows = []
    for name, one in SIZES.items():
        rows.append([f"`{name}`", *(f"{n:,}" for n in (one.n_layers, one.n_heads, one.d_model, one.n_params))])
    return table(["name", "layers", "heads a layer", "d_model", "parameters"], rows)


def false_alarms() -> str:
    """How often the detector of phase changes is fooled, as its docstring has it."""
    from interp_gpt2.analysis import phase_changes

    rows, said = [], inspect.getdoc(phase_changes) or ""
    for kind, counts in re.findall(r"^ +([\w ]+): +(.* at \d+ checkpoints .*)$", said, re.MULTILINE):
        for found, of, n, by_bic in re.findall(r"(\d+) of ([\d,]+) at (\d+)(?: checkpoints)? \((\d+)\)", counts):
            rows.append([kind, n, f"{found} of {of}", f"{by_bic} of {of}"])
    assert rows, "phase_changes says no false-alarm rates"
    return table(["curves of", "checkpoints", "called a phase change", "by BIC alone"], rows)


def recipes() -> str:
    """The recipes of `interp-gpt2 train`, with their sizes."""
    from interp_gpt2.training.config import RECIPES, load_recipe

    rows = []
    for name, does in RECIPES.items():
        config = load_recipe(name)
        shape = f"{config.model.n_layers} x {config.model.d_model}, {config.model.n_heads} heads, n_ctx {config.model.n_ctx}"
        rows.append([f"`{name}`", escaped(does), shape, f"{config.n_steps:,} of {config.tokens_per_step:,} tokens"])
    return table(["recipe", "", "layers x width", "updates"], rows)


def errors() -> str:
    """What can be raised on purpose, and the exit code that the command line ends with."""
    from interp_gpt2 import errors as kinds
    from interp_gpt2.cli.command_line import exit_code

    found = [one for one in vars(kinds).values() if inspect.isclass(one) and one.__module__ == kinds.__name__]
    rows = [[f"`{one.__name__}`", escaped(inspect.getdoc(one) or ""), str(exit_code(one("")))] for one in found]
    return table(["error", "", "exit code"], rows)


def commands() -> str:
    """A page of the help of every command, as it prints it."""
    from interp_gpt2.cli.command_line import COMMANDS

    parts = [
        "# Commands\n",
        "What each command says of itself with `--help`. `python -m interp_gpt2` is the same as `interp-gpt2`.\n",
        fenced(_said([])),
    ]
    for name in COMMANDS:
        parts += [f"## {name}\n", fenced(_said([name, "--help"]))]
    return "\n".join(parts)


def _said(words: list[str]) -> str:
    """What a command prints, at 80 columns and without colours."""
    from interp_gpt2.cli.command_line import run_command

    out = io.StringIO()
    with mock.patch.dict(os.environ, COLUMNS="80", NO_COLOR="1"), contextlib.redirect_stdout(out):
        code = run_command(words)
    assert code == 0, f"interp-gpt2 {' '.join(words)} ended with {code}"
    return out.getvalue()
