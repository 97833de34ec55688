"""Pruning: prune, and its two halves plan and apply."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from onnx_rnn_prune.arguments import check_progress, frozen, globs, streaming
from onnx_rnn_prune.calibration import asked_sizes, labelled, open_data
from onnx_rnn_prune.data import input_paths
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.interface import read_interface
from onnx_rnn_prune.opened_model import ModelSource, open_model
from onnx_rnn_prune.pipeline.finish import finish
from onnx_rnn_prune.pipeline.planning import Asked, check_choice, make_plan
from onnx_rnn_prune.pipeline.result import PruneResult
from onnx_rnn_prune.pipeline.treatment import read_stages, read_treatment
from onnx_rnn_prune.progress import Progress, silent
from onnx_rnn_prune.selection.choice import choose_plan
from onnx_rnn_prune.selection.request import read_request
from onnx_rnn_prune.trace.plan import Plan, check_plan

_NOTHING: Mapping[str, object] = MappingProxyType({})
Amount = str | float | Mapping[str, str | float] | Sequence[str | float]


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
    layers: str | Sequence[str] = "recurrent",
    only: str | Sequence[str] = (),
    skip: str | Sequence[str] = (),
    align: int = 1,
    min_units: int = 1,
    rank: str | float | None = None,
    quantize: str | None = None,
    freeze: Mapping[str, object] = _NOTHING,
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
            or globs of names.
        only: a glob of the layers to prune, or several.
        skip: a glob of layers to leave alone, or several.
        align: keep a multiple of so many units.
        min_units: keep at least so many units in each layer.
        rank: gives the inputs of layers a lower rank: "25%" or 0.25 of the full one, 32, or
            "energy=99%" of what the gates read.
        quantize: int8, fp16, or "bits=4" for weights held in so many bits.
        freeze: inputs to fix to one value, by name; they and the branches not taken go.
        seed: for criteria and inputs that are drawn.
        progress: is told how far the work is.

    Raises:
        PruneError: something that the user can mend.
        Unmet: the result does not pass the self-check, or a budget cannot be met.
    """
    start = time.perf_counter()
    has_data = data is not None
    stream = streaming(stream, has_data)
    stages = read_stages(rank, sparsify, sparsify_by, sparse_initializers, quantize, has_data)
    treatment = read_treatment(
        recover, distill_minutes, schedule, steps, mode, shrink_states, state_metadata, stages, seed
    )
    choices = treatment.schedule.choices
    request = read_request(
        keep, budget, criterion, allocate, per, choices, recover, only, skip, align, min_units, seed
    )
    chosen = {"--keep": keep, "--budget": budget, "--criterion": criterion}
    chosen |= {"--align": None if align == 1 else align}
    chosen |= {"--min-units": None if min_units == 1 else min_units}
    check_choice(lossless, masks, recover, chosen)
    check_progress(progress)
    asked = asked_sizes(data, size)
    if budget is not None and mode == "zero":
        raise PruneError(
            "zeros take as much room as weights", where="--budget", remedy="use --mode=shrink"
        )
    inputs = input_paths(model, data, eval_data, masks)
    opened = open_model(model, frozen(freeze), globs(layers, "--layers"))
    given = open_data(opened, data, eval_data, seed, asked, stream)
    given = replace(given, warnings=()) if lossless else given  # it takes no data
    given = labelled(given, loss, opened, treatment.learns, request.learns)
    made = make_plan(opened, given, request, treatment, lossless, masks, budget, start, progress)
    result = finish(opened, given, made.plan, made.traced, made.treatment, made.asked, progress)
    return replace(result, inputs=inputs)


def plan(
    model: ModelSource,
    *,
    keep: Amount | None = None,
    budget: str | None = None,
    data: object = None,
    size: object = None,
    stream: bool | None = None,
    criterion: str | None = None,
    loss: str | Callable[..., Any] | None = None,
    allocate: str = "uniform",
    per: str = "units",
    steps: int = 1,
    shrink_states: bool = False,
    layers: str | Sequence[str] = "recurrent",
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
    stream = streaming(stream, data is not None)
    check_progress(progress)
    asked = asked_sizes(data, size)
    opened = open_model(model, frozen(freeze), globs(layers, "--layers"))
    given = open_data(opened, data, None, seed, asked, stream)
    given = labelled(given, loss, opened, request.learns)
    chosen, _ = choose_plan(opened, given, request, interface, progress)
    return chosen


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
    freeze: Mapping[str, object] = _NOTHING,
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
    has_data = data is not None
    stream = streaming(stream, has_data)
    stages = read_stages(rank, sparsify, sparsify_by, sparse_initializers, quantize, has_data)
    treatment = read_treatment(
        recover, distill_minutes, schedule, steps, mode, shrink_states, state_metadata, stages, seed
    )
    check_progress(progress)
    asked = asked_sizes(data, size)
    inputs = input_paths(model, plan, data, eval_data)
    chosen = plan if isinstance(plan, Plan) else Plan.load(plan)
    opened = open_model(model, frozen(freeze), planned=chosen.layers)
    check_plan(chosen, opened.model, opened.layers)
    given = open_data(opened, data, eval_data, seed, asked, stream)
    given = labelled(given, loss, opened, treatment.learns)
    result = finish(opened, given, chosen, None, treatment, Asked(start), progress)
    return replace(result, inputs=inputs)
