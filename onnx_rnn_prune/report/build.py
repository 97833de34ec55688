"""The report as plain values, with the keys that programs may rely on."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping
from dataclasses import asdict
from typing import Any

import onnx

from onnx_rnn_prune.cost.cost import count_params
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.external import stored_bytes
from onnx_rnn_prune.operators.layers import Layer
from onnx_rnn_prune.operators.recurrent import find_layers
from onnx_rnn_prune.trace.judged import STATE, Judged
from onnx_rnn_prune.trace.trace import GRAPH_OUTPUT, Outlet
from onnx_rnn_prune.validate import Drift

Ends = Mapping[Outlet, tuple[str, ...]]


def layer_rows(
    before: Iterable[Layer],
    after: Iterable[Layer],
    outlets: Mapping[str, Any],
    pinned: Mapping[str, str],
) -> list[dict[str, Any]]:
    """What became of each layer of a model."""
    later = {layer.name: layer for layer in after}
    return [
        {
            "name": layer.name,
            "op": layer.cell.op,
            "direction": layer.direction,
            "scope": layer.scope,
            "hidden_before": layer.hidden,
            "hidden_after": later[layer.name].hidden if layer.name in later else 0,
            "params_before": layer.params(),
            "params_after": later[layer.name].params() if layer.name in later else 0,
            "outlets": outlets.get(layer.name, []),
            "pinned": pinned.get(layer.name),
        }
        for layer in before
    ]


def outlet_rows(
    layers: Iterable[Layer],
    ends: Ends,
    restored: Mapping[Outlet, str],
    narrow: Container[Outlet] = (),
) -> dict[str, list[dict[str, str]]]:
    """Where the units of each layer end, by layer name; `narrow` leave with kept units only."""
    rows: dict[str, list[dict[str, str]]] = {}
    for layer in layers:
        found = []
        for outlet in sorted(set(ends) | set(restored)):
            if outlet.layer != layer.name:
                continue
            reason = restored.get(outlet)
            if reason is None:
                found += [_row(outlet.output, "absorbed", at, "") for at in ends[outlet]]
            elif outlet in narrow:
                found.append(_row(outlet.output, "narrow", "graph output", ""))
            else:
                at = "graph output" if outlet.consumer == GRAPH_OUTPUT else outlet.consumer
                found.append(_row(outlet.output, "restored", at, reason))
        used = {row["output"] for row in found}
        found += [_row(n, "unused", "", "") for n in layer.cell.outputs if n not in used]
        rows[layer.name] = found
    return rows


def drift_rows(
    found: Mapping[str, Drift], judged: Judged, streams: Mapping[str, Any] | None
) -> dict[str, dict[str, Any]]:
    """How far outputs are off, and the signals that some are judged by.

    Outputs have a `kind` where their own numbers say little, which is so of states that callers
    hand back, and signals a list of the outputs that they are the `signal_of`.

    Args:
        found: by output or signal.
        judged: what outputs are judged by.
        streams: what the report says of states, see `study.feeding.stream_row`.
    """
    rows: dict[str, dict[str, Any]] = {name: plain(values) for name, values in found.items()}
    for output in (streams or {}).get("states", {}).values():
        if output in rows:
            rows[output]["kind"] = STATE
    for output, kind in judged.kinds.items():
        if output in rows:
            rows[output]["kind"] = kind
        for signal in judged.signals[output]:
            if signal in rows and signal not in judged.outputs:
                rows[signal].setdefault("signal_of", []).append(output)
    return rows


def _row(output: str, end: str, at: str, reason: str) -> dict[str, str]:
    return {"output": output, "end": end, "at": at, "reason": reason}


def total_rows(before: onnx.ModelProto, after: onnx.ModelProto) -> dict[str, int]:
    """Parameters and bytes of two models."""
    totals: dict[str, int] = {}
    for name, model in (("before", before), ("after", after)):
        document = Document.read(model)
        totals[f"params_{name}"] = count_params(document)
        totals[f"rnn_params_{name}"] = sum(layer.params() for layer in find_layers(document.graph))
        totals[f"bytes_{name}"] = stored_bytes(model, like=before)
    return totals


def plain(value: Any) -> Any:
    """A dataclass or number as JSON knows it; what is not finite becomes None."""
    if hasattr(value, "__dataclass_fields__"):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
