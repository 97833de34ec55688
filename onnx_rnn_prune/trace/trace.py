"""Following the units of recurrent layers through a graph until someone has read them all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.constants import constant_value
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.edit import OWN
from onnx_rnn_prune.model.walk import all_nodes, node_key, places
from onnx_rnn_prune.operators.labels import Labels, tied_lanes, unit_axis
from onnx_rnn_prune.operators.layers import Layer, find_duplicates
from onnx_rnn_prune.operators.table import Bound, Step, Stop, operator_of, rule_of
from onnx_rnn_prune.trace.answers import answer
from onnx_rnn_prune.trace.observe import Observation
from onnx_rnn_prune.trace.states import Carried
from onnx_rnn_prune.trace.units import Group, Ids, Partition, Units, make_groups, uneven_lanes

GRAPH_OUTPUT = ""


@dataclass(frozen=True, order=True)
class Outlet:
    """One way in which a layer's output leaves it.

    Attributes:
        layer: the layer's name; that of an input of the model where units come in by a state.
        output: Y, Y_h or Y_c; empty for an input.
        consumer: key of the node that reads it there; empty for a graph output.
        slot: that node's input.
    """

    layer: str
    output: str
    consumer: str
    slot: int


@dataclass(frozen=True)
class Binding:
    """A constant input of a node whose axis carries labels; see `Bound`."""

    node: str
    bound: Bound


@dataclass(frozen=True)
class Trace:
    """Where the units of some layers are in a graph.

    Attributes:
        layers: the layers that were followed.
        units: their units.
        groups: what must be decided together.
        labels: by tensor name, the labels it carries.
        bindings: constants that get cut with the units, the layers' own parameters left out.
        ends: where each outlet's units end: the names of the nodes that absorb them.
        restored: outlets that cannot be absorbed, each with the reason.
        axes: by tensor name, the axis along which it gets shorter.
        left: layers that are not followed after all, each with the reason.
    """

    layers: tuple[Layer, ...]
    units: Units
    groups: tuple[Group, ...]
    labels: Mapping[str, Labels]
    axes: Mapping[str, int]
    bindings: tuple[Binding, ...]
    ends: Mapping[Outlet, tuple[str, ...]]
    restored: Mapping[Outlet, str]
    left: Mapping[str, str] = field(default_factory=dict)

    def directions_of(self, layer: Layer) -> Ids:
        """The units of a layer as plans and users see them, [D, H]; lanes are none of theirs."""
        lanes = self.units.lanes[layer.name]
        return lanes if layer.cell.stacked else lanes.reshape(1, -1)


@dataclass
class _Walk:
    """One pass over the nodes, with some outlets closed; layers are found by the node's key."""

    units: Units
    layers: Mapping[str, str]
    lane_outputs: dict[str, tuple[str, str]]
    closed: Mapping[Outlet, str]
    labels: dict[str, Labels] = field(default_factory=dict)
    axes: dict[str, int] = field(default_factory=dict)
    origins: dict[str, frozenset[Outlet]] = field(default_factory=dict)
    altered: dict[str, str] = field(default_factory=dict)
    bindings: list[Binding] = field(default_factory=list)
    ends: dict[Outlet, list[str]] = field(default_factory=dict)
    meetings: list[tuple[Labels, Labels, frozenset[Outlet], str]] = field(default_factory=list)
    ties: list[Ids] = field(default_factory=list)
    stops: dict[Outlet, str] = field(default_factory=dict)
    crossed: dict[str, str] = field(default_factory=dict)
    parts: dict[str, int] = field(default_factory=dict)

    def arriving(self, tensor: gs.Tensor, consumer: str, slot: int) -> frozenset[Outlet] | None:
        """The outlets whose units arrive at an input, or None where none do."""
        if tensor.name not in self.labels:
            return None
        if tensor.name in self.lane_outputs:
            outlet = Outlet(*self.lane_outputs[tensor.name], consumer, slot)
            return None if outlet in self.closed else frozenset({outlet})
        return self.origins[tensor.name]

    def axis_of(self, labels: Labels) -> int:
        """The axis along which units lie."""
        axis = unit_axis(labels, self.units.lane_of)
        assert axis is not None
        return axis

    def carried(self, states: Sequence[Carried]) -> dict[str, Labels]:
        """By input, the labels with which states leave."""
        leaving = {state.source: gs.Variable(state.result) for state in states}
        open_ = {name: t for name, t in leaving.items() if self.arriving(t, GRAPH_OUTPUT, 0)}
        return {name: self.labels[tensor.name] for name, tensor in open_.items()}

    def stop(self, outlets: Iterable[Outlet], reason: str, parts: int = 1) -> None:
        for outlet in outlets:
            self.stops.setdefault(outlet, reason)
            if parts > 1:
                self.parts.setdefault(outlet.layer, parts)


def trace(
    document: Document,
    layers: Iterable[Layer],
    observation: Observation,
    states: Sequence[Carried] = (),
) -> Trace:
    """Follows the units of some layers.

    Where labels can flow no further, the outlet through which they came is closed and the walk
    starts again without it, until all that is open ends absorbed.

    Args:
        document: the model.
        layers: whose units are followed.
        observation: of it.
        states: which callers carry from an output of the model to an input. What leaves by the one
            comes back by the other, with the same labels; so lanes that share one are tied.
    """
    followed = tuple(layer.in_lanes(int(layer.node.attrs.get("group", 1))) for layer in layers)
    whole = {layer.name for layer in followed if not layer.cell.restores}
    closed: dict[Outlet, str] = {}
    left: dict[str, str] = {}
    carried: Mapping[str, Labels] = {}
    while True:
        units = Units.number({layer.name: (layer.directions, layer.hidden) for layer in followed})
        walk = _walk(document, followed, observation, units, closed, states, carried)
        found = walk.carried(states)
        if found.keys() != carried.keys():
            carried = found
            continue
        atoms = Partition(units.count)
        for one, other, _, _ in walk.meetings:
            atoms.join(one, other)
        classes = atoms.classes()
        if not walk.stops and not walk.crossed:
            _stop_uneven(walk, classes)
        if not walk.stops and not walk.crossed:
            break
        divided = _divided(followed, walk.parts)
        split = {new.name for new, old in zip(divided, followed, strict=True) if new is not old}
        closed.update({o: reason for o, reason in walk.stops.items() if o.layer not in split})
        gone = {o.layer: reason for o, reason in closed.items() if o.layer in whole}
        gone |= walk.crossed
        if gone or split:  # all units have other numbers then
            left |= gone
            followed = tuple(layer for layer in divided if layer.name not in left)
            carried = {}
    return Trace(
        layers=followed,
        units=units,
        groups=make_groups(units, classes, walk.ties),
        labels=walk.labels,
        axes=walk.axes,
        bindings=tuple(walk.bindings),
        ends={outlet: tuple(dict.fromkeys(ends)) for outlet, ends in walk.ends.items()},
        restored={o: reason for o, reason in closed.items() if o.layer not in left},
        left=left,
    )


def _divided(layers: tuple[Layer, ...], parts: Mapping[str, int]) -> tuple[Layer, ...]:
    """The layers, some of them divided into more lanes, and those that are equal with them."""
    duplicates = find_duplicates(layers)
    wanted = {duplicates[layer.name]: parts[layer.name] for layer in layers if layer.name in parts}
    found = []
    for layer in layers:
        count = wanted.get(duplicates[layer.name], 1)
        found.append(layer.in_lanes(count * layer.directions) if count > 1 else layer)
    return tuple(found)


def _walk(
    document: Document,
    layers: tuple[Layer, ...],
    observation: Observation,
    units: Units,
    closed: Mapping[Outlet, str],
    states: Sequence[Carried],
    carried: Mapping[str, Labels],
) -> _Walk:
    walk = _Walk(units, {layer.key: layer.name for layer in layers}, {}, closed)
    for source, labels in carried.items():
        walk.labels[source], walk.altered[source] = labels, ""
        walk.axes[source] = walk.axis_of(labels)
        walk.lane_outputs[source] = source, ""
    duplicates = find_duplicates(layers)
    for layer in layers:
        # One that reads no states of its own, and is written out for each step, is one all the way.
        lanes = units.lanes[layer.name if layer.sums else duplicates[layer.name]]
        for name in layer.cell.outputs:
            tensor = layer.output(name)
            if tensor is None:
                continue
            shape = observation.shapes.get(tensor.name)
            labels = layer.placed(name, lanes, shape)
            walk.labels[tensor.name] = labels
            walk.axes[tensor.name] = layer.cell.places[name][1] % labels.ndim
            walk.lane_outputs[tensor.name] = (layer.name, name)
            walk.altered[tensor.name] = "" if layer.rests_at_zero else layer.cell.op
    for name, first in duplicates.items():
        # One plan for both, so that they go on sharing their weights.
        pair = units.lanes[first].reshape(-1), units.lanes[name].reshape(-1)
        walk.meetings.append((*pair, frozenset(), name))
    for node in all_nodes(document.graph):
        _visit(walk, node, observation, document.graph.opset)
    for place in places(document.graph):
        what = f"leaves {place.scope or 'the model'} as its output"
        leaving = {state.result for state in states} if place.graph is document.graph else ()
        for tensor in (item for item in place.graph.outputs if item.name not in leaving):
            arriving = walk.arriving(tensor, GRAPH_OUTPUT, 0)
            walk.stop(arriving or (), f"{what} {tensor.name}")
    return walk


def _visit(walk: _Walk, node: gs.Node, observation: Observation, opset: int) -> None:
    key = node_key(node)
    arriving = [walk.arriving(tensor, key, slot) for slot, tensor in enumerate(node.inputs)]
    came = frozenset().union(*(outlets for outlets in arriving if outlets))
    if not came:
        return
    title = node.name or f"{node.op} {key}"
    if rule_of(node) is not None and not _together(walk, node, observation):
        walk.stop(came, f"is read in a branch that ran on other data, or on none ({title})")
        return
    step = _make_step(walk, node, arriving, observation, opset)
    result = answer(step, walk.units.lane_of)
    if isinstance(result, Stop):
        walk.stop(came, f"{result.reason} ({title})", result.lanes)
        return
    if step.own is not None and any((labels >= 0).any() for labels in result.outputs.values()):
        walk.crossed[walk.layers[key]] = f"other units lie along another axis there ({title})"
        return
    for slot, labels in result.outputs.items():
        name = node.outputs[slot].name
        if name and (labels >= 0).any():
            walk.labels[name] = labels
            walk.axes[name] = axis = walk.axis_of(labels)
            walk.ties.append(tied_lanes(labels, axis, walk.units.lane_of))
            walk.origins[name] = came
            walk.altered[name] = result.alters or next(filter(None, step.altered), "")
    walk.bindings += [Binding(key, bound) for bound in result.bound]
    axes = [(bound.labels, bound.axis % bound.labels.ndim) for bound in result.bound]
    walk.ties += [tied_lanes(labels, axis, walk.units.lane_of) for labels, axis in axes]
    walk.meetings += [(left, right, came, title) for left, right in result.same]
    if any(bound.reads is not None for bound in result.bound):
        for outlet in came:
            walk.ends.setdefault(outlet, []).append(title)


def _together(walk: _Walk, node: gs.Node, observation: Observation) -> bool:
    """Whether the sizes of a node's tensors are from one run."""
    if node.name.startswith(OWN):
        return True  # a select or restore, of which all is known
    met = [tensor.name for tensor in node.inputs if tensor.name in walk.labels]
    return observation.together((*met, *(t.name for t in node.outputs if t.name)))


def _make_step(
    walk: _Walk,
    node: gs.Node,
    arriving: list[frozenset[Outlet] | None],
    observation: Observation,
    opset: int,
) -> Step:
    constants = tuple(
        constant_value(tensor, opset) if tensor.name and came is None else None
        for tensor, came in zip(node.inputs, arriving, strict=True)
    )
    shapes = tuple(
        observation.shapes.get(tensor.name) if value is None else value.shape
        for tensor, value in zip(node.inputs, constants, strict=True)
    )
    return Step(
        node=node,
        labels=tuple(
            walk.labels[tensor.name] if came else None
            for tensor, came in zip(node.inputs, arriving, strict=True)
        ),
        axes=tuple(
            walk.axes[tensor.name] if came else None
            for tensor, came in zip(node.inputs, arriving, strict=True)
        ),
        shapes=shapes,
        constants=constants,
        observed=tuple(observation.values.get(tensor.name) for tensor in node.inputs),
        results=tuple(observation.shapes.get(tensor.name) for tensor in node.outputs),
        opset=opset,
        zero=row.zero if (row := operator_of(node)) is not None else "",
        altered=tuple(
            walk.altered[tensor.name] if came else ""
            for tensor, came in zip(node.inputs, arriving, strict=True)
        ),
        own=walk.units.lanes.get(walk.layers.get(node_key(node), "")),
    )


def _stop_uneven(walk: _Walk, classes: list[np.ndarray]) -> None:
    uneven = uneven_lanes(walk.units, classes)
    for left, right, came, title in walk.meetings:
        met = np.concatenate([left[left >= 0], right[right >= 0]])
        if uneven.intersection(walk.units.lane_of[met].tolist()):
            walk.stop(came, f"its units meet each other unevenly ({title})")
