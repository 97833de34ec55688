"""Compare pruning methods on models with a job: `python tools/methods.py`.

Criteria and recoveries are those that the package has. Each outcome goes to a file as it comes, so
that this can be stopped and goes on where it was. `python tools/fetch_models.py nsnet2 speech lac
lac_tables newspaper` gets what the sample models do not cover.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

# Each trial has one core; libraries read this when they are loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from fetch_models import default_folder
from methods_plot import plot
from methods_table import table
from onnx_rnn_prune.evaluation.recovery import RECOVERIES
from onnx_rnn_prune.evaluation.schedules import SCHEDULES
from onnx_rnn_prune.selection.criteria import CRITERIA
from onnx_rnn_prune.selection.request import STRATEGIES
from pages import write_section
from tasks import TASKS
from trials import Cache, Method, Trial, fingerprint, run_all

DEFAULT = Method()
STEPS = 4
SUM = "reconstruction+0.5*l2"
PLOT = Path(__file__).resolve().parent / "plots" / "methods.png"


def coarse(criteria: Sequence[str], recoveries: Sequence[str]) -> Iterator[Method]:
    """Every way to share, and every criterion with and without recovery; the default first."""
    yield from (Method(allocate=allocate) for allocate in STRATEGIES)
    for recover in ("lstsq", "none"):
        for criterion in sorted(criteria, key=lambda name: name != DEFAULT.criterion):
            yield Method(criterion, recover)


def full(criteria: Sequence[str], recoveries: Sequence[str]) -> Iterator[Method]:
    """The same, and all that can be done with the units that the default criterion picks."""
    yield from coarse(criteria, recoveries)
    yield from (Method(SUM, recover) for recover in ("lstsq", "none"))
    yield from (Method(recover=recover) for recover in recoveries)
    yield Method("l2", "none", allocate="global")
    yield Method(allocate="global", per="params")
    yield from (Method(schedule=schedule, steps=STEPS) for schedule in SCHEDULES)
    yield Method(rank="50%")
    yield from (Method(sparsify="2:4", sparsify_by=by) for by in ("obs", "magnitude"))
    yield from (Method(quantize=quantize) for quantize in ("int8", "fp16", "bits=4"))


def curves(criteria: Sequence[str], recoveries: Sequence[str]) -> Iterator[Method]:
    """A few methods to follow over all shares of units."""
    yield DEFAULT
    yield Method(recover="none")
    for criterion in ("l2", "random"):
        yield Method(criterion)
        yield Method(criterion, "none")


GRIDS: Mapping[str, Callable[[Sequence[str], Sequence[str]], Iterator[Method]]] = {
    "coarse": coarse,
    "full": full,
    "curves": curves,
}


def trials(
    grid: str, tasks: Sequence[str], methods: Sequence[Method], seeds: int
) -> Iterator[Trial]:
    """What is to be tried, the original of each model first."""
    for name in tasks:
        yield Trial(name)
        for keep in TASKS[name].keeps if grid == "curves" else (TASKS[name].keep,):
            for method in methods:
                for seed in range(seeds):
                    yield Trial(name, keep, seed, method)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--grid", choices=GRIDS, default="coarse", help="which methods to try")
    add("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="models to try them on")
    add("--criteria", nargs="+", choices=CRITERIA, default=list(CRITERIA))
    add(
        "--recover", nargs="+", choices=RECOVERIES, default=list(RECOVERIES), help="for --grid full"
    )
    add("--seeds", type=int, default=1, help="draws of what is random and of calibration data")
    add("--jobs", type=int, default=2, help="trials at a time, each on one core")
    add("--limit", type=float, default=600.0, help="seconds that choosing and cutting may take")
    add("--models", type=Path, default=default_folder(), help="folder to read")
    add("--cache", type=Path, default=default_folder().parent / "methods.jsonl", help="outcomes")
    add("--reuse", action="store_true", help="take outcomes that other code had, too")
    add("--plot", type=Path, nargs="?", const=PLOT, help="file for the curves; needs matplotlib")
    add("--write", action="store_true", help="put the table into tools/results")
    return parser.parse_args()


def main() -> int:
    """Tries what the command line asks for; the exit code says whether all could be."""
    choices = parsed()
    code = fingerprint()
    cache = Cache(choices.cache, "" if choices.reuse else code)
    methods = list(dict.fromkeys(GRIDS[choices.grid](choices.criteria, choices.recover)))
    wanted = list(dict.fromkeys(trials(choices.grid, choices.tasks, methods, choices.seeds)))
    try:
        done = run_all(choices.models, wanted, cache, code, choices.limit, choices.jobs)
        for number, outcome in enumerate(done, start=1):
            trial = outcome.trial
            value = outcome.reason if outcome.value is None else f"{outcome.value:.4f}"
            name = f"{trial.task} {trial.keep}, {trial.method or 'original'}, {trial.seed}"
            print(f"{number}: {name}: {value} ({outcome.seconds:.0f} s)", file=sys.stderr)
        outcomes = [cache.outcomes[trial] for trial in wanted]
        text = table(outcomes, DEFAULT)
        if choices.plot:
            plot(outcomes, choices.plot)
        print(text)
        if choices.write:
            write_section("methods", text)
    except (ImportError, ValueError, OSError) as error:
        print(f"methods: {error}", file=sys.stderr)
        return 1
    return 0 if all(outcome.value is not None for outcome in outcomes) else 3


if __name__ == "__main__":
    sys.exit(main())
