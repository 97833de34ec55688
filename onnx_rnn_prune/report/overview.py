"""What plan, compare and bench print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from onnx_rnn_prune.report.names import Cell, place, short_names
from onnx_rnn_prune.report.numbers import duration, faster, fewer, percent, size, streams
from onnx_rnn_prune.report.table import (
    change,
    drift_sentences,
    new_table,
    sentence,
    warning,
)
from onnx_rnn_prune.text import presentable, visible
from onnx_rnn_prune.trace.plan import Plan

Report = Mapping[str, Any]


def plan_table(plan: Plan) -> Group:
    """The number of units that each layer keeps."""
    table = new_table("Layer", "Units", "Kept", numbers=("Units", "Kept"))
    places = {
        name: place({"name": name, "scope": layer.scope}) for name, layer in plan.layers.items()
    }
    short = short_names(places.values())
    for name, layer in plan.layers.items():
        before = layer.hidden_size
        # The directions of one layer keep equally many.
        after = len(layer.keep[0])
        table.add_row(
            Cell(visible(short[places[name]])),
            change(str(before), str(after)),
            percent(after / before),
        )
    return Group(table, *map(warning, presentable(plan.notes)))


def compare_table(report: Report) -> Group:
    """How far the outputs of two models are apart, and what the second one gains.

    Args:
        report: what `compare` returns; its speeds and sizes are left out where it lacks them.
    """
    report = presentable(report)
    parts: list[Table | Text] = []
    for label, text in drift_sentences(report["drift"]):
        parts.append(sentence(label, text))
    sizes = report.get("bytes")
    if sizes:
        text = f"{size(sizes['a'])} -> {size(sizes['b'])} ({fewer(sizes['a'], sizes['b'])})"
        parts.append(sentence("File size", text))
    latency = report.get("latency")
    if latency:
        times = f"{duration(latency['before_ms'])} -> {duration(latency['after_ms'])}"
        change = faster(latency["speedup"], latency.get("speedup_quartiles"))
        parts.append(sentence("Time per run", f"{times}, {change}"))
    if report.get("streams"):
        parts.append(sentence("States", streams(report["streams"])))
    parts += [warning(text) for text in report.get("warnings", ())]
    return Group(*parts)


def bench_table(report: Report) -> Group:
    """How long the models take for one run.

    Args:
        report: what `bench` returns.
    """
    report = presentable(report)
    table = new_table("Model", "Time per run", "", numbers=("Time per run",))
    for number, row in enumerate(report["rows"]):
        relation = "" if number == 0 else _against_first(row)
        table.add_row(Text(str(row["model"])), duration(row["ms"]), relation)
    threads = report["threads"]
    caption = f"Median of interleaved runs, {threads} thread{'s' if threads != 1 else ''}."
    parts: list[Table | Text] = [table, Text(caption)]
    parts += [warning(text) for text in report.get("warnings", ())]
    return Group(*parts)


def _against_first(row: Report) -> str:
    change = faster(row["ratio"], row.get("ratio_quartiles"))
    if change == "equally fast":
        return f"{change} as the first"
    speed, space, spread = change.partition(" (")
    return f"{speed} than the first{space}{spread}"
