"""Outcomes of trials as a table in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from readme import markdown
from tasks import TASKS, Task
from trials import Method, Outcome

Values = Mapping[Method | None, Sequence[float]]
NOTE = """\
The metric of held-out data with labels, after a cut to the share of units that is given, chosen and
refitted on unlabelled inputs; the best of each column is bold. The first row below the originals is
what `prune` does by default, and *behind the best* is how much of the metric it lacks of the best
row. By `python tools/methods.py`."""


def table(outcomes: Sequence[Outcome], default: Method) -> str:
    """A row per method, a column per model at its share of units."""
    names = list(dict.fromkeys(outcome.trial.task for outcome in outcomes))
    tasks = [TASKS[name] for name in names]
    columns = [_column(outcomes, task) for task in tasks]
    methods = dict.fromkeys(outcome.trial.method for outcome in outcomes)
    header = ["criterion", "recovery", "allocation"]
    header += [f"{task.name}, {task.metric} at {task.keep}" for task in tasks]
    rows = []
    for method in [None, *(method for method in methods if method)]:
        cells = [_cell(task, column, method) for task, column in zip(tasks, columns, strict=True)]
        rows.append([*_names(method), *cells])
    behind = [_behind(task, column, default) for task, column in zip(tasks, columns, strict=True)]
    rows.append(["*behind the best*", "", "", *behind])
    parts = [markdown(header, rows), NOTE + _drawn(tasks, columns), _failures(outcomes)]
    return "\n\n".join(part for part in parts if part)


def _column(outcomes: Sequence[Outcome], task: Task) -> Values:
    """The values of each method at the task's share of units; those of the original under None."""
    found: dict[Method | None, list[float]] = {}
    for outcome in outcomes:
        trial = outcome.trial
        here = trial.task == task.name and (trial.method is None or trial.keep == task.keep)
        if here and outcome.value is not None:
            found.setdefault(trial.method, []).append(outcome.value)
    return found


def _best(task: Task, column: Values) -> float | None:
    means = [float(np.mean(values)) for method, values in column.items() if method]
    return (max if task.rises else min)(means, default=None)


def _cell(task: Task, column: Values, method: Method | None) -> str:
    if method not in column:
        return ""
    value = float(np.mean(column[method]))
    text = task.text.format(value)
    best = _best(task, column)
    # What reads the same as the best is as good.
    is_best = method is not None and best is not None and text == task.text.format(best)
    return f"**{text}**" if is_best else text


def _names(method: Method | None) -> list[str]:
    if method is None:
        return ["original", "", ""]
    steps = f", {method.steps} steps" if method.steps > 1 else ""
    return [method.criterion, method.recover, method.allocate + steps]


def _behind(task: Task, column: Values, default: Method) -> str:
    best = _best(task, column)
    if best is None or default not in column:
        return ""
    lack = (best - float(np.mean(column[default]))) * (1.0 if task.rises else -1.0)
    return f"{max(0.0, lack / abs(best)):.1%}"


def _drawn(tasks: Sequence[Task], columns: Sequence[Values]) -> str:
    draws = max((len(values) for column in columns for values in column.values()), default=1)
    if draws == 1:
        return "\nEach entry is a single draw of calibration inputs and of what is random."
    spreads = []
    for task, column in zip(tasks, columns, strict=True):
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
