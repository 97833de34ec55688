"""What each layer can spare, as tables and as a picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from io import BytesIO
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.report.names import Cell, brief
from onnx_rnn_prune.report.numbers import percent, streams
from onnx_rnn_prune.report.table import new_table, note_on_names, sentence, warning
from onnx_rnn_prune.text import presentable

Report = Mapping[str, Any]

# The shares of units at which tables show a curve.
_SHARES = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
# Layers whose lines have colours of their own; those of more go from one colour to another.
_COLOURS = 10
# Letters of a name that leaves room for others beside it, and of the longest that is shown whole.
_SHORT, _LONG = 20, 70
# Height of a line of text, in inches.
_LINE = 0.2
# From this ratio of the largest to the smallest on, an axis is logarithmic.
_DECADE = 10.0


def sensitivity_table(report: Report) -> Group:
    """The deviation of the outputs, and the metric where there is one, by units kept.

    Args:
        report: what `sensitivity` returns.
    """
    report = brief(presentable(report))
    parts: list[Table | Text] = [
        Text("\nDeviation of the outputs when that layer alone keeps so many of its units:"),
        _curves(report["layers"], "nrmse", percent),
    ]
    if report["metric"]:
        parts.append(Text(f"The metric, {report['metric']}:"))
        parts.append(_curves(report["layers"], "metric", _short))
    splits = report["splits"]
    feeds = (
        f"{splits['calibration']} to calibrate, {splits['validation']} to measure on,"
        f" {splits['test']} left for a search to report on"
    )
    parts.append(sentence("Feeds", splits["shared"] or feeds))
    if report.get("streams"):
        parts.append(sentence("States", streams(report["streams"])))
    parts += [warning(text) for text in report["warnings"] if text != splits["shared"]]
    return Group(*parts, *note_on_names(report))


def sensitivity_png(report: Report) -> bytes:
    """The same as a picture: a line for each layer, over the share of its units.

    Args:
        report: what `sensitivity` returns.

    Raises:
        PruneError: matplotlib is not installed.
    """
    need_matplotlib()
    from matplotlib.figure import Figure

    report = presentable(report)
    metric = report["metric"]
    names = ["\n".join(map(_fitting, row["layers"])) for row in report["layers"]]
    columns = 3 if all(len(name) <= _SHORT for name in names) else 1
    lines = sum(name.count("\n") + 1 for name in names) / columns
    size = (8.6 if metric else 5.6, 3.6 + _LINE * lines)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, 2 if metric else 1, squeeze=False)[0]
    _draw(axes[0], report["layers"], "nrmse", 100.0)
    axes[0].set_ylabel("deviation, % of the spread")
    if metric:
        _draw(axes[1], report["layers"], "metric", 1.0)
        axes[1].set_ylabel(str(metric), parse_math=False)
    drawn = axes[0].lines
    numbers = map(str, range(len(drawn)))
    legend = figure.legend(drawn, numbers, loc="outside lower center", ncols=columns)
    legend.set_frame_on(False)
    # Put in afterwards: matplotlib leaves out lines whose name begins with an underscore.
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set(text=name, parse_math=False, fontsize="small")
    content = BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()


def need_matplotlib() -> None:
    """Makes sure that pictures can be drawn.

    Raises:
        PruneError: they cannot.
    """
    if find_spec("matplotlib") is None:
        raise PruneError(
            "matplotlib is not installed",
            where="--png",
            remedy="pip install 'onnx_rnn_prune[plot]', or leave it out",
        )


def _fitting(name: str) -> str:
    """A name of at most so many letters; both ends tell layers apart."""
    half = _LONG // 2
    return name if len(name) <= _LONG else f"{name[: half - 1]}…{name[-half:]}"


def _curves(layers: Sequence[Report], key: str, show: Callable[[float | None], str]) -> Table:
    shares = [f"{share:.3g} %" for share in (100 * share for share in _SHARES)]
    table = new_table("Layer", "Units", *shares, numbers=("Units", *shares))
    for row in layers:
        values = {point["kept"]: point[key] for point in row["points"]}
        kept = [round(share * row["units"]) for share in _SHARES]
        cells = [show(values[count]) if count in values else "" for count in kept]
        table.add_row(Cell("\n".join(row["layers"])), str(row["units"]), *cells)
    return table


def _short(value: float | None) -> str:
    return "unknown" if value is None or not math.isfinite(value) else f"{value:.4g}"


def _draw(axes: Any, layers: Sequence[Report], key: str, scale: float) -> None:
    from matplotlib import colormaps
    from matplotlib.ticker import LogLocator, NullFormatter

    several = len(layers) > _COLOURS
    seen = []
    for number, row in enumerate(layers):
        points = [
            (100.0 * point["kept"] / row["units"], scale * point[key])
            for point in row["points"]
            if point[key] is not None and math.isfinite(point[key])
        ]
        seen += [value for _, value in points if value > 0]
        colour = colormaps["viridis"](number / len(layers)) if several else f"C{number}"
        line = zip(*points, strict=True)
        axes.plot(*line, marker="o", markersize=3.5, color=colour, clip_on=False)
    if seen and max(seen) > _DECADE * min(seen):
        axes.set_yscale("log", nonpositive="mask")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(0, 100)
    axes.set_xlabel("units that the layer keeps, %")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
