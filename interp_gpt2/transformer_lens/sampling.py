"""HookedTransformer.generate, by our own generation."""

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from interp_gpt2.errors import ConfigError, TokenError
from interp_gpt2.generation import generate
from interp_gpt2.model import GPT2
from interp_gpt2.passes import EditedGPT2
from interp_gpt2.transformer_lens.hook_points import edits_of
from interp_gpt2.transformer_lens.text import Side
from interp_gpt2.transformer_lens.utils import USE_DEFAULT_VALUE, refuse, require_tokenizer

if TYPE_CHECKING:
    from interp_gpt2.transformer_lens.hook_points import HookPoint


class Sampling:
    """The part of HookedTransformer that writes text."""

    model: GPT2
    tokenizer: Any
    hook_dict: "dict[str, HookPoint]"

    @torch.no_grad()
    def generate(
        self,
        input: str | list[str] | Tensor = "",
        max_new_tokens: int = 10,
        stop_at_eos: bool = True,
        eos_token_id: int | None = None,
        do_sample: bool = True,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float = 1.0,
        freq_penalty: float = 0.0,
        use_past_kv_cache: bool = True,
        prepend_bos: bool | None = USE_DEFAULT_VALUE,
        padding_side: Side | None = USE_DEFAULT_VALUE,
        return_type: Literal["input", "str", "tokens"] = "input",
        verbose: bool = True,
    ) -> str | list[str] | Tensor:
        """The input with up to `max_new_tokens` more, as text if it was text; hooks act in every step.

        Greedy without `do_sample` or at temperature 0: TransformerLens's tokens. Samples follow `torch.manual_seed`, but
        are other draws. No progress bar, whatever `verbose`. Several texts are padded on the left, whatever `padding_side`.
        """
        refuse(ConfigError, freq_penalty=(freq_penalty, 0.0, ""), use_past_kv_cache=(use_past_kv_cache, True, ""))
        if return_type not in ("input", "str", "tokens"):
            raise ConfigError(f"return_type={return_type!r} is not one of 'input', 'str', 'tokens'")
        if top_k is not None and top_p is not None:
            raise ConfigError("top_k and top_p are both given, and TransformerLens would ignore top_p; pass one")
        stop = self._stop_token(eos_token_id) if stop_at_eos else None
        seed = int(torch.randint(2**62, ()))  # from torch's own generator, so that torch.manual_seed fixes it
        self.eval()
        tokens, mask = self._prompt(input, prepend_bos, padding_side)
        tokens = generate(
            EditedGPT2(self.model, edits_of(self.hook_dict)), tokens, max_new_tokens,
            temperature if do_sample else 0.0, top_k, top_p, seed, stop, mask,
        )  # fmt: skip
        if return_type == "tokens" or (return_type == "input" and isinstance(input, Tensor)):
            return tokens
        decode = require_tokenizer(self.tokenizer, "return_type='str'").decode
        texts = [decode(row, skip_special_tokens=True) for row in tokens.tolist()]
        return texts[0] if len(texts) == 1 else texts

    def _prompt(
        self, input: str | list[str] | Tensor, prepend_bos: bool | None, padding_side: Side | None
    ) -> tuple[Tensor, Tensor | None]:
        if isinstance(input, Tensor) and input.is_floating_point():
            raise TokenError("generate continues tokens or text, not embeddings; pass tokens (batch, pos)")
        with self._padding_on("left" if isinstance(input, list) and len(input) > 1 else padding_side):
            return self._read(input, prepend_bos)

    def _stop_token(self, eos_token_id: int | None) -> int:
        found = self.tokenizer.eos_token_id if eos_token_id is None and self.tokenizer is not None else eos_token_id
        if not isinstance(found, int):
            raise ConfigError(f"stop_at_eos=True needs a token to stop at, not {found!r}; pass eos_token_id or stop_at_eos=False")
        return found
