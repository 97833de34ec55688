"""The functions of the package: one for each command."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from onnx_rnn_prune import inspection, rolling
from onnx_rnn_prune.calibration import Calibration, labelled, open_data, open_three
from onnx_rnn_prune.data import input_paths
from onnx_rnn_prune.errors import Note, PruneError
from onnx_rnn_prune.opened_model import (
    ModelSource,
    OpenedModel,
    check_globs,
    open_model,
    read_model,
)
from onnx_rnn_prune.options import Options
from onnx_rnn_prune.pipeline import Planned, PruneResult, Treatment, choose, finish
from onnx_rnn_prune.progress import Progress, silent
from onnx_rnn_prune.report.schema import InspectReport, SensitivityReport
from onnx_rnn_prune.search.executor import Executor
from onnx_rnn_prune.search.goal import Goal
from onnx_rnn_prune.search.search import Search, SearchBounds, measure_sensitivity
from onnx_rnn_prune.selection.profitability import worse
from onnx_rnn_prune.selection.request import Request
from onnx_rnn_prune.trace.plan import Plan, check_plan
from onnx_rnn_prune.validate.quality import read_quality

__all__ = ["apply", "bench", "compare", "inspect", "plan", "prune", "roll", "search", "sensitivity"]

Amount = str | float | Mapping[str, str | float] | Sequence[str | float]

# Checks report NaN and infinity; NumPy's warnings would only name lines of this package.
_quiet = np.errstate(all="ignore")

bench = _quiet(inspection.bench)
compare = _quiet(inspection.compare)
roll = _quiet(rolling.roll)


@_quiet
def prune(
    model: ModelSource,
    *,
    keep: Amount | None = None,
    budget: str | None = None,
    lossless: bool = False,
    masks: object = None,
    data: object = None,
    size: object = None,
    eval_data: object = None,
    stream: bool | None = None,
    criterion: str | None = None,
    loss: str | Callable[..., Any] | None = None,
    allocate: str = "uniform",
    per: str = "units",
    schedule: str = "hard",
    steps: int = 1,
    recover: str | None = None,
    distill_minutes: float = 10.0,
    mode: str = "shrink",
    shrink_states: bool = False,
    state_metadata: str | Sequence[str] = (),
    sparsify: str | None = None,
    sparsify_by: str | None = None,
    sparse_initializers: bool = False,
    layers: str | Sequence[str] = (),
    only: str | Sequence[str] = (),
    skip: str | Sequence[str] = (),
    align: int = 1,
    min_units: int = 1,
    rank: str | float | None = None,
    quantize: str | None = None,
    freeze: Mapping[str, object] | None = None,
    roll: bool = True,
    seed: int = 0,
    progress: Progress = silent,
) -> PruneResult:
    """Removes units, adjusts the remaining weights to compensate, and checks the result.

    Args:
        model: a path or an onnx.ModelProto, which is not changed.
        keep: units that each layer keeps: "40%", 0.4, or 160 (units); by default half, or what the
            budget allows. For single layers "encoder*=30%", {"encoder*": 0.3}, or a list of such;
            layers that are not mentioned keep all their units.
        budget: upper limit for the result: "params=30%", "flops=2M" or "bytes=1MB".
        lossless: removes only units that provably change nothing.
        masks: units chosen in training: an .npz file or a mapping from layer names to boolean
            arrays, [directions, H] or [H], True to keep.
        data: calibration inputs, see `data.open_feeds`; random ones by default.
        size: sizes of random inputs: {"input": (1, 512)}, or {"batch": 4} for a named dimension.
        eval_data: inputs to report on; by default the validation part of `data`.
        stream: for models whose states are inputs and outputs. True: each folder, or each iterable
            of feeds, is one stream of consecutive calls, which may lack the states. False: each
            call is judged by itself. By default, streams are found by the states in the feeds.
        criterion: how units are ranked; by default "reconstruction" with data, "l2" without.
        loss: what "taylor", "fisher" and "distill" learn from the labels in the feeds:
            "cross-entropy", "module:function", or a function of the outputs (a dict of PyTorch
            tensors) and the labels that returns a scalar tensor.
        allocate: how the cut is shared among layers: "uniform", "global" (one ranking of all
            units) or "joint" (by the measured sensitivity of each layer).
        per: what is counted when the cut is shared: "units", "params", "flops", or "ms" on this
            machine.
        schedule: "hard" removes units at once, "soft" gradually, refitting the others in between,
            "mixed" the more redundant half at once.
        steps: "hard" chooses units in this many steps, ranking the remaining ones anew in each;
            "soft" and "mixed" fade them out in this many.
        recover: "none", "bias", "lstsq", "distill", "merge" or "auto"; by default "auto".
        distill_minutes: training time for "distill".
        mode: "shrink", or "zero" to keep all shapes.
        shrink_states: state inputs and outputs of the model hold kept units only, in the order of
            the plan; layers that share a state keep equally many.
        state_metadata: what holds the width of such a state, to be updated: a metadata key,
            "key:path.to.number" if its value is JSON, a constant output, or a list of these.
        sparsify: weights to set to zero after pruning: "50%", "2:4", "block=4x1:50%" or
            "threshold=1e-3".
        sparsify_by: "obs" or "magnitude"; by default "obs" with data, "magnitude" without.
        sparse_initializers: stores only nonzero entries where that takes less space.
        layers: which layers may lose units: "recurrent", "all" (dense layers and convolutions as
            well), or globs of names; by default "all" with a budget, else "recurrent".
        only: a glob of layers to prune, or several.
        skip: a glob of layers to leave alone, or several.
        align: each layer keeps a multiple of this many units.
        min_units: each layer keeps at least this many units.
        rank: factors input weights: "25%" or 0.25 of the full rank, 32, or "energy=99%" of what
            the gates read.
        quantize: "int8", "fp16", or "bits=K".
        freeze: values of inputs to fix, by name; these inputs and the branches not taken are
            removed.
        roll: first turns recurrences that an exporter wrote out into layers.
        seed: for random choices and random inputs.
        progress: called with a task, the steps done and their total (None if unknown).

    Raises:
        PruneError: something that the user can fix.
        ConstraintError: the self-check failed, or the budget cannot be met.
    """
    start = time.perf_counter()
    options = Options.of(locals())
    request, treatment = Request.of(options), Treatment.of(options)
    inputs = input_paths(model, data, eval_data, masks)
    opened = open_model(model, options.inputs, request.layers)
    given = _opened(opened, options, treatment.learns, request.learns)
    given = replace(given, warnings=()) if lossless else given  # needs no data
    made = choose(opened, given, request, treatment, options.selection, start, progress)
    return replace(finish(opened, given, made, progress), inputs=inputs)


@_quiet
def plan(
    model: ModelSource,
    *,
    keep: Amount | None = None,
    budget: str | None = None,
    lossless: bool = False,
    masks: object = None,
    data: object = None,
    size: object = None,
    stream: bool | None = None,
    criterion: str | None = None,
    loss: str | Callable[..., Any] | None = None,
    allocate: str = "uniform",
    per: str = "units",
    steps: int = 1,
    shrink_states: bool = False,
    layers: str | Sequence[str] = (),
    only: str | Sequence[str] = (),
    skip: str | Sequence[str] = (),
    align: int = 1,
    min_units: int = 1,
    freeze: Mapping[str, object] | None = None,
    roll: bool = True,
    seed: int = 0,
    progress: Progress = silent,
) -> Plan:
    """Chooses the units to keep without pruning; arguments as in `prune`."""
    start = time.perf_counter()
    options = Options.of(locals())
    request, treatment = Request.of(options), Treatment.of(options)
    opened = open_model(model, options.inputs, request.layers)
    given = _opened(opened, options, request.learns)
    made = choose(opened, given, request, treatment, options.selection, start, progress)
    return made.plan


@_quiet
def apply(
    model: ModelSource,
    plan: Plan | str | Path,
    *,
    data: object = None,
    size: object = None,
    eval_data: object = None,
    stream: bool | None = None,
    schedule: str = "hard",
    steps: int = 1,
    recover: str | None = None,
    distill_minutes: float = 10.0,
    loss: str | Callable[..., Any] | None = None,
    mode: str = "shrink",
    freeze: Mapping[str, object] | None = None,
    roll: bool = True,
    shrink_states: bool = False,
    state_metadata: str | Sequence[str] = (),
    rank: str | float | None = None,
    sparsify: str | None = None,
    sparsify_by: str | None = None,
    sparse_initializers: bool = False,
    quantize: str | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> PruneResult:
    """Prunes by a plan, given as a value or a file; other arguments as in `prune`."""
    start = time.perf_counter()
    options = Options.of(locals())
    treatment = Treatment.of(options)
    inputs = input_paths(model, plan, data, eval_data)
    chosen = plan if isinstance(plan, Plan) else Plan.load(plan)
    opened = open_model(model, options.inputs, planned=chosen.layers)
    check_plan(chosen, opened.model, opened.layers)
    given = _opened(opened, options, treatment.learns)
    made = Planned(chosen, treatment, start)
    result = finish(opened, given, made, progress)
    reason = worse(result.report) if mode == "shrink" and chosen.cut() else None
    if reason is not None:
        warnings = [
            *result.report.warnings,
            Note(f"{reason}; it was written anyway, since the plan asks for it"),
        ]
        result = replace(result, report=replace(result.report, warnings=warnings))
    return replace(result, inputs=inputs)


@_quiet
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
    loss: str | Callable[..., Any] | None = None,
    recover: str | None = None,
    distill_minutes: float = 10.0,
    layers: str | Sequence[str] = (),
    only: str | Sequence[str] = (),
    skip: str | Sequence[str] = (),
    align: int = 1,
    min_units: int = 1,
    freeze: Mapping[str, object] | None = None,
    roll: bool = True,
    seed: int = 0,
    progress: Progress = silent,
) -> PruneResult:
    """Finds how many units each layer should keep to reach a goal.

    With a limit on quality, finds the fastest model within it; without one, the best model that is
    as fast or as small as requested. Feeds are split into calibration, validation (which selects
    among candidates) and test sets (on which the result is reported). `.report.search` lists all
    candidates. Other arguments as in `prune`.

    Args:
        model: a path or an onnx.ModelProto, which is not changed.
        data: inputs, see `data.open_feeds`, with labels if the metric needs them.
        eval_data: the test set; by default a part of `data`.
        max_nrmse: the largest deviation of an output, relative to its standard deviation.
        metric: a name or a function, see `validate.quality`.
        better: whether "higher" or "lower" values of your own metric are better.
        max_drop: how much of the metric may be lost: a number in its own units, or "1%" of the
            original's value.
        speedup: minimum speedup, 2 or "2x".
        latency: maximum time per run on one thread of this machine, "5ms" or milliseconds.
        params: maximum number of parameters, "30%" or "120k".
        bytes: maximum file size, "1MB".
        trials: maximum number of candidates.
        minutes: time limit of the whole search, from reading the model to the report, at most half
            of it for "distill". A search that it ends may find something else on another machine.
        study: a file that records trials; an interrupted search resumes from it.
        jobs: number of processes that run trials; it does not change the result.
        cluster: the address of a Dask scheduler whose workers run trials, "tcp://host:port".
        strategy: "greedy", "uniform" (the same share of each layer) or "optuna".
        pick: the number of the candidate to finish instead of the best one.

    Raises:
        PruneError: something that the user can fix.
        ConstraintError: no candidate meets the limits. If one meets them on the validation set but
            misses them on the test set, it is returned with `.report.search.met` False.
    """
    options = Options.of(locals())
    goal, effort, executor = Goal.of(options.target), options.effort, Executor.of(options.effort)
    treatment, request = Treatment.of(options), Request.of(options)
    learning = min(60.0 * distill_minutes, 30.0 * minutes) if treatment.learns else 0.0
    bounds = SearchBounds(effort.trials, effort.minutes, effort.jobs, kept=learning)
    inputs = input_paths(model, data, eval_data)
    opened = open_model(model, options.inputs, request.layers)
    given = open_three(opened, executor.reachable(options.inputs))
    given = labelled(given, loss, opened, treatment.learns, request.learns)
    memory = None if study is None else Path(study)
    found = Search(
        opened, given, goal, request, treatment, bounds, executor, memory, strategy, effort.pick
    )
    return replace(found(progress), inputs=inputs)


@_quiet
def sensitivity(
    model: ModelSource,
    *,
    data: object,
    stream: bool | None = None,
    metric: object = None,
    better: str | None = None,
    study: str | Path | None = None,
    jobs: int = 1,
    cluster: str | None = None,
    criterion: str | None = None,
    loss: str | Callable[..., Any] | None = None,
    layers: str | Sequence[str] = (),
    only: str | Sequence[str] = (),
    skip: str | Sequence[str] = (),
    align: int = 1,
    min_units: int = 1,
    freeze: Mapping[str, object] | None = None,
    roll: bool = True,
    seed: int = 0,
    progress: Progress = silent,
) -> SensitivityReport:
    """Measures how many units each layer can spare: prunes it alone to several widths and refits.

    Feeds are split as in `search`, which starts with the same measurements. Other arguments as
    there.

    Args:
        model: a path or an onnx.ModelProto, which is not changed.
        data: inputs, see `data.open_feeds`, with labels if the metric needs them.
        metric: a name or a function, see `validate.quality`.
        better: whether "higher" or "lower" values of your own metric are better.
        study: a file that records trials, also for a later `search`.
        jobs: number of processes that run trials; it does not change the result.
        cluster: the address of a Dask scheduler whose workers run trials, "tcp://host:port".

    Returns:
        `metric`: its name or None. `layers`: for each group of layers that are pruned together,
        their names in `layers`, the `units` of each direction, and `points` by increasing `kept`,
        each with `nrmse` (of the output that deviates most), `metric` and `ms` (predicted time per
        run). `splits`, `warnings` and `seconds`.

    Raises:
        PruneError: something that the user can fix.
    """
    options = Options.of(locals())
    quality = read_quality(metric, better)
    request, executor = Request.of(options), Executor.of(options.effort)
    if data is None:
        raise PruneError("sensitivity needs inputs", where="--data", remedy="give some")
    opened = open_model(model, options.inputs, request.layers)
    memory = None if study is None else Path(study)
    given = open_three(opened, executor.reachable(options.inputs))
    given = labelled(given, loss, opened, request.learns)
    return measure_sensitivity(opened, given, quality, request, executor, memory, progress)


@_quiet
def inspect(
    model: ModelSource,
    *,
    data: object = None,
    size: object = None,
    stream: bool | None = None,
    layers: str | Sequence[str] = (),
    freeze: Mapping[str, object] | None = None,
    roll: bool = True,
    seed: int = 0,
    progress: Progress = silent,
) -> InspectReport:
    """Lists the layers of a model, what they cost, and where their units end up.

    Recurrences that an exporter wrote out are listed as well: those that become layers, and what to
    do about the others. Arguments as in `prune`; times are measured on `data`.

    Raises:
        PruneError: the model has no recurrence, does not load, or does not accept the data.
    """
    options = Options.of(locals())
    asked, wanted = options.inputs, options.layers
    progress("reading", 0, None)
    path = str(model) if isinstance(model, str | Path) else None
    opened = read_model(model, asked, wanted)
    check_globs(opened, wanted)
    return inspection.inspect_model(opened, path, asked, progress)


def _opened(opened: OpenedModel, options: Options, *learning: bool) -> Calibration:
    """The given feeds, or random ones, with a loss on their labels."""
    return labelled(open_data(opened, options.inputs), options.recovery.loss, opened, *learning)
