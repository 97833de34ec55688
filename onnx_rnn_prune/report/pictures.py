"""The plots of the HTML page and of `sensitivity --png`."""

from __future__ import annotations

import math

from onnx_rnn_prune.report.names import brief
from onnx_rnn_prune.report.plots import (
    Box,
    Dot,
    Frame,
    Line,
    Picture,
    Shape,
    Text,
    Way,
    axis,
    rounded,
    to_png,
)
from onnx_rnn_prune.report.schema import Candidate, Curve, SearchRows, SensitivityReport
from onnx_rnn_prune.text import presentable
from onnx_rnn_prune.validate import Latency
from onnx_rnn_prune.validate.drift import Histogram, OverTime

# Names shown in full at a plot.
_NAMED = 3
# Plots per row of a PNG.
_COLUMNS = 3


def histogram(name: str, spread: Histogram) -> Picture:
    """The distribution of an output's differences."""
    edges, counts = spread.edges, spread.counts
    frame = Frame(
        axis(edges[0], edges[-1], "difference from the original's entry"),
        rounded(0, max(counts), "entries"),
    )
    bars, base = [], frame.at(edges[0], 0)[1]
    for number, (low, high, count) in enumerate(zip(edges, edges[1:], counts, strict=False)):
        left, top = frame.at(low, count)
        size = frame.at(high, 0)[0] - left, base - top
        way = ("drift_details", name, "histogram", "counts", number)
        bars.append(Box(left, top, *size, "bar", f"{low:.3g} to {high:.3g}: {count}", way))
    return frame.draw(f"Histogram of differences of {name}", bars)


def over_time(name: str, course: OverTime, overall: float) -> Picture:
    """The error of an output over time steps or calls; dashed: overall."""
    calls, points = course.unit == "call", list(zip(course.steps, course.rmse, strict=True))
    known = [overall] if math.isfinite(overall) else []
    frame = Frame(
        axis(course.steps[0], course.steps[-1], "call" if calls else "time step", whole=True),
        rounded(0, max([*course.rmse, *known]), "RMSE"),
    )
    shapes: list[Shape] = [Line(frame.across(level), "reference") for level in known]
    shapes.append(Line([frame.at(*point) for point in points], "curve"))
    for number, (step, error) in enumerate(points):
        way = ("drift_details", name, "over_time", "rmse", number)
        shapes.append(Dot(frame.at(step, error), 1.6, "point", f"{step}: {error:.3g}", way))
    return frame.draw(f"Error of {name} over {'calls' if calls else 'time steps'}", shapes)


def times(latency: Latency) -> Picture:
    """Medians as bars, quartiles as whiskers."""
    width, left, bar, base = 360, 58, 16, 74.0
    rows = (
        ("before", latency.before_ms, latency.before_quartiles_ms),
        ("after", latency.after_ms, latency.after_quartiles_ms),
    )
    scale = axis(0, max(max(ms, quartiles[1]) for _, ms, quartiles in rows), "time per run (ms)")

    def at(ms: float) -> float:
        return left + (width - left - 14) * scale.share(ms)

    shapes: list[Shape] = []
    for tick in scale.ticks:
        shapes.append(Line([(at(tick), 4), (at(tick), base)], "grid"))
        shapes.append(Text((at(tick), base + 14), scale.written(tick), "tick middle"))
    for number, (when, ms, quartiles) in enumerate(rows):
        top = 12.0 + 30 * number
        shapes.append(Text((left - 8, top + 12), when, "end"))
        style, way = "bar" if number else "before", ("latency", f"{when}_ms")
        shapes.append(Box(left, top, at(ms) - left, bar, style, f"{when}: {ms:.3g} ms", way))
        ends, middle = [at(each) for each in quartiles], top + bar / 2
        shapes.append(Line([(ends[0], middle), (ends[1], middle)], "spread"))
        shapes += [Line([(end, middle - 4), (end, middle + 4)], "spread") for end in ends]
    shapes.append(Text((width - 14, base + 30), scale.title, "axis end"))
    return Picture(width, 110, "Time per run before and after", shapes)


def candidates(search: SearchRows, name: str, scale: float, unit: str) -> Picture | None:
    """Quality against time for each candidate; None if no quality is known.

    Args:
        name: name of the quality.
        scale: factor applied to qualities.
        unit: their unit after that.
    """
    found = {n: row for n, row in enumerate(search.candidates) if math.isfinite(row.quality)}
    if not found:
        return None
    limits = [] if search.quality_limit is None else [search.quality_limit * scale]
    spent = [row.ms for row in found.values()]
    levels = [row.quality * scale for row in found.values()] + limits
    margin = (max(spent) - min(spent)) / 20
    low, high = max(0.0, min(spent) - margin), max(spent) + margin
    frame = Frame(
        axis(low, high, "predicted time per run (ms)", count=6),
        rounded(min(levels), max(levels), f"{name}{unit and f' ({unit})'}"),
        width=440,
        height=264,
    )
    shapes: list[Shape] = []
    for level in limits:
        start, end = frame.across(level)
        shapes += [
            Line([start, end], "reference"),
            Text((start[0] + 4, start[1] - 5), "limit", "axis"),
        ]
    front = sorted((row for row in found.values() if row.frontier), key=lambda row: row.ms)
    shapes.append(Line([frame.at(row.ms, row.quality * scale) for row in front], "curve"))
    for number in sorted(found, key=lambda number: found[number].frontier):
        way = ("search", "candidates", number, "quality")
        shapes += _candidate(frame, found[number], scale, unit, way)
    return frame.draw(f"{name} against time, by candidate", shapes)


def _candidate(frame: Frame, row: Candidate, scale: float, unit: str, way: Way) -> list[Shape]:
    level = row.quality * scale
    x, y = frame.at(row.ms, level)
    style = "point" if row.frontier else "other"
    style = style if row.meets else f"{style} misses"
    widths = ", ".join(f"{layer} {kept}" for layer, kept in row.kept.items())
    words = f"No. {row.number}: {row.ms:.3g} ms, {level:.3g} {unit}; units: {widths}"
    found: list[Shape] = [Dot((x, y), 4.5 if row.frontier else 3.5, style, words, way)]
    if row.picked:
        # On the side that has room for it.
        side, place = (-12, "strong end") if frame.x.share(row.ms) > 0.5 else (12, "strong")
        found += [Dot((x, y), 8.5, "chosen"), Text((x + side, y - 8), "picked", place)]
    return found


def curves(report: SensitivityReport, metric: bool, way: Way = ()) -> list[Picture]:
    """Deviation or metric against units kept, one plot per group of layers, on a common scale.

    Args:
        report: with shortened names.
        way: the path to it within another report.
    """
    key, scale = ("metric", 1.0) if metric else ("nrmse", 100.0)
    found = [_levels(curve, metric, scale) for curve in report.layers]
    levels = [level for each in found for level in each.values()]
    if not levels:
        return []
    name = str(report.metric) if metric else "deviation (%)"
    y = rounded(min(levels) if metric else 0.0, max(levels), name)
    pictures = []
    for number, (curve, each) in enumerate(zip(report.layers, found, strict=True)):
        frame = Frame(axis(0, curve.units, "units kept", whole=True), y, 300, 190)
        places = {index: frame.at(curve.points[index].kept, each[index]) for index in each}
        dots = [
            Dot(
                place,
                3,
                "point",
                f"{curve.points[index].kept} units: {each[index]:.3g}{'' if metric else ' %'}",
                (*way, "layers", number, "points", index, key),
            )
            for index, place in places.items()
        ]
        more = len(curve.layers) - _NAMED
        names = ", ".join(curve.layers[:_NAMED]) + (f" and {more} more" if more > 0 else "")
        line = Line(list(places.values()), "curve")
        pictures.append(frame.draw(f"Sensitivity of {names}", [line, *dots], names))
    return pictures


def _levels(curve: Curve, metric: bool, scale: float) -> dict[int, float]:
    """Finite values by the number of their point."""
    values = [point.metric if metric else point.nrmse for point in curve.points]
    return {
        number: value * scale
        for number, value in enumerate(values)
        if value is not None and math.isfinite(value)
    }


def sensitivity_png(report: SensitivityReport) -> bytes:
    """The plots of the page as a PNG; with a metric, both its curves and those of the deviation.

    Raises:
        PruneError: matplotlib is not installed.
    """
    report, _ = brief(presentable(report))
    sets = [curves(report, metric) for metric in ((False, True) if report.metric else (False,))]
    return to_png([each[n : n + _COLUMNS] for each in sets for n in range(0, len(each), _COLUMNS)])
