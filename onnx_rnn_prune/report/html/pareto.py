"""Candidates of a search: quality against time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnx_rnn_prune.report.html import svg
from onnx_rnn_prune.report.html.facts import Facts
from onnx_rnn_prune.report.html.parts import Markup, figure

Candidate = Mapping[str, Any]
_CAPTION = (
    "Each point is a candidate. No other is both faster and better than those on the line; hollow "
    "ones miss what was asked for."
)


def pareto(facts: Facts, name: str, scale: float, unit: str) -> Markup:
    """A plot of all candidates whose time and quality are known, or nothing where there are none.

    Args:
        facts: the report.
        name: of the quality.
        scale: what qualities are multiplied by.
        unit: what they are in then.
    """
    found = [
        {**row, "index": index, "level": row["quality"] * scale}
        for index, row in enumerate(facts.get("search", "candidates") or ())
        if facts.known("search", "candidates", index, "quality")
        and facts.known("search", "candidates", index, "ms")
    ]
    if not found:
        return Markup("")
    limit = facts.get("search", "quality_limit")
    frame = _frame(
        found, None if limit is None else limit * scale, f"{name}{unit and f' ({unit})'}"
    )
    marks = []
    if limit is not None:
        start, end = (frame.at(x, limit * scale) for x in (frame.x.low, frame.x.high))
        marks += [svg.segment(start, end, "reference")]
        marks += [svg.text((end[0], end[1] - 5), "limit", "axis end")]
    frontier = sorted((row for row in found if row.get("frontier")), key=lambda row: row["ms"])
    marks.append(svg.line([frame.at(row["ms"], row["level"]) for row in frontier], "curve"))
    for row in sorted(found, key=lambda row: bool(row.get("frontier"))):
        marks += _point(facts, frame, row, unit)
    picture = frame.draw(f"{name} against time, by candidate", *marks)
    return figure(picture, _CAPTION, style="wide")


def _frame(found: Sequence[Candidate], limit: float | None, title: str) -> svg.Frame:
    times = [row["ms"] for row in found]
    levels = [row["level"] for row in found] + ([] if limit is None else [limit])
    margin = (max(times) - min(times)) / 20
    low, high = max(0.0, min(times) - margin), max(times) + margin
    return svg.Frame(
        svg.axis(low, high, "predicted time per run (ms)", count=6),
        svg.rounded(min(levels), max(levels), title),
        width=440,
        height=264,
    )


def _point(facts: Facts, frame: svg.Frame, row: Candidate, unit: str) -> list[Markup]:
    place = frame.at(row["ms"], row["level"])
    style = "point" if row.get("frontier") else "other"
    style = style if row.get("meets") else f"{style} misses"
    widths = ", ".join(f"{layer} {kept}" for layer, kept in row["kept"].items())
    words = f"No. {row['number']}: {row['ms']:.3g} ms, {row['level']:.3g} {unit}; units: {widths}"
    marks = facts.mark("search", "candidates", row["index"], "quality")
    found = [svg.dot(place, 4.5 if row.get("frontier") else 3.5, style, words, marks)]
    if row.get("picked"):
        found.append(svg.dot(place, 8.5, "chosen"))
        found.append(svg.text((place[0] + 12, place[1] - 8), "picked", "strong"))
    return found
