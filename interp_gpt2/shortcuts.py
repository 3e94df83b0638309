"""The model's methods whose work is done elsewhere: a line each, importing where it is done.

model.py is the paper's figure and nothing else; whoever has a model still finds all it can do on it.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from interp_gpt2.cache import ActivationCache
from interp_gpt2.hooks import Edits, Keep, Names
from interp_gpt2.kv_cache import KVCache

if TYPE_CHECKING:
    from interp_gpt2.generation import Sampling
    from interp_gpt2.model import GPT2


def weight(name: str) -> property:
    """A property of the model that reads one of its weights under its name in the literature."""

    def read(model: "GPT2") -> Tensor:
        from interp_gpt2 import weights

        return getattr(weights, name)(model)

    return property(read, doc=f"See weights.{name}.")


class Shortcuts:
    """What GPT2 can do besides its pass."""

    def with_edits(self, edits: Edits) -> "GPT2":
        """A view of the model under standing edits, with the same methods. See passes.EditedGPT2."""
        from interp_gpt2.passes import with_edits

        return with_edits(self, edits)

    def run_until(
        self,
        tokens: Tensor,
        stop: int,
        names: Names | None = None,
        edits: Edits | None = None,
        keep: Keep | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, ActivationCache]:
        """The stream before layer `stop`, and the activations on the way; nothing later runs. See passes.run_until."""
        from interp_gpt2.passes import run_until

        return run_until(self, tokens, stop, names, edits, keep, attention_mask)

    def run_from(
        self,
        resid: Tensor,
        start: int,
        names: Names | None = None,
        edits: Edits | None = None,
        keep: Keep | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, ActivationCache]:
        """Logits from the stream before layer `start`, and the activations from there on. See passes.run_from."""
        from interp_gpt2.passes import run_from

        return run_from(self, resid, start, names, edits, keep, attention_mask)

    def run_batched(
        self,
        tokens: Tensor,
        batch_size: int,
        names: Names | None = None,
        keep: Keep | None = None,
        attention_mask: Tensor | None = None,
    ) -> Iterator[tuple[Tensor, ActivationCache]]:
        """`run_with_cache` of every `batch_size` sequences in turn, one batch in memory. See passes.run_batched."""
        from interp_gpt2.passes import run_batched

        return run_batched(self, tokens, batch_size, names, keep, attention_mask)

    def run_with_gradients(
        self,
        tokens: Tensor,
        metric: Callable[[Tensor], Tensor],
        names: Names | None = None,
        edits: Edits | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, ActivationCache, ActivationCache]:
        """Logits, activations, and the derivatives of `metric(logits)` by them. See passes.run_with_gradients."""
        from interp_gpt2.passes import run_with_gradients

        return run_with_gradients(self, tokens, metric, names, edits, attention_mask)

    @classmethod
    def from_pretrained(cls, name_or_directory: str, revision: str | None = None) -> "GPT2":
        """A model from a checkpoint directory, a Hugging Face GPT-2 directory, or a Hub name. See runs.pretrained."""
        from interp_gpt2.runs.pretrained import load_pretrained

        return load_pretrained(name_or_directory, revision)

    def save(self, directory: str) -> None:
        """Write the model to a new directory, which transformers can load too. See runs.checkpoint.save_weights."""
        from interp_gpt2.runs.checkpoint import save_weights

        save_weights(directory, self.state_dict(), self.config)

    def generate(
        self,
        tokens: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop_token: int | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """`tokens` followed by up to `max_new_tokens` sampled ones. See generation.generate."""
        from interp_gpt2.generation import generate

        return generate(self, tokens, max_new_tokens, temperature, top_k, top_p, seed, stop_token, attention_mask)

    def stream(
        self,
        tokens: Tensor,
        max_new_tokens: int,
        sampling: "Sampling | None" = None,
        attention_mask: Tensor | None = None,
        past: KVCache | None = None,
    ) -> Iterator[Tensor]:
        """The tokens that `generate` would append, each as soon as it is known: (batch,). See generation.stream."""
        from interp_gpt2.generation import stream

        return stream(self, tokens, max_new_tokens, sampling, attention_mask, past)

    def generate_with_cache(
        self,
        tokens: Tensor,
        max_new_tokens: int,
        names: Names | None = None,
        sampling: "Sampling | None" = None,
        keep: Keep | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, list[ActivationCache]]:
        """The generated text, and what the model saw at every step. See generation.generate_with_cache."""
        from interp_gpt2.generation import generate_with_cache

        return generate_with_cache(self, tokens, max_new_tokens, names, sampling, keep, attention_mask)

    # Weights, as views under their names in the literature; see weights.py --------------------------------------------

    W_E, W_pos, W_U, b_U = weight("W_E"), weight("W_pos"), weight("W_U"), weight("b_U")
    W_Q, W_K, W_V, W_O = weight("W_Q"), weight("W_K"), weight("W_V"), weight("W_O")  # (layer, head, ...)
    b_Q, b_K, b_V, b_O = weight("b_Q"), weight("b_K"), weight("b_V"), weight("b_O")
    QK, OV = weight("QK"), weight("OV")  # factored matrices (layer, head, d_model, d_model)
    W_in, b_in, W_out, b_out = weight("W_in"), weight("b_in"), weight("W_out"), weight("b_out")  # (layer, ...)
