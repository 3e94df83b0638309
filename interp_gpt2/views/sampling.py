"""One next-token distribution under greedy decoding, temperature, top-k and top-p, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from interp_gpt2.errors import AnalysisError
from interp_gpt2.views.arrays import as_array, as_list, storable
from interp_gpt2.views.html import tag
from interp_gpt2.views.view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame
    from torch import Tensor

    from interp_gpt2.generation import Sampling

_BAR = 48  # length of a probability of 1, in pixels


@dataclass(frozen=True)
class SamplingData:
    """One next-token distribution under several ways of choosing, as the page holds it.

    Lists run over the ways (`ways`: their names). `probability` is (way, token) for the most probable `tokens`; 0 where the
    way excludes the token. `n_kept` is how many tokens of the vocabulary can be drawn, `kept` the probability that these
    had before the others were cut, at the way's own temperature (greedy: at 1). `rest` is what tokens not shown are given.
    """

    tokens: list[str]
    ways: list[str]
    probability: list[list[float]]
    n_kept: list[int]
    kept: list[float]
    rest: list[float]


def pack_sampling(
    logits: Any, labels: Sequence[str], temperature: float = 0.7, top_k: int = 10, top_p: float = 0.9, n_shown: int = 20
) -> SamplingData:
    """The distribution after `logits` (d_vocab,) under: softmax, greedy, temperature, top-k, top-p, and all three at once.

    Top-k and top-p alone are at temperature 1; together they follow the temperature in `generate`'s order. Tokens are in the
    order of their logits. Raises ConfigError for values that `generate` refuses and for temperature 0, which is greedy
    anyway; AnalysisError if logits and labels do not fit.
    """
    import torch  # a page is made without it

    values = torch.as_tensor(as_array(logits)).float()
    _check(values, labels, temperature, n_shown)
    ways = _ways(temperature, top_k, top_p)
    shown = values.argsort(descending=True, stable=True)[:n_shown]
    drawn = torch.stack([_probs(values, way) for way in ways.values()])
    whole = torch.stack([(values / (way.temperature or 1.0)).softmax(-1) for way in ways.values()])
    can = drawn > 0
    return SamplingData(
        tokens=[labels[token] for token in shown],
        ways=list(ways),
        probability=as_list(drawn[:, shown]),
        n_kept=can.sum(-1).tolist(),
        kept=as_list((whole * can).sum(-1)),
        rest=as_list(drawn.index_fill(1, shown, 0).sum(-1)),
    )


def _check(logits: "Tensor", labels: Sequence[str], temperature: float, n_shown: int) -> None:
    if logits.ndim != 1 or len(logits) != len(labels) or not len(logits) or n_shown < 1:
        raise AnalysisError(
            f"logits of shape {tuple(logits.shape)} do not fit {len(labels)} labels, {n_shown} of them shown; "
            "pass those of one position, logits[0, -1]"
        )
    if not logits.isfinite().all():
        raise AnalysisError("logits must be finite")
    if not temperature:
        raise AnalysisError("temperature=0 is greedy, which is shown anyway; pass the temperature to compare it with")


def _ways(temperature: float, top_k: int, top_p: float) -> dict[str, "Sampling"]:
    from interp_gpt2.generation import Sampling

    return {
        "softmax": Sampling(),
        "greedy": Sampling(temperature=0),
        f"temperature {temperature:g}": Sampling(temperature),
        f"top-k {top_k}": Sampling(top_k=top_k),
        f"top-p {top_p:g}": Sampling(top_p=top_p),
        "all three": Sampling(temperature, top_k, top_p),
    }


def _probs(logits: "Tensor", way: "Sampling") -> "Tensor":
    import torch

    from interp_gpt2.generation import next_token_probs

    if way.temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(), len(logits)).float()
    return next_token_probs(logits[None], way.temperature, way.top_k, way.top_p)[0]


def sampling_view(
    logits: Any,
    labels: Sequence[str],
    temperature: float = 0.7,
    top_k: int = 10,
    top_p: float = 0.9,
    title: str = "Ways to choose the next token",
) -> View:
    """The 20 most probable next tokens and what each way of sampling makes of them; see `pack_sampling`.

    sampling_view(model(tokens)[0, -1], tokenizer.labels)
    """
    data = pack_sampling(logits, labels, temperature, top_k, top_p)
    made = partial(sampling_table, data), partial(_bars, data, title)
    return View(title, data, sampling_fragment(data), *made, height=240 + 24 * len(data.tokens))


def _bars(data: SamplingData, title: str) -> "Figure":
    from interp_gpt2.views.stills import sampling_bars

    return sampling_bars(data, title)


def sampling_table(data: SamplingData) -> "DataFrame":
    """A row for each way and token shown: its rank by logit (from 0) and probability, beside the way's "n_kept" tokens, the
    probability "kept" that these had, and the "rest" that tokens not shown are given."""
    import pandas

    ways = zip(data.ways, data.probability, data.n_kept, data.kept, data.rest, strict=True)
    return pandas.DataFrame(
        {"way": way, "rank": rank, "token": storable(token), "probability": value, "n_kept": n_kept, "kept": kept, "rest": rest}
        for way, values, n_kept, kept, rest in ways
        for rank, (token, value) in enumerate(zip(data.tokens, values, strict=True))
    )


def sampling_fragment(data: SamplingData) -> Markup:
    """The view as HTML for a page made by `document`: a table, which needs no script."""
    head = tag("tr", {}, tag("th", {}, "token"), *(tag("th", {"scope": "col"}, way) for way in data.ways))
    rows = [
        tag("tr", {}, tag("th", {"scope": "row"}, token), *(_cell(way[index]) for way in data.probability))
        for index, token in enumerate(data.tokens)
    ]
    feet = [
        _foot("all other tokens", [_number(value) for value in data.rest]),
        _foot("tokens kept", [f"{count:,}" for count in data.n_kept]),
        _foot("probability they had", [_number(value) for value in data.kept]),
    ]
    said = (
        "Probabilities of being drawn. The last row is what the kept tokens had before the others were cut, at the same "
        "temperature (greedy: at 1)."
    )
    table = tag("table", {}, tag("thead", {}, head), tag("tbody", {}, *rows), tag("tfoot", {}, *feet))
    return tag("div", {"class": "sampling"}, table, tag("p", {}, said))


def _cell(probability: float) -> Markup:
    if not probability:
        return tag("td", {"class": "cut"}, "–")
    bar = tag("rect", {"width": max(probability * _BAR, 0.5), "height": 10, "rx": 2})
    return tag("td", {}, tag("svg", {"width": _BAR, "height": 10, "aria-hidden": "true"}, bar), _number(probability))


def _number(probability: float) -> str:
    if not probability:
        return "0"
    return f"{probability:.1e}" if probability < 0.0005 else f"{probability:.3f}"


def _foot(name: str, cells: list[str]) -> Markup:
    return tag("tr", {}, tag("th", {"scope": "row"}, name), *(tag("td", {}, cell) for cell in cells))
