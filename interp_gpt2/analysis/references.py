"""What simpler predictors make of the same windows: n-gram models of a text, the best possible on synthetic tasks.

A model's loss on some windows says little by itself; beside it stands the loss, token by token, of a predictor that is
understood. All see what the model sees: the window alone, not the text before it.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_gpt2.data.ngrams import NGramModel, codes_of
from interp_gpt2.data.source import Source
from interp_gpt2.data.synthetic import bayes_bigram, in_context_unigram, losses_of
from interp_gpt2.data.synthetic_sources import MarkovSource, RepeatedSource
from interp_gpt2.data.text_source import TextSource

NGRAMS = ("unigram", "bigram", "trigram")


@dataclass(frozen=True, eq=False)
class ReferenceLosses:
    """What a predictor loses on each token, in nats: losses[b, t] is that of tokens[b, t + 1] given what came before."""

    name: str
    losses: Float[Tensor, "batch pos"]

    @property
    def suffix(self) -> str:
        """What is put behind a metric's name: "_bayes_bigram"."""
        return f"_{self.name.lower().replace(' ', '_').replace('-', '_')}"


def reference_losses(source: Source | None, tokens: Int[Tensor, "batch pos+1"]) -> tuple[ReferenceLosses, ...]:
    """Losses of the predictors that a source has, the strongest last; none for one that has none.

    Text: "unigram", "bigram" and "trigram", interpolated Witten-Bell models of the training tokens. Markov chains:
    "in-context unigram", and "Bayes bigram", which no predictor beats on average. Repeated tokens: "no copying" and
    "perfect copying".
    """
    if isinstance(source, TextSource):
        ngrams, windows = source.ngrams(), tokens.numpy()
        return tuple(
            ReferenceLosses(name, torch.stack([torch.from_numpy(ngrams.token_losses(window, order)) for window in windows]))
            for order, name in enumerate(NGRAMS, start=1)
        )
    if isinstance(source, MarkovSource):
        return tuple(ReferenceLosses(name, losses_of(log_probs, tokens)) for name, log_probs in _of_chains(tokens))
    if isinstance(source, RepeatedSource):
        n_pos = tokens.shape[1] - 1
        uniform = torch.full((len(tokens), n_pos), math.log(source.tokenizer.d_vocab), dtype=torch.float64)
        first_copied = source.period_of(n_pos) - 1
        copying = torch.where(torch.arange(n_pos) < first_copied, uniform, 0)
        return ReferenceLosses("no copying", uniform), ReferenceLosses("perfect copying", copying)
    return ()


def strongest_reference(source: Source | None, tokens: Int[Tensor, "batch pos+1"]) -> ReferenceLosses | None:
    """The trigram model of a text, the Bayes bigram of Markov chains, perfect copying of repeated tokens; None elsewhere."""
    found = reference_losses(source, tokens)
    return found[-1] if found else None


def _of_chains(tokens: Int[Tensor, "batch pos+1"]) -> list[tuple[str, Float[Tensor, "batch pos d_vocab"]]]:
    return [("in-context unigram", in_context_unigram(tokens)), ("Bayes bigram", bayes_bigram(tokens))]


# ---------------------------------------------------------------------------------------------------------------------
# Whole distributions. Those of n-grams have d_vocab entries a position, so they are made from counts where asked for.


@dataclass(frozen=True, eq=False)
class Predictor:
    """A named predictor on fixed windows, which gives its distributions there in parts."""

    name: str

    def log_probabilities(self, part: tuple[slice, slice]) -> Float[Tensor, "batch pos d_vocab"]:
        """ln P(next token) at some (batch, pos) of the windows, float64 on the CPU."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it predicts; define log_probabilities")


@dataclass(frozen=True, eq=False)
class DensePredictor(Predictor):
    """One whose distributions are all there: of small vocabularies."""

    log_probs: Float[Tensor, "batch pos d_vocab"]

    def log_probabilities(self, part: tuple[slice, slice]) -> Float[Tensor, "batch pos d_vocab"]:
        return self.log_probs[part]


@dataclass(frozen=True, eq=False)
class Followers:
    """What was seen after the contexts of some windows: context `row[b, t]` (-1: never seen) has the entries from
    `starts[row]` to `starts[row + 1]` of `tokens` and `counts`, and was seen `totals[row]` times."""

    row: Int[Tensor, "batch pos"]
    starts: Int[Tensor, "row+1"]
    totals: Float[Tensor, "row"]
    tokens: Int[Tensor, "entry"]
    counts: Float[Tensor, "entry"]

    @classmethod
    def of(cls, ngrams: NGramModel, n: int, windows: Int[Tensor, "batch pos"]) -> "Followers":
        """Of contexts of n tokens. The first n - 1 positions of a window have none so long."""
        level = ngrams.levels[n]
        codes = torch.full(windows.shape, -1)
        for i, window in enumerate(windows):
            codes[i, n - 1 :] = torch.from_numpy(codes_of(window.numpy(), n, ngrams.d_vocab))
        unique, row = codes.unique(return_inverse=True)
        first, last = (torch.from_numpy(at) for at in level.followers(unique.clamp(min=0).numpy(), ngrams.d_vocab))
        seen = (unique >= 0) & (last > first)
        row = torch.where(seen, seen.cumsum(0) - 1, -1)[row]
        first, last = first[seen], last[seen]
        lengths = last - first
        starts = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
        entries = torch.arange(int(starts[-1])) + (first - starts[:-1]).repeat_interleave(lengths)
        tokens = torch.from_numpy(level.codes[entries.numpy()] % ngrams.d_vocab)
        counts = torch.from_numpy(level.counts[entries.numpy()]).double()
        of_row = torch.arange(len(first)).repeat_interleave(lengths)
        totals = torch.zeros(len(first), dtype=torch.float64).index_add_(0, of_row, counts)
        return cls(row, starts, totals, tokens, counts)

    def interpolated(self, part: tuple[slice, slice], lower: Float[Tensor, "batch pos d_vocab"]) -> Tensor:
        """P(w | h) = (c(h w) + T(h) P(w | h')) / (c(h) + T(h)), with `lower` for P(w | h'); see `NGramModel`."""
        rows = self.row[part].flatten()
        at = (rows >= 0).nonzero()[:, 0]
        rows = rows[at]
        types = self.starts[rows + 1] - self.starts[rows]
        scale = 1 / (self.totals[rows] + types)
        out = lower.flatten(0, 1).clone()
        out[at] *= (types * scale)[:, None]
        within = torch.arange(int(types.sum())) - (types.cumsum(0) - types).repeat_interleave(types)
        entries = self.starts[rows].repeat_interleave(types) + within
        added = self.counts[entries] * scale.repeat_interleave(types)
        out.index_put_((at.repeat_interleave(types), self.tokens[entries]), added, accumulate=True)
        return out.view(lower.shape)


@dataclass(frozen=True, eq=False)
class NGramPredictor(Predictor):
    """An n-gram model on some windows: the unigram's distribution, and the followers of each longer context there."""

    unigram: Float[Tensor, "d_vocab"]
    followers: tuple[Followers, ...]  # of contexts of 1, 2, ... tokens
    shape: tuple[int, int]  # of the windows: batch, pos

    def log_probabilities(self, part: tuple[slice, slice]) -> Float[Tensor, "batch pos d_vocab"]:
        n_batch, n_pos = (len(range(n)[where]) for n, where in zip(self.shape, part, strict=True))
        probs = self.unigram.expand(n_batch, n_pos, -1)
        for level in self.followers:
            probs = level.interpolated(part, probs)
        return probs.log()


def predictors(source: Source | None, tokens: Int[Tensor, "batch pos+1"]) -> tuple[Predictor, ...]:
    """The predictors of `reference_losses` with whole distributions on the same windows, the strongest last.

    Of repeated tokens "no copying" alone: perfect copying gives probability 0 to what does not come, and no model is at
    a finite distance from that.
    """
    if isinstance(source, TextSource):
        ngrams, inputs = source.ngrams(), tokens[:, :-1]
        unigram = torch.from_numpy(ngrams.next_token_probabilities(inputs[:1, :0].numpy())[0])
        levels = tuple(Followers.of(ngrams, n, inputs) for n in (1, 2))
        return tuple(NGramPredictor(name, unigram, levels[:n], tuple(inputs.shape)) for n, name in enumerate(NGRAMS))
    if isinstance(source, MarkovSource):
        return tuple(DensePredictor(name, log_probs) for name, log_probs in _of_chains(tokens))
    if isinstance(source, RepeatedSource):
        d_vocab = source.tokenizer.d_vocab
        uniform = torch.full((1, 1, d_vocab), -math.log(d_vocab), dtype=torch.float64)
        return (DensePredictor("no copying", uniform.expand(len(tokens), tokens.shape[1] - 1, -1)),)
    return ()
