"""What `search` finds on published models: `python tools/bench_search.py`.

Each goal is a limit on the loss. The built-in strategy is compared with Optuna's, and with the best
cut that keeps the same share of all layers, found by bisection with the same limit and feeds.
`python tools/fetch_models.py nsnet2 speech lac lac_tables newspaper` gets models and data.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from bench_nsnet2 import KINDS, SHORT, TIMED_FRAMES, feed
from fetch_models import default_folder
from onnx_rnn_prune import search
from onnx_rnn_prune.errors import ConstraintError, PruneError
from onnx_rnn_prune.model.runner import Runner
from onnx_rnn_prune.pipeline import PruneResult
from onnx_rnn_prune.validate import timings
from pages import markdown, write_section
from speech import mixtures, split
from workloads import Workload, segmenter, thai

STRATEGIES = ("uniform", "greedy", "optuna")
SPEECH_SECONDS = 300.0
PARAGRAPHS = 400
SECONDS_PER_MODEL = 4.0
_MOST_WIDTHS = 6  # listed one by one
NOTE = f"""\
Each limit must hold on the validation set, with one standard error to spare; *on test feeds* is
the result on feeds not used in the search. *Uniform* is the best result with the same share of
all layers. Speeds are interleaved, one thread. NSNet2: {SPEECH_SECONDS:.0f} s of noisy speech
for calibration and selection, {SPEECH_SECONDS:.0f} s of other recordings for testing. lac:
{PARAGRAPHS} paragraphs, 1000 others for testing, F1 of words. oskut: messages in Thai. By
`python tools/bench_search.py`."""

Feed = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A model and a goal.

    Attributes:
        name: of the model.
        limit: the goal in words.
        path: of the model.
        data: feeds for calibration and selection.
        tests: feeds for the reported quality.
        goal: arguments of `search`.
        text: the format of the quality.
        timed: a feed to time.
    """

    name: str
    limit: str
    path: Path
    data: Sequence[Feed]
    tests: Sequence[Feed]
    goal: dict[str, Any]
    text: str
    timed: Feed


@dataclass(frozen=True)
class Row:
    """The result of a strategy.

    Attributes:
        task: the model.
        strategy: what chose the candidates.
        widths: of its layers.
        trials: number of trials.
        seconds: total time of the search.
        value: the quality on the test feeds.
        original: that of the original.
        speedup: the original's time over its own.
    """

    task: str
    strategy: str
    widths: tuple[int, ...]
    trials: int
    seconds: float
    value: float
    original: float
    speedup: float


def speech_task(folder: Path) -> Task:
    """NSNet2, whose gains may deviate by a share of their spread."""
    sets = split(folder / "speech")
    made = {
        name: [feed(piece) for piece in mixtures(sets[name], SPEECH_SECONDS, SHORT, seed, KINDS)]
        for name, seed in (("calibration", 0), ("evaluation", 2))
    }
    return Task(
        name="nsnet2",
        limit="NRMSE at most 0.2",
        path=folder / "nsnet2.onnx",
        data=made["calibration"],
        tests=made["evaluation"],
        goal={"max_nrmse": 0.2},
        text="NRMSE {:.3f}",
        timed={"input": made["evaluation"][0]["input"][:, :TIMED_FRAMES]},
    )


def text_task(folder: Path) -> Task:
    """lac, which may lose half a point of F1."""
    work = segmenter(folder, "lac", PARAGRAPHS)
    return of_workload(work, folder, "F1 at most 0.5 points lower", 0.005, "F1 {:.2%}")


def thai_task(folder: Path) -> Task:
    """oskut, the published model with the most layers: 204."""
    work = thai(folder, "oskut")
    return of_workload(work, folder, "agreement at most 1 % lower", "1%", "agreement {:.2%}")


def of_workload(work: Workload, folder: Path, limit: str, drop: float | str, text: str) -> Task:
    """A workload with another limit on the drop of its metric."""
    return Task(
        name=work.name,
        limit=limit,
        path=folder / f"{work.name}.onnx",
        data=work.data,
        tests=work.tests,
        goal={"metric": work.measure, "max_drop": drop},
        text=text,
        timed=work.timed[0],
    )


TASKS: dict[str, Callable[[Path], Task]] = {
    "nsnet2": speech_task,
    "lac": text_task,
    "oskut": thai_task,
}


def measure(task: Task, strategies: Sequence[str], minutes: float, study: Path | None) -> list[Row]:
    """A row for each strategy that finds something; the resulting files are timed in turns."""
    results: dict[str, PruneResult] = {}
    for strategy in strategies:
        print(f"{task.name}, {strategy}", file=sys.stderr)
        try:
            results[strategy] = search(
                task.path,
                data=task.data,
                eval_data=task.tests,
                strategy=strategy,
                minutes=minutes,
                study=study,
                **task.goal,
            )
        except ConstraintError as error:  # a strategy that finds nothing has no row
            print(error, file=sys.stderr)
    models = [onnx.load(task.path), *(result.model for result in results.values())]
    runners = [Runner(model, name=task.name) for model in models]
    times = timings(runners, task.timed, seconds=SECONDS_PER_MODEL * len(runners))
    pairs = zip(results.items(), times[1:], strict=True)
    return [row(task, strategy, result, time.ratio) for (strategy, result), time in pairs]


def row(task: Task, strategy: str, result: PruneResult, speedup: float) -> Row:
    """The result of one search."""
    report = result.report["search"]
    return Row(
        task=task.name,
        strategy=strategy,
        widths=tuple(layer["hidden_after"] for layer in result.report["layers"]),
        trials=len(report["candidates"]),
        seconds=report["seconds"],
        value=report["test"]["quality"],
        original=report["test"]["original"],
        speedup=speedup,
    )


def table(tasks: Sequence[Task], rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    header = ["model", "limit", "strategy", "units", "speed", "on test feeds", "trials", "took"]
    lines = []
    for task in tasks:
        for number, each in enumerate(own for own in rows if own.task == task.name):
            names = [task.name, task.limit] if number == 0 else ["", ""]
            value = task.text.format(each.value)
            if each.original:
                value += f" (original {task.text.format(each.original).split()[-1]})"
            many = len(each.widths) > _MOST_WIDTHS
            units = f"of {len(each.widths)} layers" if many else " + ".join(map(str, each.widths))
            cells = [each.strategy, units, f"{each.speedup:.2f}x", value, str(each.trials)]
            lines.append([*names, *cells, f"{each.seconds / 60:.1f} min"])
    return f"{markdown(header, lines)}\n\n{NOTE}"


def main() -> int:
    """Runs the measurements; the exit code is 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=default_folder(), help="folder to read")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    parser.add_argument("--minutes", type=float, default=10.0, help="that trials may take")
    parser.add_argument("--study", type=Path, help="file that remembers trials")
    parser.add_argument("--json", type=Path, help="file to write all numbers to")
    parser.add_argument("--write", action="store_true", help="put the table into tools/results")
    choices = parser.parse_args()
    try:
        tasks = [TASKS[name](choices.models) for name in choices.tasks]
        rows = [
            row
            for task in tasks
            for row in measure(task, choices.strategies, choices.minutes, choices.study)
        ]
        text = table(tasks, rows)
        print(text)
        if choices.json:
            numbers = [asdict(each) for each in rows]
            choices.json.write_text(json.dumps(numbers, indent=2) + "\n", "utf-8")
        if choices.write:
            write_section("search", text)
    except (PruneError, ValueError, OSError) as error:
        print(f"bench_search: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
