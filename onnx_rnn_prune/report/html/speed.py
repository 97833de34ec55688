"""How long a run takes, and what each step of the treatment did to that."""

from __future__ import annotations

from onnx_rnn_prune.report.html import svg
from onnx_rnn_prune.report.html.facts import Facts
from onnx_rnn_prune.report.html.parts import (
    Column,
    Markup,
    element,
    figure,
    numbers,
    section,
    side_by_side,
    table,
)
from onnx_rnn_prune.report.verdict import worst

_WIDTH, _LEFT, _BAR = 360, 58, 16
_SIZES = (
    ("Parameters", "amount", "params"),
    ("of recurrent layers", "amount", "rnn_params"),
    ("Floating-point operations per step", "amount", "flops"),
    ("File size", "size", "bytes"),
)


def speed(facts: Facts) -> Markup:
    """Size and speed before and after."""
    rows = [
        [
            label,
            facts.show(form, "totals", f"{kind}_before"),
            facts.show(form, "totals", f"{kind}_after"),
            facts.change("fewer", ("totals", f"{kind}_before"), ("totals", f"{kind}_after")),
        ]
        for label, form, kind in _SIZES
        if facts.get("totals", f"{kind}_before") is not None
    ]
    content = []
    if facts.get("latency"):
        rows.append(
            [
                "Time per run",
                facts.show("duration", "latency", "before_ms"),
                facts.show("duration", "latency", "after_ms"),
                facts.speed("faster", "latency"),
            ]
        )
        content.append(_times(facts))
    if not rows:
        return Markup("")
    columns = (Column("", "name"), *numbers("Before", "After", "Change"))
    return section("Size and speed", side_by_side(table(columns, rows), *content))


def _times(facts: Facts) -> Markup:
    """Medians as bars, with the middle half of the runs as a line."""
    medians = [facts.get("latency", f"{when}_ms") or 0.0 for when in ("before", "after")]
    spreads = [facts.all("latency", f"{when}_quartiles_ms") for when in ("before", "after")]
    most = max([*medians, *(spread[1] for spread in spreads if spread)])
    scale = svg.axis(0, most or 1.0, "time per run (ms)")

    def at(ms: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - 14) * scale.share(ms)

    marks = []
    base = 74.0
    for tick in scale.ticks:
        marks.append(svg.segment((at(tick), 4), (at(tick), base), "grid"))
        marks.append(svg.text((at(tick), base + 14), scale.written(tick), "tick middle"))
    for number, when in enumerate(("before", "after")):
        top, key = 12.0 + 30 * number, facts.mark("latency", f"{when}_ms")
        style = "bar" if number else "before"
        marks.append(svg.text((_LEFT - 8, top + 12), when, "end"))
        ends = (at(0), top), (at(medians[number]), top + _BAR)
        marks.append(svg.box(*ends, style, f"{when}: {medians[number]:.3g} ms", key))
        if spreads[number]:
            low, high = map(at, spreads[number])
            middle = top + _BAR / 2
            marks.append(svg.segment((low, middle), (high, middle), "spread"))
            for end in (low, high):
                marks.append(svg.segment((end, middle - 4), (end, middle + 4), "spread"))
    marks.append(svg.text((_WIDTH - 14, base + 30), scale.title, "axis end"))
    picture = svg.picture(_WIDTH, 110, "Time per run before and after", *marks)
    return figure(picture, *_measured(facts))


def _measured(facts: Facts) -> list[str]:
    words: list[str] = ["Medians"]
    if facts.get("latency", "before_quartiles_ms"):
        quartiles = [
            facts.show("duration", "latency", f"{when}_quartiles_ms", number)
            for when in ("before", "after")
            for number in (0, 1)
        ]
        words += [" and quartiles (", quartiles[0], " to ", quartiles[1], " before, "]
        words += [quartiles[2], " to ", quartiles[3], " after)"]
    if facts.get("latency", "rounds"):
        words += [" of ", facts.show("count", "latency", "rounds"), " runs"]
    words += [" in turns on ", facts.show("count", "latency", "threads")]
    return [*words, " thread." if facts.get("latency", "threads") == 1 else " threads."]


def stages(facts: Facts) -> Markup:
    """What each step did, against the original."""
    rows = []
    for number, stage in enumerate(facts.get("stages") or ()):
        found = worst(stage["drift"])
        rows.append(
            [
                str(stage["name"]),
                facts.show("size", "stages", number, "bytes"),
                facts.show("size", "stages", number, "compressed_bytes"),
                facts.speed("times", "stages", number),
                Markup("")
                if found is None
                else facts.show("percent", "stages", number, "drift", found[0], "nrmse"),
            ]
        )
    if not rows:
        return Markup("")
    columns = (Column("Step"), *numbers("File size", "Compressed", "Speed", "Deviation"))
    note = "Each line includes the steps above it and compares with the original."
    body = element("div", table(columns, rows))
    return section("Steps", body, note=note)
