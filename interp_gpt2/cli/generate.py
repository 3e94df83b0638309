"""`interp-gpt2 generate`: continue a prompt."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from interp_gpt2.cli.parse import option

EXAMPLES = (
    'interp-gpt2 generate demo-text "The module "',
    'interp-gpt2 generate demo-text "def " --step 64 --temperature 0.8 --seed 1',
)


@dataclass(frozen=True)
class Generate:
    """Continue a prompt with a run's model."""

    source: Annotated[tyro.conf.Positional[str], option("RUN")]
    """A run, one of its checkpoints, or a model's directory."""
    prompt: Annotated[tyro.conf.Positional[str], option("PROMPT")]
    """Text to continue."""
    max_new_tokens: Annotated[int, option("N")] = 200
    """How many tokens to add at most."""
    temperature: Annotated[float, option("X")] = 1.0
    """Divides the logits; 0 takes the most probable token."""
    top_k: Annotated[int | None, option("N")] = None
    """Sample among this many most probable tokens."""
    top_p: Annotated[float | None, option("X")] = None
    """Sample among the most probable tokens that hold this much probability."""
    seed: Annotated[int, option("N")] = 0
    """The same seed gives the same text."""
    step: Annotated[int | None, option("STEP")] = None
    """A checkpoint's step; the last one unless given."""

    def run(self) -> None:
        import torch

        from interp_gpt2.cli.where import open_model
        from interp_gpt2.generation import generate

        opened = open_model(self.source, self.step)
        tokens = torch.tensor([opened.tokenizer.encode(self.prompt)], dtype=torch.int64)
        text = generate(
            opened.model,
            tokens,
            self.max_new_tokens,
            self.temperature,
            self.top_k,
            self.top_p,
            self.seed,
            opened.tokenizer.eos_token_id,
        )
        print(opened.tokenizer.decode(text[0].tolist()))
