"""Plots as lists of shapes, from which the page makes SVG and matplotlib a PNG.

Styles are names, defined for the page in `templates/style.css`, and for a PNG in `_LOOKS`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from typing import Any

from onnx_rnn_prune.errors import PruneError

Point = tuple[float, float]
Way = tuple[str | int, ...]
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Text:
    """Text at a point; `end` or `middle` in the style is its anchor."""

    at: Point
    words: str
    style: str


@dataclass(frozen=True)
class Line:
    """A polyline."""

    points: Sequence[Point]
    style: str


@dataclass(frozen=True)
class Box:
    """A filled rectangle with a tooltip; `way` is the path to the value that it shows."""

    left: float
    top: float
    width: float
    height: float
    style: str
    title: str
    way: Way


@dataclass(frozen=True)
class Dot:
    """A circle with a tooltip; `way` is the path to the value that it shows."""

    at: Point
    radius: float
    style: str
    title: str = ""
    way: Way = ()


Shape = Text | Line | Box | Dot


@dataclass(frozen=True)
class Picture:
    """A plot, scaled to the width available.

    Attributes:
        width, height: in the units of coordinates.
        name: the alternative text.
        shapes: in drawing order.
        caption: names of the layers.
    """

    width: int
    height: int
    name: str
    shapes: Sequence[Shape]
    caption: str = ""


@dataclass(frozen=True)
class Axis:
    """A linear axis.

    Attributes:
        high: above `low`.
        ticks: round numbers from low to high.
        digits: decimal places of tick labels.
        power: tick labels are multiples of 10 ** power.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    digits: int
    label: str
    power: int = 0

    def share(self, value: float) -> float:
        """The position of a value: 0 at the low end, 1 at the high end."""
        return (value - self.low) / (self.high - self.low)

    def written(self, tick: float) -> str:
        """The label of a tick."""
        text = f"{tick / 10.0**self.power:.{self.digits}f}"
        return text.replace("-", "\N{MINUS SIGN}")

    @property
    def title(self) -> str:
        """The label with the power of ten."""
        if not self.power:
            return self.label
        return f"{self.label} (\N{MULTIPLICATION SIGN}10{str(self.power).translate(_SUPERSCRIPTS)})"


def axis(low: float, high: float, label: str, *, count: int = 4, whole: bool = False) -> Axis:
    """An axis over a range.

    Args:
        high: if it is not above `low`, some range around both is used.
        count: approximate number of steps between ticks.
        whole: whether ticks must be integers.
    """
    low, high = _spread(low, high)
    step = _step(high - low, count)
    return _ticked(low, high, max(1.0, step) if whole else step, label)


def rounded(low: float, high: float, label: str) -> Axis:
    """An axis over a range, extended to ticks at both ends."""
    low, high = _spread(low, high)
    step = _step(high - low, 4)
    return _ticked(math.floor(low / step) * step, math.ceil(high / step) * step, step, label)


def _spread(low: float, high: float) -> tuple[float, float]:
    if high > low:
        return low, high
    return (low - abs(low) / 2, low + abs(low) / 2) if low else (0.0, 1.0)


def _step(size: float, count: int) -> float:
    """The round number (1, 2 or 5 times a power of ten) that divides a size best."""
    power = 10.0 ** math.floor(math.log10(size / count))
    return min((power * unit for unit in (1, 2, 5, 10)), key=lambda step: abs(size / step - count))


def _ticked(low: float, high: float, step: float, label: str) -> Axis:
    # Rounding must not lose a tick at an end.
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    ticks = tuple(number * step for number in range(first, last + 1))
    largest = math.floor(math.log10(max(abs(low), abs(high))))
    power = largest if largest >= 4 or largest < -3 else 0
    digits = max(0, power - math.floor(math.log10(step) + 1e-9))
    return Axis(low, high, ticks, digits, label, power)


# Margins for the labels of the axes.
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 12, 26, 36


@dataclass(frozen=True)
class Frame:
    """Two axes and the size of the plot."""

    x: Axis
    y: Axis
    width: int = 360
    height: int = 212

    def at(self, x: float, y: float) -> Point:
        """The coordinates of a point."""
        across, up = self.width - _LEFT - _RIGHT, self.height - _TOP - _BOTTOM
        return _LEFT + across * self.x.share(x), _TOP + up * (1 - self.y.share(y))

    def across(self, y: float) -> list[Point]:
        """The ends of a horizontal line."""
        return [self.at(self.x.low, y), self.at(self.x.high, y)]

    def draw(self, name: str, shapes: Iterable[Shape], caption: str = "") -> Picture:
        """The plot: axes, grid lines and the given shapes."""
        start, end = self.across(self.y.low)
        parts: list[Shape] = [Text((2, 12), self.y.title, "axis")]
        for tick in self.y.ticks:
            ends = self.across(tick)
            parts.append(Line(ends, "grid"))
            parts.append(Text((_LEFT - 6, ends[0][1] + 3.5), self.y.written(tick), "tick end"))
        for tick in self.x.ticks:
            place = self.at(tick, self.y.low)[0]
            parts.append(Line([(place, start[1]), (place, start[1] + 4)], "base"))
            words = self.x.written(tick)
            parts.append(Text((place, start[1] + 15), words, "tick middle"))
        parts.append(Text((end[0], self.height - 4), self.x.title, "axis end"))
        base = Line([start, end], "base")
        return Picture(self.width, self.height, name, [*parts, *shapes, base], caption)


# Colour (of the light page) and line width, by the first word of a style.
_LOOKS = {
    "axis": ("#596474", 0.0),
    "tick": ("#596474", 0.0),
    "grid": ("#dfe3e8", 1.0),
    "base": ("#b9c3cf", 1.0),
    "curve": ("#1f6fb5", 1.8),
    "point": ("#1f6fb5", 0.0),
    "caption": ("#1b222c", 0.0),
}
# Space between plots, and the most letters of a caption.
_GAP, _LETTERS = 22, 46


def need_matplotlib() -> None:
    """Checks that matplotlib is installed.

    Raises:
        PruneError: it is not.
    """
    if find_spec("matplotlib") is None:
        raise PruneError(
            "matplotlib is not installed",
            where="--png",
            remedy="pip install 'onnx_rnn_prune[plot]', or leave it out",
        )


def to_png(rows: Sequence[Sequence[Picture]]) -> bytes:
    """Plots of equal size as a PNG.

    Raises:
        PruneError: matplotlib is not installed.
    """
    need_matplotlib()
    from matplotlib.figure import Figure

    pictures = [(row, column) for row, each in enumerate(rows) for column in range(len(each))]
    wide = max((each.width for row in rows for each in row), default=0) + _GAP
    high = max((each.height for row in rows for each in row), default=0) + 2 * _GAP
    size = wide * max(map(len, rows), default=1) + _GAP, high * max(1, len(rows))
    # One point of the figure is one unit of coordinates.
    figure = Figure(figsize=(size[0] / 72, size[1] / 72))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, size[0]), ylim=(size[1], 0))
    axes.set_axis_off()
    for row, column in pictures:
        each, left, top = rows[row][column], _GAP + wide * column, _GAP + high * row
        _draw(axes, Text((2, each.height + 14), _fitting(each.caption), "caption"), left, top)
        for shape in each.shapes:
            _draw(axes, shape, left, top)
    content = BytesIO()
    figure.savefig(content, format="png", dpi=144)
    return content.getvalue()


def _draw(axes: Any, shape: Shape, left: float, top: float) -> None:
    from matplotlib.patches import Rectangle

    colour, width = _LOOKS[shape.style.split()[0]]
    if isinstance(shape, Text):
        place = {"end": "right", "middle": "center"}.get(shape.style.split()[-1], "left")
        x, y = shape.at[0] + left, shape.at[1] + top
        axes.text(x, y, shape.words, color=colour, size=10, ha=place, parse_math=False)
    elif isinstance(shape, Line):
        xs, ys = (
            [point[n] + start for point in shape.points] for n, start in ((0, left), (1, top))
        )
        axes.plot(xs, ys, color=colour, linewidth=width, solid_joinstyle="round")
    elif isinstance(shape, Dot):
        x, y = shape.at[0] + left, shape.at[1] + top
        axes.plot([x], [y], "o", color=colour, markersize=2 * shape.radius, markeredgewidth=0)
    else:
        corner = shape.left + left, shape.top + top
        axes.add_patch(Rectangle(corner, shape.width, shape.height, color=colour, linewidth=0))


def _fitting(words: str) -> str:
    """A caption on one line; both ends are kept, since either may tell layers apart."""
    half = _LETTERS // 2
    return words if len(words) <= _LETTERS else f"{words[: half - 1]}…{words[-half:]}"
