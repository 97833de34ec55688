"""What cuts of each layer cost, measured one layer at a time."""

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
    table,
)

# Names that stand in full above a plot.
_NAMED = 3


def sensitivity(facts: Facts) -> Markup:
    """A plot for each layer, on one scale, and the numbers behind them."""
    layers = facts.get("sensitivity", "layers") or []
    if not layers:
        return Markup("")
    metric = facts.get("sensitivity", "metric")
    key = "metric" if metric else "nrmse"
    scale = 1.0 if metric else 100.0
    name = str(metric) if metric else "deviation (%)"
    levels = [
        level * scale
        for number, layer in enumerate(layers)
        for point in range(len(layer["points"]))
        if (level := facts.get("sensitivity", "layers", number, "points", point, key)) is not None
    ]
    if not levels:
        return section("Sensitivity", _numbers(facts))
    low = min(levels) if metric else 0.0
    y = svg.rounded(low, max(levels), name)
    plots = [_plot(facts, number, key, scale, y) for number in range(len(layers))]
    note = (
        "One layer is cut while the others stay whole. A flat line means that units can go; the "
        "scale is the same for all layers."
    )
    grid = element("div", *plots, attributes={"class": "many"})
    return section("Sensitivity", grid, _numbers(facts), note=note)


def _plot(facts: Facts, number: int, key: str, scale: float, y: svg.Axis) -> Markup:
    layer = facts.get("sensitivity", "layers", number)
    names = _names(facts.brief["sensitivity"]["layers"][number])
    frame = svg.Frame(svg.axis(0, layer["units"], "units kept", whole=True), y, 300, 190)
    places, dots = [], []
    for index, point in enumerate(layer["points"]):
        level = facts.get("sensitivity", "layers", number, "points", index, key)
        if level is None:
            continue
        places.append(frame.at(point["kept"], level * scale))
        words = f"{point['kept']} units: {level * scale:.3g}{'' if scale == 1 else ' %'}"
        marks = facts.mark("sensitivity", "layers", number, "points", index, key)
        dots.append(svg.dot(places[-1], 3, "point", words, marks))
    picture = frame.draw(f"Sensitivity of {names}", svg.line(places, "curve"), *dots)
    return figure(picture, names)


def _names(layer: dict[str, list[str]]) -> str:
    names = [str(name) for name in layer["layers"]]
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _numbers(facts: Facts) -> Markup:
    metric = facts.get("sensitivity", "metric")
    rows = []
    for number, layer in enumerate(facts.brief["sensitivity"]["layers"]):
        for index in range(len(layer["points"])):
            way = ("sensitivity", "layers", number, "points", index)
            row = [
                ", ".join(map(str, layer["layers"])),
                facts.show("count", *way, "kept"),
                facts.show("percent", *way, "nrmse"),
            ]
            rows.append([*row, facts.show("number", *way, "metric")] if metric else row)
    titles = ("Units kept", "Deviation", *([str(metric)] if metric else []))
    shown = table((Column("Layers", "name"), *numbers(*titles)), rows)
    return element("details", element("summary", "All numbers"), shown)
