"""`interp-gpt2 train`: a recipe, or your own text."""

import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from interp_gpt2.cli.parse import UsageError, option
from interp_gpt2.training.launch import place

if TYPE_CHECKING:
    from interp_gpt2.training.config import TrainConfig

EXAMPLES = (
    "interp-gpt2 train demo-text",
    "interp-gpt2 train --data my-text.txt --steps 2000",
    "interp-gpt2 train --data my-text.txt --resume",
    "interp-gpt2 train demo-induction --online induction_heads --set model.n_heads=4 --set guard_z=6",
    "interp-gpt2 train --data tiny-shakespeare --n-layers 6 --d-model 192 --n-heads 6 --out checkpoints/bard",
)


@dataclass(frozen=True)
class Train:
    """Train a GPT-2 on a recipe, or on your own text.

    Recipes: demo-text, demo-induction, demo-induction-ordinary-positions, demo-induction-one-layer, tiny-shakespeare-cpu,
    tiny-shakespeare, tinystories, fineweb-edu-124m, pythia-like, text (the default with --data), the path of a .toml file,
    or of a run to train again. Options change what the recipe says, --set any field of it. Ctrl-C finishes the step and
    writes a checkpoint; the same command with --resume goes on, bit for bit. `torchrun --standalone --nproc-per-node 8 -m
    interp_gpt2 train ...` does it on 8 GPUs.
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
    tokenizer: Annotated[str | None, option("KIND")] = None
    """char, byte, gpt2, or bpe:4096 to train one of 4,096 tokens; prepared data has its own."""
    n_layers: Annotated[int | None, option("N")] = None
    """Blocks."""
    n_heads: Annotated[int | None, option("N")] = None
    """Attention heads in each."""
    d_model: Annotated[int | None, option("N")] = None
    """Width of the residual stream."""
    n_ctx: Annotated[int | None, option("N")] = None
    """Tokens in a sequence."""
    batch_size: Annotated[int | None, option("N")] = None
    """Sequences in a batch, all of which one update is made from."""
    tokens_per_step: Annotated[int | None, option("N")] = None
    """The same in tokens: a multiple of n_ctx."""
    micro_batch: Annotated[str | None, option("N|auto")] = None
    """Sequences computed at once; auto: as many as fit in memory."""
    lr: Annotated[float | None, option("X")] = None
    """Highest learning rate; below the recipe's min_lr, that becomes a tenth of it."""
    schedule: Annotated[Literal["cosine", "wsd", "constant"] | None, option("{cosine,wsd,constant}")] = None
    """How the learning rate falls."""
    optimizer: Annotated[Literal["adamw", "muon"] | None, option("{adamw,muon}")] = None
    """muon is for the blocks' matrices, with AdamW for the rest."""
    eval_every: Annotated[int | None, option("N")] = None
    """Steps between validation losses."""
    checkpoint_every: Annotated[int | None, option("N")] = None
    """Steps between checkpoints, beside those at powers of two."""
    online: Annotated[str | None, option("NAMES")] = None
    """Analyses to log while training, with commas between: head_scores, induction_heads, head_copying,
    head_composition, in_context_learning, loss_by_position, loss_by_token_class, ngram_agreement, lens_by_layer,
    layer_similarity, learning_coefficient, neuron_activity, probes, neuron_probes, sparse_probes, weight_spectra,
    settling_depth, tuned_lens."""
    online_every: Annotated[int | None, option("N")] = None
    """Steps between them."""
    tracking: Annotated[Literal["none", "tensorboard", "wandb"] | None, option("{none,tensorboard,wandb}")] = None
    """Show the metrics there too."""
    precision: Annotated[Literal["auto", "fp32", "bf16"] | None, option("{auto,fp32,bf16}")] = None
    """auto is bf16 where the hardware has it."""
    device: Annotated[str | None, option("DEVICE")] = None
    """cpu or cuda; a GPU when there is one unless given."""
    threads: Annotated[int | None, option("N")] = None
    """CPU threads."""
    compile: bool = False
    """Compile the training pass first."""
    set: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], option("FIELD=VALUE")] = ()
    """Any field of the recipe, such as weight_decay=0 or model.dropout=0.1; may be given again."""

    def run(self) -> None:
        from interp_gpt2.cli.progress import TrainingBars
        from interp_gpt2.training.loop import train

        config, out = self.config(), self.directory()
        if place().rank == 0:
            for unheeded in self.unheeded(config):
                print(f"{out.name}: goes on as it was begun, with {unheeded}", file=sys.stderr)
        with TrainingBars([out.name]) as bars:
            run = train(config, out, self.resume, self.overwrite, lambda event: bars(out.name, event))
        if place().rank == 0:
            print(f"wrote {run.path}: {len(run.steps)} checkpoints")
            print(f"next: interp-gpt2 report {run.path}")

    def config(self) -> "TrainConfig":
        """The recipe, or on --resume what the run was begun with, changed by the options given."""
        from interp_gpt2.training.config import RECIPES

        if self.resume and self.overwrite:
            raise UsageError("--resume goes on with a run and --overwrite deletes it; give one of them")
        if self.resume:
            base = self._begun_with()
        elif self.recipe is None and self.data is None:
            raise UsageError(f"what shall it train on? name a recipe ({', '.join(RECIPES)}) or give --data")
        else:
            base = self._recipe(self.recipe or "text")
        return self._with_options(base)

    def unheeded(self, config: "TrainConfig") -> list[str]:
        """On --resume, what the recipe says otherwise than the run that goes on as `config`."""
        if not self.resume or self.recipe is None:
            return []
        from interp_gpt2.data.source import NAMED_SOURCES
        from interp_gpt2.training.record import differences

        said = self._with_options(self._recipe(self.recipe)).to_dict()
        said["model"]["d_vocab"] = config.model.d_vocab  # follows from the tokenizer
        if said["data"] not in NAMED_SOURCES and Path(said["data"]).expanduser().resolve() == Path(config.data):
            said["data"] = config.data  # a run has the path in full
        return [f"{name}={is_!r}; {self.recipe} says {was!r}" for name, was, is_ in differences(said, config.to_dict())]

    def _with_options(self, base: "TrainConfig") -> "TrainConfig":
        from interp_gpt2.training.config import TrainConfig

        return TrainConfig.from_dict(_changed(_changed(base.to_dict(), self._fields(base)), self._settings()))

    def _fields(self, base: "TrainConfig") -> dict[str, Any]:
        """What the options say, by the config's fields."""
        names = ("data", "tokenizer", "seed", "batch_size", "lr", "schedule", "optimizer", "eval_every", "online_every")
        fields = self._given(*names, "tracking", "precision", "device", "threads")
        fields["model"] = self._given("n_layers", "n_heads", "d_model", "n_ctx")
        if self.data is not None and self.tokenizer is None and (Path(self.data).expanduser() / "prepared.json").is_file():
            from interp_gpt2.data.prepared import read_record

            fields["tokenizer"] = read_record(Path(self.data).expanduser()).tokenizer["kind"]
        if self.steps is not None:
            fields["n_steps"] = self.steps
        if self.micro_batch is not None:
            fields["micro_batch"] = int(self.micro_batch) if self.micro_batch.isdecimal() else self.micro_batch
        if self.tokens_per_step is not None:
            fields["batch_size"] = self._sequences(self.n_ctx or base.model.n_ctx)
        if self.online is not None:
            fields["online"] = [name.strip() for name in self.online.split(",") if name.strip()]
        if self.checkpoint_every is not None:
            fields["checkpoints"] = {"every": self.checkpoint_every}
        if self.compile:
            fields["compile"] = True
        if self.lr is not None and 0 < self.lr < base.min_lr:
            fields["min_lr"] = self.lr / 10
        return fields

    def _sequences(self, n_ctx: int) -> int:
        if self.batch_size is not None:
            raise UsageError("--batch-size and --tokens-per-step say the same thing; give one of them")
        if self.tokens_per_step % n_ctx or self.tokens_per_step < n_ctx:
            below = max(1, self.tokens_per_step // n_ctx) * n_ctx
            raise UsageError(f"--tokens-per-step {self.tokens_per_step} is no multiple of n_ctx={n_ctx}; {below} is")
        return self.tokens_per_step // n_ctx

    def _settings(self) -> dict[str, Any]:
        """What --set says, nested as in a recipe."""
        merged: dict[str, Any] = {}
        for setting in self.set:
            name, equals, value = setting.partition("=")
            if not equals or not name.strip():
                raise UsageError(f"--set takes FIELD=VALUE, such as weight_decay=0 or model.dropout=0.1, not {setting!r}")
            section, _, field = name.strip().rpartition(".")
            place = merged.setdefault(section, {}) if section else merged
            if not isinstance(place, dict):
                raise UsageError(f"--set gives {section} a value and then a field, {field}")
            place[field] = _toml_value(value.strip())
        return merged

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


def _changed(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`values` with `changes`, sections field by field."""
    for name, change in changes.items():
        section = values.get(name)
        if isinstance(change, dict) and isinstance(section, dict):
            if name == "model" and change.keys() & {"d_model", "n_heads"}:
                # d_head and d_mlp follow from the width unless a recipe sets them apart.
                follow = {"d_head": section["d_model"] // section["n_heads"], "d_mlp": 4 * section["d_model"]}
                section = {field: value for field, value in section.items() if follow.get(field) != value}
            change = section | change
        values = values | {name: change}
    return values


def _toml_value(text: str) -> Any:
    """A value as a recipe would have it; words that are none are a string, so that no shell needs two kinds of quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
