"""Following the units of recurrent layers through a graph until someone has read them all."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.operators.labels import NOBODY, Labels
from onnx_rnn_prune.operators.layers import Layer, find_duplicates
from onnx_rnn_prune.trace.decomposed import state_products
from onnx_rnn_prune.trace.observe import Observation
from onnx_rnn_prune.trace.propagation import Assumptions, Binding, Edge, Outlet, Propagation
from onnx_rnn_prune.trace.states import StatePair
from onnx_rnn_prune.trace.units import Group, Ids, Partition, Units, make_groups, uneven_lanes
from onnx_rnn_prune.trace.visiting import propagate


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
        origins: by tensor name, the outlets whose units it carries.
        edges: places behind recurrences where full width is read, each with the reason.
        selects: inputs of full width, by node key and slot, of which the entries of units are to be
            picked, each with their axis from the end and their number.
        axes: by tensor name, the axis along which it gets shorter.
        read_as: for each unit, the one whose label its values have where they were added to those
            of others, [units].
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
    origins: Mapping[str, frozenset[Outlet]]
    edges: Mapping[Edge, str]
    selects: Mapping[tuple[str, int], tuple[int, int]]
    read_as: Ids
    left: Mapping[str, str] = field(default_factory=dict)

    @property
    def edge_outlets(self) -> Mapping[Outlet, str]:
        """Where full width is read behind a recurrence, as outlets of the layers concerned."""
        return {
            Outlet(outlet.layer, outlet.output, edge.consumer, edge.slot): reason
            for edge, reason in self.edges.items()
            for outlet in self.origins[edge.tensor]
        }

    def lanes_of(self, group: Group) -> int:
        """How many units users count for each one of a group: all that lie behind one another."""
        lanes = min(layer.lanes for layer in self.layers if layer.name in group.layers)
        return lanes * group.each

    @cached_property
    def first_of_atom(self) -> Ids:
        """For each unit, one that stands for all that live or die with it, [units]."""
        result = np.arange(max(self.units.count, 1), dtype=np.int64)
        for group in self.groups:
            for atoms in group.atoms:
                result[atoms] = atoms[:, :1]
        return result

    def directions_of(self, layer: Layer) -> Ids:
        """The units of a layer as plans and users see them, [D, H]; lanes are none of theirs."""
        lanes = self.units.lanes[layer.name]
        return lanes if layer.cell.stacked else lanes.reshape(1, -1)


def trace(
    document: Document,
    layers: Iterable[Layer],
    observation: Observation,
    states: Sequence[StatePair] = (),
) -> Trace:
    """Follows the units of some layers.

    Where labels can flow no further, the outlet through which they came is closed and propagation
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
    keys = state_products(document.graph) if whole else frozenset()
    recurrent = frozenset(layer.name for layer in followed if layer.key in keys)
    assumed = Assumptions(document, observation, followed, _number(followed), recurrent, states)
    left: dict[str, str] = {}
    while True:
        found = propagate(assumed)
        if found.leaving().keys() != assumed.incoming.keys() or not found.settled():
            assumed = replace(assumed, incoming=found.leaving(), known=found.known)
            continue
        atoms = Partition(assumed.units.count)
        for one, other, _, _ in found.meetings:
            atoms.join(one, other)
        classes = atoms.classes()
        if found.goes_on:
            _stop_uneven(found, classes)
        if found.goes_on:
            break
        assumed = _stopped(assumed, found, whole, left)
    return Trace(
        layers=assumed.layers,
        units=assumed.units,
        groups=make_groups(assumed.units, classes, found.ties),
        labels={name: each.labels for name, each in found.carried.items()},
        axes={name: each.axis for name, each in found.carried.items()},
        bindings=tuple(found.bindings),
        ends={outlet: tuple(dict.fromkeys(ends)) for outlet, ends in found.ends.items()},
        restored={o: reason for o, reason in assumed.closed.items() if o.layer not in left},
        origins={name: each.origins for name, each in found.carried.items()},
        edges={edge: text for edge, text in assumed.edges.items() if edge.tensor in found.carried},
        selects=found.selects,
        read_as=_read_as(found),
        left=left,
    )


def _read_as(found: Propagation) -> Ids:
    """What is equal without meeting, or goes together in one layer, is read as itself."""
    units = found.units
    added, lane_of = Partition(units.count), np.append(units.lane_of, NOBODY)
    for one, other, came, _ in found.meetings:
        if came:
            added.join(one, np.where(lane_of[one] == lane_of[other], NOBODY, other))
    return np.array([added.find(unit) for unit in range(units.count)], dtype=np.int64)


def _number(layers: Iterable[Layer]) -> Units:
    return Units.number({layer.name: (layer.directions, layer.hidden) for layer in layers})


def _stopped(
    assumed: Assumptions, found: Propagation, whole: Container[str], left: dict[str, str]
) -> Assumptions:
    """What to begin with after labels were stopped.

    Args:
        assumed: what the propagation began with.
        found: what it found.
        whole: names of layers that cannot be restored.
        left: those that are not followed any more, each with the reason; some are added.
    """
    if not found.stops and not found.crossed:
        return replace(assumed, edges={**assumed.edges, **found.edge_stops})
    divided = _divided(assumed.layers, found.parts)
    if any(new is not old for new, old in zip(divided, assumed.layers, strict=True)):
        # Others may have been stopped by what could not flow on, and units get other numbers.
        return replace(
            assumed, layers=divided, units=_number(divided), incoming={}, known={}, edges={}
        )
    closed = {**assumed.closed, **found.stops}
    gone = {outlet.layer: text for outlet, text in closed.items() if outlet.layer in whole}
    gone |= found.crossed
    assumed = replace(assumed, closed=closed, edges={}, known={})
    if gone:  # all units have other numbers then
        left |= gone
        layers = tuple(layer for layer in assumed.layers if layer.name not in left)
        assumed = replace(assumed, layers=layers, units=_number(layers), incoming={})
    return assumed


def _divided(layers: tuple[Layer, ...], parts: Mapping[str, int]) -> tuple[Layer, ...]:
    """The layers, some of them divided into more lanes, and those that are equal with them."""
    duplicates = find_duplicates(layers)
    wanted = {duplicates[layer.name]: parts[layer.name] for layer in layers if layer.name in parts}
    found = []
    for layer in layers:
        count = wanted.get(duplicates[layer.name], 1)
        found.append(layer.in_lanes(count * layer.directions) if count > 1 else layer)
    return tuple(found)


def _stop_uneven(propagation: Propagation, classes: list[np.ndarray]) -> None:
    uneven = uneven_lanes(propagation.units, classes, propagation.ties)
    for left, right, came, title in propagation.meetings:
        met = np.concatenate([left[left >= 0], right[right >= 0]])
        if uneven.intersection(propagation.units.lane_of[met].tolist()):
            propagation.stop(came, f"its units are combined unevenly ({title})")
