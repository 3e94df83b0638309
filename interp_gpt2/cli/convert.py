"""`interp-gpt2 convert`: a checkpoint for other libraries."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from interp_gpt2.cli.parse import option

if TYPE_CHECKING:
    from interp_gpt2.cli.where import Opened

EXAMPLES = (
    "interp-gpt2 convert demo-text --to huggingface --out my-model",
    "interp-gpt2 convert demo-text --to transformer-lens --step 512 --out hooked",
    "interp-gpt2 convert demo-text --to huggingface --step 777 --recompute --out step-777",
)


@dataclass(frozen=True)
class Convert:
    """Write a model for Hugging Face or TransformerLens, exactly, or say why it cannot be.

    huggingface: a directory for GPT2LMHeadModel.from_pretrained and AutoTokenizer. (A run's checkpoints already are.)
    transformer-lens: state_dict.safetensors under TransformerLens's names, and config.json with the arguments of its
    HookedTransformerConfig.
    """

    source: Annotated[tyro.conf.Positional[str], option("RUN")]
    """A run, one of its checkpoints, or a model's directory."""
    to: Literal["huggingface", "transformer-lens"]
    """For which library."""
    out: Annotated[Path, option("DIR")]
    """A directory that does not exist yet, or is empty."""
    step: Annotated[int | None, option("STEP")] = None
    """A checkpoint's step; the last one unless given."""
    recompute: bool = False
    """Train again up to --step, from the nearest checkpoint before it, bit for bit: also where none was kept."""

    def run(self) -> None:
        from interp_gpt2.cli.where import open_model, recomputed
        from interp_gpt2.errors import RunError

        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise RunError(f"{self.out} exists and is not empty; choose another directory")
        opened = recomputed(self.source, self.step) if self.recompute else open_model(self.source, self.step)
        if self.to == "huggingface":
            self._to_huggingface(opened)
        else:
            self._to_transformer_lens(opened)

    def _to_huggingface(self, opened: "Opened") -> None:
        from interp_gpt2.errors import ConversionError
        from interp_gpt2.hf_format import unrepresentable
        from interp_gpt2.runs.checkpoint import save_weights

        if reason := unrepresentable(opened.model.config):
            raise ConversionError(f"Hugging Face's GPT-2 cannot represent {reason}")
        save_weights(self.out, opened.model.state_dict(), opened.model.config, opened.tokenizer)
        print(f"wrote {self.out} ({opened.title})")
        print(f'load it with transformers.GPT2LMHeadModel.from_pretrained("{self.out}")')

    def _to_transformer_lens(self, opened: "Opened") -> None:
        import json

        from safetensors.torch import save_file

        from interp_gpt2.convert.transformer_lens import hooked_config, hooked_state_dict

        state = {name: weight.contiguous() for name, weight in hooked_state_dict(opened.model).items()}
        fields = hooked_config(opened.model)
        self.out.mkdir(parents=True, exist_ok=True)
        save_file(state, self.out / "state_dict.safetensors")
        (self.out / "config.json").write_text(json.dumps(fields, indent=2) + "\n", "utf-8")
        opened.tokenizer.save(self.out)
        print(f"wrote {self.out} ({opened.title})")
        print("load it with HookedTransformer(HookedTransformerConfig(**config)).load_state_dict(state_dict, strict=False)")
