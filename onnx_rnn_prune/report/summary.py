"""Reports as Markdown that GitHub renders: for the summary of a CI job, or a pull request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from onnx_rnn_prune.report.names import brief
from onnx_rnn_prune.report.numbers import amount, duration, faster, fewer, percent, size
from onnx_rnn_prune.report.table import change, kind, outcome, sentences
from onnx_rnn_prune.report.verdict import compared, verdict
from onnx_rnn_prune.text import markdown, presentable

Report = Mapping[str, Any]
_UNKNOWN = "unknown"


def prune_summary(report: Report) -> str:
    """What a prune did, in Markdown.

    Args:
        report: the dict of `PruneResult.report`; parts that it lacks are left out.
    """
    report = brief(presentable(report))
    name = PurePath(str(report.get("model") or "the model")).name
    totals = report.get("totals") or {}
    gains = _gains(
        ("Parameters", amount, totals.get("params_before"), totals.get("params_after")),
        ("File size", size, totals.get("bytes_before"), totals.get("bytes_after")),
        latency=report.get("latency"),
    )
    parts = [
        f"### Pruned: {markdown(name)}",
        markdown(verdict(report)),
        gains,
        _layers(report.get("layers") or ()),
        _drift(report.get("drift") or {}),
        _said(report),
        _warnings(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def compare_summary(report: Report) -> str:
    """How far two models are apart, in Markdown, and whether that is within the limit.

    Args:
        report: what `compare` returns.
    """
    report = presentable(report)
    sizes = report.get("bytes") or {}
    gains = _gains(
        ("File size", size, sizes.get("a"), sizes.get("b")), latency=report.get("latency")
    )
    title = "### Compared"
    if report.get("max_nrmse") is not None:
        title += ": passed" if report["passed"] else ": limit missed"
    parts = [title, markdown(compared(report)), gains, _drift(report["drift"]), _warnings(report)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(columns: Sequence[str], numbers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows under headings; the columns of numbers end flush right."""
    if not rows:
        return ""
    rules = ["---:" if column in numbers else "---" for column in columns]
    lines = [columns, rules, *([markdown(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _gains(*amounts: tuple[str, Any, Any, Any], latency: Report | None) -> str:
    rows = [
        (label, show(before), show(after), fewer(before, after))
        for label, show, before, after in amounts
        if before is not None and after is not None
    ]
    if latency and latency["speedup"] is not None:
        times = [duration(latency[f"{when}_ms"]) for when in ("before", "after")]
        change = faster(latency["speedup"], latency.get("speedup_quartiles"))
        rows.append(("Time per run", times[0], times[1], change))
    columns = ("", "Before", "After", "Change")
    return _table(columns, columns[1:], rows)


def _layers(layers: Sequence[Report]) -> str:
    columns = ("Layer", "Type", "Units", "Parameters", "Its outputs")
    rows = [
        (
            layer["name"],
            kind(layer),
            change(str(layer["hidden_before"]), str(layer["hidden_after"])),
            change(amount(layer["params_before"]), amount(layer["params_after"])),
            outcome(layer),
        )
        for layer in layers
    ]
    return _table(columns, ("Units", "Parameters"), rows)


def _drift(drift: Mapping[str, Report]) -> str:
    columns = ("Output", "Deviation", "RMSE", "Largest difference", "Same top answer")
    rows = []
    for name, values in drift.items():
        errors = [values.get(key) for key in ("rmse", "max_abs")]
        shown = [_UNKNOWN if error is None else f"{error:.3g}" for error in errors]
        agreement = values.get("top1_agreement")
        top = "" if agreement is None else percent(agreement)
        rows.append((name, percent(values.get("nrmse")), *shown, top))
    return _table(columns, columns[1:], rows)


def _said(report: Report) -> str:
    """What is in no table."""
    lines = [
        f"- **{markdown(label)}**: {markdown(text)}"
        for label, text in sentences(report)
        if label in ("Recovery", "Data", "States", "Self-check")
    ]
    return "\n".join(lines)


def _warnings(report: Report) -> str:
    return "\n".join(f"- **Warning**: {markdown(text)}" for text in report.get("warnings") or ())
