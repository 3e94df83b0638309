"""Clean and corrupted prompts, pair by pair, with the tokens that answer them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import ContextLengthError, TokenError
from interp_gpt2.prompts.encoding import (
    Answers,
    as_texts,
    check_tokenizer,
    encode_answers,
    encode_prompt,
    padded,
    refuse_unaligned,
)
from interp_gpt2.tokenizers import Tokenizer

NO_TOKEN = -1  # in the answers of a pair that has fewer than another


@dataclass(frozen=True, eq=False, repr=False)
class PromptPairs:
    """Prompts in pairs of the same length: token i of the corrupted one stands where token i of the clean one does.

    `correct` and `incorrect` are the tokens that answer the clean prompt rightly and wrongly, -1 where a pair has fewer
    than another; `incorrect` may have no columns. Pairs of different lengths are padded on the right, where
    `attention_mask` is 0 (None: all have one length). `labels` name the pairs; `tokenizer` names tokens, where there is one.

    Raises TokenError for tensors of other shapes or dtypes, padding that is not on the right, prompts that are the same,
    and answers that are missing, stand twice or are both correct and incorrect.
    """

    clean: Int[Tensor, "pair pos"]
    corrupted: Int[Tensor, "pair pos"]
    correct: Int[Tensor, "pair n_correct"]
    incorrect: Int[Tensor, "pair n_incorrect"]
    attention_mask: Int[Tensor, "pair pos"] | None = None
    labels: tuple[str, ...] | None = None
    tokenizer: Tokenizer | None = None

    def __post_init__(self) -> None:
        _check_tensors(self)
        _check_mask(self)
        _check_answers(self)
        if self.labels is not None and len(self.labels) != len(self):
            raise TokenError(f"{len(self.labels)} labels for {len(self)} pairs; give one for each, or None")
        if len(same := (~self.differs.any(1)).nonzero()):
            raise TokenError(
                f"{self.name_of(int(same[0]))}: the clean and the corrupted prompt are the same tokens, so that there is "
                "nothing to patch; change the corrupted one"
            )

    @classmethod
    def from_tokens(
        cls,
        clean: Sequence[Sequence[int]],
        corrupted: Sequence[Sequence[int]],
        correct: Sequence[int | Sequence[int]],
        incorrect: Sequence[int | Sequence[int]] | None = None,
        labels: Sequence[str] | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> Self:
        """Pairs of token ids; a pair may have several answers. Raises TokenError as the class does.

        Raises it also for a pair whose prompts differ in length, showing how their tokens lie over each other.
        """
        n_pairs = len(clean)
        for what, given in {"corrupted": corrupted, "correct": correct, "incorrect": incorrect, "labels": labels}.items():
            if given is not None and len(given) != n_pairs:
                raise TokenError(f"{n_pairs} clean prompts, but {len(given)} of {what}; give one for each pair")
        if not n_pairs:
            raise TokenError("there are no prompts; give at least one pair")
        named = [f"pair {i}" for i in range(n_pairs)] if labels is None else labels
        for name, one, other in zip(named, clean, corrupted, strict=True):
            refuse_unaligned(name, one, other, tokenizer)
        tokens, attention_mask = padded(clean, 0)
        wrong: Sequence[int | Sequence[int]] = [()] * n_pairs if incorrect is None else incorrect
        return cls(
            tokens,
            padded(corrupted, 0)[0],
            _answers(correct),
            _answers(wrong),
            attention_mask,
            None if labels is None else tuple(labels),
            tokenizer,
        )

    @classmethod
    def from_text(
        cls,
        tokenizer: Tokenizer,
        clean: str | Sequence[str],
        corrupted: str | Sequence[str],
        correct: Answers,
        incorrect: Answers | None = None,
        labels: Sequence[str] | None = None,
        bos: bool = False,
    ) -> Self:
        """Pairs of texts, or one pair; each answer is one token. A pair has one, or a list of several.

        With GPT-2's tokens an answer within a sentence begins with its space: " Mary" after "gave a drink to". `bos` puts
        the end-of-text token before every prompt, as TransformerLens does by default. Pairs are named by `labels`, in
        errors too; by default by their clean text. Raises TokenError for an empty prompt, one that holds what cannot be
        seen (such as NUL), a prompt whose last space belongs to the answer, answers of several tokens, and as
        `from_tokens` does; TokenizerError for characters without a token.
        """
        check_tokenizer(tokenizer)
        if isinstance(clean, str):  # one pair, and all answers are its
            correct, incorrect = (each if each is None else [each] for each in (correct, incorrect))
        texts, others = as_texts(clean, "clean"), as_texts(corrupted, "corrupted")
        if len(texts) != len(others):
            raise TokenError(f"{len(texts)} clean prompts and {len(others)} corrupted ones; give one of each for every pair")
        named = [f"pair {i}" for i in range(len(texts))] if labels is None else list(labels)
        if len(named) != len(texts):
            raise TokenError(f"{len(named)} labels for {len(texts)} pairs; give one for each, or None")
        right = encode_answers(tokenizer, correct, texts, named, "correct")
        wrong = None if incorrect is None else encode_answers(tokenizer, incorrect, texts, named, "incorrect")
        ids = [encode_prompt(tokenizer, text, f"{name}: the clean prompt", bos) for name, text in zip(named, texts, strict=True)]
        other_ids = [
            encode_prompt(tokenizer, text, f"{name}: the corrupted prompt", bos) for name, text in zip(named, others, strict=True)
        ]
        for name, one, other in zip(named, ids, other_ids, strict=True):  # here, where a pair without a label has no text yet
            refuse_unaligned(name, one, other, tokenizer)
        return cls.from_tokens(ids, other_ids, right, wrong, texts if labels is None else labels, tokenizer)

    def __len__(self) -> int:
        return len(self.clean)

    def __repr__(self) -> str:
        n_correct, n_incorrect = self.correct.shape[1], self.incorrect.shape[1]
        shortest, longest = (int(end) for end in self.lengths.aminmax())
        tokens = f"{longest}" if shortest == longest else f"{shortest} to {longest}"
        return f"PromptPairs({len(self)} pairs of {tokens} tokens, answers: {n_correct} correct, {n_incorrect} incorrect)"

    def __getitem__(self, which: int | slice | Sequence[int] | Tensor) -> Self:
        """Some of the pairs, always as pairs: an index gives one. What is padding in all of them is cut off."""
        index = torch.arange(len(self))[which.cpu() if isinstance(which, Tensor) else which].reshape(-1)
        if not len(index):
            raise TokenError(f"none of the {len(self)} pairs is chosen by {which}")
        rows = index.to(self.clean.device)
        mask = None if self.attention_mask is None else self.attention_mask[rows]
        n_pos = self.clean.shape[1] if mask is None else int(mask.sum(1).max())
        return replace(
            self,
            clean=self.clean[rows, :n_pos],
            corrupted=self.corrupted[rows, :n_pos],
            correct=self.correct[rows],
            incorrect=self.incorrect[rows],
            attention_mask=None if mask is None or bool(mask[:, :n_pos].all()) else mask[:, :n_pos],
            labels=None if self.labels is None else tuple(self.labels[i] for i in index.tolist()),
        )

    def to(self, device: torch.device | str) -> Self:
        moved = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: value.to(device) for name, value in moved.items() if isinstance(value, Tensor)})

    def swapped(self) -> Self:
        """The corrupted prompts as the clean ones and the reverse; the answers stay, and so does any metric of them."""
        return replace(self, clean=self.corrupted, corrupted=self.clean)

    @property
    def lengths(self) -> Int[Tensor, "pair"]:
        """How many tokens each prompt has, padding aside."""
        if self.attention_mask is None:
            return torch.full((len(self),), self.clean.shape[1], device=self.clean.device)
        return self.attention_mask.sum(1)

    @property
    def differs(self) -> Bool[Tensor, "pair pos"]:
        """Where the two prompts of a pair have different tokens."""
        different = self.clean != self.corrupted
        return different if self.attention_mask is None else different & self.attention_mask.bool()

    @property
    def first_difference(self) -> Int[Tensor, "pair"]:
        """The first position at which the prompts of each pair differ: what comes before is the same in both passes."""
        return self.differs.int().argmax(1)

    @property
    def clean_str_tokens(self) -> list[list[str]]:
        """The label of every token of each clean prompt, padding aside (see `visible`); the id without a tokenizer."""
        return self._str_tokens(self.clean)

    @property
    def corrupted_str_tokens(self) -> list[list[str]]:
        return self._str_tokens(self.corrupted)

    @property
    def position_labels(self) -> list[str]:
        """A label for each position: its token in the clean prompts; two of them, then …, where pairs have different ones."""
        seen: list[dict[str, None]] = [{} for _ in range(self.clean.shape[1])]
        for tokens in self.clean_str_tokens:
            for here, label in zip(seen, tokens, strict=False):
                here[label] = None
        return ["/".join([*list(here)[:2], *(["…"] if len(here) > 2 else [])]) for here in seen]

    def name_of(self, pair: int) -> str:
        if self.labels is None:
            return f"pair {pair}"
        label = self.labels[pair]
        return f"pair {pair} ({label if len(label) <= 80 else f'{label[:38]}...{label[-38:]}'!r})"

    def check(self, config: GPT2Config) -> None:
        """Raises ContextLengthError for prompts longer than the model's n_ctx, TokenError for tokens it does not have."""
        longest = int(self.lengths.argmax())
        if (n_pos := int(self.lengths[longest])) > config.n_ctx:
            raise ContextLengthError(
                f"{self.name_of(longest)} has {n_pos} tokens, which do not fit in n_ctx={config.n_ctx}; use shorter prompts"
            )
        named = {"clean prompt": self.clean, "corrupted prompt": self.corrupted}
        for what, tokens in (named | {"correct answer": self.correct, "incorrect answer": self.incorrect}).items():
            if len(beyond := (tokens >= config.d_vocab).nonzero()):
                pair, at = beyond[0].tolist()
                raise TokenError(
                    f"{self.name_of(pair)}: token {int(tokens[pair, at])} of the {what} is not in the vocabulary: ids are 0 to "
                    f"{config.d_vocab - 1}; encode with the tokenizer that the model was trained with"
                )

    def _str_tokens(self, tokens: Tensor) -> list[list[str]]:
        rows = [row[:length] for row, length in zip(tokens.tolist(), self.lengths.tolist(), strict=True)]
        if self.tokenizer is None:
            return [[str(token) for token in row] for row in rows]
        return [[self.tokenizer.labels[token] for token in row] for row in rows]


def concatenated(sets: Sequence[PromptPairs]) -> PromptPairs:
    """The pairs of all, in order. Raises TokenError if there are none, or if they have different tokenizers."""
    rows = [(pairs, i, n) for pairs in sets for i, n in enumerate(pairs.lengths.tolist())]
    labelled = all(pairs.labels is not None for pairs in sets)
    known = {pairs.tokenizer.sha256: pairs.tokenizer for pairs in sets if pairs.tokenizer is not None}
    if len(known) > 1:
        raise TokenError(f"the same ids are other text in tokenizers of {len(known)} kinds; encode all pairs with one")
    return PromptPairs.from_tokens(
        [pairs.clean[i, :n].tolist() for pairs, i, n in rows],
        [pairs.corrupted[i, :n].tolist() for pairs, i, n in rows],
        [pairs.correct[i][pairs.correct[i] != NO_TOKEN].tolist() for pairs, i, _ in rows],
        [pairs.incorrect[i][pairs.incorrect[i] != NO_TOKEN].tolist() for pairs, i, _ in rows],
        [label for pairs in sets for label in pairs.labels or ()] if labelled else None,
        next(iter(known.values()), None),
    )


def _answers(answers: Sequence[int | Sequence[int]]) -> Int[Tensor, "pair n"]:
    listed = answers.tolist() if isinstance(answers, Tensor) else answers
    return padded([list(each) if isinstance(each, Iterable) else [each] for each in listed], NO_TOKEN)[0]


def _check_tensors(pairs: PromptPairs) -> None:
    shape = tuple(pairs.clean.shape)
    for field in fields(pairs)[:5]:
        tensor = getattr(pairs, field.name)
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor) or tensor.ndim != 2 or tensor.dtype != torch.int64:
            got = f"{tensor.dtype} of shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TokenError(f"{field.name} must be an int64 tensor, a row for each pair, not {got}; see PromptPairs.from_text")
        whole = field.name in ("corrupted", "attention_mask")
        if tuple(tensor.shape) != shape if whole else len(tensor) != shape[0]:
            raise TokenError(f"{field.name} has shape {tuple(tensor.shape)}, which does not fit clean prompts of shape {shape}")
        if tensor.device != pairs.clean.device:
            raise TokenError(f"{field.name} is on {tensor.device}, the clean prompts are on {pairs.clean.device}")
    if not pairs.clean.numel():
        raise TokenError(f"there are no tokens: clean prompts of shape {shape}; give at least one pair of one token")
    for what in ("clean", "corrupted"):
        if (lowest := int(getattr(pairs, what).min())) < 0:
            raise TokenError(f"{what} holds token {lowest}; ids begin at 0")


def _check_mask(pairs: PromptPairs) -> None:
    mask = pairs.attention_mask
    if mask is None:
        return
    right = (mask[:, 0] == 1) & ((mask == 0) | (mask == 1)).all(1) & (mask.diff(dim=1) <= 0).all(1)
    if len(wrong := (~right).nonzero()):
        raise TokenError(
            f"{pairs.name_of(int(wrong[0]))}: its attention mask must be 1 at its tokens and 0 at the padding on their right, "
            f"not {mask[wrong[0]].flatten().tolist()}"
        )


def _check_answers(pairs: PromptPairs) -> None:
    both = torch.cat([pairs.correct, pairs.incorrect], 1)
    if len(none := (pairs.correct < 0).all(1).nonzero()):
        raise TokenError(f"{pairs.name_of(int(none[0]))} has no correct answer; give at least one token")
    if both.min() < NO_TOKEN:
        raise TokenError(f"an answer is token {int(both.min())}; ids begin at 0, and -1 stands for no further answer")
    ordered = both.sort(1).values
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NO_TOKEN)
    if len(found := twice.nonzero()):
        pair, at = found[0].tolist()
        token = int(ordered[pair, at])
        shared = bool((pairs.correct[pair] == token).any() & (pairs.incorrect[pair] == token).any())
        label = f"token {token}" if pairs.tokenizer is None else f"token {token} ({pairs.tokenizer.labels[token]})"
        how = "is both a correct and an incorrect answer" if shared else "is given twice among the answers"
        raise TokenError(f"{pairs.name_of(pair)}: {label} {how}; each answer counts once")
