"""`interp-gpt2 train`: a recipe, or your own text."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from interp_gpt2.cli.parse import UsageError, option

if TYPE_CHECKING:
    from interp_gpt2.training.config import TrainConfig

EXAMPLES = (
    "interp-gpt2 train demo-text",
    "interp-gpt2 train --data my-text.txt --steps 2000",
    "interp-gpt2 train --data my-text.txt --resume",
    "interp-gpt2 train --data tiny-shakespeare --n-layers 6 --d-model 192 --n-heads 6 --out checkpoints/bard",
)


@dataclass(frozen=True)
class Train:
    """Train a GPT-2 on a recipe, or on your own text.

    Recipes: demo-text, demo-induction, demo-induction-ordinary-positions, demo-induction-one-layer,
    tiny-shakespeare-cpu, text (the default with --data), the path of a .toml file, or of a run to train again. Options
    change what the recipe says. Ctrl-C finishes the step and writes a checkpoint; the same command with --resume goes on,
    bit for bit.
    """

    recipe: Annotated[tyro.conf.Positional[str | None], option("RECIPE")] = None
    """What to train."""
    data: Annotated[str | None, option("DATA")] = None
    """A text file, a folder of them, a directory of `interp-gpt2 data prepare`, or python-docs, tiny-shakespeare, tinystories,
    fineweb-edu, markov, repeated-random."""
    out: Annotated[Path | None, option("DIR")] = None
    """The run's directory; checkpoints/<recipe, or the data's name> unless given."""
    resume: bool = False
    """Go on where the run stopped."""
    overwrite: bool = False
    """Delete the run that is there."""
    steps: Annotated[int | None, option("N")] = None
    """Updates of the weights."""
    seed: Annotated[int | None, option("N")] = None
    """Of the weights and the order of the data."""
    tokenizer: Annotated[Literal["char", "byte", "gpt2"] | None, option("{char,byte,gpt2}")] = None
    """Characters, bytes, or GPT-2's byte pairs; prepared data has its own."""
    n_layers: Annotated[int | None, option("N")] = None
    """Blocks."""
    n_heads: Annotated[int | None, option("N")] = None
    """Attention heads in each."""
    d_model: Annotated[int | None, option("N")] = None
    """Width of the residual stream."""
    n_ctx: Annotated[int | None, option("N")] = None
    """Tokens in a sequence."""
    batch_size: Annotated[int | None, option("N")] = None
    """Sequences in a batch."""
    lr: Annotated[float | None, option("X")] = None
    """Highest learning rate."""
    eval_every: Annotated[int | None, option("N")] = None
    """Steps between validation losses."""
    checkpoint_every: Annotated[int | None, option("N")] = None
    """Steps between checkpoints, beside those at powers of two."""
    precision: Annotated[Literal["auto", "fp32", "bf16"] | None, option("{auto,fp32,bf16}")] = None
    """auto is bf16 where the hardware has it."""
    device: Annotated[str | None, option("DEVICE")] = None
    """cpu or cuda; a GPU when there is one unless given."""
    threads: Annotated[int | None, option("N")] = None
    """CPU threads."""
    compile: bool = False
    """Compile the model first."""

    def run(self) -> None:
        from interp_gpt2.cli.progress import TrainingBars
        from interp_gpt2.training.loop import train

        config, out = self.config(), self.directory()
        with TrainingBars([out.name]) as bars:
            run = train(config, out, self.resume, self.overwrite, lambda event: bars(out.name, event))
        print(f"wrote {run.path}: {len(run.steps)} checkpoints")
        print(f"next: interp-gpt2 report {run.path}")

    def config(self) -> "TrainConfig":
        """The recipe, or on --resume what the run was begun with, changed by the options given."""
        from interp_gpt2.config import GPT2Config
        from interp_gpt2.training.config import RECIPES, TrainConfig

        if self.resume and self.overwrite:
            raise UsageError("--resume goes on with a run and --overwrite deletes it; give one of them")
        if self.resume:
            base = self._begun_with()
        elif self.recipe is None and self.data is None:
            raise UsageError(f"what shall it train on? name a recipe ({', '.join(RECIPES)}) or give --data")
        else:
            base = self._recipe(self.recipe or "text")
        shape = self._given("n_layers", "n_heads", "d_model", "n_ctx")
        # d_head and d_mlp follow from the width unless a recipe sets them apart.
        kept = base.model.to_dict()
        if shape.keys() & {"d_model", "n_heads"}:
            kept = {name: value for name, value in kept.items() if name not in ("d_head", "d_mlp")}
        fields = self._given("data", "tokenizer", "seed", "batch_size", "lr", "eval_every", "precision", "device", "threads")
        if self.data is not None and self.tokenizer is None and (Path(self.data).expanduser() / "prepared.json").is_file():
            from interp_gpt2.data.prepared import read_record

            fields["tokenizer"] = read_record(Path(self.data).expanduser()).tokenizer["kind"]
        if self.steps is not None:
            fields["n_steps"] = self.steps
        if self.checkpoint_every is not None:
            fields["checkpoints"] = replace(base.checkpoints, every=self.checkpoint_every)
        if self.compile:
            fields["compile"] = True
        if self.lr is not None and 0 < self.lr < base.min_lr:
            fields["min_lr"] = self.lr / 10
        config = TrainConfig.from_dict(base.to_dict() | {"model": base.model, "checkpoints": base.checkpoints} | fields)
        return replace(config, model=GPT2Config.from_dict(kept | shape)) if shape else config

    def directory(self) -> Path:
        """Where the run goes: named after the data if there is one, else after the recipe."""
        from interp_gpt2.cli.where import RUNS

        if self.out is not None:
            return self.out
        named = Path(self.data).resolve().stem if self.data else Path(self.recipe or "text").stem
        return RUNS / (named if self.seed is None else f"{named}-seed{self.seed}")

    def _recipe(self, name: str) -> "TrainConfig":
        """The recipe of that name, or what the run of that name was trained with."""
        from interp_gpt2.report.inputs import training_config
        from interp_gpt2.runs.run import SETTINGS, Run
        from interp_gpt2.training.config import load_recipe

        return training_config(Run(Path(name))) if (Path(name) / SETTINGS).is_file() else load_recipe(name)

    def _begun_with(self) -> "TrainConfig":
        from interp_gpt2.report.inputs import training_config
        from interp_gpt2.runs.run import Run

        if self.out is None and self.recipe is None and self.data is None:
            raise UsageError("which run shall go on? give --out DIR, or the recipe or --data it was begun with")
        return training_config(Run(self.directory()))

    def _given(self, *names: str) -> dict[str, object]:
        return {name: value for name in names if (value := getattr(self, name)) is not None}
