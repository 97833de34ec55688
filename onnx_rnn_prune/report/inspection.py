"""The output of inspect and sensitivity."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from onnx_rnn_prune.operators.recurrent import RECURRENT
from onnx_rnn_prune.report import wording
from onnx_rnn_prune.report.names import Cell, brief
from onnx_rnn_prune.report.schema import (
    Curve,
    InspectedLayer,
    InspectReport,
    Point,
    SensitivityReport,
)
from onnx_rnn_prune.report.terminal import new_table, note_on_names, sentence, warning
from onnx_rnn_prune.report.wording import amount, duration, faster, kind, percent, size
from onnx_rnn_prune.text import presentable

# Names up to this length leave room for all columns.
_SHORT = 12
# Shares of units at which tables show a curve.
_SHARES = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0)


def inspect_table(report: InspectReport) -> Group:
    """The layers of a model, what they cost and pruning would save, and decomposed recurrences."""
    report, shortened = brief(presentable(report))
    model = report.model
    parts: list[RenderableType] = [
        sentence(
            "Model",
            f"{model.path or 'in memory'}, {amount(model.params)} parameters, {size(model.bytes)}",
        ),
        sentence("Inputs", "; ".join(model.inputs)),
        sentence("Outputs", "; ".join(model.outputs)),
    ]
    parts += [sentence("Rolled", text) for text in _rolled(report)]
    if report.layers:
        parts += [_costs(report.layers), _gains(report.layers)]
        parts += [sentence("Time", text) for text in _timed(report)]
    else:
        parts.append(Text("The model has no LSTM, GRU or RNN layers."))
    parts += [sentence("Cannot run", row.text) for row in report.refused]
    parts += [
        sentence("Pruned in place" if row.in_place else "Cannot be pruned", row.text)
        for row in report.written_out
    ]
    left = report.rolling.left if report.rolling is not None else ()
    parts += [sentence("Not rolled", f"{row.at}: {row.reason}") for row in left]
    parts += [sentence("Remedy", text) for text in report.remedies]
    return Group(*parts, *map(warning, report.warnings), *note_on_names(shortened))


def _rolled(report: InspectReport) -> list[str]:
    """The recurrences that were rolled, and the gain."""
    rolling = report.rolling
    rows = [str(row) for row in rolling.rolled] if rolling is not None else []
    if rows and rolling is not None and rolling.speedup is not None:
        rows[-1] += f"; this alone makes the model {faster(rolling.speedup)}"
    return rows


def _costs(layers: Sequence[InspectedLayer]) -> Table:
    """The size and cost of each layer, and its share of the model's."""
    wide = any(len(layer.name) > _SHORT for layer in layers)
    # On a second line, they leave room for names.
    share, flops = ("\n({})", "FLOPs\nper step") if wide else (" ({})", "FLOPs/step")
    numbers = ("Units", "Inputs", "Parameters", flops, "Time")
    table = new_table("Layer", "Type", *numbers, numbers=numbers)
    for layer in layers:
        table.add_row(
            Cell(layer.name),
            kind(layer),
            str(layer.hidden),
            str(layer.input),
            amount(layer.params) + share.format(percent(layer.share_of_params))
            if layer.params
            else wording.SHARED,
            amount(layer.flops_per_step),
            "not run"
            if layer.time_ms is None
            else duration(layer.time_ms) + share.format(percent(layer.share_of_time)),
        )
    return table


def _gains(layers: Sequence[InspectedLayer]) -> Table:
    """What becomes of each layer's outputs when it is pruned, and the savings."""
    table = new_table("Layer", "Output once pruned", "Removing half the units saves")
    for layer in layers:
        left = f"not pruned: {layer.pinned}" if layer.pinned else ""
        table.add_row(
            Cell(layer.name),
            Cell(left or wording.ends(layer.outlets) or "unknown"),
            Cell(_half(layer)),
        )
    return table


def _half(layer: InspectedLayer) -> str:
    if layer.pinned:
        return "nothing"
    half = layer.half
    if half is None:
        return "not measured"
    stored = size(half.bytes) if half.bytes >= 0 else f"-{size(-half.bytes)}"
    lines = [
        f"{amount(half.params)} parameters, {stored}, {amount(half.flops)} FLOPs",
        f"model {faster(half.speedup, half.speedup_quartiles)}",
    ]
    if half.together:
        lines.append(f"together with {', '.join(half.together)}")
    return "\n".join(lines)


def _timed(report: InspectReport) -> list[str]:
    """The layers' share of the time, and how it was measured."""
    timed, share = report.timed_on, report.share_of_time
    if not timed.shapes:
        return []
    lines = []
    if share is not None:
        recurrent = all(layer.op in RECURRENT for layer in report.layers)
        taken = f"{'all recurrent' if recurrent else 'these'} layers together take {percent(share)}"
        bound = 1 / max(1 - share, 0.01)
        # In very short runs, the measured share may be too low.
        if bound < max((layer.half.speedup for layer in report.layers if layer.half), default=1.0):
            lines.append(f"{taken} of a run")
        else:
            lines.append(f"{taken} of a run; without them, it would be {faster(bound)}")
    if report.share_of_others:
        lines.append(
            f"dense layers and convolutions take another {percent(report.share_of_others)}; with"
            " --layers all, they are pruned as well"
        )
    fed = wording.shapes(timed.shapes)
    made = "random inputs (give typical ones with --data)" if timed.random else "the given inputs"
    return [
        *lines,
        f"one thread, on {made}: {fed}; speedups are of pruned files, timed alternately with"
        " the original",
    ]


def sensitivity_table(report: SensitivityReport) -> Group:
    """The deviation of the outputs, and the metric if there is one, by units kept."""
    report, shortened = brief(presentable(report))
    parts: list[RenderableType] = [
        Text("\nDeviation of the outputs when only this layer is pruned, by share of units kept:"),
        _curves(report.layers, lambda point: percent(point.nrmse)),
    ]
    if report.metric:
        parts.append(Text(f"Metric {report.metric}:"))
        parts.append(
            _curves(report.layers, lambda point: wording.quality(str(report.metric), point.metric))
        )
    splits = report.splits
    feeds = (
        f"{splits.calibration} for calibration, {splits.validation} for validation, {splits.test}"
        " reserved for testing a search"
    )
    parts.append(sentence("Feeds", feeds))
    if report.streams is not None:
        parts.append(sentence("States", wording.streams(report.streams)))
    return Group(*parts, *map(warning, report.warnings), *note_on_names(shortened))


def _curves(curves: Sequence[Curve], show: Callable[[Point], str]) -> Table:
    shares = [f"{share:.3g} %" for share in (100 * share for share in _SHARES)]
    table = new_table("Layer", "Units", *shares, numbers=("Units", *shares))
    for curve in curves:
        points = {point.kept: point for point in curve.points}
        step = math.gcd(*points)  # units of several lanes go together
        kept = [step * round(share * curve.units / step) for share in _SHARES]
        cells = [show(points[count]) if count in points else "" for count in kept]
        table.add_row(Cell("\n".join(curve.layers)), str(curve.units), *cells)
    return table
