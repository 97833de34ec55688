"""Summaries of reports in Markdown that GitHub renders."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from onnx_rnn_prune.report import wording
from onnx_rnn_prune.report.names import brief
from onnx_rnn_prune.report.schema import CompareReport, DriftRow, PruneReport
from onnx_rnn_prune.report.wording import amount_change, percent, size_change, time_change
from onnx_rnn_prune.text import markdown, presentable

# Columns.
_GAINS = ("", "Before", "After", "Change")


def prune_summary(report: PruneReport) -> str:
    """The report of a prune in Markdown."""
    report, _ = brief(presentable(report))
    totals, columns = report.totals, wording.LAYER_COLUMNS
    gains = [
        ("Parameters", *amount_change(totals.params_before, totals.params_after)),
        ("File size", *size_change(totals.bytes_before, totals.bytes_after)),
        ("Time per run", *time_change(report.latency)),
    ]
    parts = [
        f"### Pruned: {markdown(PurePath(report.model).name)}",
        markdown(wording.verdict(report)),
        _table(_GAINS, _GAINS[1:], gains),
        _table(columns, columns[2:4], wording.layer_cells(report.layers)),
        _drift(report.drift),
        _said(report),
        _warnings(report.warnings),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def compare_summary(report: CompareReport) -> str:
    """The comparison of two models in Markdown, and whether it is within the limit."""
    report = presentable(report)
    title = "### Compared"
    if report.max_nrmse is not None:
        title += ": passed" if report.passed else ": limit missed"
    gains = [
        ("File size", *size_change(report.bytes.a, report.bytes.b)),
        ("Time per run", *time_change(report.latency)),
    ]
    parts = [
        title,
        markdown(wording.compared(report)),
        _table(_GAINS, _GAINS[1:], gains),
        _drift(report.drift),
        _warnings(report.warnings),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(columns: Sequence[str], numbers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the columns in `numbers` are right-aligned."""
    if not rows:
        return ""
    rules = ["---:" if column in numbers else "---" for column in columns]
    lines = [columns, rules, *([markdown(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _drift(drift: Mapping[str, DriftRow]) -> str:
    columns = ("Output", "Deviation", "RMSE", "Largest difference", "Same top answer")
    rows = [
        (
            name,
            percent(values.nrmse),
            _three(values.rmse),
            _three(values.max_abs),
            "" if values.top1_agreement is None else percent(values.top1_agreement),
        )
        for name, values in drift.items()
    ]
    return _table(columns, columns[1:], rows)


def _three(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "unknown"


def _said(report: PruneReport) -> str:
    """Sentences about what the tables do not show."""
    lines = [
        f"- **{markdown(label)}**: {markdown(text)}"
        for label, text in wording.sentences(report)
        if label in ("Recovery", "Data", "States", "Self-check")
    ]
    return "\n".join(lines)


def _warnings(warnings: Sequence[str]) -> str:
    return "\n".join(f"- **Warning**: {markdown(text)}" for text in warnings)
