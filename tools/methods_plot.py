"""Plots of trial outcomes: each model's metric against the share of units kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks import TASKS, Task
from trials import Method, Outcome

COLUMNS = 3


def plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """Draws a plot per model with a curve per method, as one PNG file.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(outcome.trial.task for outcome in outcomes))
    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.8 * rows + 0.8), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for axes, name in zip(grid, names, strict=False):
        _draw(axes, TASKS[name], [each for each in outcomes if each.trial.task == name])
    for axes in grid[len(names) :]:
        axes.set_axis_off()
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=COLUMNS, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def _draw(axes: Any, task: Task, outcomes: Sequence[Outcome]) -> None:
    methods = list(dict.fromkeys(each.trial.method for each in outcomes if each.trial.method))
    original = [each.value for each in outcomes if each.trial.method is None]
    for number, method in enumerate(methods):
        points = [(100.0, value) for value in original if value is not None]
        points += _points(method, outcomes)
        plain = method.recover == "none"
        criteria = list(dict.fromkeys(each.criterion for each in methods))
        axes.plot(
            *zip(*points, strict=True),
            label=str(method),
            color=f"C{criteria.index(method.criterion)}",
            linestyle="--" if plain else "-",
            marker="." if plain else "o",
            markersize=4,
            zorder=len(methods) - number,
        )
    axes.set_title(task.name, fontsize=10)
    axes.set_xlabel("units left, %")
    axes.set_ylabel(task.metric)
    if not task.rises:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)


def _points(method: Method, outcomes: Sequence[Outcome]) -> list[tuple[float, float]]:
    """Share of units, in percent, and mean metric, from the largest share down."""
    found: dict[float, list[float]] = {}
    for each in outcomes:
        if each.trial.method == method and each.value is not None:
            found.setdefault(float(each.trial.keep.rstrip("%")), []).append(each.value)
    return [(share, float(np.mean(found[share]))) for share in sorted(found, reverse=True)]
