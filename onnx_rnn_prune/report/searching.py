"""What a search prints beside the report of its result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from onnx_rnn_prune.report.names import brief
from onnx_rnn_prune.report.numbers import amount, duration, size
from onnx_rnn_prune.report.table import new_table, prune_table, sentence
from onnx_rnn_prune.text import presentable

Report = Mapping[str, Any]

_MOST_ROWS = 12
# Letters of a name that leaves room for others beside it.
_LONG = 16


def search_table(report: Report) -> Group:
    """The cuts that no other one beats, what was picked, and whether it is what was asked for.

    Args:
        report: the dict of `PruneResult.report` of a search.
    """
    report = brief(presentable(report))
    search = report["search"]
    parts: list[Table | Text | Group] = [
        prune_table(report),
        _frontier(search, [row["name"] for row in report["layers"]]),
    ]
    parts += [sentence(label, text) for label, text in _sentences(search)]
    return Group(*parts)


def quality(value: float | None) -> str:
    """A quality in its own units."""
    return "unknown" if value is None else f"{value:.4g}"


def _frontier(search: Report, layers: Sequence[str]) -> Table:
    name = search["quality"]
    wide = max(map(len, layers), default=0) > _LONG
    kept = "Units kept by the layers above" if wide else "Units kept"
    numbers = ("No.", "Parameters", "File size", "Predicted\ntime", name)
    table = new_table("No.", kept, *numbers[1:], "Goal", numbers=numbers)
    rows = [row for row in search["candidates"] if row["frontier"] or row["picked"]]
    for row in _thinned(sorted(rows, key=lambda row: row["ms"])):
        state = "picked" if row["picked"] else "met" if row["meets"] else "missed"
        table.add_row(
            str(row["number"]),
            Text(_counts(row["kept"], layers) if wide else _kept(row["kept"])),
            amount(row["params"]),
            size(row["bytes"]),
            duration(row["ms"]),
            _estimate(row["quality"], row["spread"]),
            state,
        )
    return table


def _estimate(value: float, spread: float) -> str:
    """A quality and its standard error, which a limit must leave room for."""
    known = math.isfinite(spread) and spread > 0.0
    return f"{quality(value)} ± {spread:.2g}" if known else quality(value)


def _kept(kept: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in kept.items())


def _counts(kept: Mapping[str, int], layers: Sequence[str]) -> str:
    """The same without names, which would take most of the table."""
    return ", ".join(str(kept.get(name, "all")) for name in layers)


def _thinned(rows: Sequence[Report]) -> list[Report]:
    """Evenly fewer rows where there are many; the picked one stays."""
    every = -(-len(rows) // _MOST_ROWS)
    return [row for n, row in enumerate(rows) if n % every == 0 or row["picked"]]


def _sentences(search: Report) -> list[tuple[str, str]]:
    splits, test = search["splits"], search["test"]
    shared = f" ({splits['shared']})" if splits["shared"] else ""
    lines = [
        ("Goal", search["goal"]),
        (
            "Tried",
            f"{len(search['candidates'])} cuts; number {search['picked']} was picked; any other"
            " one can be had with --pick NUMBER and the same --study",
        ),
        ("After ±", "the standard error, for which a limit must leave room"),
        (
            "Feeds",
            f"{splits['calibration']} to calibrate, {splits['validation']} to select by,"
            f" {splits['test']} to report on{shared}",
        ),
        (
            "On the last",
            f"{search['quality']} {quality(test['quality'])},"
            f" of the original {quality(test['original'])}",
        ),
    ]
    return lines + [(_name(limit), _judgement(limit)) for limit in search["limits"]]


def _name(limit: Report) -> str:
    return f"Limit of {limit['name']}"


def _judgement(limit: Report) -> str:
    show = {"speed": duration, "params": amount, "bytes": size}.get(limit["name"], quality)
    what = "lost " if limit["name"] == "quality" else ""
    verdict = "met" if limit["met"] else "MISSED"
    return f"{what}{show(limit['reached'])} of {show(limit['asked'])} allowed: {verdict}"
