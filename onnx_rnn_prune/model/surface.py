"""Bringing tensors out of If, Loop and Scan bodies to where a run shows them.

A body's tensor becomes one more output of the body and of the node that carries it, level by level.
It travels as a parcel, a vector of its rank, its sizes and its entries: the other branch of an If
puts out an empty one, which the types of an If allow for vectors of a length that is not declared.
A Loop or Scan stacks what its body puts out in each turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.edit import OWN
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.model.walk import Place, bodies_of, places, tensors_of

_ONNX_TYPES = {np.dtype(np.float32): 1, np.dtype(np.int64): 7}


@dataclass(frozen=True)
class Surfaced:
    """Where a run shows a tensor.

    Attributes:
        name: the tensor of the main graph that holds it.
        turns: the number of Loops and Scans that it comes out of; each adds an axis in front.
        inside: whether it comes out of a body at all.
    """

    name: str
    turns: int
    inside: bool

    def calls(self, value: Array) -> list[Array]:
        """Its values, one for each time that its graph ran."""
        if not self.inside:
            return [value]
        if value.size == 0:
            return []  # the branch was not taken
        return [_unpack(parcel) for parcel in value.reshape(-1, value.shape[-1])]


def surface(
    document: Document, names: Sequence[str], dtype: type[np.generic]
) -> Mapping[str, Surfaced]:
    """Changes a document so that runs can show the named tensors, inner ones as another type."""
    homes = _homes(document.graph)
    lift = _Lift(document.graph, np.dtype(dtype))
    found = {}
    for name in names:
        place = homes[name]
        if place.way:
            found[name] = lift(place, _tensor(place.graph, name))
        else:
            found[name] = Surfaced(name, 0, False)
    return found


def _unpack(parcel: Array) -> Array:
    rank = int(parcel[0])
    return parcel[1 + rank :].reshape(parcel[1 : 1 + rank].astype(np.int64))


def _homes(graph: gs.Graph) -> dict[str, Place]:
    """The place at which each tensor comes to be."""
    found: dict[str, Place] = {}
    for place in places(graph):
        for tensor in place.graph.inputs:
            found[tensor.name] = place
        for node in place.graph.nodes:
            found.update((tensor.name, place) for tensor in node.outputs)
    return found


def _tensor(graph: gs.Graph, name: str) -> gs.Tensor:
    outputs = [tensor for node in graph.nodes for tensor in node.outputs]
    return next(tensor for tensor in (*graph.inputs, *outputs) if tensor.name == name)


class _Lift:
    """Brings one tensor at a time to the main graph."""

    def __init__(self, main: gs.Graph, dtype: np.dtype[np.generic]) -> None:
        self._main, self._dtype = main, dtype
        # More than there were tensors when earlier names were given.
        self._numbers = count(sum(1 for _ in tensors_of(main)))

    def __call__(self, place: Place, tensor: gs.Tensor) -> Surfaced:
        turns, body = 0, place.graph
        tensor = self._pack(body, tensor)
        for depth in reversed(range(len(place.way))):
            node, branch = place.way[depth]
            body.outputs.append(tensor)
            for name, other in bodies_of(node).items():
                if name != branch:
                    other.outputs.append(self._nothing(other))
            tensor = gs.Variable(self._name())
            node.outputs.append(tensor)
            turns += node.op != "If"
            body = place.way[depth - 1][0].attrs[place.way[depth - 1][1]] if depth else self._main
        return Surfaced(tensor.name, turns, True)

    def _pack(self, body: gs.Graph, tensor: gs.Tensor) -> gs.Variable:
        """Puts nodes behind a tensor that lay its rank, its sizes and its entries in a row."""
        kind = {"to": _ONNX_TYPES[self._dtype]}
        sizes = self._node(body, "Shape", [tensor], {})
        rank = self._node(body, "Shape", [sizes], {})
        flat = [self._node(body, "Cast", [tensor], kind), self._constant([-1], np.int64)]
        entries = self._node(body, "Reshape", flat, {})
        parts = [self._node(body, "Cast", [part], kind) for part in (rank, sizes)]
        return self._node(body, "Concat", [*parts, entries], {"axis": 0})

    def _nothing(self, body: gs.Graph) -> gs.Variable:
        """An empty vector of a length that is not known before it is computed."""
        zero = self._constant([0], np.float32)
        times = self._node(body, "Cast", [zero], {"to": _ONNX_TYPES[np.dtype(np.int64)]})
        return self._node(body, "Tile", [self._constant([0], self._dtype), times], {})

    def _node(
        self, body: gs.Graph, op: str, inputs: list[gs.Tensor], attributes: Mapping[str, int]
    ) -> gs.Variable:
        result = gs.Variable(self._name())
        body.nodes.append(gs.Node(op, result.name, dict(attributes), inputs, [result]))
        return result

    def _constant(self, value: list[int], dtype: npt.DTypeLike) -> gs.Constant:
        return gs.Constant(self._name(), np.array(value, dtype))

    def _name(self) -> str:
        return f"{OWN}seen_{next(self._numbers)}"
