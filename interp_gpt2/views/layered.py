"""Where to draw a graph whose edges all point up: boxes in rows, links around the boxes between.

Sugiyama's method: a link that passes rows gets a place of its own in each (a lane), boxes and lanes are ordered row by row
so that few links cross, and then moved apart to where their neighbours are. Links of one start share lanes, in groups, as
long as they go the same way. The same graph gives the same numbers. Sugiyama et al. 1981, "Methods for Visual Understanding
of Hierarchical System Structures".
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

N_SWEEPS = 12


@dataclass(frozen=True)
class Box:
    """What is drawn in a row; rows count from 0."""

    name: str
    row: int
    width: float


@dataclass(frozen=True)
class Link:
    """From one box to another in a higher row. Links with the same start and group share lanes."""

    start: str
    end: str
    group: str = ""


@dataclass(frozen=True)
class Lane:
    """A place in a row that links of a group pass through."""

    start: str
    group: str
    row: int


Item = Box | Lane


@dataclass(frozen=True)
class Layout:
    """The middle of every box and lane, from 0 to `width`."""

    x: dict[Item, float]
    boxes: dict[str, Box]
    width: float

    def of(self, name: str) -> float:
        return self.x[self.boxes[name]]

    def lanes(self, link: Link) -> list[tuple[int, float]]:
        """Row and middle of every lane that a link passes through, from its start to its end."""
        return [(item.row, self.x[item]) for item in chain(link, self.boxes)[1:-1]]


def layered(boxes: Sequence[Box], links: Sequence[Link], gap: float, lane: float) -> Layout:
    """Boxes and lanes (of that width) at least `gap` apart. Every link must lead from a lower row to a higher one."""
    named = {box.name: box for box in boxes}
    rows: dict[int, list[Item]] = defaultdict(list)
    for box in boxes:
        rows[box.row].append(box)
    weights: dict[tuple[Item, Item], float] = defaultdict(float)
    for link in links:
        for low, high in pairwise(chain(link, named)):
            weights[low, high] += 1
            if isinstance(high, Lane) and high not in rows[high.row]:
                rows[high.row].append(high)
    neighbours = _Neighbours(weights)
    order = _ordered([rows[row] for row in sorted(rows)], neighbours)
    x = _placed(order, neighbours, lambda item: item.width if isinstance(item, Box) else lane, gap)
    half = {item: (item.width if isinstance(item, Box) else lane) / 2 for item in x}
    left = min((at - half[item] for item, at in x.items()), default=0.0)
    right = max((at + half[item] for item, at in x.items()), default=0.0)
    return Layout({item: at - left for item, at in x.items()}, named, right - left)


def chain(link: Link, boxes: dict[str, Box]) -> list[Item]:
    """What a link passes: its start, a lane in every row between, its end."""
    start, end = boxes[link.start], boxes[link.end]
    return [start, *(Lane(link.start, link.group, row) for row in range(start.row + 1, end.row)), end]


class _Neighbours:
    """Of every box and lane, those it is linked to in the row below and in the row above, with how many links."""

    def __init__(self, weights: dict[tuple[Item, Item], float]) -> None:
        self.below: dict[Item, list[tuple[Item, float]]] = defaultdict(list)
        self.above: dict[Item, list[tuple[Item, float]]] = defaultdict(list)
        for (low, high), weight in weights.items():
            self.below[high].append((low, weight))
            self.above[low].append((high, weight))

    def mean(self, item: Item, x: dict[Item, float], below: bool, above: bool) -> float | None:
        """Where its neighbours are on average; lanes hold each other straight."""
        found = (self.below[item] if below else []) + (self.above[item] if above else [])
        pulls = [(x[other], weight * (8 if isinstance(item, Lane) and isinstance(other, Lane) else 1)) for other, weight in found]
        total = sum(weight for _, weight in pulls)
        return sum(at * weight for at, weight in pulls) / total if total else None


# Order within rows ----------------------------------------------------------------------------------------------------


def _ordered(rows: list[list[Item]], neighbours: _Neighbours) -> list[list[Item]]:
    """Rows in the order, of those that sweeps up and down come by, in which the fewest links cross."""
    best, fewest = rows, _crossings(rows, neighbours)
    for sweep in range(N_SWEEPS):
        up = sweep % 2 == 0
        rows = _swept(rows, neighbours, up)
        if (crossings := _crossings(rows, neighbours)) < fewest:
            best, fewest = rows, crossings
    return best


def _swept(rows: list[list[Item]], neighbours: _Neighbours, up: bool) -> list[list[Item]]:
    """Each row sorted by the mean place of its neighbours in the row before."""
    rows = list(rows)
    for at in range(len(rows)) if up else reversed(range(len(rows))):
        before = at - 1 if up else at + 1
        if not 0 <= before < len(rows):
            continue
        place = {item: (index + 0.5) / len(rows[before]) for index, item in enumerate(rows[before])}
        own = {item: (index + 0.5) / len(rows[at]) for index, item in enumerate(rows[at])}
        wish = {item: neighbours.mean(item, place, up, not up) for item in rows[at]}
        rows[at] = sorted(rows[at], key=lambda item: own[item] if wish[item] is None else wish[item])
    return rows


def _crossings(rows: list[list[Item]], neighbours: _Neighbours) -> float:
    """How many pairs of links between adjacent rows cross."""
    total = 0.0
    for low, high in pairwise(rows):
        place = {item: index for index, item in enumerate(high)}
        seen: list[float] = [0.0] * len(high)
        for item in low:
            mine = [(place[other], weight) for other, weight in neighbours.above[item]]
            total += sum(weight * sum(seen[at + 1 :]) for at, weight in mine)
            for at, weight in mine:
                seen[at] += weight
    return total


# Places within rows ---------------------------------------------------------------------------------------------------


def _placed(rows: list[list[Item]], neighbours: _Neighbours, width: Callable[[Item], float], gap: float) -> dict[Item, float]:
    """Middles, in the order of the rows: each where its neighbours are on average, as far as the others let it."""
    x: dict[Item, float] = {}
    for row in rows:
        at = 0.0
        for item in row:
            x[item] = at + width(item) / 2
            at += width(item) + gap
        for item in row:
            x[item] -= (at - gap) / 2  # rows begin centred on each other
    for sweep in range(2 * N_SWEEPS):
        last = sweep >= 2 * N_SWEEPS - 4
        for row in rows if sweep % 2 == 0 else reversed(rows):
            means = {item: neighbours.mean(item, x, last or sweep % 2 == 0, last or sweep % 2 == 1) for item in row}
            wishes = [x[item] if means[item] is None else means[item] for item in row]
            pull = [2.0 if isinstance(item, Lane) else 1.0 for item in row]
            x.update(zip(row, apart(wishes, [width(item) for item in row], pull, gap), strict=True))
    return x


def apart(wishes: Sequence[float], widths: Sequence[float], pull: Sequence[float], gap: float) -> list[float]:
    """Middles in this order, `gap` between neighbours, as near to the wishes as can be: least squares, weighted by `pull`.

    Neighbours that collide form a block around the mean of their wishes (pool adjacent violators).
    """
    offsets = [0.0]
    for one, other in pairwise(widths):
        offsets.append(offsets[-1] + (one + other) / 2 + gap)
    blocks: list[list[float]] = []  # [weighted sum of wishes for the first of the block, weight, count]
    for wish, offset, weight in zip(wishes, offsets, pull, strict=True):
        blocks.append([(wish - offset) * weight, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, weight_, count = blocks.pop()
            blocks[-1] = [blocks[-1][0] + total, blocks[-1][1] + weight_, blocks[-1][2] + count]
    starts = [total / weight for total, weight, count in blocks for _ in range(int(count))]
    return [start + offset for start, offset in zip(starts, offsets, strict=True)]
