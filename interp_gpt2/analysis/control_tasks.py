"""Control tasks: labels that a probe can only have learnt by heart.

Every token id gets a class at random, the same wherever it stands. A probe that does as well on it as on the real label
shows what the probe can memorise, not what the activations represent; what it does better is its selectivity. Hewitt and
Liang 2019, "Designing and Interpreting Probes with Control Tasks".
"""

from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from interp_gpt2.analysis.probe_sets import UNLABELLED, LabelledTokens, ProbeSet
from interp_gpt2.errors import AnalysisError

_SUFFIX = " (control task)"
_MIN_EXAMPLES = 10  # of every class in each half, as real labels must have
_ATTEMPTS = 1000


def control_name(label: str) -> str:
    """The name of a label's control task in a set that `with_control_tasks` made."""
    return label + _SUFFIX


def with_control_tasks(data: ProbeSet, seed: int = 0) -> ProbeSet:
    """The set with a control task beside each of its labels, at the same tokens and with about the same shares of classes.

    Of a control task the current token tells everything that was seen in training, which is what `current_token` says.
    Raises AnalysisError where there are too few token ids to draw a task with 10 tokens of each class in both halves.
    """
    controls = tuple(_control_task(data, label, seed) for label in data.labels if not label.name.endswith(_SUFFIX))
    return replace(data, labels=(*data.labels, *controls))


def _control_task(data: ProbeSet, of: LabelledTokens, seed: int) -> LabelledTokens:
    labelled = of.labels != UNLABELLED
    train, test = labelled & ~data.is_test[:, None], labelled & data.is_test[:, None]
    n_classes = of.current_token.shape[1]
    shares = torch.bincount(of.labels[train], minlength=n_classes).double()
    present = shares > 0
    draw = torch.Generator().manual_seed(seed)
    for _ in range(_ATTEMPTS):
        of_token = torch.multinomial(shares, int(data.tokens.max()) + 1, replacement=True, generator=draw)
        drawn = of_token[data.tokens]
        counts = torch.stack([torch.bincount(drawn[half], minlength=n_classes)[present] for half in (train, test)])
        if counts.min() >= _MIN_EXAMPLES:
            break
    else:
        raise AnalysisError(
            f"no control task for {of.name!r}: {len(data.tokens[labelled].unique())} token ids cannot be given its classes at "
            f"random with {_MIN_EXAMPLES} tokens of each in both halves; take more text, or an even label"
        )
    said = _lookup(data.tokens[test], drawn[test], data.tokens[train].unique(), shares / shares.sum())
    measures = f"a random class for each token id, in the shares of {of.name}"
    return LabelledTokens(control_name(of.name), measures, False, drawn.masked_fill(~labelled, UNLABELLED), said, said)


def _lookup(tokens: Int[Tensor, "n"], classes: Int[Tensor, "n"], seen: Int[Tensor, "id"], shares: Tensor) -> Tensor:
    """What the token tells: its class if training had it, else the shares of the classes."""
    certain = torch.nn.functional.one_hot(classes, len(shares)).double()
    return torch.where(torch.isin(tokens, seen)[:, None], certain, shares)
