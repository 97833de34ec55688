"""How far the outputs are from the original's."""

from __future__ import annotations

import math

from onnx_rnn_prune.report.html import svg
from onnx_rnn_prune.report.html.facts import Facts
from onnx_rnn_prune.report.html.parts import (
    Column,
    Markup,
    element,
    figure,
    joined,
    numbers,
    section,
    side_by_side,
    table,
)
from onnx_rnn_prune.report.numbers import percent

_COLUMNS = (
    Column("Output", "name"),
    *numbers("Deviation", "RMSE", "Largest difference", "Cosine", "Same top answer"),
)
_FORMS = (
    ("percent", "nrmse"),
    ("number", "rmse"),
    ("number", "max_abs"),
    ("cosine", "cosine"),
    ("percent", "top1_agreement"),
)


def drift(facts: Facts) -> Markup:
    """The numbers of each output, and how its differences are spread and develop."""
    outputs = facts.get("drift") or {}
    if not outputs:
        return Markup("")
    rows = [
        [name, *(facts.show(form, "drift", name, key) for form, key in _FORMS)] for name in outputs
    ]
    note = (
        "Deviation is the root of the mean squared difference (RMSE) over the spread of the "
        "original's output: 0 % is equal, 100 % as bad as a constant."
    )
    details = [_details(facts, name) for name in outputs]
    return section("Deviation from the original", table(_COLUMNS, rows), *details, note=note)


def _details(facts: Facts, name: str) -> Markup:
    way = ("drift_details", name)
    plots = [_histogram(facts, name)] if facts.all(*way, "histogram", "edges") else []
    plots += [_over_time(facts, name)] if facts.all(*way, "over_time", "rmse") else []
    if not plots:
        return Markup("")
    return joined(element("h3", f"Output {name}"), side_by_side(*plots))


def _histogram(facts: Facts, name: str) -> Markup:
    way = ("drift_details", name, "histogram")
    edges, counts = facts.all(*way, "edges"), facts.all(*way, "counts")
    frame = svg.Frame(
        svg.axis(edges[0], edges[-1], "difference from the original's entry"),
        svg.rounded(0, max(counts), "entries"),
    )
    bars = []
    for number, (left, right, count) in enumerate(zip(edges, edges[1:], counts, strict=False)):
        words = f"{left:.3g} to {right:.3g}: {count}"
        corners = frame.at(left, 0), frame.at(right, count)
        bars.append(svg.box(*corners, "bar", words, facts.mark(*way, "counts", number)))
    caption: list[str] = ["How many entries differ by how much."]
    outside = facts.get(*way, "outside")
    if outside:
        share = percent(outside / (sum(counts) + outside))
        caption += [" ", facts.show("count", *way, "outside"), f" ({share}) lie further out."]
    return figure(frame.draw(f"Histogram of differences of {name}", *bars), *caption)


def _over_time(facts: Facts, name: str) -> Markup:
    way = ("drift_details", name, "over_time")
    steps, errors = facts.all(*way, "steps"), facts.all(*way, "rmse")
    overall = facts.get("drift", name, "rmse")
    top = max([*errors, overall or 0.0])
    calls = facts.get(*way, "unit") == "call"
    frame = svg.Frame(
        svg.axis(steps[0], steps[-1], "call" if calls else "time step", whole=True),
        svg.rounded(0, top, "RMSE"),
    )
    marks = []
    if overall is not None:
        ends = frame.at(frame.x.low, overall), frame.at(frame.x.high, overall)
        marks.append(svg.segment(*ends, "reference"))
    marks.append(svg.line([frame.at(*point) for point in zip(steps, errors, strict=True)], "curve"))
    for number, (step, error) in enumerate(zip(steps, errors, strict=True)):
        words, mark = f"{step}: {error:.3g}", facts.mark(*way, "rmse", number)
        marks.append(svg.dot(frame.at(step, error), 1.6, "point", words, mark))
    picture = frame.draw(f"Error of {name} over {'calls' if calls else 'time steps'}", *marks)
    course = "calls that follow one another" if calls else "a sequence"
    return figure(picture, f"Error in the course of {course}; dashed: overall. {_trend(errors)}")


def _trend(errors: list[float]) -> str:
    """Whether a recurrence adds error to error: the end against what comes before it."""
    quarter = len(errors) // 4
    if quarter == 0:
        return ""
    before, end = (
        math.sqrt(sum(error**2 for error in part) / quarter)
        for part in (errors[quarter : 2 * quarter], errors[-quarter:])
    )
    if before == 0:
        return ""
    return f"In the last quarter it is {end / before:.2f} times that of the second quarter."
