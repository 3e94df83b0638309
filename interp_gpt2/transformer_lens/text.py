"""Text and tokens, as HookedTransformer maps them: with its BOS in front unless told otherwise."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from interp_gpt2.errors import TokenError, TokenizerError
from interp_gpt2.tokenizers import END_OF_TEXT, Tokenizer
from interp_gpt2.transformer_lens.utils import USE_DEFAULT_VALUE, require_tokenizer

if TYPE_CHECKING:
    import numpy as np

    from interp_gpt2.transformer_lens.config import HookedTransformerConfig

Side = Literal["left", "right"]


def hugging_face_tokenizer(tokenizer: Any) -> Any:
    """A Hugging Face tokenizer: one of our own in its words, or a copy of one that is given, its pad token the end of text.

    A tokenizer without an end-of-text token (bytes, characters) has neither BOS nor padding, and none is made up for it.
    """
    if isinstance(tokenizer, Tokenizer):
        from transformers import PreTrainedTokenizerFast

        special = {} if tokenizer.eos_token_id is None else {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer._hf_tokenizer(), clean_up_tokenization_spaces=False, **special
        )
    else:
        tokenizer = copy.deepcopy(tokenizer)
    if tokenizer.bos_token is None:
        tokenizer.bos_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


class Text:
    """The part of HookedTransformer that deals with text; strings are tokenized here and nowhere else."""

    tokenizer: Any
    cfg: "HookedTransformerConfig"

    def set_tokenizer(self, tokenizer: Any, default_padding_side: Side | None = None) -> None:
        """A Hugging Face tokenizer, or one of ours. Without a BOS token, `cfg.default_prepend_bos` becomes False.

        Raises TokenizerError if it has more tokens than the model.
        """
        tokenizer = hugging_face_tokenizer(tokenizer)
        largest = max(tokenizer.get_vocab().values(), default=-1)
        if largest >= self.cfg.d_vocab:
            raise TokenizerError(f"the tokenizer has token {largest}; the model's are 0 to {self.cfg.d_vocab - 1}")
        self.tokenizer = tokenizer
        if default_padding_side is not None:
            self.tokenizer.padding_side = default_padding_side
        self.cfg.tokenizer_prepends_bos = len(tokenizer("")["input_ids"]) > 0
        if tokenizer.bos_token_id is None:
            self.cfg.default_prepend_bos = False

    def to_tokens(
        self,
        input: str | list[str],
        prepend_bos: bool | None = USE_DEFAULT_VALUE,
        padding_side: Side | None = USE_DEFAULT_VALUE,
        move_to_device: bool = True,
        truncate: bool = True,
    ) -> Tensor:
        """Tokens (batch, pos) of one or more texts, the BOS before each (`cfg.default_prepend_bos`), padded to the longest."""
        tokenizer = require_tokenizer(self.tokenizer, "to_tokens")
        texts = [input] if isinstance(input, str) else list(input)
        bos = [self._bos()] if self._prepends(prepend_bos) else []
        rows = [bos + tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        rows = [row[: self.cfg.n_ctx] if truncate else row for row in rows]
        longest = max((len(row) for row in rows), default=0)
        if any(len(row) < longest for row in rows) and tokenizer.pad_token_id is None:
            raise TokenizerError("texts of different lengths need padding, and this tokenizer has no pad token; pass one by one")
        left = (padding_side or tokenizer.padding_side) == "left"
        pads = [[tokenizer.pad_token_id] * (longest - len(row)) for row in rows]
        rows = [pad + row if left else row + pad for row, pad in zip(rows, pads, strict=True)]
        tokens = torch.tensor(rows, dtype=torch.long).reshape(len(rows), longest)
        return tokens.to(self.cfg.device) if move_to_device else tokens

    def to_string(self, tokens: "Tensor | list | np.ndarray") -> str | list[str]:
        """The text of tokens (pos,), or of each row of (batch, pos)."""
        tokenizer = require_tokenizer(self.tokenizer, "to_string")
        tokens = torch.as_tensor(tokens)
        if tokens.ndim > 2:
            raise TokenError(f"tokens of shape {tuple(tokens.shape)} are neither (pos,) nor (batch, pos)")
        texts = [
            tokenizer.decode(row, clean_up_tokenization_spaces=False)
            for row in (tokens if tokens.ndim == 2 else tokens.reshape(1, -1)).tolist()
        ]
        return texts if tokens.ndim == 2 else texts[0]

    def to_str_tokens(
        self,
        input: "str | list | Tensor | np.ndarray",
        prepend_bos: bool | None = USE_DEFAULT_VALUE,
        padding_side: Side | None = USE_DEFAULT_VALUE,
    ) -> list[str] | list[list[str]]:
        """The text of each token by itself, of a text or of tokens (pos,) or (1, pos); of a list, a list of these."""
        if isinstance(input, list):
            return [self.to_str_tokens(part, prepend_bos, padding_side) for part in input]
        if isinstance(input, str):
            input = self.to_tokens(input, prepend_bos, padding_side)[0]
        tokens = torch.as_tensor(input).squeeze()
        tokens = tokens[None] if tokens.ndim == 0 else tokens
        if tokens.ndim != 1:
            raise TokenError(f"tokens of shape {tuple(tokens.shape)} are not one sequence; pass a list of rows: list(tokens)")
        return self.to_string(tokens[:, None])

    def to_single_token(self, string: str) -> int:
        """The token of a text that is one token. Raises TokenError for any other."""
        tokens = self.to_tokens(string, prepend_bos=False)[0].tolist()
        if len(tokens) != 1:
            raise TokenError(f"{string!r} is not one token but {len(tokens)}: {self.to_str_tokens(string, prepend_bos=False)}")
        return tokens[0]

    def to_single_str_token(self, int_token: int) -> str:
        """The text of one token."""
        if not isinstance(int_token, int):
            raise TokenError(f"a token is an int, not {type(int_token).__name__}")
        return self.to_string([int_token])

    def get_token_position(
        self,
        single_token: str | int | Tensor,
        input: str | Tensor,
        mode: Literal["first", "last"] = "first",
        prepend_bos: bool | None = USE_DEFAULT_VALUE,
        padding_side: Side | None = USE_DEFAULT_VALUE,
    ) -> int:
        """Where a token stands in a text or in tokens (pos,) or (1, pos). Raises TokenError if it does not."""
        if mode not in ("first", "last"):
            raise TokenError(f"mode={mode!r} is not one of 'first', 'last'")
        tokens = self.to_tokens(input, prepend_bos, padding_side) if isinstance(input, str) else input
        if tokens.ndim == 2 and len(tokens) != 1:
            raise TokenError(f"tokens of shape {tuple(tokens.shape)} are not one sequence")
        token = self.to_single_token(single_token) if isinstance(single_token, str) else int(single_token)
        places = (tokens.reshape(-1) == token).nonzero()[:, 0].tolist()
        if not places:
            raise TokenError(f"token {single_token!r} does not occur in the prompt")
        return places[0 if mode == "first" else -1]

    @contextmanager
    def _padding_on(self, side: Side | None) -> Iterator[None]:
        """The tokenizer padding on this side for a while (None: as it does)."""
        before = None if self.tokenizer is None else self.tokenizer.padding_side
        if side is not None:
            require_tokenizer(self.tokenizer, "padding_side").padding_side = side
        try:
            yield
        finally:
            if self.tokenizer is not None:
                self.tokenizer.padding_side = before

    def _prepends(self, prepend_bos: bool | None) -> bool:
        return self.cfg.default_prepend_bos if prepend_bos is USE_DEFAULT_VALUE else prepend_bos

    def _bos(self) -> int:
        if self.tokenizer.bos_token_id is None:
            raise TokenizerError("this tokenizer has no BOS token to prepend; pass prepend_bos=False")
        return self.tokenizer.bos_token_id
