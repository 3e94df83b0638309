"""Pages of neurons: where each is active, not only most, how often, what it writes, and how it came to be so.

One page a neuron, linked to the ones before and after it and to an index; each is whole in itself and can be read without a
script. Colours go from nothing at 0 to bright at the page's highest activation; negative activations have none.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from interp_gpt2.errors import AnalysisError
from interp_gpt2.files import written_atomically
from interp_gpt2.views.html import document, tag
from interp_gpt2.views.neuron_charts import effect_table, histogram, history_charts, number, share
from interp_gpt2.views.view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from interp_gpt2.analysis.neuron_history import NeuronHistory, NeuronRecord
    from interp_gpt2.analysis.neuron_probing import Context

INDEX = "index.html"

_SHADES = 8  # classes a1 ... a8
_SHOWN = 8  # promoted tokens, and as many suppressed ones
_LISTED = 1000  # neurons in one index page; of more, each layer has a page of its own


@dataclass(frozen=True)
class _Place:
    """A neuron's page among the others: names of the pages before and after it, None at the ends."""

    before: str | None
    after: str | None


def neuron_view(history: "NeuronHistory", labels: Sequence[str], title: str = "") -> View:
    """One neuron to look at, in a notebook or as a page of its own.

    Top contexts and samples at quantiles with coloured tokens, the histogram of its activations, promoted and suppressed
    tokens, and its history. `labels` are the printable tokens of the vocabulary. Raises AnalysisError if they are too few.
    """
    _check([history], labels)
    title = title or f"{history.kind.capitalize()} {history.label}"
    made = partial(_table, history, labels), partial(_figure, history, labels, title)
    return View(title, history, neuron_fragment(history, labels), *made, height=900)


def _table(history: "NeuronHistory", labels: Sequence[str]) -> "DataFrame":
    from interp_gpt2.views.neuron_figures import neuron_table

    return neuron_table(history, labels)


def _figure(history: "NeuronHistory", labels: Sequence[str], title: str) -> "Figure":
    from interp_gpt2.views.neuron_figures import neuron_figure

    return neuron_figure(history, labels, title)


def save_neuron_pages(
    histories: Sequence["NeuronHistory"], labels: Sequence[str], folder: Path | str, title: str, measured_on: str = ""
) -> Path:
    """Write a page for each neuron, `L2N17.html`, and `index.html`, whose path is returned; pages of that name are replaced.

    `title` names the model, `measured_on` the tokens, in words. The same histories give the same bytes.
    Raises AnalysisError for no histories, one neuron twice, or fewer labels than tokens.
    """
    _check(histories, labels)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    ordered = sorted(histories, key=lambda history: (history.layer, history.neuron))
    names = [page_name(history) for history in ordered]
    for i, history in enumerate(ordered):
        place = _Place(names[i - 1] if i else None, names[i + 1] if i + 1 < len(names) else None)
        body = tag(
            "main",
            {"class": "neuron"},
            _links(place, history.kind),
            tag("p", {"class": "overline"}, title),
            tag("h1", {}, history.label),
            neuron_fragment(history, labels, measured_on),
        )
        _write(folder / names[i], f"{history.label} · {title}", body)
    return _write_index(folder, ordered, labels, title, measured_on)


def page_name(history: "NeuronHistory") -> str:
    """What a neuron's page is called, in the folder of the pages."""
    return f"{history.label}.html"


def _check(histories: Sequence["NeuronHistory"], labels: Sequence[str]) -> None:
    if len({history.label for history in histories}) != len(histories) or not histories:
        raise AnalysisError(f"{len(histories)} histories of {len({h.label for h in histories})} neurons; pass one of each")
    for history in histories:
        shown = [token for record in history.records for context in _contexts(record) for token in context.tokens]
        shown += [token for record in history.records for token, _ in (*record.effect.promoted, *record.effect.suppressed)]
        if max(shown, default=0) >= len(labels):
            raise AnalysisError(
                f"token {max(shown)} of {history.label} has no label; {len(labels)} labels are another tokenizer's"
            )


def _write(path: Path, title: str, body: Markup) -> None:
    with written_atomically(path) as file:
        file.write(document(title, body).encode())


def _links(place: _Place, kind: str) -> Markup:
    """Above each page, and what the arrow keys follow."""
    before, after = (
        tag("a", {"href": name, "rel": rel}, text) if name else tag("span", {"class": "gone"}, text)
        for name, rel, text in ((place.before, "prev", "← previous"), (place.after, "next", "next →"))
    )
    index = tag("a", {"href": INDEX, "rel": "index"}, f"all {kind}s")
    keys = tag("span", {"class": "keys"}, "arrow keys: previous, next")
    return tag("nav", {"aria-label": f"{kind}s"}, before, index, after, keys)


# One neuron -----------------------------------------------------------------------------------------------------------


def neuron_fragment(history: "NeuronHistory", labels: Sequence[str], measured_on: str = "") -> Markup:
    """The neuron, or a dictionary's feature, as HTML for a page made by `document`."""
    record = history.last
    highest = max((a for context in _contexts(record) for a in context.activations), default=0.0)
    on = f"At step {record.step:,}, on {record.n:,} tokens{' of ' * bool(measured_on)}{measured_on}."
    chance = "The dashed line is the largest effect that a random direction of the same spread would have"
    return tag(
        "div",
        {"class": "neuron"},
        tag("p", {"class": "note"}, f"{on} {_firing(record)}"),
        tag(
            "div",
            {"class": "pair"},
            tag("section", {}, tag("h2", {}, "Activations"), histogram(record)),
            tag(
                "section",
                {},
                tag("h2", {}, "What it writes"),
                effect_table("promotes", record.effect.promoted[:_SHOWN], record.effect, labels),
                effect_table("suppresses", record.effect.suppressed[:_SHOWN], record.effect, labels),
            ),
        ),
        tag(
            "p",
            {"class": "note"},
            "Effects on logits per unit of activation, less their mean over the vocabulary, before the final layer norm divides "
            f"by its scale. {chance}, {number(record.effect.by_chance)}. Excess kurtosis over the vocabulary "
            f"{number(record.effect.kurtosis)} (0 for a random direction).",
        ),
        _section("Where it is most active", [_context(context, labels, highest) for context in record.top]),
        _section(
            "Samples from further down",
            [_context(at.context, labels, highest, f"{share(at.quantile)}") for at in record.quantiles],
            "A place whose activation (underlined) is at least that of the given share of all tokens: what a "
            f"{history.kind} does besides its maxima.",
        ),
        *(_history(history, labels) if len(history.records) > 1 else []),
    )


def _firing(record: "NeuronRecord") -> str:
    spread = f"mean {number(record.mean)} ± {number(record.std)}, from {number(record.lowest)} to {number(record.highest)}"
    if record.frequency == 0:
        said = (
            f"Dead here: it fires (is above 0) on none of them, so on fewer than {share(min(1.0, 3 / record.n))} of such tokens"
        )
    elif record.frequency == 1:
        said = "Always on: it is above 0 on all of them"
    else:
        said = f"It fires (is above 0) on {share(record.frequency)} of them"
    return f"{said}; {spread}."


def _contexts(record: "NeuronRecord") -> list["Context"]:
    return [*record.top, *(at.context for at in record.quantiles)]


def _section(title: str, contexts: Sequence[Markup], note: str = "") -> Markup:
    said = [tag("p", {"class": "note"}, note)] if note else []
    return tag("section", {}, tag("h2", {}, title), *said, *contexts)


def _context(context: "Context", labels: Sequence[str], highest: float, said: str = "") -> Markup:
    value = number(context.activations[context.peak])
    source = f"document {context.document}, position {context.position}"
    return tag(
        "div",
        {"class": "context"},
        tag("span", {"class": "value"}, value),
        _tokens(context, labels, highest),
        tag("span", {"class": "muted"}, said or source),
    )


def _tokens(context: "Context", labels: Sequence[str], highest: float) -> Markup:
    """Each token coloured by its activation relative to the highest; the place it is about underlined."""
    parts = []
    for i, (token, activation) in enumerate(zip(context.tokens, context.activations, strict=True)):
        level = min(math.floor(_SHADES * max(activation, 0.0) / highest), _SHADES) if highest > 0 else 0
        classes = [f"a{level}"] * (level > 0) + ["peak"] * (i == context.peak)
        said = {"class": " ".join(classes) or None, "title": number(activation) if classes else None}
        parts.append(tag("span", said, labels[token]))
    return tag("code", {}, *parts)


def _history(history: "NeuronHistory", labels: Sequence[str]) -> list[Markup]:
    weights = "input and output weights" if math.isfinite(history.last.input_cosine) else "output weights"
    note = (
        f"Left: the share of tokens on which it fires. Right: how like the last step's {history.kind} it was: activations on the "
        f"same tokens (correlation), {weights} (cosine; random weights have 0 ± {1 / math.sqrt(history.d_model):.2f})."
    )
    names = ("step", "fires", "highest", "promotes", "where it is most active")
    head = [tag("th", {"scope": "col", "class": "words" if i > 2 else None}, name) for i, name in enumerate(names)]
    rows = [
        tag(
            "tr",
            {},
            tag("th", {"scope": "row"}, f"{record.step:,}"),
            tag("td", {}, share(record.frequency)),
            tag("td", {}, number(record.highest)),
            _words([token for token, _ in record.effect.promoted[:4]], labels),
            tag("td", {"class": "words"}, _best(record, labels)),
        )
        for record in history.records
    ]
    table = tag("table", {"class": "numbers steps"}, tag("thead", {}, tag("tr", {}, *head)), tag("tbody", {}, *rows))
    return [
        tag("h2", {}, "How it came to be so"),
        tag("p", {"class": "note"}, note),
        history_charts(history),
        tag("div", {"class": "wide-table"}, table),
    ]


def _best(record: "NeuronRecord", labels: Sequence[str]) -> Markup | str:
    """The end of the first context up to its peak, which is what a row has room for."""
    if not record.top:
        return ""
    context, highest = record.top[0], record.highest
    start = max(0, context.peak - 30)
    part = slice(start, context.peak + 10)
    short = type(context)(
        context.document, context.position, context.tokens[part], context.activations[part], context.peak - start
    )
    return tag("div", {"class": "context"}, _tokens(short, labels, highest))


def _words(tokens: Sequence[int], labels: Sequence[str]) -> Markup:
    return tag("td", {"class": "words"}, *(tag("span", {}, labels[token]) for token in tokens))


# The index ------------------------------------------------------------------------------------------------------------


def _write_index(folder: Path, histories: Sequence["NeuronHistory"], labels: Sequence[str], title: str, measured_on: str) -> Path:
    layers: dict[int, list[NeuronHistory]] = {}
    for history in histories:
        layers.setdefault(history.layer, []).append(history)
    last = histories[0].last
    kind = histories[0].kind
    said = f"{len(histories):,} {kind}s at step {last.step:,}, on {last.n:,} tokens{' of ' * bool(measured_on)}{measured_on}."
    split = len(histories) > _LISTED
    parts = []
    for layer, its in layers.items():
        name = f"layer-{layer}.html"
        listed = _list(its, labels)
        if split:
            head = [tag("nav", {}, tag("a", {"href": INDEX}, "all layers")), tag("h1", {}, its[0].place)]
            _write(folder / name, f"{its[0].place} · {title}", tag("main", {"class": "neurons"}, *head, listed))
            listed = tag("p", {}, tag("a", {"href": name}, f"{len(its):,} {kind}s"))
        parts.append(tag("section", {}, tag("h2", {}, its[0].place), tag("p", {"class": "note"}, _of_layer(its)), listed))
    head = [tag("p", {"class": "overline"}, title), tag("h1", {}, f"{kind.capitalize()}s"), tag("p", {"class": "note"}, said)]
    _write(folder / INDEX, f"{kind.capitalize()}s · {title}", tag("main", {"class": "neurons"}, *head, *parts))
    return folder / INDEX


def _of_layer(histories: Sequence["NeuronHistory"]) -> str:
    dead = sum(history.last.frequency == 0 for history in histories)
    always = sum(history.last.frequency == 1 for history in histories)
    return f"Of {len(histories):,} shown, {dead:,} fire on no token and {always:,} on every one."


def _list(histories: Sequence["NeuronHistory"], labels: Sequence[str]) -> Markup:
    """A row for each neuron; a button in each head sorts by its column."""
    names = (histories[0].kind, "fires", "mean", "highest", "kurtosis")
    head = [tag("th", {"scope": "col"}, tag("button", {"type": "button"}, name)) for name in names]
    head += [tag("th", {"scope": "col", "class": "words"}, name) for name in ("promotes", "suppresses")]
    rows = []
    for history in histories:
        record = history.last
        link = tag("a", {"href": page_name(history)}, history.label)
        cells = [tag("td", {"data-value": history.neuron}, link)]
        cells += [
            tag("td", {"data-value": float(value)}, text)
            for value, text in (
                (record.frequency, share(record.frequency)),
                (record.mean, number(record.mean)),
                (record.highest, number(record.highest)),
                (record.effect.kurtosis, number(record.effect.kurtosis)),
            )
        ]
        cells += [_words([token for token, _ in side[:4]], labels) for side in (record.effect.promoted, record.effect.suppressed)]
        rows.append(tag("tr", {}, *cells))
    table = tag("table", {"class": "numbers list"}, tag("thead", {}, tag("tr", {}, *head)), tag("tbody", {}, *rows))
    return tag("div", {"class": "wide-table"}, table)
