"""What the command line offers, from Python."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from onnx_rnn_prune.data import places
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.flow.arguments import (
    MODES,
    check_progress,
    frozen,
    one_of,
    recovery,
    whole,
)
from onnx_rnn_prune.flow.choice import choose_plan
from onnx_rnn_prune.flow.comparing import bench, compare
from onnx_rnn_prune.flow.feeding import open_data
from onnx_rnn_prune.flow.finish import finish
from onnx_rnn_prune.flow.interface import read_interface
from onnx_rnn_prune.flow.opening import ModelSource, open_model
from onnx_rnn_prune.flow.request import read_request
from onnx_rnn_prune.flow.result import PruneResult
from onnx_rnn_prune.flow.stages import read_stages
from onnx_rnn_prune.flow.studying import study
from onnx_rnn_prune.flow.worth import never_worth
from onnx_rnn_prune.model import signature
from onnx_rnn_prune.model.external import stored_bytes
from onnx_rnn_prune.plan.cost import count_params
from onnx_rnn_prune.plan.plan import Plan, check_plan
from onnx_rnn_prune.progress import Progress, silent
from onnx_rnn_prune.report.build import outlet_rows

__all__ = ["apply", "bench", "compare", "inspect", "plan", "prune"]

_NOTHING: Mapping[str, object] = MappingProxyType({})


def prune(
    model: ModelSource,
    *,
    keep: str | float | None = None,
    budget: str | None = None,
    data: object = None,
    eval_data: object = None,
    criterion: str | None = None,
    allocate: str = "uniform",
    recover: str | None = None,
    mode: str = "shrink",
    shrink_states: bool = False,
    state_metadata: str | Sequence[str] = (),
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
    """Removes units of recurrent layers, and proves what is left.

    Args:
        model: a path or a model; it is not changed.
        keep: units that each layer keeps: "40%", 0.4, or 160 (units); half of them where there is
            no budget either.
        budget: what the result may have at most: "params=30%", "flops=2M", "bytes=1MB".
        data: inputs to calibrate with, see `data.open_feeds`; made up where there are none.
        eval_data: inputs to report drift on; a part of `data` that nothing was fitted on otherwise.
        criterion: how units are ranked; reconstruction with data, l2 without.
        allocate: uniform, or global for one ranking over all layers.
        recover: none, bias or lstsq; None or "auto" for the best that the data allows.
        mode: shrink, or zero to keep all shapes.
        shrink_states: lets states that are inputs and outputs of the model hold the entries of kept
            units only, in the order of the plan.
        state_metadata: a key of the model's metadata that holds the width of a state, or several.
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
    request = read_request(
        keep, budget, criterion, allocate, recover, only, skip, align, min_units, seed
    )
    one_of(mode, MODES, "--mode")
    interface = read_interface(shrink_states, state_metadata, mode)
    stages = read_stages(rank, quantize)
    check_progress(progress)
    if budget is not None and mode == "zero":
        raise PruneError(
            "zeros take as much room as weights", where="--budget", remedy="use --mode shrink"
        )
    inputs = places(model, data, eval_data)
    opened = open_model(model, frozen(freeze))
    given = open_data(opened, data, eval_data, seed)
    plan_, studied = choose_plan(opened, given, request, progress)
    result = finish(opened, given, plan_, studied, recover, mode, interface, stages, progress)
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
    keep: str | float | None = None,
    budget: str | None = None,
    data: object = None,
    criterion: str | None = None,
    allocate: str = "uniform",
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
        keep, budget, criterion, allocate, None, only, skip, align, min_units, seed
    )
    check_progress(progress)
    opened = open_model(model, frozen(freeze))
    chosen, _ = choose_plan(opened, open_data(opened, data, None, seed), request, progress)
    return chosen


def apply(
    model: ModelSource,
    plan: Plan | str | Path,
    *,
    data: object = None,
    eval_data: object = None,
    recover: str | None = None,
    mode: str = "shrink",
    freeze: Mapping[str, object] = _NOTHING,
    shrink_states: bool = False,
    state_metadata: str | Sequence[str] = (),
    rank: str | float | None = None,
    quantize: str | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> PruneResult:
    """Removes the units that a plan (a value or a file) does not keep; arguments as in `prune`."""
    start = time.perf_counter()
    recovery(recover)
    one_of(mode, MODES, "--mode")
    interface = read_interface(shrink_states, state_metadata, mode)
    stages = read_stages(rank, quantize)
    whole(seed, "--seed", 0)
    check_progress(progress)
    inputs = places(model, plan, data, eval_data)
    chosen = plan if isinstance(plan, Plan) else Plan.load(plan)
    opened = open_model(model, frozen(freeze))
    check_plan(chosen, opened.model, opened.layers)
    given = open_data(opened, data, eval_data, seed)
    result = finish(opened, given, chosen, None, recover, mode, interface, stages, progress)
    result.report["seconds"] = time.perf_counter() - start
    return replace(result, inputs=inputs)


def inspect(model: ModelSource, *, freeze: Mapping[str, object] = _NOTHING) -> dict[str, Any]:
    """The recurrent layers of a model, what they cost, and where their units end."""
    opened = open_model(model, frozen(freeze))
    total = count_params(opened.document)
    warnings = list(opened.notes)
    rows: dict[str, Any] = {}
    pinned: Mapping[str, str] = {}
    try:
        data = open_data(opened, None, None, seed=0)
        names = [layer.name for layer in opened.layers]
        studied = study(opened, names, data, silent)
        prepared = studied.prepared
        rows = outlet_rows(opened.layers, prepared.ends, prepared.restored)
        pinned = {**prepared.left, **never_worth(opened, data, studied)}
    except PruneError as error:
        warnings.append(f"where the units end is not known: {error}")
    return {
        "model": {
            "path": None if not isinstance(model, str | Path) else str(model),
            "bytes": stored_bytes(opened.model, like=opened.model),
            "params": total,
            "inputs": [str(port) for port in signature.inputs(opened.model)],
            "outputs": [str(port) for port in signature.outputs(opened.model)],
        },
        "layers": [
            {
                "name": layer.name,
                "op": layer.cell.op,
                "direction": layer.direction,
                "scope": layer.scope,
                "hidden": layer.hidden,
                "input": layer.input_size,
                "params": layer.params(),
                "share_of_params": layer.params() / max(total, 1),
                "flops_per_step": layer.flops(),
                "outlets": rows.get(layer.name, []),
                "pinned": pinned.get(layer.name),
            }
            for layer in opened.layers
        ],
        "warnings": warnings,
    }
