"""The input and the result of one label propagation through a graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.constants import constant_shape
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.edit import OWN
from onnx_rnn_prune.model.walk import node_key
from onnx_rnn_prune.operators.labels import (
    Labels,
    repeated,
    squeeze_to,
    tied_lanes,
    uniform,
    unit_axis,
    varying_axes,
)
from onnx_rnn_prune.operators.layers import Layer
from onnx_rnn_prune.operators.table import Bound
from onnx_rnn_prune.trace.observe import Observation
from onnx_rnn_prune.trace.states import StatePair
from onnx_rnn_prune.trace.units import Ids, Units

GRAPH_OUTPUT = ""


@dataclass(frozen=True, order=True)
class Outlet:
    """One way in which a layer's output is read.

    Attributes:
        layer: the layer's name, or the model's input through which a state brings units.
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


@dataclass(frozen=True, order=True)
class Edge:
    """A place where a tensor is read.

    Attributes:
        tensor: its name.
        consumer: key of the node that reads it; empty for an output of the model.
        slot: that node's input.
    """

    tensor: str
    consumer: str
    slot: int


@dataclass(frozen=True, eq=False)
class Carried:
    """The units that a tensor carries.

    Attributes:
        labels: of the tensor.
        axis: along which units lie.
        origins: the outlets that the units came through.
        altered: as in `Step`.
    """

    labels: Labels
    axis: int
    origins: frozenset[Outlet]
    altered: str

    def same_as(self, other: Carried | None) -> bool:
        """Whether it adds nothing to what was known."""
        if other is None:
            return False
        same = np.array_equal(self.labels, other.labels)
        return same and (self.origins, self.altered) == (other.origins, other.altered)


# By the body's input: the units it holds, None if none; states not listed are pending.
Known = Mapping[str, Carried | None]


@dataclass(frozen=True, eq=False)
class Assumptions:
    """What a label propagation starts from.

    Attributes:
        document: the model.
        observation: of it.
        layers: the layers whose units are followed.
        units: their units.
        recurrent: names of layers without a recurrent operator whose units a state holds.
        states: those that callers carry from an output of the model to an input.
        closed: outlets that are not followed, with reasons.
        edges: places where full width is read, with reasons.
        incoming: labels of these states, by model input.
        known: what states of Loops and Scans hold.
    """

    document: Document
    observation: Observation
    layers: tuple[Layer, ...]
    units: Units
    recurrent: frozenset[str]
    states: Sequence[StatePair]
    closed: Mapping[Outlet, str] = field(default_factory=dict)
    edges: Mapping[Edge, str] = field(default_factory=dict)
    incoming: Mapping[str, Labels] = field(default_factory=dict)
    known: Known = field(default_factory=dict)


@dataclass
class Propagation:
    """The result of one pass; layers are found by their node's key."""

    assumed: Assumptions
    layers: Mapping[str, str]
    lane_outputs: dict[str, tuple[str, str]] = field(default_factory=dict)
    carried: dict[str, Carried] = field(default_factory=dict)
    bindings: list[Binding] = field(default_factory=list)
    selects: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    ends: dict[Outlet, list[str]] = field(default_factory=dict)
    meetings: list[tuple[Labels, Labels, frozenset[Outlet], str]] = field(default_factory=list)
    ties: list[Ids] = field(default_factory=list)
    stops: dict[Outlet, str] = field(default_factory=dict)
    edge_stops: dict[Edge, str] = field(default_factory=dict)
    crossed: dict[str, str] = field(default_factory=dict)
    parts: dict[str, int] = field(default_factory=dict)
    known: dict[str, Carried | None] = field(default_factory=dict)
    pending: set[str] = field(default_factory=set)
    outside: set[str] = field(default_factory=set)
    handed_on: set[str] = field(default_factory=set)

    def arriving(self, tensor: gs.Tensor, consumer: str, slot: int) -> frozenset[Outlet] | None:
        """The outlets whose units arrive at an input, or None where none do."""
        if tensor.name not in self.carried:
            return None
        if Edge(tensor.name, consumer, slot) in self.assumed.edges:
            return None
        if tensor.name in self.lane_outputs:
            outlet = Outlet(*self.lane_outputs[tensor.name], consumer, slot)
            return None if outlet in self.assumed.closed else frozenset({outlet})
        return self.carried[tensor.name].origins

    @property
    def units(self) -> Units:
        """The units of the layers."""
        return self.assumed.units

    def axis_of(self, labels: Labels) -> int:
        """The axis along which units lie."""
        axis = unit_axis(labels, self.units.lane_of)
        assert axis is not None
        return axis

    def place(self, name: str, labels: Labels, came: frozenset[Outlet], altered: str) -> None:
        """Puts labels on a tensor."""
        labels = repeated(labels)
        axis = self.axis_of(labels)
        self.carried[name] = Carried(labels, axis, came, altered)
        self.ties.append(tied_lanes(labels, axis, self.units.lane_of))

    def begin(
        self, name: str, output: tuple[str, str], labels: Labels, axis: int, altered: str = ""
    ) -> None:
        """Puts the labels of a layer's output on a tensor."""
        origins = frozenset({Outlet(*output, GRAPH_OUTPUT, 0)})
        self.carried[name] = Carried(labels, axis, origins, altered)
        self.lane_outputs[name] = output

    def leaving(self) -> dict[str, Labels]:
        """Labels of the states that callers carry as they leave, by model input."""
        leaving = {state.source: gs.Variable(state.result) for state in self.assumed.states}
        open_ = {name: t for name, t in leaving.items() if self.arriving(t, GRAPH_OUTPUT, 0)}
        return {name: self.carried[tensor.name].labels for name, tensor in open_.items()}

    @property
    def goes_on(self) -> bool:
        """Whether no labels were stopped."""
        return not (self.stops or self.crossed or self.edge_stops)

    def settled(self) -> bool:
        """Whether all states hold what the propagation assumed."""
        known = self.assumed.known
        return self.known.keys() == known.keys() and all(
            held is known[name] or (held is not None and held.same_as(known[name]))
            for name, held in self.known.items()
        )

    def end(self, outlets: Iterable[Outlet], title: str) -> None:
        """Notes that a node absorbs the units of some outlets."""
        for outlet in outlets:
            self.ends.setdefault(outlet, []).append(title)

    def stop(self, outlets: Iterable[Outlet], reason: str, parts: int = 1) -> None:
        """Notes that labels from some outlets can be propagated no further."""
        for outlet in outlets:
            self.stops.setdefault(outlet, reason)
            if parts > 1:
                self.parts.setdefault(outlet.layer, parts)

    def stop_at(self, edge: Edge, came: frozenset[Outlet], reason: str, parts: int = 1) -> None:
        """Notes that labels stop at an edge, where full width may be restored instead.

        This applies to tensors that hold the states of a recurrence: one matrix there replaces one
        for each output of its layers.
        """
        held = {outlet.layer for outlet in came} <= self.assumed.recurrent
        carried = self.carried[edge.tensor]
        free = len({*varying_axes(carried.labels), carried.axis}) < carried.labels.ndim
        if parts == 1 and free and (held or edge.tensor in self.outside):
            self.edge_stops.setdefault(edge, reason)
        else:
            self.stop(came, reason, parts)


def is_select(tensor: gs.Tensor) -> bool:
    """Whether a tensor holds entries picked for units."""
    maker = tensor.inputs[0] if tensor.inputs else None
    return maker is not None and maker.op == "Gather" and bool(maker.name.startswith(OWN))


def meet(propagation: Propagation, node: gs.Node, slot: int, labels: Labels, axis: int) -> bool:
    """Lets a value without units meet some: a constant is cut, else the units' entries are picked.

    Returns whether that is possible.

    Args:
        propagation: records it.
        node: the node that reads the value.
        slot: the input where it does.
        labels: the units that it meets.
        axis: their axis, from the end.
    """
    tensor = node.inputs[slot]
    shape = constant_shape(tensor)
    if shape is not None:
        for place in range(-len(shape), 0):
            if shape[place] == 1 and place != axis:
                if not uniform(labels, place):
                    return False
                labels = labels.take([0], place)
        if len(shape) != labels.ndim or shape[axis] != labels.shape[axis]:
            return False
        propagation.bindings.append(Binding(node_key(node), Bound(slot, axis, labels)))
        return True
    line = squeeze_to(labels, (axis % labels.ndim,))
    if line is None:
        return False
    shape = propagation.assumed.observation.shapes.get(tensor.name)
    if shape is not None and (len(shape) < -axis or shape[axis] != line.size):
        return False  # one entry meets all units
    if is_select(tensor):
        bound = Bound(1, -1, line.reshape(-1), dead=None)
        propagation.bindings.append(Binding(node_key(tensor.inputs[0]), bound))
    else:
        propagation.selects[node_key(node), slot] = axis, line.size
    return True


def title_of(node: gs.Node) -> str:
    """How messages name a node."""
    return node.name or f"{node.op} {node_key(node)}"
