"""Follows the units of recurrent layers through a graph until all are absorbed."""

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
        groups: lanes that must be decided together.
        labels: by tensor name, the labels it carries.
        bindings: constants to cut with the units, without the layers' own parameters.
        ends: by outlet, the names of the nodes that absorb its units.
        restored: outlets that cannot be absorbed, with reasons.
        origins: by tensor name, the outlets whose units it carries.
        edges: places behind recurrences where full width is read, with reasons.
        selects: full-width inputs to pick the units' entries from, by node key and slot, with the
            axis from the end and the number of entries.
        axes: by tensor name, the axis that gets shorter.
        read_as: for each unit, the one whose label its values carry after an addition, [units].
        left: layers that are not followed after all, with reasons.
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
        """The edges, as outlets of the layers concerned, with reasons."""
        return {
            Outlet(outlet.layer, outlet.output, edge.consumer, edge.slot): reason
            for edge, reason in self.edges.items()
            for outlet in self.origins[edge.tensor]
        }

    def lanes_of(self, group: Group) -> int:
        """How many units of a layer, as users count them, go with one atom of a group."""
        lanes = min(layer.lanes for layer in self.layers if layer.name in group.layers)
        return lanes * group.each

    @cached_property
    def first_of_atom(self) -> Ids:
        """For each unit, the representative of its atom, [units]."""
        result = np.arange(max(self.units.count, 1), dtype=np.int64)
        for group in self.groups:
            for atoms in group.atoms:
                result[atoms] = atoms[:, :1]
        return result

    def directions_of(self, layer: Layer) -> Ids:
        """The units of a layer as plans and users count them, [D, H], whatever its lanes."""
        lanes = self.units.lanes[layer.name]
        return lanes if layer.cell.stacked else lanes.reshape(1, -1)


def trace(
    document: Document,
    layers: Iterable[Layer],
    observation: Observation,
    states: Sequence[StatePair] = (),
) -> Trace:
    """Follows the units of some layers.

    Where labels stop, the outlet they came through is closed and propagation starts again without
    it, until all open outlets are absorbed.

    Args:
        document: the model.
        layers: the layers whose units are followed.
        observation: of it.
        states: those that callers carry from an output of the model to an input. They return with
            the labels they left with, so lanes that share one are tied.
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
    """See `Trace.read_as`; units joined as duplicates only, or within one lane, stay themselves."""
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
    """The assumptions for the next pass after labels were stopped.

    Args:
        assumed: what the last pass started from.
        found: what it found.
        whole: names of layers that cannot be restored.
        left: layers no longer followed, with reasons; it is extended.
    """
    if not found.stops and not found.crossed:
        return replace(assumed, edges={**assumed.edges, **found.edge_stops})
    divided = _divided(assumed.layers, found.parts)
    if any(new is not old for new, old in zip(divided, assumed.layers, strict=True)):
        # Others may have been stopped by these, and units get other numbers.
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
    """The layers, some of them (and their duplicates) divided into more lanes."""
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
