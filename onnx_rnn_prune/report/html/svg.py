"""Plots as SVG: axes with round numbers, and marks between them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from onnx_rnn_prune.report.html.parts import Markup, element

Point = tuple[float, float]
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_NOTHING: Mapping[str, object] = {}


@dataclass(frozen=True)
class Axis:
    """Numbers from low to high.

    Attributes:
        low: the least number.
        high: the largest one; above `low`.
        ticks: the round numbers between them.
        digits: of ticks behind the point.
        label: what they are, with the unit.
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
        low: the least number to show.
        high: the largest one; where it is not above `low`, the range is made up around them.
        label: what they are.
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


@dataclass(frozen=True)
class Frame:
    """The place of a plot: two axes, and where they lie.

    Attributes:
        x: the axis to the right.
        y: the axis upwards.
        width: of the picture.
        height: of the picture.
        left: room for the numbers at y.
    """

    x: Axis
    y: Axis
    width: int = 360
    height: int = 212
    left: int = 42
    right: int = 12
    top: int = 26
    bottom: int = 36

    def at(self, x: float, y: float) -> Point:
        """Where a point lies in the picture."""
        across = self.width - self.left - self.right
        up = self.height - self.top - self.bottom
        return self.left + across * self.x.share(x), self.top + up * (1 - self.y.share(y))

    def draw(self, name: str, *marks: Markup) -> Markup:
        """The picture: axes, grid lines and the marks; the name is for who cannot see it."""
        start, end = self.at(self.x.low, self.y.low), self.at(self.x.high, self.y.high)
        parts = [text((2, 12), self.y.title, "axis")]
        for tick in self.y.ticks:
            height = self.at(self.x.low, tick)[1]
            parts.append(segment((start[0], height), (end[0], height), "grid"))
            parts.append(text((self.left - 6, height + 3.5), self.y.written(tick), "tick end"))
        for tick in self.x.ticks:
            place = self.at(tick, self.y.low)[0]
            parts.append(segment((place, start[1]), (place, start[1] + 4), "base"))
            parts.append(text((place, start[1] + 15), self.x.written(tick), "tick middle"))
        parts.append(text((end[0], self.height - 4), self.x.title, "axis end"))
        base = segment(start, (end[0], start[1]), "base")
        return picture(self.width, self.height, name, *parts, *marks, base)


def picture(width: int, height: int, name: str, *content: Markup) -> Markup:
    """An image as wide as there is room for it."""
    given = {"viewBox": f"0 0 {width} {height}", "role": "img", "aria-label": name}
    return element("svg", *content, attributes=given)


def text(place: Point, content: str, style: str) -> Markup:
    """Words at a place."""
    x, y = map(_short, place)
    return element("text", content, attributes={"x": x, "y": y, "class": style})


def segment(start: Point, end: Point, style: str) -> Markup:
    """A straight line."""
    values = zip(("x1", "y1", "x2", "y2"), map(_short, (*start, *end)), strict=True)
    return element("line", attributes={**dict(values), "class": style})


def box(
    start: Point, end: Point, style: str, title: str = "", marks: Mapping[str, object] = _NOTHING
) -> Markup:
    """A filled box between two corners."""
    left, right = sorted((start[0], end[0]))
    high, low = sorted((start[1], end[1]))
    sizes = {"x": left, "y": high, "width": right - left, "height": low - high}
    given = {key: _short(value) for key, value in sizes.items()}
    inside = element("title", title) if title else Markup("")
    return element("rect", inside, attributes={**given, "class": style, **marks})


def line(points: Iterable[Point], style: str) -> Markup:
    """A line from point to point."""
    places = " ".join(f"{_short(x)},{_short(y)}" for x, y in points)
    return element("polyline", attributes={"points": places, "class": style})


def dot(
    place: Point,
    radius: float,
    style: str,
    title: str = "",
    marks: Mapping[str, object] = _NOTHING,
) -> Markup:
    """A round mark, with words for who points at it."""
    given = {"cx": _short(place[0]), "cy": _short(place[1]), "r": _short(radius)}
    inside = element("title", title) if title else Markup("")
    return element("circle", inside, attributes={**given, "class": style, **marks})


def _short(value: float) -> str:
    return f"{value:.1f}"
