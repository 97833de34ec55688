"""Making tensors in If, Loop and Scan bodies outputs of the model.

Tensors wanted from a body become one more output of it and of its node, level by level. They travel
as a parcel: a vector that holds the index of the body in its node, then the rank, sizes and entries
of each tensor, and then the outputs of each node inside that has bodies. For an If, this is the
parcel of the branch that ran; a Loop or Scan stacks those of its iterations, preceded by their
number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.edit import OWN
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.model.walk import bodies_of, places, tensors_of

_ONNX_TYPES = {np.dtype(np.float32): 1, np.dtype(np.int64): 7}


@dataclass(frozen=True)
class _Carrier:
    """A node that outputs parcels.

    Attributes:
        stacks: whether there is one per iteration.
        bodies: the layout of each body's parcels.
    """

    output: str
    stacks: bool
    bodies: Sequence[_Parcel]

    def read(self, parcels: Array, turns: int, found: Mapping[str, list[Array]], at: int) -> int:
        """Reads its output from an offset on; returns the offset after it."""
        for _ in range(turns):
            at = self.bodies[int(parcels[at])].read(parcels, found, at + 1)
        return at


@dataclass(frozen=True)
class _Parcel:
    """The layout of a parcel: tensors by name, and the outputs of nodes inside."""

    names: Sequence[str]
    carriers: Sequence[_Carrier]

    def __bool__(self) -> bool:
        return bool(self.names or self.carriers)

    def read(self, parcels: Array, found: Mapping[str, list[Array]], at: int) -> int:
        """As in `_Carrier.read`."""
        for name in self.names:
            rank = int(parcels[at])
            first = at + 1 + rank
            shape = parcels[at + 1 : first].astype(np.int64)
            at = first + int(shape.prod())
            found[name].append(parcels[first:at].reshape(shape))
        for carrier in self.carriers:
            turns = int(parcels[at]) if carrier.stacks else 1
            at = carrier.read(parcels, turns, found, at + carrier.stacks)
        return at


@dataclass(frozen=True)
class IntermediateOutputs:
    """How the wanted tensors leave a run.

    Attributes:
        main: those of the main graph, which are plain outputs.
        inner: those of bodies.
        carriers: the nodes of the main graph that output them.
    """

    main: Sequence[str]
    inner: frozenset[str]
    carriers: Sequence[_Carrier]

    @property
    def outputs(self) -> list[str]:
        """The tensors of the main graph that a run has to return."""
        return [*self.main, *(carrier.output for carrier in self.carriers)]

    def calls(self, shown: Mapping[str, Any]) -> dict[str, list[Any]]:
        """The values of each tensor, one for each run of its graph; main ones unchanged.

        Raises:
            PruneError: shapes declared in a body misled onnxruntime.
        """
        found: dict[str, list[Any]] = {name: [] for name in self.inner}
        for carrier in self.carriers:
            value = np.asarray(shown[carrier.output])
            turns = len(value) if carrier.stacks else 1
            try:
                whole = carrier.read(value.reshape(-1), turns, found, 0) == value.size
            except (ValueError, IndexError):
                whole = False
            if not whole:  # onnxruntime trusts declared sizes
                raise misdeclared()
        return found | {name: [shown[name]] for name in self.main}


def misdeclared() -> PruneError:
    """The error for a body whose false declared shapes onnxruntime trusts."""
    return PruneError(
        "the body of a loop or branch declares shapes that do not match its tensors",
        where="the model",
        remedy="check it with onnx.checker (full_check), and export it again",
    )


def intermediate_outputs(
    document: Document, names: Iterable[str], dtype: type[np.generic]
) -> IntermediateOutputs:
    """Edits a document so that runs return the named tensors, inner ones cast to a type."""
    homes = homes_of(document.graph)
    wanted: dict[int, list[gs.Tensor]] = defaultdict(list)
    for name in dict.fromkeys(names):
        graph, tensor = homes[name]
        wanted[id(graph)].append(tensor)
    main = [tensor.name for tensor in wanted.pop(id(document.graph), [])]
    inner = frozenset(tensor.name for tensors in wanted.values() for tensor in tensors)
    lift = _Lift(document.graph, wanted, np.dtype(dtype))
    return IntermediateOutputs(main, inner, lift.carriers(document.graph))


Homes = dict[str, tuple[gs.Graph, gs.Tensor]]


def ask_shapes(homes: Homes, names: Iterable[str]) -> dict[str, str]:
    """Adds Shape nodes for tensors; returns the names of their outputs."""
    asked: dict[str, str] = {}
    for name in (name for name in names if name in homes):
        graph, tensor = homes[name]
        asked[name] = f"{OWN}shape_of_{len(asked)}"
        shape = gs.Variable(asked[name])
        graph.nodes.append(gs.Node("Shape", inputs=[tensor], outputs=[shape]))
    return asked


def homes_of(graph: gs.Graph) -> Homes:
    """By tensor name, the graph in which it is defined, and the tensor."""
    found: dict[str, tuple[gs.Graph, gs.Tensor]] = {}
    for place in places(graph):
        made = [tensor for node in place.graph.nodes for tensor in node.outputs]
        found.update((t.name, (place.graph, t)) for t in (*place.graph.inputs, *made))
    return found


class _Lift:
    """Brings the wanted tensors of each graph, by `id`, to the main graph."""

    def __init__(
        self, main: gs.Graph, wanted: Mapping[int, list[gs.Tensor]], dtype: np.dtype[np.generic]
    ) -> None:
        self._wanted, self._dtype = wanted, dtype
        # Above the number of tensors when earlier names were given.
        self._numbers = count(sum(1 for _ in tensors_of(main)))

    def carriers(self, graph: gs.Graph) -> list[_Carrier]:
        """Makes the nodes of a graph output what is wanted from their bodies."""
        found = []
        for node in list(graph.nodes):
            bodies = list(bodies_of(node).values())
            layouts = [self._contents(body) for body in bodies]
            if any(layouts):
                stacks = node.op != "If"
                for number, (body, layout) in enumerate(zip(bodies, layouts, strict=True)):
                    body.outputs.append(self._parcel(body, number, layout))
                node.outputs.append(gs.Variable(self._name()))
                for name in ("scan_output_axes", "scan_output_directions"):
                    if name in node.attrs:  # these list all stacked outputs of a Scan
                        node.attrs[name] = [*node.attrs[name], 0]
                found.append(_Carrier(node.outputs[-1].name, stacks, layouts))
        return found

    def _contents(self, body: gs.Graph) -> _Parcel:
        wanted = self._wanted.get(id(body), [])
        return _Parcel([tensor.name for tensor in wanted], self.carriers(body))

    def _parcel(self, body: gs.Graph, number: int, layout: _Parcel) -> gs.Variable:
        """Adds nodes to a body that concatenate what is wanted from it."""
        made = {tensor.name: tensor for node in body.nodes for tensor in node.outputs}
        parts: list[gs.Tensor] = [self._constant([number], self._dtype)]
        for tensor in self._wanted.get(id(body), []):
            sizes = self._node(body, "Shape", [tensor], {})
            rank = self._node(body, "Shape", [sizes], {})
            parts += [self._cast(body, rank), self._cast(body, sizes)]
            parts.append(self._flat(body, self._cast(body, tensor)))
        for carrier in layout.carriers:
            tensor = made[carrier.output]
            if carrier.stacks:
                sizes = self._node(body, "Shape", [tensor], {})
                first = [sizes, self._constant([0], np.int64)]
                parts.append(self._cast(body, self._node(body, "Gather", first, {"axis": 0})))
            parts.append(self._flat(body, tensor))
        return self._node(body, "Concat", [*parts, self._nothing(body)], {"axis": 0})

    def _cast(self, body: gs.Graph, tensor: gs.Tensor) -> gs.Variable:
        return self._node(body, "Cast", [tensor], {"to": _ONNX_TYPES[self._dtype]})

    def _flat(self, body: gs.Graph, tensor: gs.Tensor) -> gs.Variable:
        return self._node(body, "Reshape", [tensor, self._constant([-1], np.int64)], {})

    def _nothing(self, body: gs.Graph) -> gs.Variable:
        """An empty vector of statically unknown length.

        It makes the length of every parcel unknown: only then do the types of an If allow different
        ones.
        """
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
