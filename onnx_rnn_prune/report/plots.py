"""Pictures as shapes, which the page and PNG files draw alike.

A shape has a style by name: `templates/style.css` says what that looks like on the page, `_LOOKS`
what it does in a PNG.
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
    """Words at a place; `end` and `middle` in the style say which part of them stands there."""

    at: Point
    words: str
    style: str


@dataclass(frozen=True)
class Line:
    """A line from point to point."""

    points: Sequence[Point]
    style: str


@dataclass(frozen=True)
class Box:
    """A filled box, with words for who points at it, and the way to what it stands for."""

    left: float
    top: float
    width: float
    height: float
    style: str
    title: str
    way: Way


@dataclass(frozen=True)
class Dot:
    """A round mark, with words for who points at it, and the way to what it stands for."""

    at: Point
    radius: float
    style: str
    title: str = ""
    way: Way = ()


Shape = Text | Line | Box | Dot


@dataclass(frozen=True)
class Picture:
    """Shapes, as wide as there is room for them.

    Attributes:
        width, height: in the units of places.
        name: for who cannot see it.
        shapes: the later above the earlier.
        caption: names above or below it.
    """

    width: int
    height: int
    name: str
    shapes: Sequence[Shape]
    caption: str = ""


@dataclass(frozen=True)
class Axis:
    """Numbers from low to high.

    Attributes:
        high: the largest one; above `low`.
        ticks: the round numbers between them.
        digits: of ticks behind the point.
        power: what is written at a tick are its 10 ** power.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    digits: int
    label: str
    power: int = 0

    def share(self, value: float) -> float:
        """Where a number lies: 0 at the low end, 1 at the high end."""
        return (value - self.low) / (self.high - self.low)

    def written(self, tick: float) -> str:
        """A tick as text, in one form with its neighbours."""
        text = f"{tick / 10.0**self.power:.{self.digits}f}"
        return text.replace("-", "\N{MINUS SIGN}")

    @property
    def title(self) -> str:
        """The label, with the power of ten."""
        if not self.power:
            return self.label
        return f"{self.label} (\N{MULTIPLICATION SIGN}10{str(self.power).translate(_SUPERSCRIPTS)})"


def axis(low: float, high: float, label: str, *, count: int = 4, whole: bool = False) -> Axis:
    """An axis over a range, with about so many round numbers.

    Args:
        high: the largest one; where it is not above `low`, the range is made up around them.
        count: about how many steps from tick to tick.
        whole: numbers between integers mean nothing.
    """
    low, high = _spread(low, high)
    step = _step(high - low, count)
    return _ticked(low, high, max(1.0, step) if whole else step, label)


def rounded(low: float, high: float, label: str) -> Axis:
    """An axis over a range and a little more, so that it ends with a tick on both sides."""
    low, high = _spread(low, high)
    step = _step(high - low, 4)
    return _ticked(math.floor(low / step) * step, math.ceil(high / step) * step, step, label)


def _spread(low: float, high: float) -> tuple[float, float]:
    if high > low:
        return low, high
    return (low - abs(low) / 2, low + abs(low) / 2) if low else (0.0, 1.0)


def _step(size: float, count: int) -> float:
    """The round number that goes about so often into a size."""
    power = 10.0 ** math.floor(math.log10(size / count))
    return min((power * unit for unit in (1, 2, 5, 10)), key=lambda step: abs(size / step - count))


def _ticked(low: float, high: float, step: float, label: str) -> Axis:
    # A tick at an end is not lost to rounding.
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    ticks = tuple(number * step for number in range(first, last + 1))
    largest = math.floor(math.log10(max(abs(low), abs(high))))
    power = largest if largest >= 4 or largest < -3 else 0
    digits = max(0, power - math.floor(math.log10(step) + 1e-9))
    return Axis(low, high, ticks, digits, label, power)


# Room around a plot, for the numbers at its axes.
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 12, 26, 36


@dataclass(frozen=True)
class Frame:
    """The place of a plot: two axes, and where they lie."""

    x: Axis
    y: Axis
    width: int = 360
    height: int = 212

    def at(self, x: float, y: float) -> Point:
        """Where a point lies in the picture."""
        across, up = self.width - _LEFT - _RIGHT, self.height - _TOP - _BOTTOM
        return _LEFT + across * self.x.share(x), _TOP + up * (1 - self.y.share(y))

    def across(self, y: float) -> list[Point]:
        """The ends of a line at one height."""
        return [self.at(self.x.low, y), self.at(self.x.high, y)]

    def draw(self, name: str, shapes: Iterable[Shape], caption: str = "") -> Picture:
        """The picture: axes, grid lines and what is drawn in them."""
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


# The colours of the page by day, by the first word of a style, and how wide lines are.
_LOOKS = {
    "axis": ("#596474", 0.0),
    "tick": ("#596474", 0.0),
    "grid": ("#dfe3e8", 1.0),
    "base": ("#b9c3cf", 1.0),
    "curve": ("#1f6fb5", 1.8),
    "point": ("#1f6fb5", 0.0),
    "caption": ("#1b222c", 0.0),
}
# Room around pictures, and letters of a caption that there is room for.
_GAP, _LETTERS = 22, 46


def need_matplotlib() -> None:
    """Makes sure that PNG files can be made.

    Raises:
        PruneError: they cannot.
    """
    if find_spec("matplotlib") is None:
        raise PruneError(
            "matplotlib is not installed",
            where="--png",
            remedy="pip install 'onnx_rnn_prune[plot]', or leave it out",
        )


def to_png(rows: Sequence[Sequence[Picture]]) -> bytes:
    """Pictures of one size as a PNG.

    Raises:
        PruneError: matplotlib is not installed.
    """
    need_matplotlib()
    from matplotlib.figure import Figure

    pictures = [(row, column) for row, each in enumerate(rows) for column in range(len(each))]
    wide = max((each.width for row in rows for each in row), default=0) + _GAP
    high = max((each.height for row in rows for each in row), default=0) + 2 * _GAP
    size = wide * max(map(len, rows), default=1) + _GAP, high * max(1, len(rows))
    # A point of a figure is a unit of a picture.
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
    """Words in a line; both ends tell layers apart."""
    half = _LETTERS // 2
    return words if len(words) <= _LETTERS else f"{words[: half - 1]}…{words[-half:]}"
