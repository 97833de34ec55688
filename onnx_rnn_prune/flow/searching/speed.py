"""How long a run of a cut model will take, from timings of its layers' operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnx_rnn_prune.flow.feeding import Data
from onnx_rnn_prune.flow.opening import Opened
from onnx_rnn_prune.flow.studying import Studied
from onnx_rnn_prune.plan.cost import Counts
from onnx_rnn_prune.plan.plan import fingerprint
from onnx_rnn_prune.plan.price import Price, layer_times
from onnx_rnn_prune.plan.timetable import Timetable
from onnx_rnn_prune.validate import timings
from onnx_rnn_prune.validate.profile import node_times


def time_layers(opened: Opened, studied: Studied, data: Data) -> dict[str, Any]:
    """What a run of the original takes, and which share of it each layer that may be cut.

    Measured once on this machine for inputs of the shapes of the first feed, one thread.
    """
    feed = next(iter(data.held_out))
    cut = studied.prepared.trace.units.lanes
    keys = {layer.name: layer.key for layer in opened.layers if layer.name in cut}
    shapes = " ".join(f"{name} {list(value.shape)}" for name, value in sorted(feed.items()))
    name = f"model {fingerprint(opened.model)} {shapes} {sorted(keys)}"

    def measured(names: Sequence[str]) -> list[dict[str, Any]]:
        whole = timings([opened.run()], feed)[0].ms
        nodes = node_times(opened.document, list(keys.values()), [feed], opened.name).nodes
        shares = {name: nodes[key].share for name, key in keys.items() if key in nodes}
        return [{"ms": whole, "shares": shares}]

    (found,) = Timetable()([name], measured)
    return dict(found)


def predicted(studied: Studied, times: Mapping[str, Any]) -> Price:
    """Milliseconds of a run when the groups keep so many units.

    A layer's share of the time shrinks as its operator does alone; all else stays as it is, also
    what reads the units, so that the real file mostly is a little faster.
    """
    trace = studied.prepared.trace
    alone = layer_times(studied.prepared.document, trace)
    full = [group.size for group in trace.groups]
    whole = {name: max(price(full), 1e-9) for name, price in alone.items()}

    def price(counts: Counts) -> float:
        saved = sum(
            share * (1.0 - alone[name](counts) / whole[name])
            for name, share in times["shares"].items()
        )
        return float(times["ms"] * (1.0 - saved))

    return price
