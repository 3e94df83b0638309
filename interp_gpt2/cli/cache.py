"""`interp-gpt2 cache`: activations on disk."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from interp_gpt2.cli.parse import UsageError, option

if TYPE_CHECKING:
    from interp_gpt2.activations.creating import Progress
    from interp_gpt2.activations.store import ActivationStore
    from interp_gpt2.activations.texts import Texts
    from interp_gpt2.model import GPT2
    from interp_gpt2.runs.run import Run
    from interp_gpt2.tokenizers import Tokenizer

EXAMPLES = (
    'interp-gpt2 cache create demo-text --at "*mlp.post" --tokens 100000',
    "interp-gpt2 cache create demo-induction --at resid_post --steps all --out activations/induction",
    "interp-gpt2 cache create gpt2 --at blocks.6.resid_post --data corpus.txt --n-ctx 256 --dtype bfloat16",
    "interp-gpt2 cache verify activations/induction",
    "interp-gpt2 cache info activations/induction",
    "interp-gpt2 cache export activations/induction --at blocks.1.resid_post --out sae-data",
)
_DAMAGED = 4


@dataclass(frozen=True)
class Cache:
    """Activations on disk: hook points x tokens x checkpoints, in shards of safetensors.

    create writes the activations of a run's or a model's held-out text; killed at any moment, the same command goes on.
    verify hashes every file and names those that are not what was written. info says what a store holds. export writes
    one checkpoint in the layout that SAELens trains on.
    """

    action: Annotated[tyro.conf.Positional[Literal["create", "verify", "info", "export"]], option("create|verify|info|export")]
    """What to do."""
    source: Annotated[tyro.conf.Positional[str], option("RUN|DIR")]
    """For create a run, one of its checkpoints, a model's directory or a published size; else the store."""
    at: Annotated[str | None, option("NAMES")] = None
    """Hook points, separated by commas: names, globs, or short names that stand for every layer's."""
    out: Annotated[Path | None, option("DIR")] = None
    """Where to; activations/RUN unless given, which create makes or goes on with."""
    tokens: Annotated[int | None, option("N")] = None
    """About how many tokens; all of the held-out text unless given."""
    steps: Annotated[str | None, option("STEPS")] = None
    """Some of a run's steps, separated by commas, or all; the last one unless given."""
    data: Annotated[str | None, option("DATA")] = None
    """A text file, a folder, a prepared directory or a named corpus; the run's own unless given."""
    n_ctx: Annotated[int | None, option("N")] = None
    """Tokens in a sequence; the model's context unless given."""
    dtype: Annotated[Literal["float16", "bfloat16", "float32"], option("DTYPE")] = "float16"
    """float16, bfloat16 or float32."""
    batch_size: Annotated[int | None, option("N")] = None
    """Sequences in a pass; about 4,096 tokens unless given."""
    device: Annotated[str, option("DEVICE")] = "cpu"
    """Where the model computes, such as cuda."""

    def run(self) -> int:
        from interp_gpt2.activations.store import ActivationStore

        if self.action == "create":
            self._create()
            return 0
        if self.action == "export":
            self._export()
            return 0
        store = ActivationStore(Path(self.source), partial=True)
        if self.action == "info":
            print(described(store))
            return 0
        return verified(store)

    def _create(self) -> None:
        from interp_gpt2.activations.asked import Recording
        from interp_gpt2.activations.creating import create_store

        if self.at is None:
            raise UsageError("--at is missing: the hook points to store, such as --at '*mlp.post'")
        subject, steps, texts, name = self._asked()
        out = self.out or Path("activations") / name
        recording = Recording(hook_points(self.at), self.dtype, self.batch_size, device=self.device)
        with _Shown() as shown:
            store = create_store(out, subject, texts, recording, steps, shown)
        print(described(store))
        print(f"next: interp-gpt2 cache verify {out}")

    def _asked(self) -> tuple["GPT2 | Run", list[int] | None, "Texts", str]:
        """Of what, at which steps, on which texts, and how it is called."""
        from interp_gpt2.cli.where import find_run, find_step, open_model
        from interp_gpt2.config import SIZES
        from interp_gpt2.errors import RunError

        try:
            run, implied = find_run(self.source)
        except RunError:
            if self.source not in SIZES and not (Path(self.source) / "config.json").is_file():
                raise
            if self.steps is not None:
                raise UsageError(f"{self.source} is one model, not a run; it has no --steps") from None
            if self.data is None:
                raise UsageError(f"what {self.source} was trained on is not known; give --data") from None
            opened = open_model(self.source)
            model = opened.model.to(self.device)
            return model, None, self._texts(None, opened.tokenizer, model.config.n_ctx), Path(self.source).name
        if self.steps == "all":
            find_step(run, None, None)  # which says so if there is none
            steps = run.steps
        elif self.steps is not None:
            steps = [find_step(run, step, None) for step in _numbers(self.steps)]
        else:
            steps = [find_step(run, None, implied)]
        return run, steps, self._texts(run, run.tokenizer(), run.config_at(steps[-1]).n_ctx), run.name

    def _texts(self, run: "Run | None", tokenizer: "Tokenizer", n_ctx: int) -> "Texts":
        from interp_gpt2.activations.texts import Texts
        from interp_gpt2.data.source import load_source

        if self.n_ctx is not None and not 1 <= self.n_ctx <= n_ctx:
            raise UsageError(f"--n-ctx {self.n_ctx} is not between 1 and the model's {n_ctx}")
        source = run.source() if self.data is None else load_source(self.data, tokenizer.kind)
        if source.tokenizer.sha256 != tokenizer.sha256:
            raise UsageError(f"{self.source} does not read the tokens of {self.data}: its {tokenizer.kind} tokenizer is another")
        return Texts.from_source(source, self.n_ctx or n_ctx, self.tokens)

    def _export(self) -> None:
        from interp_gpt2.activations.sae_lens import export_sae_lens
        from interp_gpt2.activations.store import ActivationStore

        if self.out is None:
            raise UsageError("--out is missing: the folder to export to")
        steps = [None] if self.steps is None else _numbers(self.steps)
        if len(steps) > 1:
            raise UsageError("one checkpoint is exported at a time; --steps takes one step")
        store = ActivationStore(Path(self.source))
        names = None if self.at is None else stored_points(store, self.at)
        found = export_sae_lens(store, self.out, names, steps[0])
        left_out = f" ({found.n_left_out:,} shorter ones left out)" if found.n_left_out else ""
        print(f"{found.path}: {found.n_sequences:,} sequences of {found.context_size} tokens{left_out}")
        for name, width in found.columns.items():
            print(f"  {name}, d_in {width}")
        print("SAELens reads it as cached_activations_path; analyses/train_sae.py trains on one")


def hook_points(text: str) -> list[str]:
    """Names separated by commas; a short one, such as resid_post or mlp.post, stands for every layer's."""
    from interp_gpt2.hooks import canonical

    words = [canonical(word.strip()) for word in text.split(",") if word.strip()]
    ends = ("embed", "pos_embed", "ln_final", "unembed")
    return [word if any(c in word for c in "*?[") or word.startswith(("blocks.", *ends)) else f"*.{word}" for word in words]


def stored_points(store: "ActivationStore", text: str) -> list[str]:
    """The same among those that a store holds."""
    from fnmatch import fnmatchcase

    found = []
    for pattern in hook_points(text):
        matching = [name for name in store.hook_points if fnmatchcase(name, pattern)]
        found += matching or [store.full_name(pattern)]  # which raises, naming the nearest
    return list(dict.fromkeys(found))


def _numbers(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if wrong := [word for word in words if not (word.isascii() and word.isdigit())]:
        raise UsageError(f"--steps takes whole numbers separated by commas, or all, not {wrong[0]!r}")
    return [int(word) for word in words]


def described(store: "ActivationStore") -> str:
    """What a store holds, in a few lines."""
    from interp_gpt2.cli.tables import in_bytes

    plan, record = store.plan, store.record
    there = "complete" if store.complete else f"{record.shards_done:,} of {record.shards_in_all:,} shards so far"
    steps = "one model" if store.steps == [None] else f"steps {', '.join(map(str, store.steps))}"
    config = plan.config
    lines = [
        f"{store.path}: {there}, {in_bytes(store.n_bytes)}",
        f"model: {config['n_layers']} layers, d_model {config['d_model']}; {steps}; computed in {plan.computed_in}",
        f"texts: {len(store):,} tokens, {plan.note or 'not described'}; tokenizer {(plan.tokenizer or 'not stored')[:12]}",
        f"shards: {plan.n_shards} a checkpoint, of {plan.shard_sequences:,} sequences or fewer; {plan.dtype}",
    ]
    return "\n".join([*lines, *(f"  {name} {shape}" for name, shape in store.hook_points.items())])


def verified(store: "ActivationStore") -> int:
    """Hash everything, and say what is damaged. The exit code."""
    problems = store.damage()
    for problem in problems:
        print(f"interp-gpt2: {' '.join(problem.split())}", file=sys.stderr)
    n = len(store.record.entries())
    if problems:
        print(f"{store.path}: {len(problems)} of {n:,} files are damaged; delete them, and the command that made them makes "
              "them again")  # fmt: skip
        return _DAMAGED
    unfinished = "" if store.complete else f"; {store.record.shards_done:,} of {store.record.shards_in_all:,} shards so far"
    print(f"{store.path}: all {n:,} files are what was written{unfinished}")
    return 0


class _Shown:
    """Progress on stderr: one line that is written over in a terminal, else a line every ten seconds."""

    def __init__(self) -> None:
        self.live, self.shown, self.line = sys.stderr.isatty(), time.monotonic(), ""

    def __enter__(self) -> "_Shown":
        return self

    def __call__(self, progress: "Progress") -> None:
        step = "" if progress.step is None else f"step {progress.step:,}, "
        self.line = f"{step}{progress.n_rows:,} of {progress.n_rows_in_all:,} tokens, {progress.rows_per_s:,.0f} tok/s"
        if self.live:
            print(f"\r\x1b[K{self.line}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self.shown > 10:
            self.shown = time.monotonic()
            print(self.line, file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self.live and self.line:
            print(file=sys.stderr)
