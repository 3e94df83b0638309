"""What was trained, on what, and with what: the parts of a report that are read off the run and not measured."""

import platform
from pathlib import Path

import numpy as np
import torch

import interp_gpt2
from interp_gpt2.report import schema
from interp_gpt2.report.subject import Subject
from interp_gpt2.training.config import RECIPES, TrainConfig, load_recipe


def run_facts(subject: Subject) -> schema.RunFacts:
    run, training, last = subject.run, subject.training, subject.steps[-1]
    facts = {"name": run.name, "last_step": last, "n_params": run.config.n_params, "checkpoints": subject.steps}
    if training is None:
        command = subject.command("report", subject.called)
        return schema.RunFacts(**facts, seed=None, tokens_seen=None, config=run.config.to_dict(), training={}, command=command)
    settings = training.to_dict()
    settings.pop("model")  # its own list
    return schema.RunFacts(
        **facts,
        seed=run.seed,
        tokens_seen=run.tokens_seen(last),
        config=run.config.to_dict(),
        training=settings,
        command=subject.command(*train_words(training, run.path)),
    )


def train_words(config: TrainConfig, path: Path) -> list[object]:
    """What to tell `interp-gpt2` to train such a run again: a recipe with its options, else the run itself as the recipe."""
    wanted = _comparable(config)
    candidates = []
    for name in RECIPES:
        given = _comparable(load_recipe(name))
        if all(wanted[field] == given[field] for field in wanted if field not in _OPTIONS):
            differing = [field for field in _OPTIONS if wanted[field] != given[field]]
            options = [word for field in differing for word in (_OPTIONS[field], wanted[field])]
            candidates.append(["train", name, *options, "--out", path])
    return min(candidates, key=len, default=["train", path, "--out", f"{path}-again"])


_OPTIONS = {"data": "--data", "seed": "--seed", "n_steps": "--steps"}


def _comparable(config: TrainConfig) -> dict[str, object]:
    values = config.to_dict()
    values["model"] = {name: value for name, value in values["model"].items() if name != "d_vocab"}  # follows the tokenizer
    return values


def data_facts(subject: Subject) -> schema.DataFacts:
    tokenizer = subject.tokenizer
    unit = {"char": "character", "byte": "byte"}.get(tokenizer.kind, "token")
    kind = f"{tokenizer.kind}, {tokenizer.d_vocab:,} tokens"
    if subject.training is None:
        return schema.DataFacts("not known", kind, unit, {} if subject.data is None else {"measured on": subject.source.name})
    if subject.training.data == "markov":
        unit = "state"
    facts = {key: value for key, value in subject.run.settings["data"].items() if key != "data" and value not in (None, [], "")}
    return schema.DataFacts(subject.training.data, kind, unit, facts)


def versions() -> dict[str, str]:
    return {
        "interp_gpt2": interp_gpt2.__version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "Python": platform.python_version(),
    }


def hashes(subject: Subject) -> dict[str, str]:
    last = subject.steps[-1]
    data = {} if subject.training is None else {"data": str(subject.run.settings["data"].get("sha256", ""))}
    model = {f"model at step {last}": subject.run.checkpoint_hash(last)}
    return {**model, **data, "tokenizer": subject.tokenizer.sha256}
