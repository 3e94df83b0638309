"""Loss by class of token: which kinds of token does the model predict well, and when does it learn each?

Classes are of predictions: position t of a window predicts tokens[t + 1]. They overlap, and each says whether it is told by
what is predicted or by the context alone: only of the latter can one say that they are easy or hard beforehand.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp_gpt2.analysis.loss import token_losses
from interp_gpt2.analysis.references import ReferenceLosses, reference_losses
from interp_gpt2.analysis.rows import Analysis, Row, interval, ratio_of_sums
from interp_gpt2.data.source import Source
from interp_gpt2.data.synthetic_sources import MarkovSource, RepeatedSource
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2
from interp_gpt2.tokenizers import Tokenizer

KINDS = ("letter", "digit", "punctuation", "whitespace", "other")


@dataclass(frozen=True, eq=False)
class TokenClasses:
    """Which predictions on some windows belong to each class. A prediction may be in several classes, or in none."""

    names: tuple[str, ...]
    members: Bool[Tensor, "class batch pos"]


def text_classes(tokens: Int[Tensor, "batch pos+1"], tokenizer: Tokenizer) -> TokenClasses:
    """Classes of text, told by the token that is predicted.

    - "letter", "digit", "punctuation", "whitespace", "other": by the token's first character that is no white space; each
      prediction is in exactly one. "other" are bytes that are no character by themselves, symbols and empty tokens.
    - "word start", "word inside": a letter or digit whose character before is none, or one, in this window.
    - "repeated bigram": the pair of the token before and this one has occurred before in the window: what an induction head
      can predict. "new bigram" is the rest.
    """
    pieces = [tokenizer.token_bytes(token) for token in range(tokenizer.d_vocab)]
    kinds = torch.tensor([_kind(piece) for piece in pieces])
    begins_with_word = torch.tensor([_is_word(piece[:1]) for piece in pieces])
    after_space = torch.tensor([piece[:1].isspace() and bool(piece.strip()) for piece in pieces])
    ends_with_word = torch.tensor([_is_word(piece[-1:]) for piece in pieces])
    before, target = tokens[:, :-1], tokens[:, 1:]
    kind = kinds[target]
    word = kind <= KINDS.index("digit")
    inside = word & begins_with_word[target] & ends_with_word[before]
    start = word & (after_space[target] | (begins_with_word[target] & ~ends_with_word[before]))
    repeated = repeated_bigrams(tokens)
    members = [*(kind == i for i in range(len(KINDS))), start, inside, repeated, ~repeated]
    return TokenClasses((*KINDS, "word start", "word inside", "repeated bigram", "new bigram"), torch.stack(members))


def _is_word(piece: bytes) -> bool:
    """A letter, digit or underscore of ASCII, or a byte of any other character: most of those are letters."""
    return piece.isalnum() or piece == b"_" or piece > b"\x7f"


def _kind(piece: bytes) -> int:
    text = piece.decode("utf-8", "replace")
    first = text.strip()[:1]
    if text and not first:
        return KINDS.index("whitespace")
    if first.isalpha():
        return KINDS.index("letter")
    if first.isdigit():
        return KINDS.index("digit")
    return KINDS.index("punctuation" if first and first in _PUNCTUATION else "other")


_PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~‘’“”–—…«»¿¡")


def repeated_bigrams(tokens: Int[Tensor, "batch pos+1"]) -> Bool[Tensor, "batch pos"]:
    """Whether (tokens[t], tokens[t + 1]) stood together before in the same window."""
    pairs = tokens[:, :-1].long() * (int(tokens.max()) + 1) + tokens[:, 1:]
    return _seen_before(pairs)


def seen_states(tokens: Int[Tensor, "batch pos+1"]) -> Bool[Tensor, "batch pos"]:
    """Whether tokens[t], which the prediction follows, stood before in the same window: told by the context alone."""
    return _seen_before(tokens[:, :-1])


def _seen_before(values: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    seen = np.ones(tuple(values.shape), dtype=bool)
    for row, line in zip(seen, values.cpu().numpy(), strict=True):
        row[np.unique(line, return_index=True)[1]] = False
    return torch.from_numpy(seen)


def token_classes(source: Source, tokens: Int[Tensor, "batch pos+1"]) -> TokenClasses:
    """The classes that a source's tokens have.

    Markov chains: "predictable" where the present state has occurred before, so that one of its successors was seen, and
    "unpredictable" where not; and "repeated bigram", "new bigram", which the successor itself tells. Repeated tokens:
    "predictable" from the first copy on. Else `text_classes`.
    """
    if isinstance(source, RepeatedSource):
        n_pos = tokens.shape[1] - 1
        copied = (torch.arange(n_pos) >= source.period_of(n_pos) - 1).expand(len(tokens), -1)
        return TokenClasses(("predictable", "unpredictable"), torch.stack([copied, ~copied]))
    if isinstance(source, MarkovSource):
        seen, repeated = seen_states(tokens), repeated_bigrams(tokens)
        names = ("predictable", "unpredictable", "repeated bigram", "new bigram")
        return TokenClasses(names, torch.stack([seen, ~seen, repeated, ~repeated]))
    return text_classes(tokens, source.tokenizer)


@dataclass(frozen=True, eq=False)
class ClassLoss:
    """Mean loss of each class's predictions in nats, its standard error over sequences (NaN of fewer than two), how many.

    `n_sequences` hold a member each: the units of the standard error.
    """

    names: tuple[str, ...]
    loss: Float[Tensor, "class"]
    stderr: Float[Tensor, "class"]
    n: Int[Tensor, "class"]
    n_sequences: Int[Tensor, "class"]


def loss_by_class(losses: Float[Tensor, "batch pos"], classes: TokenClasses) -> ClassLoss:
    """Means of `token_losses` over each class. NaN for a class without members.

    Raises AnalysisError if the classes are of other windows.
    """
    if classes.members.shape[1:] != losses.shape:
        raise AnalysisError(f"classes of {tuple(classes.members.shape[1:])} predictions do not fit {tuple(losses.shape)} losses")
    counts = classes.members.sum(-1)  # (class, batch)
    sums = torch.where(classes.members, losses, 0).sum(-1)
    loss, stderr = ratio_of_sums(sums, counts.double())
    return ClassLoss(classes.names, loss, stderr, counts.sum(-1), (counts > 0).sum(-1))


@dataclass(frozen=True, eq=False)
class LossByTokenClass(Analysis):
    """`loss_by_class` for a sweep: a "class_loss" row for each class that occurs, with `label` its name.

    Beside them, for each reference, "class_loss_trigram" and so on: what that predictor loses on the same predictions.
    """

    tokens: Int[Tensor, "batch pos+1"]
    classes: TokenClasses
    references: tuple[ReferenceLosses, ...] = ()
    batch_size: int = 16
    name: str = "loss_by_token_class"

    @classmethod
    def of(cls, source: Source, tokens: Int[Tensor, "batch pos+1"]) -> "LossByTokenClass":
        """On windows of a source, with its classes and references."""
        return cls(tokens, token_classes(source, tokens), reference_losses(source, tokens))

    def __call__(self, model: GPT2) -> list[Row]:
        rows = _rows("class_loss", token_losses(model, self.tokens, self.batch_size), self.classes)
        for reference in self.references:
            rows += _rows(f"class_loss{reference.suffix}", reference.losses, self.classes)
        return rows


def _rows(metric: str, losses: Float[Tensor, "batch pos"], classes: TokenClasses) -> list[Row]:
    found = loss_by_class(losses, classes)
    columns = (found.loss, found.stderr, found.n, found.n_sequences)
    return [
        {"metric": metric, "label": name, "value": value, "n": n, **interval(value, stderr, units)}
        for name, value, stderr, n, units in zip(found.names, *(column.tolist() for column in columns), strict=True)
        if n
    ]
