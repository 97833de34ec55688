"""Observes every tensor in one run: its shape, and its values if they are integers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.external import without_values
from onnx_rnn_prune.model.intermediate import ask_shapes, homes_of, intermediate_outputs
from onnx_rnn_prune.model.runnable import computable
from onnx_rnn_prune.model.runner import Array, Feed, Runner
from onnx_rnn_prune.model.scratch import trim
from onnx_rnn_prune.model.walk import bodies_of, links_of, places
from onnx_rnn_prune.roll.reading import Seen

_FLOATS = frozenset((1, 10, 11, 16))
_INTEGERS = frozenset((2, 3, 4, 5, 6, 7, 12, 13))
_BOOLEAN = 9
_Seen = TypeVar("_Seen")
# Maximum number of runs to reach all branches.
_RUNS = 8


@dataclass(frozen=True, eq=False)
class Sight:
    """The observations of one run, by tensor name, for each time that the tensor's graph ran.

    Attributes:
        shapes: of floating-point and boolean tensors.
        numbers: integers that depend only on shapes, constants and the iteration number.
        booleans: which tensors are boolean.
        data: tensors that depend on input data.
    """

    shapes: Mapping[str, list[tuple[int, ...]]]
    numbers: Mapping[str, list[Array]]
    booleans: frozenset[str]
    data: frozenset[str]

    def turn(self, number: int) -> Seen:
        """The observations of bodies in one iteration, and of everything that ran once."""

        def then(seen: Mapping[str, list[_Seen]]) -> dict[str, _Seen]:
            return {
                name: calls[min(number, len(calls) - 1)]
                for name, calls in seen.items()
                if len(calls) == 1 or len(calls) > number
            }

        return Seen(then(self.shapes), then(self.numbers), self.booleans)

    def turns(self, names: Iterable[str]) -> int:
        """How many times a body ran, according to its tensors."""
        return max((len(self.shapes.get(name, ())) for name in names), default=0)


def see(document: Document, feeds: Sequence[Feed]) -> list[Sight]:
    """Runs a model once; or, if it has branches, as often as it takes to reach all.

    Each run that reaches new tensors yields an observation.

    Args:
        document: the model; not changed.
        feeds: feeds to run it on, in order.

    Raises:
        PruneError: it does not run.
    """
    kinds = element_types(document)
    known = computable(document.outline())
    known |= {tensor.name for place in places(document.graph) for tensor in place.graph.inputs}
    data = _data(document.graph)
    watched = document.copy()
    homes = homes_of(watched.graph)
    wanted = [name for name in homes if name in known]
    numbers = [name for name in wanted if kinds.get(name) in _INTEGERS and name not in data]
    asked = ask_shapes(homes, (n for n in wanted if kinds.get(n) in _FLOATS | {_BOOLEAN}))
    shown = intermediate_outputs(watched, [*asked.values(), *numbers], np.int64)
    runner = Runner(watched, outputs=shown.outputs, optimize=False)
    booleans = frozenset(name for name, kind in kinds.items() if kind == _BOOLEAN)
    found: list[Sight] = []
    seen: set[str] = set()
    for feed in feeds[:_RUNS]:
        calls = shown.calls(runner(feed))
        shapes = {
            name: [tuple(int(size) for size in shape) for shape in calls[at]]
            for name, at in asked.items()
            if calls[at]
        }
        if not seen.issuperset(shapes):
            values = {name: calls[name] for name in numbers if calls[name]}
            found.append(Sight(shapes, values, booleans, data))
            seen.update(shapes)
        if len(seen) == len(asked):
            break
    del runner
    trim()  # it held every signal of the model
    return found


def _data(graph: gs.Graph) -> frozenset[str]:
    """Tensors that depend on the values of inputs, not just on their shapes."""
    found = {tensor.name for tensor in graph.inputs}
    while True:
        before = len(found)
        _spread(graph, found)
        if len(found) == before:
            return frozenset(found)


def _spread(graph: gs.Graph, found: set[str]) -> None:
    for node in graph.nodes:
        for body in bodies_of(node).values():
            for way in (0, 1):  # into the body and out of it
                links = [link for link in links_of(node) if link[0].name in found]
                found.update(target.name for _, target, _ in links if target.name)
                if not way:
                    _spread(body, found)
        read = [] if node.op in ("Shape", "Size") else node.inputs
        if is_random(node) or any(tensor.name in found for tensor in read):
            found.update(tensor.name for tensor in node.outputs if tensor.name)


def is_random(node: gs.Node) -> bool:
    """Whether a node's outputs are random."""
    return node.op.startswith("Random") or node.op in ("Bernoulli", "Multinomial")


def element_types(document: Document) -> dict[str, int]:
    """The element types of tensors, by name; sequences are left out."""
    model = document.write(_light)
    with suppress(onnx.shape_inference.InferenceError):
        model = onnx.shape_inference.infer_shapes(model)
    found: dict[str, int] = {}
    _types_in(model.graph, found)
    return {name: kind for name, kind in found.items() if kind in _FLOATS | _INTEGERS | {_BOOLEAN}}


def _light(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """An initializer without its values, unless small: types depend on small ones, such as axes."""
    return without_values(tensor, 64)


def _types_in(graph: onnx.GraphProto, found: dict[str, int]) -> None:
    for port in (*graph.input, *graph.output, *graph.value_info):
        if port.type.HasField("tensor_type") and port.type.tensor_type.elem_type:
            found[port.name] = port.type.tensor_type.elem_type
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _types_in(attribute.g, found)
