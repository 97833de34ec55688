"""What the command line offers, from Python."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx

from onnx_rnn_prune.data import Feeds, open_feeds, places, random_feeds
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.flow.arguments import (
    check_progress,
    deviation,
    frozen,
    thread_count,
    whole,
)
from onnx_rnn_prune.flow.choice import choose_plan
from onnx_rnn_prune.flow.feeding import open_data
from onnx_rnn_prune.flow.finish import finish
from onnx_rnn_prune.flow.inspecting import inspect_model
from onnx_rnn_prune.flow.interface import read_interface
from onnx_rnn_prune.flow.opening import ModelSource, as_run, open_model, read_model
from onnx_rnn_prune.flow.request import read_request
from onnx_rnn_prune.flow.result import PruneResult
from onnx_rnn_prune.flow.treatment import read_treatment
from onnx_rnn_prune.model import signature
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.external import stored_bytes
from onnx_rnn_prune.model.files import load_model
from onnx_rnn_prune.model.runner import Runner
from onnx_rnn_prune.plan.plan import Plan, check_plan
from onnx_rnn_prune.progress import Progress, silent
from onnx_rnn_prune.report.build import plain
from onnx_rnn_prune.trace.states import state_inputs
from onnx_rnn_prune.validate import drift, latency, timings

_NOTHING: Mapping[str, object] = MappingProxyType({})
Amount = str | float | Mapping[str, str | float] | Sequence[str | float]


def prune(
    model: ModelSource,
    *,
    keep: Amount | None = None,
    budget: str | None = None,
    data: object = None,
    eval_data: object = None,
    criterion: str | None = None,
    allocate: str = "uniform",
    per: str = "units",
    schedule: str = "hard",
    steps: int = 1,
    recover: str | None = None,
    distill_minutes: float = 10.0,
    mode: str = "shrink",
    shrink_states: bool = False,
    state_metadata: str | Sequence[str] = (),
    only: str | Sequence[str] = (),
    skip: str | Sequence[str] = (),
    align: int = 1,
    min_units: int = 1,
    freeze: Mapping[str, object] = _NOTHING,
    seed: int = 0,
    progress: Progress = silent,
) -> PruneResult:
    """Removes units of recurrent layers, and proves what is left.

    Args:
        model: a path or a model; it is not changed.
        keep: units that each layer keeps: "40%", 0.4, or 160 (units); half of them where there is
            no budget either. For some layers: "encoder*=30%", or {"encoder*": 0.3}; several in a
            list; layers that nothing is said of keep all.
        budget: what the result may have at most: "params=30%", "flops=2M", "bytes=1MB".
        data: inputs to calibrate with, see `data.open_feeds`; made up where there are none.
        eval_data: inputs to report drift on; a part of `data` that nothing was fitted on otherwise.
        criterion: how units are ranked; reconstruction with data, l2 without.
        allocate: uniform; global for one ranking over all layers; or joint, which measures what
            cuts of each layer do, and shares the cut by that.
        per: what a shared cut is paid in: units, params, flops, or ms (of this machine).
        schedule: how units leave: hard, at once; soft, fading out while the others are refitted;
            mixed, the better explained half at once.
        steps: in how many steps: hard chooses units in so many, each on the model that the one
            before left; soft and mixed fade in so many.
        recover: none, bias, lstsq or distill; None or "auto" for lstsq where there is data.
        distill_minutes: how long distill may train.
        mode: shrink, or zero to keep all shapes.
        shrink_states: lets states that are inputs and outputs of the model hold the entries of kept
            units only, in the order of the plan; layers that share one keep equally many.
        state_metadata: a key of the model's metadata that holds the width of a state, or several.
        only: a glob of the layers to prune, or several.
        skip: a glob of layers to leave alone, or several.
        align: keep a multiple of so many units.
        min_units: keep at least so many units in each layer.
        freeze: inputs to fix to one value, by name; they and the branches not taken go.
        seed: for criteria and inputs that are drawn.
        progress: is told how far the work is.

    Raises:
        PruneError: something that the user can mend.
        Unmet: the result does not pass the self-check, or a budget cannot be met.
    """
    start = time.perf_counter()
    treatment = read_treatment(
        recover, distill_minutes, schedule, steps, mode, shrink_states, state_metadata, seed
    )
    choices = treatment.schedule.choices
    request = read_request(
        keep, budget, criterion, allocate, per, choices, recover, only, skip, align, min_units, seed
    )
    check_progress(progress)
    if budget is not None and mode == "zero":
        raise PruneError(
            "zeros take as much room as weights", where="--budget", remedy="use --mode shrink"
        )
    inputs = places(model, data, eval_data)
    opened = open_model(model, frozen(freeze))
    given = open_data(opened, data, eval_data, seed)
    interface = treatment.interface
    plan_, studied = choose_plan(opened, given, request, interface, progress)
    result = finish(opened, given, plan_, studied, treatment, progress)
    result.report["warnings"] += plan_.notes
    result.report.update(
        keep=None if request.keep is None else str(request.keep),
        budget=budget,
        criterion=request.criterion_for(given),
        allocate=allocate,
        seconds=time.perf_counter() - start,
    )
    return replace(result, inputs=inputs)


def plan(
    model: ModelSource,
    *,
    keep: Amount | None = None,
    budget: str | None = None,
    data: object = None,
    criterion: str | None = None,
    allocate: str = "uniform",
    per: str = "units",
    steps: int = 1,
    shrink_states: bool = False,
    only: str | Sequence[str] = (),
    skip: str | Sequence[str] = (),
    align: int = 1,
    min_units: int = 1,
    freeze: Mapping[str, object] = _NOTHING,
    seed: int = 0,
    progress: Progress = silent,
) -> Plan:
    """Chooses the units to keep, and changes nothing; arguments as in `prune`."""
    request = read_request(
        keep, budget, criterion, allocate, per, steps, None, only, skip, align, min_units, seed
    )
    interface = read_interface(shrink_states, (), "shrink")
    check_progress(progress)
    opened = open_model(model, frozen(freeze))
    given = open_data(opened, data, None, seed)
    chosen, _ = choose_plan(opened, given, request, interface, progress)
    return chosen


def apply(
    model: ModelSource,
    plan: Plan | str | Path,
    *,
    data: object = None,
    eval_data: object = None,
    schedule: str = "hard",
    steps: int = 1,
    recover: str | None = None,
    distill_minutes: float = 10.0,
    mode: str = "shrink",
    freeze: Mapping[str, object] = _NOTHING,
    shrink_states: bool = False,
    state_metadata: str | Sequence[str] = (),
    seed: int = 0,
    progress: Progress = silent,
) -> PruneResult:
    """Removes the units that a plan (a value or a file) does not keep; arguments as in `prune`."""
    start = time.perf_counter()
    treatment = read_treatment(
        recover, distill_minutes, schedule, steps, mode, shrink_states, state_metadata, seed
    )
    check_progress(progress)
    inputs = places(model, plan, data, eval_data)
    chosen = plan if isinstance(plan, Plan) else Plan.load(plan)
    opened = open_model(model, frozen(freeze))
    check_plan(chosen, opened.model, opened.layers)
    given = open_data(opened, data, eval_data, seed)
    result = finish(opened, given, chosen, None, treatment, progress)
    result.report["seconds"] = time.perf_counter() - start
    return replace(result, inputs=inputs)


def inspect(
    model: ModelSource,
    *,
    data: object = None,
    freeze: Mapping[str, object] = _NOTHING,
    progress: Progress = silent,
) -> dict[str, Any]:
    """The recurrent layers of a model, what they cost, and where their units end.

    Also recurrences that an exporter wrote out, which cannot be pruned, and what to do about them.

    Args:
        model: a path or a model; it is not changed.
        data: inputs to measure time on, see `data.open_feeds`; made up where there are none.
        freeze: inputs to fix to one value, by name.
        progress: is told how far the work is.

    Raises:
        PruneError: it has no recurrence of any kind, does not load, or the data do not suit it.
    """
    check_progress(progress)
    progress("reading", 0, None)
    found = inspect_model(read_model(model, frozen(freeze)), data, progress)
    found["model"]["path"] = str(model) if isinstance(model, str | Path) else None
    return found


def compare(
    a: ModelSource,
    b: ModelSource,
    *,
    data: object = None,
    max_nrmse: float | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """How far the outputs of b are from those of a, and how size and latency compare.

    Args:
        a: the original, a path or a model.
        b: the other one.
        data: inputs, see `data.open_feeds`; made up where there are none.
        max_nrmse: the largest deviation of an output that passes.
        seed: for made-up inputs.
    """
    most, seed = deviation(max_nrmse, "--max-nrmse"), whole(seed, "--seed", 0)
    models = [load_model(source) for source in (a, b)]
    names = [_name(source, letter) for source, letter in ((a, "model A"), (b, "model B"))]
    first, second = (
        Runner(as_run(model), name=name) for model, name in zip(models, names, strict=True)
    )
    feeds = _feeds(models[0], data, first, seed)
    found = drift(first, second, feeds)
    worst = max((values.nrmse for values in found.values()), default=0.0)
    sizes = [stored_bytes(model, like=model) for model in models]
    return {
        "drift": {name: plain(values) for name, values in found.items()},
        "bytes": {"a": sizes[0], "b": sizes[1]},
        "latency": plain(latency(first, second, next(iter(feeds)))),
        "passed": most is None or (math.isfinite(worst) and worst <= most),
        "warnings": ["the inputs are made up: give --data"] if feeds.random else [],
    }


def bench(
    models: Sequence[ModelSource], *, data: object = None, threads: int = 1, seed: int = 0
) -> dict[str, Any]:
    """Times models against each other on one feed; the first is what the others compare with."""
    if not isinstance(models, Sequence) or isinstance(models, str) or not models:
        raise PruneError("there is nothing to time", where="bench", remedy="give a list of models")
    threads, seed = thread_count(threads, "--threads"), whole(seed, "--seed", 0)
    read = [load_model(source) for source in models]
    names = [_name(source, f"model {number}") for number, source in enumerate(models, start=1)]
    runners = [
        Runner(as_run(model), name=name, threads=threads)
        for model, name in zip(read, names, strict=True)
    ]
    feeds = _feeds(read[0], data, runners[0], seed)
    found = timings(runners, next(iter(feeds)))
    return {
        "rows": [
            {"model": name, "ms": timing.ms, "ratio": timing.ratio}
            for name, timing in zip(names, found, strict=True)
        ],
        "threads": threads,
        "warnings": ["the inputs are made up: give --data"] if feeds.random else [],
    }


def _feeds(model: onnx.ModelProto, data: object, runner: Runner, seed: int) -> Feeds:
    ports = signature.inputs(model)
    if data is None:
        return random_feeds(ports, seed=seed, count=3, run=runner)
    return open_feeds(data, ports, state_inputs(Document.read(model)))


def _name(source: ModelSource, otherwise: str) -> str:
    return str(source) if isinstance(source, str | Path) else otherwise
