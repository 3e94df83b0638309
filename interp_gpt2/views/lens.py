"""The logit lens to look at: layers by positions, the top token of each as text, coloured by what it says of the target."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from interp_gpt2.errors import AnalysisError
from interp_gpt2.views.arrays import as_array, as_list, storable
from interp_gpt2.views.html import json_script, tag
from interp_gpt2.views.view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from interp_gpt2.analysis.logit_lens import LogitLens


@dataclass(frozen=True)
class LensData:
    """The logit lens of one sequence at one or more steps, in words and plain lists, as the page and report.json hold it.

    `tokens` are the labels of the input, `targets` those of the token each position should predict (None: there is
    none); `top` are indices into `words`. `layers` runs from the embedding to the model's output. Lists are (step,
    layer, pos), `top` and `top_probability` with k more; `rank` (from 0) and `probability` are of the target and None
    where it is; `kl` is KL(final || lens), it and `entropy` in nats.
    """

    tokens: list[str]
    targets: list[str | None]
    steps: list[int]
    layers: list[str]
    d_vocab: int
    words: list[str]
    top: list[list[list[list[int]]]]
    top_probability: list[list[list[list[float]]]]
    probability: list[list[list[float | None]]]
    rank: list[list[list[int | None]]]
    kl: list[list[list[float]]]
    entropy: list[list[list[float]]]


def pack_lens(
    tokens: Sequence[int], labels: Sequence[str], lenses: Sequence["LogitLens"], steps: Sequence[int] = (0,)
) -> LensData:
    """The lenses of one sequence, one a step, as the page and report.json hold them. `labels` are those of the vocabulary.

    Numbers are rounded to 4 significant digits. Raises AnalysisError if the lenses, steps and tokens do not fit together.
    """
    tokens = as_array(tokens).tolist()
    _check(tokens, lenses, steps)
    targets = as_array(lenses[0].targets)[0].tolist()
    top = _stacked(lenses, "top_tokens")
    used, index = np.unique(top, return_inverse=True)
    return LensData(
        tokens=[labels[token] for token in tokens],
        targets=[labels[target] if target >= 0 else None for target in targets],
        steps=[int(step) for step in steps],
        layers=list(lenses[0].labels),
        d_vocab=len(labels),
        words=[labels[token] for token in used],
        top=as_list(index.reshape(top.shape)),
        top_probability=as_list(_stacked(lenses, "top_probabilities"), digits=3),
        probability=as_list(_stacked(lenses, "target_probability")),
        rank=_none_where(_stacked(lenses, "target_rank").tolist(), [target < 0 for target in targets]),
        kl=as_list(_stacked(lenses, "kl")),
        entropy=as_list(_stacked(lenses, "entropy")),
    )


def _check(tokens: Any, lenses: Sequence["LogitLens"], steps: Sequence[int]) -> None:
    if not isinstance(tokens, list) or not tokens or isinstance(tokens[0], list):
        raise AnalysisError("tokens must be the ids of one sequence; for the first sequence of a batch pass tokens[0]")
    if not lenses or len(lenses) != len(steps):
        raise AnalysisError(f"{len(lenses)} lenses do not fit {len(steps)} steps; pass one lens a step")
    for lens in lenses:
        batch, pos = lens.targets.shape
        if (batch, pos) != (1, len(tokens)) or lens.labels != lenses[0].labels:
            raise AnalysisError(
                f"a lens of {batch} sequences of {pos} tokens and layers {', '.join(lens.labels)} does not fit one sequence of "
                f"{len(tokens)} tokens and layers {', '.join(lenses[0].labels)}; lens the one sequence, tokens[:1], at every step"
            )


def _stacked(lenses: Sequence["LogitLens"], name: str) -> np.ndarray:
    """One quantity of the only sequence: (step, layer, pos), or with k more."""
    return np.stack([as_array(getattr(lens, name))[:, 0] for lens in lenses])


def _none_where(rows: list[Any], absent: list[bool]) -> list[Any]:
    return [[[None if gone else v for v, gone in zip(row, absent, strict=True)] for row in layers] for layers in rows]


def lens_view(
    tokens: Sequence[int],
    labels: Sequence[str],
    lenses: Sequence["LogitLens"],
    steps: Sequence[int] = (0,),
    title: str = "Logit lens",
) -> View:
    """Layers by positions, the top token of each cell as text, coloured by a statistic of the token it should predict.

    A menu chooses probability, rank, KL(final || lens) or entropy, a cell under the mouse or the focus shows its top
    tokens with their probabilities, and with several lenses of the same tokens (`steps`) a slider moves through training.
    `labels` are the printable tokens of the vocabulary. Raises AnalysisError as `pack_lens` does.
    """
    data = pack_lens(tokens, labels, lenses, steps)
    made = partial(lens_frame, data), partial(_table_figure, data, title)
    return View(title, data, lens_fragment(data), *made, height=380 + 28 * len(data.layers))


def _table_figure(data: LensData, title: str) -> "Figure":
    from interp_gpt2.views.figures import STATISTICS, lens_table

    return lens_table(data, title=f"{title}, step {data.steps[-1]:,}: {STATISTICS['probability']}")


def lens_frame(data: LensData) -> "DataFrame":
    """A row for each step, layer ("read_at") and position: the token there, the one it should predict ("target") with its
    probability and rank, KL(final || lens) and entropy in nats, and the top tokens, "top_1" on, with their probabilities."""
    import pandas

    rows = []
    targets = [None if target is None else storable(target) for target in data.targets]
    for (s, step), (layer, read_at), (pos, token) in product(*map(enumerate, (data.steps, data.layers, data.tokens))):
        row = {"step": step, "read_at": read_at, "position": pos, "token": storable(token), "target": targets[pos]}
        row |= {name: getattr(data, name)[s][layer][pos] for name in ("probability", "rank", "kl", "entropy")}
        found = zip(data.top[s][layer][pos], data.top_probability[s][layer][pos], strict=True)
        for place, (word, probability) in enumerate(found, 1):
            row |= {f"top_{place}": storable(data.words[word]), f"top_{place}_probability": probability}
        rows.append(row)
    return pandas.DataFrame(rows).astype({"probability": float, "rank": "Int64"})


def lens_fragment(data: LensData) -> Markup:
    """The view as HTML for a page made by `document`."""
    script = tag("noscript", {}, "The logit lens needs JavaScript.")
    return tag("div", {"class": "lens", "data-view": "lens"}, json_script(asdict(data)), script)
