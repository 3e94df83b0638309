"""A report of an induction run as it might come out: made-up numbers of a realistic size and shape."""

import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from interp_gpt2.analysis.logit_lens import LogitLens
from interp_gpt2.report import schema
from interp_gpt2.views.attention import AttentionData, pack_attention
from interp_gpt2.views.lens import LensData, pack_lens

HOSTILE = "</script><img src=x onerror=alert(1)>"
STEPS = [0, 1, 2, 4, 8, 16, 32, *range(50, 2601, 50)]
CHANGE, WIDTH = 1480.0, 210.0
N = 48
INSPECTED = [0, 256, 1300, 1500, 1600, 2600]
LETTERS = list("ABCDEFGHIJKLMNOP")


def _rise(step: float, base: float, rise: float, middle: float = CHANGE, width: float = WIDTH) -> float:
    return base + rise / (1 + math.exp(min(700, -(step - middle) * 2 * math.log(9) / width)))


def _noisy(rng: np.random.Generator, values: list[float], size: float) -> list[float]:
    return [max(0.0, value + float(rng.normal(0, size))) for value in values]


def example_report() -> schema.Report:
    """A finished report with every section."""
    rng = np.random.default_rng(0)
    curve = [_rise(s, 2.66, -0.86) + 0.11 * math.exp(-s / 60) for s in STEPS]
    every = list(range(0, 2601, 10))
    train = [_rise(s, 2.69, -0.80) + 0.1 * math.exp(-s / 60) + float(rng.normal(0, 0.02)) for s in every]
    scores = _scores(rng)
    induction = np.array(scores.scores[0].values).max(0) - scores.scores[0].uniform
    return schema.Report(
        run=_run_facts(),
        data=schema.DataFacts(
            name="markov",
            tokenizer="char, 16 states A to P",
            unit="state",
            facts={
                "states": 16,
                "transition rows": "Dirichlet(0.1), drawn anew for each sequence",
                "validation sequences": 4096,
                "sha256": "5f1c9b2e40a7d3c86b21f09e7a44d1c35d0f6be8127a9c4e3b5d80f1a6c27e94",
            },
        ),
        phase_change=schema.PhaseChange(
            step=CHANGE,
            width=WIDTH,
            rise=0.62,
            low=0.03,
            high=0.65,
            resolution=50,
            step_interval=[1452.0, 1507.0],
            width_interval=[170.0, 262.0],
            bic_margin=214.3,
            p_walk=0.0025,
            steps=STEPS,
            values=induction.tolist(),
            command="interp-gpt2 heads checkpoints/demo-induction",
        ),
        phase_change_note="",
        heads={
            "induction": schema.HeadFinding("L1H0", 0.71, 0.06),
            "previous_token": schema.HeadFinding("L0H1", 0.43, 0.05),
            "duplicate_token": schema.HeadFinding("L0H0", 0.12, 0.06),
            "first_token": schema.HeadFinding("L1H1", 0.23, 0.07),
        },
        inspected=INSPECTED,
        development=_development(rng),
        loss=schema.Loss(
            command="interp-gpt2 report checkpoints/demo-induction",
            measured_on="positions 32-63 of the same 4,096 held-out sequences",
            validation=schema.Curve("validation", STEPS, curve, [0.004] * len(STEPS)),
            train=schema.Curve("training batch (all positions)", every, train),
            references=[
                schema.Reference(
                    "in-context unigram",
                    2.531,
                    0.005,
                    131072,
                    "add-one counts of the states seen so far; a reference, not a bound",
                ),
                schema.Reference("exact Bayes bigram", 1.776, 0.004, 131072, "posterior mean under Dirichlet(0.1)"),
            ],
        ),
        loss_by_position=_by_position(),
        head_scores=scores,
        lens=schema.Lens("interp-gpt2 lens checkpoints/demo-induction ABCAB", "ABCAB", _lens(rng)),
        attention=schema.Attention("interp-gpt2 heads checkpoints/demo-induction --pattern", "ABCAB", _attention(rng)),
        probes=_probes(rng),
        neurons=_neurons(rng),
        neuron_pages=schema.NeuronPages(
            "interp-gpt2 neurons checkpoints/demo-induction",
            "64 held-out sequences",
            2600,
            [0, 1300, 2600],
            [
                schema.NeuronPage("L0N3", 0.31, 2.5, 0.4, ["A", "B"], ["C", "D"]),
                schema.NeuronPage("L2N137", 0.02, 7.25, 11.5, ["·", "'"], ["e", "t"]),
                schema.NeuronPage("L1N200", 0.0, -0.01, -0.2, ["P", "O"], ["N", "M"]),
            ],
        ),
        samples=schema.Samples(
            "interp-gpt2 generate checkpoints/demo-text 'The value of '",
            "The value of ",
            0.8,
            0,
            [schema.Sample(step, "".join(rng.choice(list(" etaoinshrdlu"), 240))) for step in (0, 64, 512, 2600)],
        ),
        omitted={"ablation": "not asked for"},
        versions={"interp_gpt2": "0.1.0", "python": "3.12.4", "torch": "2.13.0", "numpy": "2.4.6"},
        hashes={"checkpoint at step 2,600": "9f" * 32, "data": "5f" * 32, "tokenizer": "a1" * 32, "git commit": "66e61d3"},
    )


def _run_facts() -> schema.RunFacts:
    config = {
        "n_layers": 2,
        "n_heads": 2,
        "d_model": 64,
        "d_head": 32,
        "d_mlp": 256,
        "d_vocab": 16,
        "n_ctx": 64,
        "act_fn": "gelu_new",
        "eps": 1e-5,
        "attn_only": False,
        "tied": True,
        "bias": True,
        "dropout": 0.0,
        "pos_init": "sinusoidal",
        "embed_std": 0.05,
        "pos_std": 0.05,
    }
    training = {
        "steps": 2600,
        "batch_size": 64,
        "lr": 3e-3,
        "betas": [0.9, 0.98],
        "weight_decay": 0.01,
        "warmup": 50,
        "schedule": "cosine",
        "device": "cpu",
        "threads": 1,
    }
    command = "interp-gpt2 train --recipe demo-induction --out checkpoints/demo-induction"
    return schema.RunFacts("demo-induction", 0, 2600, 10_649_600, 105_152, STEPS, config, training, command)


def _scores(rng: np.random.Generator) -> schema.HeadScores:
    def score(
        name: str, title: str, measures: str, uniform: float, rows: list[tuple[float, float]], unit: str = "attention"
    ) -> schema.HeadScore:
        values = [_noisy(rng, [_rise(s, base, rise) for s in STEPS], 0.006) for base, rise in rows]
        return schema.HeadScore(name, title, measures, unit, uniform, 4032, values)

    composition = score(
        "k_composition_max",
        "K-composition",
        "By weights: what keys read.",
        0.125,
        [(0.1, 0), (0.1, 0), (0.1, 0.5), (0.1, 0.2)],
        "weights",
    )
    values = [[None] * len(STEPS)] * 2 + composition.values[2:]
    return schema.HeadScores(
        "interp-gpt2 heads checkpoints/demo-induction",
        "256 held-out sequences of 64 states",
        STEPS,
        ["L0H0", "L0H1", "L1H0", "L1H1"],
        [
            score(
                "induction",
                "Induction",
                "Attention to what followed earlier occurrences of the current token.",
                0.062,
                [(0.06, 0.0), (0.06, -0.02), (0.1, 0.61), (0.08, 0.2)],
            ),
            score(
                "previous_token",
                "Previous token",
                "Attention to the token before.",
                0.05,
                [(0.06, 0.02), (0.06, 0.37), (0.05, 0.0), (0.05, 0.03)],
            ),
            score(
                "duplicate_token",
                "Duplicate token",
                "Attention to earlier occurrences of the current token.",
                0.061,
                [(0.07, 0.05), (0.07, -0.04), (0.05, -0.03), (0.05, 0.02)],
            ),
            score(
                "first_token",
                "First token",
                "Attention to the first token.",
                0.066,
                [(0.07, 0.0), (0.06, 0.03), (0.06, 0.02), (0.07, 0.16)],
            ),
            score(
                "entropy",
                "Entropy",
                "Entropy of the attention, mean over queries.",
                3.18,
                [(3.1, -0.2), (3.12, -1.1), (3.0, -1.6), (3.05, -0.6)],
                "nats",
            ),
            replace(composition, n=None, values=values, yardstick="unrelated"),
        ],
    )


def _development(rng: np.random.Generator) -> schema.Development:
    n = len(STEPS)

    def line(label: str, base: float, rise: float, size: float = 0.01) -> schema.PanelLine:
        values = _noisy(rng, [_rise(s, base, rise) for s in STEPS], size)
        return schema.PanelLine(label, values, [v - 2 * size for v in values], [v + 2 * size for v in values])

    panels = [
        schema.Panel(
            "loss_by_position",
            "Loss",
            "Mean loss over all positions.",
            "nats",
            False,
            [line("the model", 2.66, -0.86), schema.PanelLine("bayes bigram", [1.78] * n, is_yardstick=True)],
        ),
        schema.Panel(
            "head_scores",
            "Heads",
            "The highest score of any head less a uniform head's.",
            "attention",
            False,
            [
                line("induction (L1H0)", 0.03, 0.62),
                line("previous token (L0H1)", 0.02, 0.4),
                schema.PanelLine("uniform head", [0.0] * n, is_yardstick=True),
            ],
        ),
        schema.Panel(
            "lens_by_layer",
            "Logit lens",
            "KL of the output from what the lens reads.",
            "nats",
            True,
            [line("embed", 0.5, 1.2), line("L0", 0.3, 0.8)],
        ),
    ]
    changes = [
        schema.Change("Loss", "the model", 1466.2, [1430.0, 1499.0], 240.0, -0.84, "BIC 190 better than its rivals"),
        schema.Change("Heads", "induction (L1H0)", 1480.4, [1452.0, 1507.0], 210.0, 0.62, "BIC 214 better than its rivals"),
        schema.Change("Heads", "previous token (L0H1)", None, None, None, None, "rise 0.02, 0.2 needed"),
    ]
    command = "interp-gpt2 report checkpoints/demo-induction --only development"
    skipped = {"tuned_lens": "takes long"}
    return schema.Development(command, "16 to 64 held-out sequences of markov", STEPS, panels, changes, skipped)


def _by_position() -> schema.LossByPosition:
    steps = [0, 256, 1300, 1500, 1700, 2600]
    bayes = [1.72 + 1.05 * math.exp(-p / 9) for p in range(64)]
    loss = [[2.77 - (2.77 - b) * min(1, _rise(s, 0.05, 0.95)) for b in bayes] for s in steps]
    references = [schema.PositionReference("exact Bayes bigram", bayes)]
    return schema.LossByPosition("interp-gpt2 report RUN", "4,096 held-out sequences", steps, list(range(64)), loss, references)


def _lens(rng: np.random.Generator) -> LensData:
    steps, layers = [0, 256, 1300, 1500, 2600], ("embed", "L0", "L1")
    tokens = rng.integers(0, 16, 24).tolist()
    lenses = []
    for i in range(len(steps)):
        logits = rng.normal(0, 1, (len(layers), 1, len(tokens), 16))
        for j in range(len(layers)):
            logits[j, 0, range(len(tokens) - 1), tokens[1:]] += i * j
        lenses.append(lens_of(torch.tensor(logits), tokens, layers))
    return pack_lens(tokens, LETTERS, lenses, steps)


def lens_of(logits: torch.Tensor, tokens: list[int], layers: tuple[str, ...]) -> LogitLens:
    """The lens a model with these logits (layer, 1, pos, d_vocab) would have; the last position has no target."""
    log_probability = logits.log_softmax(-1)
    targets = torch.tensor([[*tokens[1:], -1]])
    at_target = log_probability.gather(-1, targets.clamp(min=0).expand(len(layers), 1, -1)[..., None])
    top = log_probability.topk(5)
    rank = (log_probability > at_target).sum(-1)
    return LogitLens(
        labels=layers,
        hook_points=layers,
        targets=targets,
        top_tokens=top.indices,
        top_probabilities=top.values.exp(),
        target_rank=torch.where(targets < 0, -1, rank),
        target_log_probability=at_target[..., 0].where(targets >= 0, torch.nan),
        kl=(log_probability[-1:].exp() * (log_probability[-1:] - log_probability)).sum(-1),
        entropy=-(log_probability.exp() * log_probability).sum(-1),
    )


def _attention(rng: np.random.Generator) -> AttentionData:
    tokens = rng.integers(0, 16, N)
    steps = [0, 1300, 1500, 2600]
    patterns = np.zeros((len(steps), 2, 2, N, N))
    visible = np.tril(np.ones((N, N)))
    for i, step in enumerate(steps):
        for layer in range(2):
            for head in range(2):
                scores = rng.normal(0, 0.5, (N, N))
                if (layer, head) == (0, 1):
                    scores += 6 * _rise(step, 0, 1) * np.eye(N, k=-1)
                if (layer, head) == (1, 0):
                    follows = tokens[None, np.maximum(np.arange(N) - 1, 0)] == tokens[:, None]
                    scores += 5 * _rise(step, 0, 1) * follows
                weights = np.exp(scores) * visible
                patterns[i, layer, head] = weights / weights.sum(-1, keepdims=True)
    notes = {"L1H0": "induction 0.71", "L0H1": "previous token 0.43"}
    return pack_attention([LETTERS[t] for t in tokens], patterns, steps, notes)


def _probes(rng: np.random.Generator) -> schema.Probes:
    steps = [0, 1, 4, 16, 64, 128, 256, 512, 1024, 2600]
    layers = ["embed", "layer 0", "layer 1", "layer 2", "layer 3"]

    def probe(name: str, measures: str, last_two: float, top: float) -> schema.Probe:
        def at(step: int, layer: int) -> float:
            risen = 0.5 + (top - 0.5) * (layer / 4) ** 0.5 * _rise(step, 0.1, 0.9, 200, 400)
            return min(0.99, risen + float(rng.normal(0, 0.004)))

        auroc = [[at(step, layer) for layer in range(5)] for step in steps]
        shuffled = [[0.5 + float(rng.normal(0, 0.004)) for _ in layers] for _ in steps]
        low, high = ([[value + shift for value in row] for row in auroc] for shift in (-0.02, 0.015))
        accuracies = (0.981, 0.976)
        return schema.Probe(name, measures, 40_000, 10_000, *accuracies, auroc, shuffled, 0.5, 0.51, last_two, low, high)

    return schema.Probes(
        "interp-gpt2 probe checkpoints/demo-text",
        "characters of held-out documents, trained and tested on different documents",
        steps,
        layers,
        [
            probe("inside quotes", "Whether the character stands between quotation marks.", 0.63, 0.96),
            probe("indentation depth", "How deep the line is indented.", 0.62, 0.91),
            _at_the_last_step(probe("digit", "Whether the character is a digit.", 1.0, 0.999)),
        ],
    )


def _at_the_last_step(probe: schema.Probe) -> schema.Probe:
    auroc, shuffled, low, high = (
        [[None] * len(row) for row in rows[:-1]] + rows[-1:] for rows in (probe.auroc, probe.shuffled, probe.low, probe.high)
    )
    return replace(probe, auroc=auroc, shuffled=shuffled, low=low, high=high)


def _neurons(rng: np.random.Generator) -> schema.Neurons:
    text = "returns the value 'spam' when x is true and 'eggs' otherwise"

    def context(source: str) -> schema.Context:
        inside, activations = False, []
        for char in text:
            inside ^= char == "'"
            activations.append(max(-0.17, float(rng.normal(2.2 if inside else 0.0, 0.3))))
        return schema.Context([" " if c == " " else c for c in text], activations, int(np.argmax(activations)), source)

    neuron = schema.Neuron(
        "L2N137", "inside quotes", 0.941, 10_000, [context(f"document {i}") for i in (3, 17, 40)], 1, 0.92, 0.96, 0.55
    )
    return schema.Neurons(
        "interp-gpt2 probe RUN --neurons", 2600, "chosen on training documents, measured on test documents", [neuron]
    )


def with_every_string(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of a report whose every string, at any depth, has been changed (packed bytes and layout names stay)."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [with_every_string(item, change) for item in value]
    if isinstance(value, dict):
        return {key: with_every_string(item, change) for key, item in value.items()}
    if is_dataclass(value):
        kept = {"packed", "format", "unit", "first"}
        return replace(
            value, **{f.name: with_every_string(getattr(value, f.name), change) for f in fields(value) if f.name not in kept}
        )
    return value


@pytest.fixture(scope="session")
def report() -> schema.Report:
    return example_report()


@pytest.fixture(scope="session")
def hostile_report() -> schema.Report:
    """The example with markup in every string that a run, a text or a tokenizer could have put there."""
    example = example_report()
    hostile = with_every_string(example, lambda text: text + HOSTILE)
    heads = {name: replace(finding, label=example.heads[name].label) for name, finding in hostile.heads.items()}
    return replace(hostile, heads=heads, data=replace(hostile.data, unit="state" + HOSTILE))
