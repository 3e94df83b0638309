"""`interp-gpt2 lens`: the logit lens of a prompt, in the terminal."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from interp_gpt2.cli.parse import UsageError, option

if TYPE_CHECKING:
    from interp_gpt2.analysis.logit_lens import LogitLens

EXAMPLES = (
    'interp-gpt2 lens demo-text "Return the value of the "',
    'interp-gpt2 lens demo-text "import os" --step 256 --target "."',
)


@dataclass(frozen=True)
class Lens:
    """What each layer would predict if the model stopped there: the logit lens of a prompt.

    First the most probable next token by layer and position, then the last position in detail: the five most probable
    tokens, the rank (0 is first) and probability of a target, KL(final || layer) and entropy in nats.
    """

    source: Annotated[tyro.conf.Positional[str], option("RUN")]
    """A run, one of its checkpoints, or a model's directory."""
    prompt: Annotated[tyro.conf.Positional[str], option("PROMPT")]
    """Text to look into."""
    step: Annotated[int | None, option("STEP")] = None
    """A checkpoint's step; the last one unless given."""
    target: Annotated[str | None, option("TEXT")] = None
    """Follow this token at the last position; the model's own first choice unless given."""

    def run(self) -> None:
        import torch

        from interp_gpt2.analysis.logit_lens import NO_TARGET, logit_lens_of, residual_streams
        from interp_gpt2.cli.where import open_model

        opened = open_model(self.source, self.step)
        encode, labels = opened.tokenizer.encode, opened.tokenizer.labels
        tokens = torch.tensor([encode(self.prompt)], dtype=torch.int64)
        target = None if self.target is None else _one_token(encode(self.target), self.target)
        streams = residual_streams(opened.model, tokens)
        if target is None:
            target = int(opened.model.unembed(streams[-1, 0, -1]).argmax())
        targets = torch.full_like(tokens, NO_TARGET)
        targets[0, -1] = target
        lens = logit_lens_of(opened.model, streams, targets, top_k=min(5, opened.model.config.d_vocab))
        width = shutil.get_terminal_size((80, 24)).columns
        print(f"{opened.title}: most probable next token by layer and position (· is a space)\n")
        print(_grid(lens, [labels[token] for token in tokens[0]], labels, width))
        whose = "the model's first choice" if self.target is None else "target"
        print(f"\nafter the last token; {whose} is {labels[target]}\n")
        print(_details(lens, labels))


def _one_token(tokens: list[int], text: str) -> int:
    if len(tokens) != 1:
        raise UsageError(f"--target {text!r} is {len(tokens)} tokens; a target is one token")
    return tokens[0]


def _grid(lens: "LogitLens", prompt: Sequence[str], labels: Sequence[str], width: int) -> str:
    """Rows are layers, the last one first, as in a picture of a model; as many of the last positions as fit."""
    from interp_gpt2.cli.tables import cut, shown_width, table

    top = lens.top_tokens[:, 0, :, 0].tolist()
    columns: list[list[str]] = []
    room = width - max(len(label) for label in lens.labels)
    for position in reversed(range(len(prompt))):
        column = [cut(text, 12) for text in (prompt[position], *(labels[layer[position]] for layer in reversed(top)))]
        room -= 2 + max(shown_width(text) for text in column)
        if room < 0:
            break
        columns.insert(0, column)
    rows = list(zip(*columns, strict=True))
    shown = table(["", *rows[0]], [[label, *row] for label, row in zip(reversed(lens.labels), rows[1:], strict=True)])
    hidden = len(prompt) - len(columns)
    return shown + (f"\n(the first {hidden} positions do not fit in {width} columns)" if hidden else "")


def _details(lens: "LogitLens", labels: Sequence[str]) -> str:
    from interp_gpt2.cli.tables import cut, table

    rows = []
    for layer in reversed(range(len(lens.labels))):
        at = (layer, 0, -1)
        top = [
            f"{cut(labels[token], 12)} {probability:.2f}"
            for token, probability in zip(lens.top_tokens[at].tolist(), lens.top_probabilities[at].tolist(), strict=True)
        ]
        target = [f"{int(lens.target_rank[at]):,}", f"{float(lens.target_probability[at]):.3f}"]
        rows.append([lens.labels[layer], *target, f"{float(lens.kl[at]):.2f}", f"{float(lens.entropy[at]):.2f}", "  ".join(top)])
    lines = table(["", "rank", "prob", "KL", "entropy"], [row[:-1] for row in rows]).splitlines()
    return "\n".join([lines[0] + "  most probable", *(line + "  " + row[-1] for line, row in zip(lines[1:], rows, strict=True))])
