"""Parts of reports that several commands share."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from itertools import groupby
from operator import attrgetter

import onnx

from onnx_rnn_prune.cost.cost import count_params
from onnx_rnn_prune.data.streams import Streams
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.external import stored_bytes
from onnx_rnn_prune.opened_model import OpenedModel, recurrent_keys
from onnx_rnn_prune.operators.feed_forward import all_layers
from onnx_rnn_prune.operators.layers import Layer, count_weights
from onnx_rnn_prune.report.schema import DriftRow, Environment, LayerRow, OutletRow, Totals
from onnx_rnn_prune.trace.judged import STATE, Judged
from onnx_rnn_prune.trace.propagation import GRAPH_OUTPUT, Outlet
from onnx_rnn_prune.validate import Drift

Ends = Mapping[Outlet, tuple[str, ...]]


def layer_rows(
    before: Iterable[Layer],
    after: Iterable[Layer],
    outlets: Mapping[str, Sequence[OutletRow]],
    pinned: Mapping[str, str],
) -> list[LayerRow]:
    """A row for each layer: what became of it."""
    before = list(before)
    found = {layer.name: layer for layer in after}
    later = {layer.name: found[layer.name] for layer in before if layer.name in found}
    weights, left = count_weights(before), count_weights(later.values())
    return [
        LayerRow(
            name=layer.name,
            op=layer.cell.op,
            direction=layer.direction,
            scope=layer.scope,
            hidden_before=layer.hidden,
            hidden_after=later[layer.name].hidden if layer.name in later else 0,
            params_before=weights[layer.name],
            params_after=left.get(layer.name, 0),
            outlets=outlets.get(layer.name, []),
            pinned=pinned.get(layer.name),
        )
        for layer in before
    ]


def outlet_rows(
    layers: Iterable[Layer],
    ends: Ends,
    restored: Mapping[Outlet, str],
    narrow: Container[Outlet] = (),
) -> dict[str, list[OutletRow]]:
    """Where the units of each layer end up; `narrow` outputs hold kept units only."""
    rows: dict[str, list[OutletRow]] = {}
    outlets = {
        name: list(own) for name, own in groupby(sorted({*ends, *restored}), attrgetter("layer"))
    }
    for layer in layers:
        found = []
        for outlet in outlets.get(layer.name, ()):
            reason = restored.get(outlet)
            if reason is None:
                found += [OutletRow(outlet.output, "absorbed", at, "") for at in ends[outlet]]
            elif outlet in narrow:
                found.append(OutletRow(outlet.output, "narrow", "graph output", ""))
            else:
                at = "graph output" if outlet.consumer == GRAPH_OUTPUT else outlet.consumer
                found.append(OutletRow(outlet.output, "restored", at, reason))
        used = {row.output for row in found}
        found += [OutletRow(n, "unused", "", "") for n in layer.cell.outputs if n not in used]
        rows[layer.name] = found
    return rows


def drift_rows(
    found: Mapping[str, Drift], judged: Judged, streams: Streams | None
) -> dict[str, DriftRow]:
    """The deviation of outputs, and of the signals that some are judged by."""
    states = set(streams.states.values()) if streams is not None else set()
    signal_of: dict[str, list[str]] = {}
    for output in judged.kinds:
        for signal in judged.signals[output]:
            if signal not in judged.outputs:
                signal_of.setdefault(signal, []).append(output)
    rows = {}
    for name, values in found.items():
        kind = judged.kinds.get(name, STATE if name in states else None)
        row = DriftRow(**values, kind=kind, signal_of=signal_of.get(name))
        # The largest entry of a state is not a prediction.
        rows[name] = replace(row, top1_agreement=None) if kind == STATE else row
    return rows


def total_rows(opened: OpenedModel, after: onnx.ModelProto) -> Totals:
    """Parameters and bytes of a model before and after.

    Recurrent layers before include those that rolling made.
    """
    before, graph = opened.model, opened.document.graph
    keys = recurrent_keys(graph)
    names = {layer.name for layer in all_layers(graph) if layer.key in keys}
    totals: dict[str, int] = {}
    for name, model in (("before", before), ("after", after)):
        document = Document.read(model)
        totals[f"params_{name}"] = count_params(document)
        cut = all_layers(graph if model is before else document.graph)
        recurrent = count_weights(layer for layer in cut if layer.name in names)
        totals[f"rnn_params_{name}"] = sum(recurrent.values())
        totals[f"bytes_{name}"] = stored_bytes(model, like=before)
    return Totals(**totals)


def environment() -> Environment:
    """The versions and machine of a measurement."""
    # The packages that affect results or speed.
    packages = ("onnx_rnn_prune", "onnx", "onnxruntime", "onnx_graphsurgeon", "numpy")
    return Environment(
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        python=platform.python_version(),
        **{name: _version(name) for name in packages},
        platform=platform.platform(),
        cpu_count=os.cpu_count(),
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
