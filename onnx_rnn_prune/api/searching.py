"""Search: a result for what it must be like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from onnx_rnn_prune.arguments import (
    above_zero,
    check_progress,
    frozen,
    one_of,
    streaming,
    whole,
)
from onnx_rnn_prune.calibration import open_three
from onnx_rnn_prune.data import input_paths
from onnx_rnn_prune.opened_model import ModelSource, open_model
from onnx_rnn_prune.pipeline.result import PruneResult
from onnx_rnn_prune.pipeline.treatment import read_treatment
from onnx_rnn_prune.progress import Progress, silent
from onnx_rnn_prune.search.executor import read_executor
from onnx_rnn_prune.search.goal import read_goal
from onnx_rnn_prune.search.search import Bounds, Search
from onnx_rnn_prune.search.strategies import STRATEGIES
from onnx_rnn_prune.selection.request import read_request

_NOTHING: Mapping[str, object] = MappingProxyType({})


def search(
    model: ModelSource,
    *,
    data: object,
    eval_data: object = None,
    stream: bool | None = None,
    max_nrmse: float | None = None,
    metric: object = None,
    better: str | None = None,
    max_drop: str | float | None = None,
    speedup: str | float | None = None,
    latency: str | float | None = None,
    params: str | None = None,
    bytes: str | None = None,
    trials: int = 200,
    minutes: float = 15.0,
    study: str | Path | None = None,
    jobs: int = 1,
    cluster: str | None = None,
    strategy: str = "greedy",
    pick: int | None = None,
    criterion: str | None = None,
    recover: str | None = None,
    distill_minutes: float = 10.0,
    only: str | Sequence[str] = (),
    skip: str | Sequence[str] = (),
    align: int = 1,
    min_units: int = 1,
    freeze: Mapping[str, object] = _NOTHING,
    seed: int = 0,
    progress: Progress = silent,
) -> PruneResult:
    """Finds how many units each layer keeps, from what the result must be like.

    With a limit on what may be lost, the fastest cut within it; else the best one that is as fast
    or small as asked for. Layers get different widths. What selects among cuts is disjoint from
    what they are fitted on, and both from what is reported; `.report["search"]` has all cuts that
    were tried. Other arguments are as in `prune`.

    Args:
        model: a path or a model; it is not changed.
        data: inputs, see `data.open_feeds`; with labels beside them where the metric needs those.
        eval_data: inputs to report on; a part of `data` otherwise.
        max_nrmse: the largest deviation of an output, relative to its spread.
        metric: how good a model is, see `validate.quality`: a name, or a function.
        better: of a function, whether higher or lower is better.
        max_drop: how much of the metric may be lost: a number in its own units, or "1%" of what the
            original reaches.
        speedup: how many times faster a run must be: 2, or "2x".
        latency: what a run may take on this machine, one thread: "5ms", or milliseconds.
        params: parameters that the model may have at most: "30%", "120k".
        bytes: those that the file may have at most: "1MB".
        trials: the most cuts that are tried.
        minutes: the longest that all of it may take, from reading the model to the report; distill
            gets half of it at most. Where that ends a search, what it finds depends on how fast the
            machine is.
        study: a file that remembers what was tried, so that the search can be stopped and goes on.
        jobs: processes of this machine that make trials; their number changes no result.
        cluster: the address of a Dask scheduler whose workers make them instead, "tcp://host:port".
        strategy: who says what is tried next: greedy; uniform, for the same share of each layer; or
            optuna, which draws cuts (and must be installed).
        pick: the number of the cut to finish instead of the best.

    Raises:
        PruneError: something that the user can mend.
        Unmet: no cut is within the limits. A result that is within them on what selected it, and
            not on what is reported, is returned; then `.report["search"]["met"]` is False.
    """
    goal = read_goal(max_nrmse, metric, better, max_drop, speedup, latency, params, bytes)
    treatment = read_treatment(recover, distill_minutes, "hard", 1, "shrink", False, (), (), seed)
    request = read_request(
        None, None, criterion, "uniform", "units", 1, recover, only, skip, align, min_units, seed
    )
    executor = read_executor(jobs, cluster)
    most = above_zero(minutes, "--minutes")
    learning = min(60.0 * treatment.course.minutes, 30.0 * most) if treatment.learns else 0.0
    bounds = Bounds(whole(trials, "--trials", 1), most, executor.jobs, kept=learning)
    chosen = one_of(strategy, STRATEGIES, "--strategy")
    number = None if pick is None else whole(pick, "--pick", 1)
    check_progress(progress)
    stream = streaming(stream, True)
    inputs = input_paths(model, data, eval_data)
    memory = None if study is None else Path(study)
    opened = open_model(model, frozen(freeze))
    given = open_three(opened, executor.reachable(data), executor.reachable(eval_data), stream)
    found = Search(
        opened, given, goal, request, treatment, bounds, executor, memory, chosen, number
    )
    return replace(found(progress), inputs=inputs)
