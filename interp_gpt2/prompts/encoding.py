"""Texts of prompts and answers to tokens, with what may be wrong with them said by name."""

import operator
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from interp_gpt2.errors import TokenError, TokenizerError
from interp_gpt2.prompts.alignment import aligned, first_difference
from interp_gpt2.tokenizers import Tokenizer, visible

Answers = str | Sequence[str] | Sequence[Sequence[str]]  # of the one pair, one of each pair, several of each pair
_MISREAD = "\ufeff\ufffd"  # a byte-order mark, and what stands for bytes that were not UTF-8


def check_tokenizer(tokenizer: object) -> None:
    """Raises TokenError for what is no tokenizer of ours, such as its name or transformers' own."""
    if not isinstance(tokenizer, Tokenizer):
        raise TokenError(
            f"{type(tokenizer).__name__} is not a tokenizer of interp_gpt2; use run.tokenizer(), tokenizer_named('gpt2') or "
            "load_tokenizer(directory) from interp_gpt2.tokenizers"
        )


def as_texts(given: str | Iterable[Any], what: str) -> list[Any]:
    """The texts, of which a single one may stand by itself. Raises TokenError for what is neither."""
    if not isinstance(given, Iterable):
        raise TokenError(f"the {what} prompts are {type(given).__name__} ({given!r}), not a text or a list of texts")
    return [given] if isinstance(given, str) else list(given)


def encode_prompt(tokenizer: Tokenizer, text: str, what: str, bos: bool = False) -> list[int]:
    """The tokens of a prompt, after the end-of-text token if `bos`. Raises TokenError, TokenizerError; `what` names it."""
    if not isinstance(text, str):
        raise TokenError(f"{what} is {type(text).__name__} ({text!r}), not text")
    if not text:
        raise TokenError(f"{what} is empty; give it at least one token")
    refuse_unseen(text, what)
    if bos and tokenizer.eos_token_id is None:
        raise TokenError(f"the {tokenizer.kind} tokenizer has no end-of-text token to begin prompts with; use bos=False")
    return [tokenizer.eos_token_id] * bos + _encode(tokenizer, text, what)


def encode_answers(
    tokenizer: Tokenizer, answers: Answers, prompts: Sequence[str], names: Sequence[str], kind: str
) -> list[list[int]]:
    """The token of every answer of each pair. Raises TokenError naming all that are several tokens."""
    by_pair = [[each] if isinstance(each, str) else each for each in as_texts(answers, f"{kind} answers to the")]
    if len(by_pair) != len(prompts):
        raise TokenError(f"{len(prompts)} prompts, but {len(by_pair)} with {kind} answers; give one, or a list, for each pair")
    known: dict[str, list[int]] = {}  # years are the answers of a hundred pairs
    several: dict[str, str] = {}
    tokens = []
    for name, prompt, texts in zip(names, prompts, by_pair, strict=True):
        if not isinstance(texts, Sequence):
            raise TokenError(f"{name}: the {kind} answer is {type(texts).__name__} ({texts!r}), not text")
        for text in texts:
            if text not in known:
                known[text] = encode_prompt(tokenizer, text, f"{name}: the {kind} answer")
                if len(known[text]) > 1:
                    several[text] = f"{name}: {_spelled(tokenizer, text, known[text])}"
            _refuse_split_space(tokenizer, prompt, text, known[text], name)
        tokens.append([known[text][0] for text in texts])
    if several:
        listed = "; ".join(list(several.values())[:8]) + ("; …" if len(several) > 8 else "")
        raise TokenError(f"answers must be one token each under the {tokenizer.kind} tokenizer, but for {kind} ones: {listed}")
    return tokens


def single_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Those of `texts` that are one token, and those that are not (several, or characters without a token)."""
    single = {text: is_single_token(tokenizer, text) for text in texts}
    return [text for text in texts if single[text]], tuple(text for text in texts if not single[text])


def is_single_token(tokenizer: Tokenizer, text: str) -> bool:
    try:
        return len(tokenizer.encode(text)) == 1
    except TokenizerError:
        return False


def refuse_unseen(text: str, what: str) -> None:
    """Raises TokenError for control characters (but line ends and tabs) and for traces of a file read wrongly."""
    for at, character in enumerate(text):
        if character in _MISREAD or (unicodedata.category(character) == "Cc" and character not in "\n\t"):
            raise TokenError(f"{what} holds U+{ord(character):04X} at character {at} (counting from 0); remove it")


def refuse_unaligned(name: str, clean: Sequence[int], corrupted: Sequence[int], tokenizer: Tokenizer | None) -> None:
    """Raises TokenError, showing both lists, if two prompts differ in how many tokens they have."""
    if not len(clean) or not len(corrupted):
        raise TokenError(f"{name} has a prompt without tokens; give it at least one")
    if len(clean) == len(corrupted):
        return
    labels = [[str(token) if tokenizer is None else tokenizer.labels[token] for token in each] for each in (clean, corrupted)]
    raise TokenError(
        f"{name}: the clean prompt has {len(clean)} tokens and the corrupted one {len(corrupted)}; patching needs token i of "
        f"one where token i of the other is. They first differ at position {first_difference(clean, corrupted)}:\n"
        f"{aligned(*labels)}\nReplace words by others of as many tokens"
    )


def padded(rows: Sequence[Sequence[int]], fill: int) -> tuple[Int[Tensor, "row n"], Int[Tensor, "row n"] | None]:
    """Rows filled up on the right to the longest, and 1 where they had something; None if they have one length.

    Raises TokenError for what is no whole number.
    """
    for row in rows:
        if wrong := [each for each in row if not _is_id(each)]:
            raise TokenError(f"{wrong[0]!r} is no token; ids are whole numbers")
    lengths = torch.tensor([len(row) for row in rows])
    n = int(lengths.max())
    tokens = torch.tensor([[*row, *[fill] * (n - len(row))] for row in rows], dtype=torch.int64).reshape(len(rows), n)
    mask = (torch.arange(n) < lengths[:, None]).long()
    return tokens, None if bool(mask.all()) else mask


def _is_id(each: object) -> bool:
    try:
        return operator.index(each) == each and not isinstance(each, bool)
    except TypeError:  # of floats, tensors of floats and all else
        return False


def _encode(tokenizer: Tokenizer, text: str, what: str) -> list[int]:
    try:
        return tokenizer.encode(text)
    except TokenizerError as error:
        raise TokenizerError(f"{what}: {error}") from error


def _spelled(tokenizer: Tokenizer, text: str, ids: Sequence[int]) -> str:
    pieces = " ".join(tokenizer.labels[token] for token in ids)
    hint = f" (did you mean {' ' + text!r}?)" if text[:1] != " " and is_single_token(tokenizer, " " + text) else ""
    return f"{visible(text.encode())} is {len(ids)} tokens, {pieces}{hint}"


def _refuse_split_space(tokenizer: Tokenizer, prompt: str, answer: str, ids: Sequence[int], name: str) -> None:
    """The commonest slip with BPE: 'gave a drink to ' and 'Mary', where text has the space within the answer's token."""
    if not isinstance(prompt, str) or not prompt[-1:].isspace():
        return
    if tokenizer.encode(prompt + answer) != tokenizer.encode(prompt) + list(ids):
        raise TokenError(
            f"{name}: the prompt ends in a space, which in text belongs to the answer's token; end the prompt with "
            f"{prompt[-12:].rstrip()!r} and answer {prompt[len(prompt.rstrip()) :] + answer!r}"
        )
