"""Charts as positions and texts, which a template draws as SVG: ACC against ASR, and the curves of a sweep.

Nothing here has a colour: the style sheet has, for light and for dark. A kind of point also has a shape of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from benchbd.contract.roles import Role
from benchbd.report.statistics import Interval

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 16, 48
LETTER, LINE = 6.7, 14.0  # size of a label's letter

KINDS = {
    "floor": "clean encoder (floor)",
    "undefended": "undefended",
    Role.SCRATCH.value: "control from random weights",
    Role.BN.value: "control with new BatchNorm statistics",
    "method": "defense that passes both gates",
    Role.ORACLE.value: "oracle",
    "void": "a cell that does not pass both gates",
}
"""The kinds of points, with their texts in the legend."""


@dataclass(frozen=True)
class Point:
    """A row in a chart of ACC against ASR non-target. x, y: where its mark is; label: where its name is."""

    name: str
    kind: str
    asr: Interval
    acc: Interval
    x: float = 0
    y: float = 0
    at: tuple[float, float, str] = (0, 0, "start")
    bars: Sequence[tuple[float, float, float, float]] = ()

    @property
    def title(self) -> str:
        return f"{self.name}: ACC {_told(self.acc)}, ASR non-target {_told(self.asr)}"


@dataclass(frozen=True)
class Scatter:
    """A chart of ACC against ASR non-target. front: the path of the Pareto front of the points of kind method."""

    title: str
    points: Sequence[Point]
    front: str
    front_names: Sequence[str]
    xticks: Sequence[tuple[float, str]]
    yticks: Sequence[tuple[float, str]]

    @property
    def kinds(self) -> list[tuple[str, str]]:
        known = {point.kind for point in self.points}
        return [(kind, text) for kind, text in KINDS.items() if kind in known]


@dataclass(frozen=True)
class Curve:
    """A line of a chart of a sweep. place: its number among the lines. marks: (x, y, title) of each point."""

    name: str
    place: int
    path: str
    marks: Sequence[tuple[float, float, str]]
    bars: Sequence[tuple[float, float, float, float]]
    label: float
    end: tuple[float, float]


@dataclass(frozen=True)
class Curves:
    title: str
    measure: str
    curves: Sequence[Curve]
    xticks: Sequence[tuple[float, str]]
    yticks: Sequence[tuple[float, str]]
    right: float


def scatter(title: str, points: Sequence[Point]) -> Scatter | None:
    """A chart of at least three points; None for fewer."""
    known = [point for point in points if point.acc.mean is not None and point.asr.mean is not None]
    if len(known) < 3:
        return None
    xscale, xticks = _axis([point.asr for point in known], LEFT, WIDTH - RIGHT)
    yscale, yticks = _axis([point.acc for point in known], HEIGHT - BOTTOM, TOP)
    drawn = []
    for point in known:
        x, y = xscale(point.asr.mean or 0.0), yscale(point.acc.mean or 0.0)
        bars = [
            *([(xscale(low), y, xscale(high), y)] if (low := _low(point.asr)) != (high := _high(point.asr)) else []),
            *([(x, yscale(low), x, yscale(high))] if (low := _low(point.acc)) != (high := _high(point.acc)) else []),
        ]
        drawn.append(replace(point, x=x, y=y, bars=[_rounded(*bar) for bar in bars]))
    best = _front([point for point in drawn if point.kind == "method"])
    corners: list[tuple[float, float]] = []
    for point in best:
        corners += [(point.x, corners[-1][1] if corners else HEIGHT - BOTTOM), (point.x, point.y)]
    corners += [(WIDTH - RIGHT, best[-1].y)] if best else []
    path = "".join(f"{'L' if at else 'M'}{x:.1f} {y:.1f}" for at, (x, y) in enumerate(corners))
    rounded = [replace(point, x=round(point.x, 1), y=round(point.y, 1)) for point in _labelled(drawn, corners)]
    return Scatter(title, rounded, path, [point.name for point in best], xticks, yticks)


def curves(title: str, measure: str, labels: Sequence[str], lines: Sequence[tuple[str, Sequence[Interval]]]) -> Curves:
    """A chart of lines over the values of a sweep, which have equal distances; an interval without a mean is a gap."""
    right = 24 + LETTER * max((len(name) for name, _ in lines), default=0)
    room = WIDTH - LEFT - right
    xs = [LEFT + room * (at + 0.5) / len(labels) for at in range(len(labels))]
    yscale, yticks = _axis([value for _, values in lines for value in values], HEIGHT - BOTTOM, TOP)
    made = []
    for place, (name, values) in enumerate(lines):
        known = [(x, value) for x, value in zip(xs, values, strict=True) if value.mean is not None]
        marks = [
            (round(x, 1), round(yscale(value.mean or 0.0), 1), f"{name}, {label}: {measure} {_told(value)}")
            for x, value, label in zip(xs, values, labels, strict=True)
            if value.mean is not None
        ]
        bars = [
            (round(x, 1), round(yscale(_low(value)), 1), round(x, 1), round(yscale(_high(value)), 1))
            for x, value in known
            if value.half is not None
        ]
        if marks:
            path = "M" + " L".join(f"{x} {y}" for x, y, _ in marks)
            made.append(Curve(name, place, path, marks, bars, marks[-1][1], marks[-1][:2]))
    return Curves(
        title,
        measure,
        _apart(made),
        [(round(x, 1), label) for x, label in zip(xs, labels, strict=True)],
        yticks,
        round(WIDTH - right, 1),
    )


def _axis(values: Iterable[Interval], start: float, end: float) -> tuple[_Scale, list[tuple[float, str]]]:
    """A scale from percent to a position, over tens that contain all intervals, and its ticks."""
    known = [value for value in values if value.mean is not None]
    least = 10 * math.floor(min(map(_low, known), default=0.0) / 10)
    most = 10 * math.ceil(max(map(_high, known), default=100.0) / 10)
    if most - least < 20:
        least, most = max(0, most - 20), max(20, most)
    scale = _Scale(least, most, start, end)
    step = 10 if most - least <= 60 else 20
    ticks = range(step * math.ceil(least / step), most + 1, step)
    return scale, [(round(scale(tick), 1), str(tick)) for tick in ticks]


@dataclass(frozen=True)
class _Scale:
    least: float
    most: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.least) / (self.most - self.least) * (self.end - self.start)


def _rounded(x1: float, y1: float, x2: float, y2: float) -> tuple[float, float, float, float]:
    return round(x1, 1), round(y1, 1), round(x2, 1), round(y2, 1)


def _front(points: Iterable[Point]) -> list[Point]:
    """The points to which no other is better in one of ACC and ASR and at least as good in the other, by ASR."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x, point.y, point.name)):
        if not front or point.y < front[-1].y:  # upwards y falls
            front.append(point)
    return front


def _labelled(points: Sequence[Point], corners: Sequence[tuple[float, float]]) -> list[Point]:
    """The points with places for their names, near their marks and as far as possible without overlap with each other,
    with marks, and with the front of these corners."""
    taken = [(point.x - 6, point.y - 6, point.x + 6, point.y + 6) for point in points]
    taken += [(x1, min(y1, y2) - 1, x2, max(y1, y2) + 1) for (x1, y1), (x2, y2) in pairwise(corners)]
    placed = []
    for point in points:
        size = LETTER * len(point.name)
        places = [
            (point.x + dx, point.y + dy + 4, anchor)
            for far in (10, 22, 36, 50)
            for dx, dy, anchor in (
                *((far, 0, "start"), (-far, 0, "end"), (0, -far - 2, "middle"), (0, far + 4, "middle")),
                *((far, -far, "start"), (far, far, "start"), (-far, -far, "end"), (-far, far, "end")),
            )
        ]
        boxes = [_box(place, size) for place in places]
        free = [at for at, box in enumerate(boxes) if _inside(box) and not any(_overlap(box, each) for each in taken)]
        at = free[0] if free else 0
        taken.append(boxes[at])
        x, y, anchor = places[at]
        placed.append(replace(point, at=(round(x, 1), round(y, 1), anchor)))
    return placed


_Box = tuple[float, float, float, float]


def _box(place: tuple[float, float, str], size: float) -> _Box:
    x, y, anchor = place
    left = x - {"start": 0.0, "end": size, "middle": size / 2}[anchor]
    return left, y - LINE + 3, left + size, y + 3


def _inside(box: _Box) -> bool:
    return box[0] >= LEFT and box[2] <= WIDTH and box[1] >= 0 and box[3] <= HEIGHT - BOTTOM


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _apart(lines: Sequence[Curve]) -> list[Curve]:
    """The lines with the heights of their labels moved until no two overlap."""
    below = -math.inf
    moved = {}
    for line in sorted(lines, key=lambda line: (line.label, line.place)):
        below = max(line.label, below + LINE)
        moved[line.place] = below
    over = max([*moved.values(), 0.0]) - (HEIGHT - BOTTOM)
    return [replace(line, label=round(moved[line.place] - max(0.0, over) + 4, 1)) for line in lines]


def _low(value: Interval) -> float:
    return max(0.0, (value.mean or 0.0) - (value.half or 0.0))


def _high(value: Interval) -> float:
    return min(100.0, (value.mean or 0.0) + (value.half or 0.0))


def _told(value: Interval) -> str:
    return "-" if value.mean is None else f"{value.mean:.2f}" + ("" if value.half is None else f" ± {value.half:.2f}")
