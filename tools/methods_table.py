"""Outcomes of trials as a table in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pages import markdown
from tasks import TASKS, Task
from trials import Method, Outcome

Values = Mapping[Method | None, Sequence[float]]
Columns = Mapping[Task, Values]
NOTE = """\
The metric of held-out data with labels, after a cut to the share of units that is given, chosen and
refitted on unlabelled inputs; the best of each column is bold, apart for rows that train for up to
{minutes:g} minutes, on the same inputs. The first row below the originals is what `prune` does by
default, and *behind the best* is how much of the metric it lacks of the best row, without those
that train and with them. By `python tools/methods.py --grid full`."""


def table(outcomes: Sequence[Outcome], default: Method) -> str:
    """A row per method, a column per model at its share of units; methods that train come last."""
    names = list(dict.fromkeys(outcome.trial.task for outcome in outcomes))
    tasks = [TASKS[name] for name in names]
    columns = {task: _column(outcomes, task) for task in tasks}
    methods = [m for m in dict.fromkeys(outcome.trial.method for outcome in outcomes) if m]
    quick, slow = ([m for m in methods if m.trains is trains] for trains in (False, True))
    header = ["criterion", "recovery", "allocation and more"]
    header += [f"{task.name}, {task.metric} at {task.keep}" for task in tasks]
    rows = [["original", "", "", *_cells(columns, None, [])]]
    rows += _rows(columns, quick, default, "*behind the best*", quick)
    if slow:
        rows.append(["**trained**", *[""] * (len(header) - 1)])
        rows += _rows(columns, slow, default, "*behind the best of all*", methods)
    note = NOTE.format(minutes=default.distill_minutes) + _drawn(columns)
    parts = [markdown(header, rows), note, _failures(outcomes)]
    return "\n\n".join(part for part in parts if part)


def _rows(
    columns: Columns,
    methods: Sequence[Method],
    default: Method,
    last: str,
    rivals: Sequence[Method],
) -> list[list[str]]:
    """A row for each method, the best among them bold, and how far the default is behind others."""
    rows = [
        [m.criterion, m.recover, ", ".join(m.ways), *_cells(columns, m, methods)] for m in methods
    ]
    behind = [_behind(task, column, default, rivals) for task, column in columns.items()]
    return [*rows, [last, "", "", *behind]]


def _column(outcomes: Sequence[Outcome], task: Task) -> Values:
    """The values of each method at the task's share of units; those of the original under None."""
    found: dict[Method | None, list[float]] = {}
    for outcome in outcomes:
        trial = outcome.trial
        here = trial.task == task.name and (trial.method is None or trial.keep == task.keep)
        if here and outcome.value is not None:
            found.setdefault(trial.method, []).append(outcome.value)
    return found


def _best(task: Task, column: Values, methods: Sequence[Method]) -> float | None:
    means = [float(np.mean(column[method])) for method in methods if method in column]
    return (max if task.rises else min)(means, default=None)


def _cells(columns: Columns, method: Method | None, rivals: Sequence[Method]) -> list[str]:
    """What a method reaches, by model; bold where no rival reads better."""
    cells = []
    for task, column in columns.items():
        value = None if method not in column else float(np.mean(column[method]))
        text = "" if value is None else task.text.format(value)
        best = _best(task, column, rivals)
        is_best = bool(text) and best is not None and text == task.text.format(best)
        cells.append(f"**{text}**" if is_best else text)
    return cells


def _behind(task: Task, column: Values, default: Method, rivals: Sequence[Method]) -> str:
    best = _best(task, column, rivals)
    if best is None or default not in column:
        return ""
    lack = (best - float(np.mean(column[default]))) * (1.0 if task.rises else -1.0)
    return f"{max(0.0, lack / abs(best)):.1%}"


def _drawn(columns: Columns) -> str:
    draws = max((len(found) for column in columns.values() for found in column.values()), default=1)
    if draws == 1:
        return "\nEach entry is a single draw of calibration inputs and of what is random."
    spreads = []
    for task, column in columns.items():
        found = [float(np.std(values)) for method, values in column.items() if method]
        spreads.append(f"{task.name} {task.text.format(float(np.median(found)))}")
    return (
        f" Entries are means over {draws} draws of calibration inputs and of what is random, whose"
        f" standard deviation is typically {', '.join(spreads)}."
    )


def _failures(outcomes: Sequence[Outcome]) -> str:
    lines = [
        f"- {outcome.trial.task}, {outcome.trial.method or 'original'}: {outcome.reason}"
        for outcome in outcomes
        if outcome.value is None
    ]
    return "\n".join(["Not measured:", "", *dict.fromkeys(lines)]) if lines else ""
