"""Compare pruning methods on models with a task: `python tools/methods.py`.

Each outcome is saved at once, so an interrupted run can be resumed. `python tools/fetch_models.py
nsnet2 speech lac lac_tables newspaper` gets what the sample models do not cover. Training depends
on its minutes: see bench_nsnet2.py and bench_lac.py.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

# Each trial gets one core; libraries read this on import.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from fetch_models import default_folder
from methods_plot import plot
from methods_table import table
from pages import write_section
from tasks import TASKS
from trials import Cache, Method, Trial, fingerprint, run_all

DEFAULT = Method()
PLOT = Path(__file__).resolve().parent / "plots" / "methods.png"
# Alternatives to the default: other criteria, allocations, recoveries and schedules.
TABLE = (
    DEFAULT,
    Method(allocate="global"),
    Method(allocate="joint"),
    Method(steps=4),
    Method("l2"),
    Method("taylor"),
    Method("random"),
    Method(recover="merge"),
    Method(recover="none"),
    Method("l2", "none"),
)
# A few methods to compare at all shares of units.
CURVES = (
    DEFAULT,
    Method(recover="none"),
    Method("l2"),
    Method("l2", "none"),
    Method("random"),
    Method("random", "none"),
)
GRIDS = {"table": TABLE, "curves": CURVES}


def trials(grid: str, tasks: Sequence[str], seeds: int) -> Iterator[Trial]:
    """The trials to run, the original of each model first."""
    for name in tasks:
        yield Trial(name)
        for keep in TASKS[name].keeps if grid == "curves" else (TASKS[name].keep,):
            for method in GRIDS[grid]:
                for seed in range(seeds):
                    yield Trial(name, keep, seed, method)


def parsed() -> argparse.Namespace:
    """The parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--grid", choices=GRIDS, default="table", help="which methods to try")
    add("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="models to try them on")
    add("--seeds", type=int, default=5, help="draws of what is random and of calibration data")
    add("--jobs", type=int, default=2, help="trials at a time, each on one core")
    add("--limit", type=float, default=600.0, help="seconds that choosing and cutting may take")
    add("--models", type=Path, default=default_folder(), help="folder to read")
    add("--cache", type=Path, default=default_folder().parent / "methods.jsonl", help="outcomes")
    add("--reuse", action="store_true", help="take outcomes that other code had, too")
    add("--plot", type=Path, nargs="?", const=PLOT, help="file for the curves; needs matplotlib")
    add("--write", action="store_true", help="put the table into tools/results")
    return parser.parse_args()


def main() -> int:
    """Runs the requested trials; the exit code is 1 if one failed."""
    choices = parsed()
    code = fingerprint()
    cache = Cache(choices.cache, "" if choices.reuse else code)
    wanted = list(dict.fromkeys(trials(choices.grid, choices.tasks, choices.seeds)))
    try:
        done = run_all(choices.models, wanted, cache, code, choices.limit, choices.jobs)
        for number, outcome in enumerate(done, start=1):
            trial = outcome.trial
            value = outcome.reason if outcome.value is None else f"{outcome.value:.4f}"
            name = f"{trial.task} {trial.keep}, {trial.method or 'original'}, {trial.seed}"
            print(f"{number}: {name}: {value} ({outcome.seconds:.0f} s)", file=sys.stderr)
        outcomes = [cache.outcomes[trial] for trial in wanted]
        text = table(outcomes)
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
