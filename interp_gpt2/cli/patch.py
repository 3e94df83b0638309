"""`interp-gpt2 patch`: which pieces of a clean run bring its answer back in a corrupted one."""

import shutil
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from interp_gpt2.cli.parse import UsageError, option

if TYPE_CHECKING:
    from interp_gpt2.causal.result import PatchingResult
    from interp_gpt2.cli.where import Opened
    from interp_gpt2.prompts.pairs import PromptPairs
    from interp_gpt2.tokenizers import Tokenizer

EXAMPLES = (
    'interp-gpt2 patch "John and Mary left. John hugged" "John and Mary left. Mary hugged" --answer " Mary" --wrong " John"',
    "interp-gpt2 patch ABCDEFGHABC HGFEDCBAABC --answer D --wrong B --model demo-induction",
    "interp-gpt2 patch ABCDEFGHABC HGFEDCBAABC --answer D --model demo-induction --sweep attn_head_out_all_pos",
)
INTERRUPTED = 130

# TransformerLens's names, without their get_act_patch_.
SweepName = Literal[
    "resid_pre", "resid_mid", "attn_out", "mlp_out", "block_every",
    "attn_head_out_all_pos", "attn_head_q_all_pos", "attn_head_k_all_pos", "attn_head_v_all_pos",
    "attn_head_pattern_all_pos", "attn_head_all_pos_every",
    "attn_head_out_by_pos", "attn_head_q_by_pos", "attn_head_k_by_pos", "attn_head_v_by_pos",
    "attn_head_pattern_by_pos", "attn_head_pattern_dest_src_pos", "attn_head_by_pos_every",
]  # fmt: skip
MetricName = Literal["logit_difference", "logit", "probability", "log_probability", "rank", "kl_divergence"]


@dataclass(frozen=True)
class Patch:
    """Activation patching of one pair of prompts: which pieces of the model carry what differs between them.

    Denoising puts pieces of the clean prompt's run into the corrupted prompt's, and noising the reverse. Every piece's
    number is 0 where the answer is as in the corrupted run, and 1 where it is as in the clean one. Prints the strongest
    pieces, and writes a figure, a page to look at and a table of all. With GPT-2's tokens, an answer within a sentence
    begins with its space. Ctrl-C keeps what is finished.
    """

    clean: Annotated[tyro.conf.Positional[str], option("CLEAN")]
    """The prompt that has the answer."""
    corrupted: Annotated[tyro.conf.Positional[str], option("CORRUPTED")]
    """The same but for what the answer hangs on; it has as many tokens."""
    answer: Annotated[str, option("TEXT")]
    """The token that answers the clean prompt."""
    wrong: Annotated[str | None, option("TEXT")] = None
    """The token that does not, often the corrupted prompt's answer."""
    model: Annotated[str, option("RUN")] = "gpt2"
    """A run, one of its checkpoints, a model's directory, or a published size such as gpt2."""
    step: Annotated[int | None, option("STEP")] = None
    """A run's checkpoint; the last one unless given."""
    sweep: Annotated[SweepName, option("SWEEP")] = "resid_pre"
    """What is patched: resid_pre, resid_mid, attn_out or mlp_out, by layer and position (block_every is three of them);
    attn_head_X_all_pos, by layer and head, or attn_head_X_by_pos, by layer, head and position, of which X is out, q, k, v
    or pattern (attn_head_all_pos_every and attn_head_by_pos_every are the five); attn_head_pattern_dest_src_pos."""
    direction: Annotated[Literal["denoising", "noising"], option("DIRECTION")] = "denoising"
    """denoising or noising."""
    metric: Annotated[MetricName | None, option("METRIC")] = None
    """logit_difference (answer less wrong, unless there is no --wrong), log_probability, logit, probability, rank, or
    kl_divergence (from the clean run's prediction)."""
    bos: bool = False
    """Begin both prompts with the end-of-text token."""
    top: Annotated[int, option("N")] = 10
    """How many of the strongest pieces to print."""
    figure: Annotated[Literal["svg", "pdf", "png"], option("FORMAT")] = "svg"
    """The figure's format: svg, pdf or png."""
    out: Annotated[Path, option("DIR")] = Path("patching")
    """Where to write."""

    def run(self) -> int:
        from interp_gpt2.causal import activation_patching
        from interp_gpt2.cli.where import open_model

        if self.top < 1:
            raise UsageError("--top must be at least 1")
        if self.metric == "logit_difference" and self.wrong is None:
            raise UsageError("a logit difference needs --wrong, the token to compare --answer with")
        opened = open_model(self.model, self.step)
        if self.bos and opened.tokenizer.eos_token_id is None:
            raise UsageError(f"the {opened.tokenizer.kind} tokenizer has no end-of-text token to begin with; leave out --bos")
        pairs = self._pairs(opened.tokenizer)
        metric = self.metric or ("log_probability" if self.wrong is None else "logit_difference")
        sweep = getattr(activation_patching, f"get_act_patch_{self.sweep}")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "interrupted", UserWarning)  # said below
            result = sweep(opened.model, pairs, metric, self.direction, progress=sys.stderr.isatty())
        undone = int(result.mean.isnan().sum())
        if undone < result.mean.numel():
            self._show(opened, pairs, result)
            print(f"\nwrote {', '.join(map(str, self._write(result)))}")
        if result.complete:
            return 0
        print(f"interp-gpt2: interrupted: {undone} of {result.mean.numel()} cells are not done", file=sys.stderr)
        return INTERRUPTED

    def _pairs(self, tokenizer: "Tokenizer") -> "PromptPairs":
        from interp_gpt2.prompts.alignment import aligned, first_difference
        from interp_gpt2.prompts.encoding import encode_prompt
        from interp_gpt2.prompts.pairs import PromptPairs

        prompts = {"clean": self.clean, "corrupted": self.corrupted}
        tokens = [encode_prompt(tokenizer, text, f"the {name} prompt") for name, text in prompts.items()]
        if len(tokens[0]) != len(tokens[1]):
            print(aligned(*([tokenizer.labels[token] for token in each] for each in tokens)), file=sys.stderr)
            raise UsageError(
                f"the clean prompt has {len(tokens[0])} tokens and the corrupted one {len(tokens[1])}; they first differ at "
                f"position {first_difference(*tokens)}, and patching needs as many: replace words by others of as many tokens"
            )
        return PromptPairs.from_text(tokenizer, self.clean, self.corrupted, self.answer, self.wrong, bos=self.bos)

    def _show(self, opened: "Opened", pairs: "PromptPairs", result: "PatchingResult") -> None:
        from interp_gpt2.views.patching import headline

        what, ends = headline(result)
        print(f"{opened.title}: {what}\n{ends.removesuffix('; 1 pair')}")
        print(f"next token: {first_choices(opened, pairs)}\n")
        if len(result.axes) == 2:
            print(f"{grid(result, shutil.get_terminal_size((80, 24)).columns)}\n")
        print(f"furthest from the {'corrupted' if self.direction == 'denoising' else 'clean'} run (0 as corrupted, 1 as clean)\n")
        print(strongest(result, self.top))
        if result.n_skipped:
            print(f"\n{result.n_skipped:,} of {result.mean.numel():,} cells have nothing to patch")

    def _write(self, result: "PatchingResult") -> list[Path]:
        """A table, and where there are not too many axes a figure and a page."""
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / f"{self.sweep}-{self.direction}.csv"
        result.to_frame().to_csv(path, index=False)
        if len(result.axes) > 3:
            return [path]
        from interp_gpt2.views.figures import save_picture
        from interp_gpt2.views.patching import patching_view
        from interp_gpt2.views.patching_figures import patching_heat_map

        picture = save_picture(patching_heat_map(result), path.with_suffix(f".{self.figure}"))
        return [picture, patching_view(result).save(path.with_suffix(".html")), path]


def first_choices(opened: "Opened", pairs: "PromptPairs") -> str:
    """What the model would say after either prompt, by which a wrong answer token is seen at once."""
    import torch

    labels, said = opened.tokenizer.labels, []
    with torch.no_grad():
        for name, tokens in (("clean", pairs.clean), ("corrupted", pairs.corrupted)):
            probabilities = opened.model(tokens)[0, -1].softmax(-1)
            named = dict.fromkeys([int(probabilities.argmax()), *pairs.correct[0].tolist(), *pairs.incorrect[0].tolist()])
            said.append(f"{name} " + ", ".join(f"{labels[token]} {probabilities[token]:.2f}" for token in named))
    return "; ".join(said)


def grid(result: "PatchingResult", width: int) -> str:
    """The whole of two axes, the last layer first; a line instead where the terminal is too narrow."""
    from interp_gpt2.cli.tables import cut, shown_width, table

    rows, columns = (result.labels[axis] for axis in result.axes)
    values, skipped = result.normalised.tolist(), result.skipped.all(-1).tolist()
    lines = [
        [rows[row], *("-" if gone else "×" if value != value else number(value, 2) for value, gone in zip(*line, strict=True))]
        for row, line in reversed(list(enumerate(zip(values, skipped, strict=True))))
    ]
    shown = table([result.axes[0], *(cut(label, 8) for label in columns)], lines)
    needed = max(map(shown_width, shown.splitlines()))
    if needed <= width:
        return shown
    return f"(the table of {len(rows)} by {len(columns)} needs {needed} columns of the terminal's {width}; see the figure)"


def number(value: float, digits: int) -> str:
    """Without a sign where it is 0 when rounded."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def strongest(result: "PatchingResult", n: int) -> str:
    """A line for each of the cells that moved the metric furthest."""
    from interp_gpt2.cli.tables import table

    frame = result.top(n).dropna(subset="normalised")
    axes = list(result.axes)
    lines = [
        [*(str(row[axis]) for axis in axes), number(row["normalised"], 3), f"{row['value']:.4g}"]
        for row in frame.to_dict("records")
    ]
    return table([*axes, "normalised", result.metric], lines, left=len(axes))
