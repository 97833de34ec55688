"""One label propagation through the nodes of a graph.

**Loops.** A loop-carried value is one tensor at four places: the initial value, the body's input,
the body's output, the node's output. The body's output determines which units it holds, and
propagation is repeated until that agrees with the assumption: at first, a state is *pending* and
takes the labels of whatever it meets. The initial value then meets the state: units of another
layer become the same atoms, a constant is cut like any that meets units, and a computed value of
full width gets the units' entries picked. Outside, labels go on. The values of a cut unit need only
be finite, since they are read by zeroed weights alone; where an operator turns 0 into something
else, the labels name it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.constants import constant_shape, constant_value, is_zero
from onnx_rnn_prune.model.edit import OWN
from onnx_rnn_prune.model.integers import APART, scaled
from onnx_rnn_prune.model.walk import Ports, State, bodies_of, node_key, places, ports_of
from onnx_rnn_prune.operators.labels import (
    Labels,
    beside,
    can_vanish,
    same_order,
    tied_lanes,
    uniform,
    unit_axis,
    varying_axes,
)
from onnx_rnn_prune.operators.layers import Layer, find_duplicates
from onnx_rnn_prune.operators.table import Bound, Flow, Step, Stop, operator_of, rule_of
from onnx_rnn_prune.trace.propagation import (
    GRAPH_OUTPUT,
    Assumptions,
    Binding,
    Carried,
    Edge,
    Outlet,
    Propagation,
    meet,
    title_of,
)
from onnx_rnn_prune.trace.units import Ids


def propagate(assumed: Assumptions) -> Propagation:
    """Follows labels through all nodes once."""
    names = {layer.key: layer.name for layer in assumed.layers}
    found = Propagation(assumed, names)
    for source, labels in assumed.incoming.items():
        found.begin(source, (source, ""), labels, found.axis_of(labels))
    _begin(found, find_duplicates(assumed.layers))
    graph = assumed.document.graph
    _follow(found, graph)
    for place in places(graph):
        what = f"leaves {place.scope or 'the model'} as its output"
        leaving = {state.result for state in assumed.states} if place.graph is graph else set()
        for tensor in place.graph.outputs:
            if tensor.name in leaving | found.handed_on:
                continue
            came = found.arriving(tensor, GRAPH_OUTPUT, 0)
            if came and place.graph is graph:
                edge = Edge(tensor.name, GRAPH_OUTPUT, 0)
                found.stop_at(edge, came, f"{what} {tensor.name}")
            elif came:
                found.stop(came, f"{what} {tensor.name}")
    return found


def _begin(propagation: Propagation, duplicates: Mapping[str, str]) -> None:
    """Puts labels on the outputs of all layers."""
    lanes, shapes = propagation.units.lanes, propagation.assumed.observation.shapes
    for layer in propagation.assumed.layers:
        # A layer without state that is repeated in every unrolled step is a single one.
        own = lanes[layer.name if layer.sums else duplicates[layer.name]]
        for name in layer.cell.outputs:
            tensor = layer.output(name)
            if tensor is None:
                continue
            labels = layer.placed(name, own, shapes.get(tensor.name))
            axis = layer.cell.places[name][1] % labels.ndim
            altered = "" if layer.rests_at_zero else layer.cell.op
            propagation.begin(tensor.name, (layer.name, name), labels, axis, altered)
        _label_scales(propagation, layer, own)
    for name, first in duplicates.items():
        # One plan for both, so that they keep sharing weights.
        pair = lanes[first].reshape(-1), lanes[name].reshape(-1)
        propagation.meetings.append((*pair, frozenset(), name))


def _label_scales(propagation: Propagation, layer: Layer, own: Ids) -> None:
    """Labels the scales that dequantize a layer's integers, one for each unit."""
    found = scaled(layer.node) if layer.cell.op in APART else None
    shape = None if found is None else constant_shape(found.scales.inputs[found.weight])
    if found is None or shape is None or prod(shape) != own.size or own.size == 1:
        return
    name, axis = found.scales.outputs[0].name, int(np.argmax(shape))
    labels = own.reshape(shape)
    propagation.begin(name, (layer.name, "Y"), labels, axis)  # they multiply 0
    bound = Bound(found.weight, axis - len(shape), labels, dead=None)
    propagation.bindings.append(Binding(node_key(found.scales), bound))


def _follow(propagation: Propagation, graph: gs.Graph) -> None:
    opset = propagation.assumed.document.graph.opset
    for node in graph.nodes:
        ports = ports_of(node) if node.op != "Scan" or opset > 8 else None
        if ports is None:
            _visit(propagation, node, opset)
        else:
            _enter(propagation, node, ports)
        for body in bodies_of(node).values():
            _follow(propagation, body)
        if ports is not None:
            _leave(propagation, node, ports)


def _enter(propagation: Propagation, node: gs.Node, ports: Ports) -> None:
    """Hands labels into the body of a Loop or Scan."""
    key, title = node_key(node), title_of(node)
    handed = {state.slot for state in ports.states} | {slot for slot, _, _ in ports.taken}
    for slot, tensor in enumerate(node.inputs):
        came = propagation.arriving(tensor, key, slot)
        if came and slot not in handed:
            propagation.stop_at(
                Edge(tensor.name, key, slot), came, f"decides how often {title} iterates"
            )
    for state in ports.states:
        _begin_state(propagation, node, state)
    for slot, inner, axis in ports.taken:
        outer = node.inputs[slot]
        came = propagation.arriving(outer, key, slot)
        if outer.name in propagation.pending:
            propagation.pending.add(inner.name)
        carried = propagation.carried.get(outer.name)
        if came and carried and uniform(carried.labels, axis):
            labels = carried.labels.take([0], axis).squeeze(axis)
            propagation.place(inner.name, labels, came, carried.altered)
        elif came:
            edge = Edge(outer.name, key, slot)
            propagation.stop_at(edge, came, f"is split into single units by {title}")


def _begin_state(propagation: Propagation, node: gs.Node, state: State) -> None:
    key, title, source = node_key(node), title_of(node), state.source.name
    outer = node.inputs[state.slot]
    came = propagation.arriving(outer, key, state.slot)
    if source not in propagation.assumed.known:
        propagation.pending.add(source)
        return
    found = propagation.assumed.known[source]
    if found is None:
        if came:
            edge = Edge(outer.name, key, state.slot)
            propagation.stop_at(edge, came, f"enters a state of {title} that holds something else")
        return
    altered = found.altered
    if came:
        labels = propagation.carried[outer.name].labels
        altered = altered or propagation.carried[outer.name].altered
        if labels.ndim != found.labels.ndim or np.any((labels < 0) != (found.labels < 0)):
            propagation.stop(
                came | found.origins, f"enters a state of {title} that holds other units"
            )
            return
        propagation.meetings.append((labels, found.labels, came | found.origins, title))
        propagation.end(came, title)
    else:
        altered = altered or ("" if is_zero(outer) else title)
        if not meet(propagation, node, state.slot, found.labels, found.axis - found.labels.ndim):
            propagation.stop(found.origins, f"starts in {title} with values that cannot be cut")
            return
    propagation.place(source, found.labels, found.origins | (came or frozenset()), altered)


def _leave(propagation: Propagation, node: gs.Node, ports: Ports) -> None:
    """Hands labels out of the body of a Loop or Scan, and notes what its states hold."""
    for state in ports.states:
        propagation.handed_on.add(state.result.name)
        propagation.known[state.source.name] = held = _held(propagation, node, state)
        if held is not None and state.final.name:
            result = propagation.carried[state.result.name].labels
            propagation.place(state.final.name, result, held.origins, held.altered)
            propagation.outside.add(state.final.name)
    for inner, outer, axis in ports.stacked:
        propagation.handed_on.add(inner.name)
        came = propagation.arriving(inner, GRAPH_OUTPUT, 0)
        shape = propagation.assumed.observation.shapes.get(outer.name)
        if came and shape is not None and outer.name:
            carried = propagation.carried[inner.name]
            labels = np.array(np.broadcast_to(np.expand_dims(carried.labels, axis), shape))
            propagation.place(outer.name, labels, came, carried.altered)
            propagation.outside.add(outer.name)


def _held(propagation: Propagation, node: gs.Node, state: State) -> Carried | None:
    """The units that a state holds at the end of an iteration."""
    known, source, result = propagation.assumed.known, state.source.name, state.result.name
    came = propagation.arriving(state.result, GRAPH_OUTPUT, 0)
    before = known.get(source)
    if came and source in known and before is None:
        propagation.stop(came, f"is left in {title_of(node)} as a state that holds something else")
    if not came or (source in known and before is None):
        return None
    given, labels = propagation.carried[result], propagation.carried[result].labels
    if before is None:
        return replace(given, origins=came)
    same = labels.shape == before.labels.shape and np.all((labels < 0) == (before.labels < 0))
    if not same:
        propagation.stop(came, f"is shifted between iterations of {title_of(node)}")
        return None
    propagation.meetings.append((labels, before.labels, came, title_of(node)))
    begun = propagation.carried.get(source, before)
    altered = before.altered or given.altered or begun.altered
    return replace(before, origins=before.origins | came | begun.origins, altered=altered)


def _visit(propagation: Propagation, node: gs.Node, opset: int) -> None:
    key = node_key(node)
    arriving = [propagation.arriving(tensor, key, slot) for slot, tensor in enumerate(node.inputs)]
    came = frozenset().union(*(outlets for outlets in arriving if outlets))
    if not came:
        if any(tensor.name in propagation.pending for tensor in node.inputs):
            propagation.pending.update(tensor.name for tensor in node.outputs)
        return
    title = title_of(node)
    result: Flow | Stop
    if rule_of(node) is not None and not _together(propagation, node):
        result = Stop(f"is read in a branch that ran on different data, or never ({title})")
    else:
        step = _make_step(propagation, node, arriving, opset)
        result = _answer(step, propagation.units.lane_of)
        if isinstance(result, Stop):
            result = Stop(f"{result.reason} ({title})", result.lanes)
        elif step.own is not None and any((found >= 0).any() for found in result.outputs.values()):
            propagation.crossed[propagation.layers[key]] = (
                f"other units lie along another axis there ({title})"
            )
            return
    if isinstance(result, Stop):
        for slot, outlets in enumerate(arriving):
            if outlets:
                edge = Edge(node.inputs[slot].name, key, slot)
                propagation.stop_at(edge, outlets, result.reason, result.lanes)
        return
    _take(propagation, node, step, result, came)


def _take(
    propagation: Propagation, node: gs.Node, step: Step, flow: Flow, came: frozenset[Outlet]
) -> None:
    """Records the result of a rule."""
    key, title = node_key(node), title_of(node)
    outside = any(
        tensor.name in propagation.outside
        for tensor, labels in zip(node.inputs, step.labels, strict=True)
        if labels is not None
    )
    for slot, labels in flow.outputs.items():
        name = node.outputs[slot].name
        if name and (labels >= 0).any():
            propagation.place(
                name, labels, came, flow.alters or next(filter(None, step.altered), "")
            )
            if outside:
                propagation.outside.add(name)
    for bound in flow.bound:
        if step.constants[bound.slot] is not None:
            propagation.bindings.append(Binding(key, bound))
        elif node.inputs[bound.slot].name not in propagation.pending and not meet(
            propagation, node, bound.slot, bound.labels, bound.axis
        ):
            propagation.stop(came, f"is combined with another activation in {node.op} ({title})")
    axes = [(bound.labels, bound.axis % bound.labels.ndim) for bound in flow.bound]
    propagation.ties += [
        tied_lanes(labels, axis, propagation.units.lane_of) for labels, axis in axes
    ]
    propagation.meetings += [(left, right, came, title) for left, right in flow.same]
    if any(bound.reads is not None for bound in flow.bound):
        propagation.end(came, title)


def _together(propagation: Propagation, node: gs.Node) -> bool:
    """Whether one run showed the sizes of all of a node's tensors."""
    if node.name.startswith(OWN):
        return True  # a select or restore, whose sizes are known
    met = [tensor.name for tensor in node.inputs if tensor.name in propagation.carried]
    return propagation.assumed.observation.together(
        (*met, *(t.name for t in node.outputs if t.name))
    )


def _make_step(
    propagation: Propagation, node: gs.Node, arriving: list[frozenset[Outlet] | None], opset: int
) -> Step:
    observation = propagation.assumed.observation
    constants = tuple(
        constant_value(tensor, opset) if tensor.name and came is None else None
        for tensor, came in zip(node.inputs, arriving, strict=True)
    )
    shapes = tuple(
        observation.shapes.get(tensor.name) if value is None else value.shape
        for tensor, value in zip(node.inputs, constants, strict=True)
    )
    all_came = frozenset().union(*(outlets for outlets in arriving if outlets))
    inputs = [
        propagation.carried[tensor.name] if came else None
        for tensor, came in zip(node.inputs, arriving, strict=True)
    ]
    return Step(
        node=node,
        labels=tuple(None if each is None else each.labels for each in inputs),
        axes=tuple(None if each is None else each.axis for each in inputs),
        shapes=shapes,
        constants=constants,
        observed=tuple(observation.values.get(tensor.name) for tensor in node.inputs),
        results=tuple(observation.shapes.get(tensor.name) for tensor in node.outputs),
        opset=opset,
        zero=row.zero if (row := operator_of(node)) is not None else "",
        altered=tuple(each.altered if each else "" for each in inputs),
        own=propagation.units.lanes.get(propagation.layers.get(node_key(node), "")),
        yielding=tuple(
            came is None and value is None and _yields(propagation, node, tensor, all_came)
            for tensor, came, value in zip(node.inputs, arriving, constants, strict=True)
        ),
    )


def _yields(
    propagation: Propagation, node: gs.Node, tensor: gs.Tensor, came: frozenset[Outlet]
) -> bool:
    """Whether a value without units takes those it meets, by picking their entries."""
    held = {outlet.layer for outlet in came} <= propagation.assumed.recurrent
    picked = held or node.op == "GatherElements" or tensor.name in propagation.pending
    return bool(tensor.name) and picked


def _answer(step: Step, lane_of: Ids) -> Flow | Stop:
    """The result of a node's rule, checked to leave the tensors even.

    Args:
        step: the node.
        lane_of: the lane of each unit.
    """
    rule = rule_of(step.node)
    if rule is None:
        return Stop(f"is read by {step.node.op}, through which units cannot be followed")
    result = rule(step)
    return _check_even(step, result, lane_of) if isinstance(result, Flow) else result


def _check_even(step: Step, flow: Flow, lane_of: Ids) -> Flow | Stop:
    """Stops labels if a cut would leave a tensor ragged, out of order or empty."""
    op, before, own = step.node.op, step.labels[0], step.axes[0]
    for labels in flow.outputs.values():
        if not (labels >= 0).any():
            continue
        axis = unit_axis(labels, lane_of)
        if axis is None:
            last = varying_axes(labels)[-1:]
            parts = _parts(labels, last[0], lane_of) if last else 1
            return Stop(f"{op} splits its units unevenly", parts)
        if can_vanish(labels, axis, lane_of):
            parts = _parts(labels, axis, lane_of)
            return Stop(f"{op} takes only some of its units, all of which may be cut", parts)
        if op in ("Reshape", "Flatten"):
            assert before is not None and own is not None
            if not same_order(before, own, labels, axis):
                pairs = (beside(before, own), beside(labels, axis))
                if any(np.any(held < 0) for held, _ in pairs):
                    return Stop(f"{op} mixes the order of its units")
                flow = replace(flow, same=(*flow.same, *pairs))
    for bound in flow.bound:
        axis = bound.axis % bound.labels.ndim
        if len(varying_axes(bound.labels)) > 1 and unit_axis(bound.labels, lane_of) != axis:
            parts = _parts(bound.labels, axis, lane_of)
            return Stop(f"its units do not fill the groups of {op} evenly", parts)
    return flow


def _parts(labels: Labels, axis: int, lane_of: Ids) -> int:
    """The number of parts to divide each lane into so that a line holds whole ones; 1 if none."""
    line = np.moveaxis(labels, axis, -1).reshape(-1, labels.shape[axis])[0]
    found, counts = np.unique(lane_of[np.unique(line[line >= 0])], return_counts=True)
    sizes = np.bincount(lane_of)[found]
    return int(max(sizes // counts)) if len(found) and not np.any(sizes % counts) else 1
