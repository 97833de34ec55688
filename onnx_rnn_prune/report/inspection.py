"""What inspect prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from onnx_rnn_prune.report.names import Cell, brief
from onnx_rnn_prune.report.numbers import amount, duration, faster, percent, size
from onnx_rnn_prune.report.table import ends, kind, new_table, note_on_names, sentence, warning
from onnx_rnn_prune.text import presentable

Report = Mapping[str, Any]

# Letters of a name that leaves room for all columns in a line.
_SHORT = 12


def inspect_table(report: Report) -> Group:
    """The recurrent layers of a model, what they cost and would save, and what is written out.

    Args:
        report: what `inspect` returns.
    """
    report = brief(presentable(report))
    model = report["model"]
    parts: list[Table | Text] = [
        sentence(
            "Model",
            f"{model.get('path') or 'in memory'}, {amount(model['params'])} parameters, "
            f"{size(model['bytes'])}",
        ),
        sentence("Inputs", "; ".join(map(str, model["inputs"]))),
        sentence("Outputs", "; ".join(map(str, model["outputs"]))),
    ]
    if report["layers"]:
        parts += [_costs(report), _gains(report)]
        parts += [sentence("Time", text) for text in _timed(report)]
    else:
        parts.append(Text("It has no LSTM, GRU or RNN layers: there is nothing to prune."))
    for label, key in (("Cannot run", "refused"), ("Cannot be pruned", "written_out")):
        parts += [sentence(label, str(row["text"])) for row in report.get(key, ())]
    parts += [sentence("What helps", text) for text in report.get("remedies", ())]
    parts += [warning(text) for text in report.get("warnings", ())]
    return Group(*parts, *note_on_names(report))


def _costs(report: Report) -> Table:
    """What each layer is and takes, with its share of the model."""
    wide = any(len(layer["name"]) > _SHORT for layer in report["layers"])
    # A line of its own leaves room for names.
    share, flops = ("\n({})", "FLOPs\nper step") if wide else (" ({})", "FLOPs/step")
    numbers = ("Units", "Inputs", "Parameters", flops, "Time")
    table = new_table("Layer", "Type", *numbers, numbers=numbers)
    for layer in report["layers"]:
        spent = layer.get("time_ms")
        table.add_row(
            Cell(layer["name"]),
            kind(layer),
            str(layer["hidden"]),
            str(layer["input"]),
            amount(layer["params"]) + share.format(percent(layer["share_of_params"])),
            amount(layer["flops_per_step"]),
            "not run"
            if spent is None
            else duration(spent) + share.format(percent(layer["share_of_time"])),
        )
    return table


def _gains(report: Report) -> Table:
    """What becomes of each layer's outputs when it is cut, and what that saves."""
    table = new_table("Layer", "Its output, once it is cut", "Half of its units would save")
    for layer in report["layers"]:
        pinned = layer.get("pinned")
        outputs = f"left alone: {pinned}" if pinned else ends(layer) or "not known"
        table.add_row(Cell(layer["name"]), Cell(outputs), Cell(_half(layer)))
    return table


def _half(layer: Report) -> str:
    if layer.get("pinned"):
        return "nothing"
    half = layer.get("half")
    if not half:
        return "not measured"
    stored = half["bytes"]
    lines = [
        f"{amount(half['params'])} parameters, "
        f"{size(stored) if stored >= 0 else f'-{size(-stored)}'}, {amount(half['flops'])} FLOPs",
        f"model {faster(half['speedup'], half.get('speedup_quartiles'))}",
    ]
    if half["together"]:
        lines.append(f"together with {', '.join(half['together'])}")
    return "\n".join(lines)


def _timed(report: Report) -> list[str]:
    """What was run to measure, if anything was, and what can be gained at most (Amdahl's law)."""
    timed = report.get("timed_on") or {}
    shapes, share = timed.get("shapes"), report.get("share_of_time")
    if not shapes:
        return []
    lines = []
    if share is not None:
        most = f"at most about {1 / (1 - share):.2g}x" if share < 0.99 else "over 100x"
        lines.append(
            f"all recurrent layers together take {percent(share)} of a run, so pruning them can"
            f" make it {most} faster"
        )
    fed = ", ".join(f"{name} {sizes}" for name, sizes in shapes.items())
    made = "made-up inputs (give typical ones with --data)" if timed["random"] else "inputs given"
    return [
        *lines,
        f"one thread, on {made}: {fed}; speed is that of files that were cut, and timed in turns",
    ]
