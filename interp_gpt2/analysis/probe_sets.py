"""Tokens with labels from their text, split by document: what probes are trained and tested on."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp_gpt2.analysis.text_labels import TEXT_LABELS, TextLabel, paragraph_starts, text_label
from interp_gpt2.errors import AnalysisError
from interp_gpt2.tokenizers import Tokenizer

UNLABELLED = -1  # padding, bytes before the first whole character, and classes too rare to judge

_MIN_EXAMPLES = 10
_MAX_READ = 500_000  # tokens; enough for the lookup tables, and labelled in a second or two


@dataclass(frozen=True, eq=False)
class LabelledTokens:
    """One label of every token, and what the last tokens alone say of it.

    `current_token` and `last_two_tokens` are class probabilities, at each labelled test token in order, from lookup
    tables counted on all training documents: the best predictors, up to sampling, that look no further back.
    """

    name: str
    measures: str
    contextual: bool
    labels: Int[Tensor, "window pos"]
    current_token: Float[Tensor, "n class"]
    last_two_tokens: Float[Tensor, "n class"]


@dataclass(frozen=True, eq=False)
class ProbeSet:
    """Windows of text with labels, no document in both halves; a short window is padded on the right with token 0.

    Every window begins at a paragraph, where all labels forget what came before: what a label depends on can be seen
    from inside the window. `skipped` names the labels that were left out, and why.
    """

    tokens: Int[Tensor, "window pos"]
    lengths: Int[Tensor, "window"]
    documents: Int[Tensor, "window"]
    is_test: Bool[Tensor, "window"]
    labels: tuple[LabelledTokens, ...]
    skipped: tuple[tuple[str, str], ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.labels)

    def label(self, name: str) -> LabelledTokens:
        """The label of that name. Raises AnalysisError, with the reason if it was left out."""
        for label in self.labels:
            if label.name == name:
                return label
        raise AnalysisError(f"no label {name!r} in this probe set: {dict(self.skipped).get(name, f'it has {self.names}')}")


def probe_set(
    documents: Sequence[Int[Tensor, "pos"]],
    tokenizer: Tokenizer,
    n_ctx: int,
    labels: Sequence[str] | None = None,
    n_tokens: int = 4096,
    seed: int = 0,
) -> ProbeSet:
    """About `n_tokens` training and as many test tokens in windows of `n_ctx`, from two halves of the documents.

    A token has the label of the last character that is complete after it. Every second window is drawn from those
    that hold the rarest class of the contextual labels, so that classes are more even than in the text; all scores and
    their yardsticks are on the same tokens. A class with fewer than 10 tokens in either half is left unlabelled.
    `labels` None means every text label that is left with two classes; the others are in `skipped`.

    Raises AnalysisError for fewer than four documents, or a label asked for that has one class only.
    """
    chosen = [text_label(name) for name in (TEXT_LABELS if labels is None else labels)]
    text = _Text.read(documents, tokenizer, chosen, seed)
    draw = np.random.default_rng(seed)
    starts = [start for test in (False, True) for start in text.windows(test, n_ctx, n_tokens, draw)]
    index = torch.from_numpy(np.stack([text.window(start, n_ctx) for start in starts]))  # (window, pos), -1 for padding
    padding = index < 0
    first = index[:, 0].numpy()
    is_test = torch.from_numpy(text.is_test[first])
    kept, skipped = [], []
    for label, values in zip(chosen, text.labels, strict=True):
        in_windows = torch.from_numpy(values)[index].masked_fill(padding, UNLABELLED)
        rare = _rare_classes(in_windows, is_test)
        in_windows[torch.isin(in_windows, rare)] = UNLABELLED
        if len(in_windows.unique()) - int((in_windows == UNLABELLED).any()) < 2:
            skipped.append(
                (label.name, f"fewer than two classes with {_MIN_EXAMPLES} tokens in training and test documents each")
            )
            continue
        tested = index[is_test][in_windows[is_test] != UNLABELLED].numpy()
        values = np.where(np.isin(values, rare.numpy()), UNLABELLED, values)
        kept.append(LabelledTokens(label.name, label.measures, label.contextual, in_windows, *_lookups(text, values, tested)))
    if skipped and labels is not None:
        raise AnalysisError(f"{skipped[0][0]!r} cannot be probed here: {skipped[0][1]}")
    tokens = torch.from_numpy(text.tokens)[index].masked_fill(padding, 0)
    numbers = torch.from_numpy(text.documents[first])
    return ProbeSet(tokens, (~padding).sum(1), numbers, is_test, tuple(kept), tuple(skipped))


def _rare_classes(labels: Int[Tensor, "window pos"], is_test: Bool[Tensor, "window"]) -> Int[Tensor, "class"]:
    classes = [label for label in labels.unique().tolist() if label != UNLABELLED]
    rare = [c for c in classes if min(int((labels[half] == c).sum()) for half in (is_test, ~is_test)) < _MIN_EXAMPLES]
    return torch.tensor(rare, dtype=torch.long)


@dataclass(frozen=True, eq=False)
class _Text:
    """Documents end to end, every second one for testing."""

    tokens: Int[np.ndarray, "n"]
    documents: Int[np.ndarray, "n"]  # number of each token's document
    is_test: Bool[np.ndarray, "n"]
    previous: Int[np.ndarray, "n"]  # the token before, -1 at a document's start
    chosen: tuple[TextLabel, ...]
    labels: tuple[Int[np.ndarray, "n"], ...]
    paragraphs: Int[np.ndarray, "paragraph"]  # tokens that begin one

    @classmethod
    def read(
        cls, documents: Sequence[Int[Tensor, "pos"]], tokenizer: Tokenizer, labels: Sequence[TextLabel], seed: int
    ) -> "_Text":
        """The documents in a random order, until there are enough tokens."""
        parts, n_read = [], 0
        for number in np.random.default_rng(seed).permutation(len(documents)):
            tokens = documents[number].numpy().astype(np.int64)
            if len(tokens) < 2 or (n_read > _MAX_READ and len(parts) >= 4):
                continue
            text, ends = _text_of(tokens, tokenizer)
            of_tokens = [np.where(ends > 0, np.append(label.of(text), UNLABELLED)[ends - 1], UNLABELLED) for label in labels]
            begins = np.searchsorted(ends, paragraph_starts(text)) + 1  # the token after the one that completes the break
            begins = begins[(begins < len(tokens)) & np.isin(ends[np.minimum(begins, len(tokens)) - 1], paragraph_starts(text))]
            parts.append((number, tokens, of_tokens, np.unique(np.append(0, begins)) + n_read))
            n_read += len(tokens)
        if len(parts) < 4:
            raise AnalysisError(
                f"{len(parts)} documents of two tokens or more cannot be split for training and testing; pass at least 4, "
                "for instance the blocks of one long text"
            )
        sizes = [len(tokens) for _, tokens, _, _ in parts]
        return cls(
            tokens=np.concatenate([tokens for _, tokens, _, _ in parts]),
            documents=np.repeat([number for number, _, _, _ in parts], sizes),
            is_test=np.repeat(np.arange(len(parts)) % 2 == 1, sizes),
            previous=np.concatenate([np.append(-1, tokens[:-1]) for _, tokens, _, _ in parts]),
            chosen=tuple(labels),
            labels=tuple(np.concatenate(values) for values in zip(*(of_tokens for _, _, of_tokens, _ in parts), strict=True)),
            paragraphs=np.concatenate([begins for _, _, _, begins in parts]),
        )

    def windows(self, test: bool, n_ctx: int, n_tokens: int, draw: np.random.Generator) -> list[int]:
        """Starts of windows that do not overlap, until they hold enough tokens.

        Each is a random window of a random document; every second one only of those with the class that is rarest so far.
        """
        starts = self._candidates(test, n_ctx)
        index = np.stack([self.window(start, n_ctx) for start in starts])
        wanted = [values for values, label in zip(self.labels, self.chosen, strict=True) if label.contextual] or self.labels
        classes = [(values[index] == c) & (index >= 0) for values in wanted for c in np.unique(values[values != UNLABELLED])]
        counts = np.stack([of_class.sum(1) for of_class in classes], axis=1)  # (window, class)
        left, chosen = np.ones(len(starts), dtype=bool), []
        while left.any() and (index[chosen] >= 0).sum() < n_tokens:
            pool = left
            if len(chosen) % 2:
                so_far = np.where(counts[left].any(0), counts[chosen].sum(0), np.inf)
                rarest = left & (counts[:, so_far.argmin()] > 0)
                pool = rarest if rarest.any() else left
            document = draw.choice(np.unique(self.documents[starts[pool]]))
            chosen.append(int(draw.choice(np.flatnonzero(pool & (self.documents[starts] == document)))))
            left[chosen[-1]] = False
        return starts[chosen].tolist()

    def _candidates(self, test: bool, n_ctx: int) -> Int[np.ndarray, "window"]:
        starts: list[int] = []
        for start in self.paragraphs[self.is_test[self.paragraphs] == test].tolist():
            if not starts or start >= starts[-1] + n_ctx or self.documents[start] != self.documents[starts[-1]]:
                starts.append(start)
        return np.array(starts)

    def window(self, start: int, n_ctx: int) -> Int[np.ndarray, "pos"]:
        """Indices of a window's tokens, -1 after the end of its document."""
        index = np.arange(start, start + n_ctx)
        inside = np.minimum(index, len(self.tokens) - 1)
        return np.where((index == inside) & (self.documents[inside] == self.documents[start]), index, -1)


def _text_of(tokens: Int[np.ndarray, "n"], tokenizer: Tokenizer) -> tuple[str, Int[np.ndarray, "n"]]:
    """The text, and how many characters are complete after each token."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pieces = [decoder.decode(tokenizer.token_bytes(int(token))) for token in tokens]
    return "".join(pieces), np.cumsum([len(piece) for piece in pieces])


def _lookups(
    text: _Text, labels: Int[np.ndarray, "n"], tested: Int[np.ndarray, "tested"]
) -> tuple[Float[Tensor, "tested class"], Float[Tensor, "tested class"]]:
    """p(label | token) and p(label | last two tokens) at the tested tokens, counted on the training documents.

    Each table backs off to the next shorter one by a single pseudo-count: (count + p_shorter) / (total + 1).
    """
    trained = np.flatnonzero(~text.is_test & (labels != UNLABELLED))
    known = np.eye(labels.max() + 1)[labels[trained]]
    said = np.broadcast_to(known.mean(0), (len(text.tokens), known.shape[1]))
    pairs = text.previous * (text.tokens.max() + 1) + text.tokens
    tables = []
    for contexts in (text.tokens, pairs):
        _, context = np.unique(contexts, return_inverse=True)
        counts = np.zeros((context.max() + 1, known.shape[1]))
        np.add.at(counts, context[trained], known)
        said = (counts[context] + said) / (counts.sum(1)[context, None] + 1)
        tables.append(torch.from_numpy(said[tested]))
    return tables[0], tables[1]
