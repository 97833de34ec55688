"""Reports as texts: JSON for programs, and Markdown that GitHub renders."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from onnx_rnn_prune.model.files import write_atomically
from onnx_rnn_prune.report import words
from onnx_rnn_prune.report.names import brief
from onnx_rnn_prune.report.schema import CompareReport, DriftRow, PruneReport
from onnx_rnn_prune.report.words import amount, duration, faster, fewer, percent, size
from onnx_rnn_prune.text import markdown, presentable
from onnx_rnn_prune.validate import Latency

# Columns.
_GAINS = ("", "Before", "After", "Change")


def to_json(report: Mapping[str, Any], encoding: str = "utf-8") -> str:
    """A report as JSON text, in the order of its keys.

    JSON has no infinity and nothing for what is not a number: both become null. Characters that
    cannot be seen, which a terminal may obey, and that an encoding lacks are escaped.

    Args:
        encoding: in which the text will be written.
    """
    text = json.dumps(_plain(report), indent=2, ensure_ascii=False, allow_nan=False)
    return "\n".join(
        line
        if _is_plain(line, encoding)
        else "".join(c if _is_plain(c, encoding) else json.dumps(c)[1:-1] for c in line)
        for line in text.split("\n")
    )


def write_json(report: Mapping[str, Any], path: str | Path) -> None:
    """Writes a report whole or not at all.

    Raises:
        PruneError: the place cannot be written.
    """
    write_text(to_json(report) + "\n", path)


def write_text(text: str, path: str | Path) -> None:
    """Writes a text as UTF-8, whole or not at all; names of files may be what UTF-8 cannot hold.

    Raises:
        PruneError: the place cannot be written.
    """
    write_atomically(path, text.encode(errors="replace"))


def _is_plain(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return text.isprintable()


def _plain(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def prune_summary(report: PruneReport) -> str:
    """The report of a prune in Markdown."""
    report, _ = brief(presentable(report))
    before, after = report.totals.params_before, report.totals.params_after
    params = ("Parameters", amount(before), amount(after), fewer(before, after))
    sizes = _file(report.totals.bytes_before, report.totals.bytes_after)
    parts = [
        f"### Pruned: {markdown(PurePath(report.model).name)}",
        markdown(words.verdict(report)),
        _table(_GAINS, _GAINS[1:], [params, sizes, _time(report.latency)]),
        _table(words.LAYER_COLUMNS, words.LAYER_COLUMNS[2:4], words.layer_cells(report.layers)),
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
    parts = [
        title,
        markdown(words.compared(report)),
        _table(_GAINS, _GAINS[1:], [_file(report.bytes.a, report.bytes.b), _time(report.latency)]),
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


def _file(before: int, after: int) -> tuple[str, ...]:
    return "File size", size(before), size(after), fewer(before, after)


def _time(latency: Latency) -> tuple[str, ...]:
    gain = faster(latency.speedup, latency.speedup_quartiles)
    return "Time per run", duration(latency.before_ms), duration(latency.after_ms), gain


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
    """What the tables do not show."""
    lines = [
        f"- **{markdown(label)}**: {markdown(text)}"
        for label, text in words.sentences(report)
        if label in ("Recovery", "Data", "States", "Self-check")
    ]
    return "\n".join(lines)


def _warnings(warnings: Sequence[str]) -> str:
    return "\n".join(f"- **Warning**: {markdown(text)}" for text in warnings)
