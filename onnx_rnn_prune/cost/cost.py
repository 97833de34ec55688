"""The cost of a model as a function of the number of units that each group keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnx_rnn_prune.cost.budget import Budget, Kind
from onnx_rnn_prune.model.constants import constant_shape, require_constant, storage_type
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.edit import HELD, OWN
from onnx_rnn_prune.model.external import is_apart, stored_bytes
from onnx_rnn_prune.model.integers import dequantized
from onnx_rnn_prune.model.walk import all_nodes, node_key, nodes_by_key
from onnx_rnn_prune.operators.layers import Layer, find_duplicates
from onnx_rnn_prune.operators.recurrent import find_layers
from onnx_rnn_prune.operators.table import Bound
from onnx_rnn_prune.trace.bindings import all_bounds
from onnx_rnn_prune.trace.trace import Trace

Counts = Sequence[int]

Find = Callable[[gs.Graph], list[Layer]]
"""Finds the layers of a graph whose operations count."""

# Extra bytes that a reference to an external weight may take: a long file name, alignment.
_SPARE = 320


@dataclass(frozen=True, eq=False)
class _Size:
    """A constant some of whose axes depend on kept units.

    Attributes:
        fixed: the product of the other axes.
        constants: per dependent axis, the number of entries without a unit, [axes].
        factors: per dependent axis and group, entries for each kept unit, [axes, groups].
        params: 1, or 0 if its entries are counted for another reader.
        itemsize: bytes of an entry, or 0 likewise.
        flops: operations per time step, or place, for each entry.
    """

    fixed: int
    constants: npt.NDArray[np.int64]
    factors: npt.NDArray[np.int64]
    params: int
    itemsize: int
    flops: int

    def entries(self, counts: Counts) -> int:
        """Number of entries if the groups keep the given numbers of units."""
        return int(self.fixed * np.prod(self.constants + self.factors @ np.asarray(counts)))


@dataclass(frozen=True, eq=False)
class Cost:
    """Parameters, operations and bytes of a cut model.

    Attributes:
        params: entries of the constants that do not depend on the units.
        flops: operations per time step, or place, that do not depend on them.
        bytes: size of the file without the constants that do.
        sizes: the constants that do.
    """

    params: int
    flops: int
    bytes: int
    sizes: tuple[_Size, ...]

    @staticmethod
    def of(document: Document, trace: Trace, cut: Document, counts: Counts, find: Find) -> Cost:
        """Derives the cost of all cuts of a document from one of them.

        Args:
            document: the original; readers of one constant read it for the same units.
            trace: its trace.
            cut: one cut of it. Choose the one with the most units that a cut may leave: then none
                has longer lengths and sizes to encode, and so more bytes than computed here.
            counts: units that the groups keep in it.
            find: the layers whose operations count.
        """
        sizes = tuple(_sizes(document, trace, cut, find))
        held = sum(size.entries(counts) * size.itemsize for size in sizes)
        flops = sum(size.entries(counts) * size.flops for size in sizes)
        return Cost(
            params=count_params(cut) - sum(size.entries(counts) * size.params for size in sizes),
            flops=count_flops(cut, find) - flops,
            bytes=_most_bytes(cut) - held,
            sizes=sizes,
        )

    def __call__(self, kind: Kind, counts: Counts) -> int:
        """The cost of one kind if the groups keep the given numbers of units."""
        if kind == "params":
            return self.params + sum(size.entries(counts) * size.params for size in self.sizes)
        if kind == "flops":
            return self.flops + sum(size.entries(counts) * size.flops for size in self.sizes)
        return self.bytes + sum(size.entries(counts) * size.itemsize for size in self.sizes)


def _most_bytes(cut: Document) -> int:
    """The file size of a document; with external weights, an upper bound."""
    model = cut.write()
    total = stored_bytes(model, like=cut.source)
    return total + len(model.graph.initializer) * _SPARE if is_apart(cut.source) else total


def limit_of(budget: Budget, document: Document, find: Find) -> int:
    """A budget as an amount; shares are relative to the document."""
    if budget.amount is not None:
        return budget.amount
    assert budget.share is not None
    totals = {
        "params": count_params(document),
        "flops": count_flops(document, find),
        "bytes": stored_bytes(document.write(), like=document.source),
    }
    return int(totals[budget.kind] * budget.share)


def count_params(document: Document) -> int:
    """Counts the entries of all floating-point or integer weights: constants other than scalars.

    A quantized weight counts as its dequantized one.
    """
    nodes = [node for node in all_nodes(document.graph) if not node.name.startswith(HELD)]
    tensors = {id(tensor): tensor for node in nodes for tensor in node.inputs}
    shapes = [
        constant_shape(tensor)
        for tensor in tensors.values()
        if tensor.name and (not tensor.inputs or tensor.inputs[0].name.startswith(HELD))
    ]
    literal = [node.outputs[0] for node in all_nodes(document.graph) if node.op == "Constant"]
    shapes += [constant_shape(tensor) for tensor in literal]
    return sum(int(np.prod(shape)) for shape in shapes if shape)


def count_flops(document: Document, find: Find) -> int:
    """Operations of the matrix products of some layers: per time step and sequence, or place.

    Depthwise convolutions, which are not layers, count if layers without recurrence do.
    """
    layers = sum(
        2
        * layer.directions
        * len(layer.cell.gates)
        * layer.hidden
        * (layer.input_size + layer.hidden)
        if layer.cell.stacked
        else layer.flops()
        for layer in find(document.graph)
    )
    shapes = [constant_shape(node.inputs[1]) for node in _depthwise(document.graph, find)]
    return layers + 2 * sum(int(np.prod(shape)) for shape in shapes if shape)


def _depthwise(graph: gs.Graph, find: Find) -> list[gs.Node]:
    """Depthwise convolutions, if such operations count."""
    recurrent = all(layer.cell.stacked for layer in find(graph))
    return [
        node
        for node in (() if recurrent else all_nodes(graph))
        if node.op in ("Conv", "ConvInteger", "ConvTranspose")
        and node.attrs.get("group", 1) > 1
        and (constant_shape(node.inputs[1]) or (0, 0))[1] == 1
    ]


def _sizes(document: Document, trace: Trace, result: Document, find: Find) -> Iterator[_Size]:
    """The constants of a cut document whose sizes depend on kept units."""
    nodes = nodes_by_key(document.graph)
    makers = {tensor.name: node for node in all_nodes(result.graph) for tensor in node.outputs}
    group_of = np.zeros(trace.units.count, dtype=np.int64)
    for number, group in enumerate(trace.groups):
        for atoms in group.atoms:
            group_of[atoms] = number
    heights = np.array([group.size for group in trace.groups])
    shared, multiplied = _shared(find_layers(document.graph)), _multiplied(document.graph, find)
    seen: set[str] = set()
    for (name, slot), bounds in all_bounds(document, trace).items():
        tensor, read = nodes[name].inputs[slot], _left(nodes[name], slot, makers)
        if read is None or constant_shape(read) is None:
            continue
        value = require_constant(tensor, document.graph.opset)
        if tensor.name.startswith(OWN) and read.dtype == np.int64:
            # A matrix that only picks entries becomes an index for each column.
            tensor, value = read, np.zeros(value.shape[-1], dtype=np.int64)
            bounds = [replace(b, labels=b.labels.reshape(-1)) for b in bounds if b.axis == -1]
        if not bounds:
            continue
        first = tensor.name not in seen and (name, slot) not in shared
        seen.add(tensor.name)
        held = dequantized(read)
        itemsize = (
            storage_type(tensor) or value.dtype if held is None else held.values.dtype
        ).itemsize
        size = _size(value.shape, bounds, group_of, heights, itemsize)
        size = replace(size, flops=2 * ((name, slot) in multiplied))
        yield size if first else replace(size, params=0, itemsize=0)
        for part in (held.scale, held.zero) if held is not None and first else ():
            own = [bound for bound in bounds if part.shape[bound.axis] > 1]
            if own:
                yield replace(_size((1,), own, group_of, heights, part.itemsize), fixed=1)


def _left(node: gs.Node, slot: int, makers: Mapping[str, gs.Node]) -> gs.Tensor | None:
    """The same input of the matching node in a cut document, which may have an Add after it."""
    followers = [reader for tensor in node.outputs for reader in tensor.outputs]
    for tensor in (t for item in (node, *followers) for t in item.outputs):
        maker = makers.get(tensor.name)
        if maker is not None and node.op == "MatMul" and maker.op == "Gather":
            return maker.inputs[1]
        if maker is not None and maker.op == node.op and slot < len(maker.inputs):
            return maker.inputs[slot]
    return None


def _multiplied(graph: gs.Graph, find: Find) -> set[tuple[str, int]]:
    """The weights, by node key and slot, each entry of which counts as an operation."""
    return {
        (layer.key, layer.slot(letter))
        for layer in find(graph)
        for letter in ("W", "R")
        if letter in layer.cell.inputs
    } | {(node_key(node), 1) for node in _depthwise(graph, find)}


def _shared(layers: Sequence[Layer]) -> set[tuple[str, int]]:
    """The inputs, by node key and slot, of layers that share parameters with an earlier one."""
    twins = find_duplicates(layers)
    return {
        (layer.key, layer.slot(letter))
        for layer in layers
        if twins[layer.name] != layer.name
        for letter in layer.cell.parameters
    }


def _size(
    shape: tuple[int, ...],
    bounds: Sequence[Bound],
    group_of: npt.NDArray[np.int64],
    heights: npt.NDArray[np.int64],
    itemsize: int,
) -> _Size:
    """The size of one constant, given its shape at full width."""
    lines = [_line(bound.labels, bound.axis) for bound in bounds]
    factors = [
        np.bincount(group_of[line[line >= 0]], minlength=len(heights)) // heights for line in lines
    ]
    full = np.broadcast_shapes(shape, *(bound.labels.shape for bound in bounds))
    dependent = {bound.axis % len(full) for bound in bounds}
    return _Size(
        fixed=int(np.prod([n for axis, n in enumerate(full) if axis not in dependent])),
        constants=np.array([(line < 0).sum() for line in lines]),
        factors=np.stack(factors),
        params=1,
        itemsize=itemsize,
        flops=0,
    )


def _line(labels: npt.NDArray[np.int64], axis: int) -> npt.NDArray[np.int64]:
    line: npt.NDArray[np.int64] = np.moveaxis(labels, axis, -1).reshape(-1, labels.shape[axis])[0]
    return line
