"""A Markdown table of trial outcomes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from pages import markdown
from tasks import TASKS, Task
from trials import Method, Outcome

Values = Mapping[Method | None, Mapping[int, float]]
Columns = Mapping[Task, Values]
NOTE = """\
Metric on labelled held-out data after pruning to the given share of units, with units chosen
and weights refitted on unlabelled inputs: mean and standard deviation over {draws} draws of the
calibration inputs and of anything random. The first row below the original is the default of
`prune`. A value is bold if it beats all others in its column by more than two standard errors
of the paired difference."""
# Differences of means that are larger, in standard errors, are taken for more than noise.
CLEAR = 2.0


def table(outcomes: Sequence[Outcome]) -> str:
    """A row per method, a column per model at its share of units."""
    names = list(dict.fromkeys(outcome.trial.task for outcome in outcomes))
    columns = {TASKS[name]: _column(outcomes, TASKS[name]) for name in names}
    methods = [m for m in dict.fromkeys(outcome.trial.method for outcome in outcomes) if m]
    header = ["criterion", "recovery", "allocation"]
    header += [f"{task.name}, {task.metric} at {task.keep}" for task in columns]
    rows = [["original", "", "", *_cells(columns, None)]]
    rows += [[m.criterion, m.recover, ", ".join(m.ways), *_cells(columns, m)] for m in methods]
    draws = max((len(found) for column in columns.values() for found in column.values()), default=0)
    note = NOTE.format(draws=draws)
    parts = [markdown(header, rows), note, _failures(outcomes)]
    return "\n\n".join(part for part in parts if part)


def _column(outcomes: Sequence[Outcome], task: Task) -> Values:
    """The values of each method by seed, at the task's share; those of the original under None."""
    found: dict[Method | None, dict[int, float]] = {}
    for outcome in outcomes:
        trial = outcome.trial
        here = trial.task == task.name and (trial.method is None or trial.keep == task.keep)
        if here and outcome.value is not None:
            found.setdefault(trial.method, {})[trial.seed] = outcome.value
    return found


def _cells(columns: Columns, method: Method | None) -> list[str]:
    """What a method achieves, by model."""
    cells = []
    for task, column in columns.items():
        found = list(column.get(method, {}).values())
        text = task.text.format(float(np.mean(found))) if found else ""
        if len(found) > 1:
            text += f" ± {task.text.format(float(np.std(found, ddof=1))).split()[0]}"
        cells.append(f"**{text}**" if method and _is_best(task, column, method) else text)
    return cells


def _is_best(task: Task, column: Values, method: Method) -> bool:
    """Whether a method beats every other one by more than noise."""
    own = column.get(method, {})
    others = [found for other, found in column.items() if other not in (None, method)]
    return bool(own) and bool(others) and all(_is_ahead(task, own, found) for found in others)


def _is_ahead(task: Task, one: Mapping[int, float], other: Mapping[int, float]) -> bool:
    sign = 1.0 if task.rises else -1.0
    leads = [sign * (one[seed] - other[seed]) for seed in one.keys() & other.keys()]
    if len(leads) < 2:
        return False
    return float(np.mean(leads)) > CLEAR * float(np.std(leads, ddof=1)) / math.sqrt(len(leads))


def _failures(outcomes: Sequence[Outcome]) -> str:
    lines = [
        f"- {outcome.trial.task}, {outcome.trial.method or 'original'}: {outcome.reason}"
        for outcome in outcomes
        if outcome.value is None
    ]
    return "\n".join(["Not measured:", "", *dict.fromkeys(lines)]) if lines else ""
