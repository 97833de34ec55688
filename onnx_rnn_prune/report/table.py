"""The report of a prune as tables and sentences for someone who has never read about pruning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from onnx_rnn_prune.report.names import SHORTENED, Cell, brief
from onnx_rnn_prune.report.numbers import (
    amount,
    duration,
    faster,
    fewer,
    percent,
    size,
    streams,
    times,
)
from onnx_rnn_prune.report.verdict import worst
from onnx_rnn_prune.text import presentable

Report = Mapping[str, Any]

_RECOVERIES = {
    "none": "none, the kept weights are the original's",
    "lossless": "what the removed units did is in the biases and weights of others",
    "merge": "what read a removed unit reads the kept one whose weights are most alike",
    "bias": "what the removed units contribute on average is added to the biases",
    "lstsq": "the kept weights are refitted so as to stand in for the removed units",
    "distill": "the smaller model is trained to compute what the original computes",
}
_ENDS_SHOWN = 3


def prune_table(report: Report) -> Group:
    """What a prune did: layers, sizes, speed, checks, warnings.

    Args:
        report: the dict of `PruneResult.report`; parts that it lacks are left out.
    """
    report = brief(presentable(report))
    parts: list[Table | Text] = [_layers(report["layers"]), _gains(report)]
    if report.get("stages"):
        parts.append(_stages(report["stages"]))
    parts += [sentence(label, text) for label, text in sentences(report)]
    parts += [warning(text) for text in report.get("warnings", ())]
    return Group(*parts, *note_on_names(report))


def note_on_names(report: Report) -> list[Text]:
    """Where names are shorter than options take them, a line that says so."""
    if not report.get(SHORTENED):
        return []
    text = "are shortened; --json has the full ones, which --only, --skip and --keep take"
    return [sentence("Names of layers", text)]


def drift_sentences(drift: Mapping[str, Report]) -> list[tuple[str, str]]:
    """For each output, how far it is from the original's, in words."""
    return [(_title(name, values), _deviation(values)) for name, values in drift.items()]


def _title(name: str, values: Report) -> str:
    if values.get("signal_of"):
        return f"Signal {name}, behind {_enumerate(values['signal_of'])}"
    return f"Output {name}, a state" if values.get("kind") == "state" else f"Output {name}"


def sentence(label: str, text: str) -> Text:
    """A line with its subject set off; names in it are never taken for markup."""
    return Text.assemble((f"{label}: ", "bold"), text)


def warning(text: str) -> Text:
    """A line that asks for attention."""
    return Text.assemble(("Warning: ", "bold yellow"), text)


class _Table(Table):
    """A table whose columns stand closer where there is no room, before words have to break."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wanted = Measurement.get(console, options.update_width(10_000), self).maximum
        if wanted > options.max_width:
            self.padding = (0, 1, 0, 0)
        return super().__rich_console__(console, options)


def new_table(*columns: str, numbers: Sequence[str] = ()) -> Table:
    """An empty table; the named columns hold numbers and end flush right."""
    table = _Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for column in columns:
        right = column in numbers
        # Folding keeps long names whole where rich would cut them.
        table.add_column(
            column, justify="right" if right else "left", no_wrap=right, overflow="fold"
        )
    return table


def _layers(layers: Sequence[Report]) -> Table:
    table = new_table(
        "Layer", "Type", "Units", "Parameters", "Its output", numbers=("Units", "Parameters")
    )
    for layer in layers:
        table.add_row(
            Cell(layer["name"]),
            kind(layer),
            change(str(layer["hidden_before"]), str(layer["hidden_after"])),
            change(amount(layer["params_before"]), amount(layer["params_after"])),
            Cell(outcome(layer)),
        )
    return table


def kind(layer: Report) -> str:
    """The operator, with its direction where that is not the usual one."""
    direction = layer.get("direction") or "forward"
    return str(layer["op"]) if direction == "forward" else f"{layer['op']}, {direction}"


def change(before: str, after: str) -> str:
    """`a -> b`, or just a where nothing changes."""
    return before if before == after else f"{before} -> {after}"


def outcome(layer: Report) -> str:
    """What became of a layer's outputs, or why it is as it was."""
    if layer["hidden_before"] == layer["hidden_after"]:
        reason = layer.get("pinned") or layer.get("reason") or ""
        return f"unchanged: {reason}" if reason else "unchanged"
    return ends(layer)


def ends(layer: Report) -> str:
    """Where a layer's outputs end, each way in a line."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for outlet in layer.get("outlets", ()):
        key = (str(outlet["output"]), str(outlet["end"]), str(outlet.get("reason") or ""))
        groups.setdefault(key, []).append(str(outlet.get("at") or ""))
    lines = []
    for (output, end, reason), places in groups.items():
        where = _enumerate([name for name in places if name])
        if end == "absorbed":
            lines.append(f"{output}: read by smaller weights" + (f" in {where}" if where else ""))
        elif end == "restored":
            at = f" for {where}" if where else ""
            lines.append(f"{output}: brought back to full size{at}" + (reason and f" ({reason})"))
        elif end == "narrow":
            lines.append(f"{output}: leaves with kept units only")
        else:
            lines.append(f"{output}: not used")
    return "\n".join(lines)


def _enumerate(names: Sequence[str]) -> str:
    names = list(dict.fromkeys(names))
    more = len(names) - _ENDS_SHOWN
    shown = ", ".join(names[:_ENDS_SHOWN])
    return f"{shown} and {more} more" if more > 0 else shown


def _gains(report: Report) -> Table:
    table = new_table("", "Before", "After", "", numbers=("Before", "After"))
    totals = report["totals"]
    rows = [
        ("Parameters", "params", amount),
        ("  of recurrent layers", "rnn_params", amount),
        ("Floating-point operations per step", "flops", amount),
        ("File size", "bytes", size),
    ]
    for label, key, show in rows:
        before, after = totals.get(f"{key}_before"), totals.get(f"{key}_after")
        if before is not None and after is not None:
            table.add_row(label, show(before), show(after), fewer(before, after))
    latency = report.get("latency")
    if latency:
        threads = latency["threads"]
        table.add_row(
            f"Time per run ({threads} thread{'s' if threads != 1 else ''})",
            duration(latency["before_ms"]),
            duration(latency["after_ms"]),
            faster(latency["speedup"], latency.get("speedup_quartiles")),
        )
    return table


def _stages(stages: Sequence[Report]) -> Table:
    """What each step did, each against the original."""
    numbers = ("File size", "Compressed", "Speed", "Deviation")
    table = new_table("Step", *numbers, numbers=numbers)
    for stage in stages:
        found = worst(stage["drift"])
        table.add_row(
            Text(stage["name"]),
            size(stage["bytes"]),
            size(stage["compressed_bytes"]),
            times(stage["speedup"], stage.get("speedup_quartiles")),
            percent(found[1]) if found else "unknown",
        )
    return table


def sentences(report: Report) -> list[tuple[str, str]]:
    """What there is to say about a prune beyond its tables: subjects, and a sentence on each."""
    lines: list[tuple[str, str]] = []
    oracle = report.get("oracle")
    if oracle is not None:
        lines.append(("Self-check", _self_check(oracle, str(report.get("mode") or "shrink"))))
    lines += [
        ("State", f"{row['input']} and {row['output']}: {row['before']} -> {row['after']} entries")
        for row in report.get("states", ())
    ]
    lines += drift_sentences(report.get("drift") or {})
    lines += [("Superfluous", _superfluous(row)) for row in report.get("lossless", ())]
    if report.get("recovery"):
        lines.append(("Recovery", _recovery(report["recovery"])))
    if report.get("data"):
        lines.append(("Data", _data(report["data"])))
        if report["data"].get("streams"):
            lines.append(("States", streams(report["data"]["streams"])))
    return lines


def _self_check(oracle: Report, mode: str) -> str:
    pair = (
        "the smaller file equals the full-size file with the removed units zeroed"
        if mode == "shrink"
        else "the file with the removed units zeroed equals the smaller file without them"
    )
    largest = oracle["max_abs_diff"]
    shown = "unknown" if largest is None else f"{largest:.1g}"
    return f"{pair} (largest difference {shown}): {'passed' if oracle['passed'] else 'FAILED'}"


def _deviation(values: Report) -> str:
    nrmse, agreement = values.get("nrmse"), values.get("top1_agreement")
    top = "" if agreement is None else f"; same top answer in {percent(agreement)}"
    if values.get("unequal"):
        often = "once" if values["unequal"] == 1 else f"{values['unequal']} times"
        top += f"; lengths differ {often}, compared up to the shorter"
    if values.get("rmse") == 0:
        return "the same as the original's" + ("" if agreement == 1.0 else top)
    if values.get("kind") == "index" and agreement is not None:
        return f"the same as the original's in {percent(agreement)}"
    if nrmse is None or not math.isfinite(nrmse):
        return f"deviates without measure: one of the two is zero throughout or not a number{top}"
    return (
        f"deviates {percent(nrmse)} from the original (RMS, relative to the original's spread){top}"
    )


def _superfluous(row: Report) -> str:
    """What of a layer provably changes nothing, and how much of that goes."""
    found = ", ".join(f"{row[k]} {k}" for k in ("dead", "zero", "constant", "duplicate") if row[k])
    return f"{row['layer']}: {found or 'no unit'}" + (f"; {row['removed']} go" if found else "")


def _recovery(recovery: Report) -> str:
    used = str(recovery.get("used") or "none")
    text = _RECOVERIES.get(used, used)
    if recovery.get("lambda") is not None and used == "lstsq":
        text += f" (least squares, lambda {recovery['lambda']:.2g})"
    if recovery.get("learning"):
        text += f" ({_learning(recovery['learning'])})"
    return text + (f"; {recovery['reason']}" if recovery.get("reason") else "")


def _learning(learning: Report) -> str:
    reasons = ", ".join(sorted(set(learning["missing"].values())))
    scope = "as a whole" if learning["whole"] else f"piece by piece, since {reasons}"
    return f"{learning['steps']} steps in {learning['seconds']:.0f} s, trained {scope}"


def _data(data: Report) -> str:
    if data.get("random"):
        return (
            f"none given; random numbers were used ({data['source']}) and nothing was calibrated, "
            "so the deviations say little about real inputs (give some with --data)"
        )
    feeds = data["feeds"]
    text = f"{data['source']}, {feeds} feed{'s' if feeds != 1 else ''}"
    if data.get("shared"):
        return (
            f"{text}, used to calibrate and to judge by, so the deviations may look better than "
            "they are (give others with --eval-data)"
        )
    if data.get("calibration_feeds") is not None and data.get("heldout_feeds") is not None:
        text += (
            f": {data['calibration_feeds']} to calibrate, {data['heldout_feeds']} held out to "
            "judge by"
        )
    return text
