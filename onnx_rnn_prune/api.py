"""What the command line offers, from Python."""

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

# What is no number fails a check, which says so; NumPy's warnings name lines of this package only.
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
    """Removes units of layers, and proves what is left.

    Args:
        model: a path or a model; it is not changed.
        keep: units that each layer keeps: "40%", 0.4, or 160 (units); half of them where there is
            no budget either. For some layers: "encoder*=30%", or {"encoder*": 0.3}; several in a
            list; layers that nothing is said of keep all.
        budget: what the result may have at most: "params=30%", "flops=2M", "bytes=1MB".
        lossless: removes just the units that provably change nothing.
        masks: units to keep, from training: an .npz file or a mapping, by layer name booleans of
            shape [directions, H] or [H].
        data: inputs to calibrate with, see `data.open_feeds`; made up where there are none.
        size: sizes of made-up inputs: {"input": (1, 512)}, or of a named dimension {"batch": 4}.
        eval_data: inputs to report drift on; a part of `data` that nothing was fitted on otherwise.
        stream: of models whose states are inputs and outputs, whether feeds follow one another:
            True where each folder, or each iterable of feeds, is one stream in order, of which
            feeds may leave the states out; False to judge each call by itself; None where the
            states in the feeds tell.
        criterion: how units are ranked; reconstruction with data, l2 without.
        loss: of labels that lie in feeds, for the criteria taylor and fisher and for distill:
            cross-entropy, or a function of PyTorch that takes the outputs (a dict of tensors) and
            the labels and returns one number, itself or as "module:function".
        allocate: uniform; global for one ranking over all layers; or joint, which measures what
            cuts of each layer do, and shares the cut by that.
        per: what a shared cut is paid in: units, params, flops, or ms (of this machine).
        schedule: how units leave: hard, at once; soft, fading out while the others are refitted;
            mixed, the better explained half at once.
        steps: in how many steps: hard chooses units in so many, each on the model that the one
            before left; soft and mixed fade in so many.
        recover: none, bias, lstsq, distill or merge; None or "auto" for lstsq where there is data.
        distill_minutes: how long distill may train.
        mode: shrink, or zero to keep all shapes.
        shrink_states: lets states that are inputs and outputs of the model hold the entries of kept
            units only, in the order of the plan; layers that share one keep equally many.
        state_metadata: what holds the width of a state and is to follow, or several: a key of the
            metadata, "key:path.to.number" where that is JSON, or an output that is constant.
        sparsify: weights to set to zero once units are cut: "50%", "2:4", "block=4x1:50%",
            "threshold=1e-3".
        sparsify_by: magnitude or obs; obs with data, magnitude without.
        sparse_initializers: stores weights as their entries that are not zero, where that is less.
        layers: which layers may lose units: "recurrent", "all" with dense layers and convolutions,
            or globs of names; all in a search or with a budget, else recurrent ones.
        only: a glob of the layers to prune, or several.
        skip: a glob of layers to leave alone, or several.
        align: keep a multiple of so many units.
        min_units: keep at least so many units in each layer.
        rank: gives the inputs of layers a lower rank: "25%" or 0.25 of the full one, 32, or
            "energy=99%" of what the gates read.
        quantize: int8, fp16, or "bits=4" for weights held in so many bits.
        freeze: inputs to fix to one value, by name; they and the branches not taken go.
        roll: makes layers of recurrences that an exporter wrote out, before anything else, where
            that is proven to change nothing.
        seed: for criteria and inputs that are drawn.
        progress: is told how far the work is.

    Raises:
        PruneError: something that the user can mend.
        ConstraintError: the result does not pass the self-check, or a budget cannot be met.
    """
    start = time.perf_counter()
    options = Options.of(locals())
    request, treatment = Request.of(options), Treatment.of(options)
    inputs = input_paths(model, data, eval_data, masks)
    opened = open_model(model, options.inputs, request.layers)
    given = _opened(opened, options, treatment.learns, request.learns)
    given = replace(given, warnings=()) if lossless else given  # it takes no data
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
    """Chooses the units to keep, and changes nothing; arguments as in `prune`."""
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
    """Removes the units that a plan (a value or a file) does not keep; arguments as in `prune`."""
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
            Note(f"{reason}; it was written because the plan asks for it"),
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
    """Finds how many units each layer keeps, from what the result must be like.

    With a limit on what may be lost, the fastest cut within it; else the best one that is as fast
    or small as asked for. Layers get different widths. What selects among cuts is disjoint from
    what they are fitted on, and both from what is reported; `.report.search` has all cuts that
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
        ConstraintError: no cut is within the limits. A result that is within them on what selected
            it, and not on what is reported, is returned; then `.report.search.met` is False.
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
    """What each layer can spare: it alone is cut to several widths, recovered and run.

    Feeds are split as in `search`, which measures the same first. Other arguments are as there.

    Args:
        model: a path or a model; it is not changed.
        data: inputs, see `data.open_feeds`; with labels beside them where the metric needs those.
        metric: how good a model is, see `validate.quality`: a name, or a function.
        better: of a function, whether higher or lower is better.
        study: a file that remembers what was measured, also for a `search`.
        jobs: processes of this machine that make cuts; their number changes no result.
        cluster: the address of a Dask scheduler whose workers make them instead, "tcp://host:port".

    Returns:
        `metric`, its name or None; `layers`, a row for each group of layers that are cut together:
        `layers`, their names, `units`, how many each direction has, and `points`, which rise in
        `kept` to all units, with `nrmse` (of the output that deviates most, relative to its
        spread), `metric` and `ms`, what a run of the model is predicted to take; `splits`,
        `warnings` and `seconds`.

    Raises:
        PruneError: something that the user can mend.
    """
    options = Options.of(locals())
    quality = read_quality(metric, better)
    request, executor = Request.of(options), Executor.of(options.effort)
    if data is None:
        raise PruneError(
            "measuring what layers can spare takes inputs", where="--data", remedy="give some"
        )
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
    """The layers of a model, what they cost, and where their units end.

    Also recurrences that an exporter wrote out, which of them become layers, and what to do about
    the others. Arguments are as in `prune`; time is measured on `data`.

    Raises:
        PruneError: it has no recurrence of any kind, does not load, or the data do not suit it.
    """
    options = Options.of(locals())
    asked, wanted = options.inputs, options.layers
    progress("reading", 0, None)
    path = str(model) if isinstance(model, str | Path) else None
    opened = read_model(model, asked, wanted)
    check_globs(opened, wanted)
    return inspection.inspect_model(opened, path, asked, progress)


def _opened(opened: OpenedModel, options: Options, *learning: bool) -> Calibration:
    """The feeds that the user gives, or made-up ones, with a loss of the labels in them."""
    return labelled(open_data(opened, options.inputs), options.recovery.loss, opened, *learning)
