"""Finds all products that units enter, as readers, and how units change on the way to them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from onnx_rnn_prune.evidence.gates import GateReader
from onnx_rnn_prune.evidence.matrices import Matrix
from onnx_rnn_prune.evidence.readers import (
    STACKED,
    Lookup,
    ProductReader,
    Reader,
    groups_of,
    joint_taps,
)
from onnx_rnn_prune.model.constants import MOVING, constant_shape, constant_value
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.edit import HANDED_BACK
from onnx_rnn_prune.model.integers import dequantized, integers_of
from onnx_rnn_prune.model.walk import all_nodes, nodes_by_key
from onnx_rnn_prune.operators.feed_forward import all_layers
from onnx_rnn_prune.operators.labels import NOBODY, Labels, Mask
from onnx_rnn_prune.operators.layers import Layer, find_duplicates
from onnx_rnn_prune.operators.recurrent import RECURRENT
from onnx_rnn_prune.operators.table import Bound, operator_of
from onnx_rnn_prune.trace.propagation import Binding
from onnx_rnn_prune.trace.trace import Trace


def moved_states(document: Document, trace: Trace) -> frozenset[str]:
    """The tensors that hold layers' states unchanged: they come from Y or Y_h by moves only.

    Cell states of an LSTM do not count.
    """
    found = _leaving(document, trace, ("Y", "Y_h"))
    for node in all_nodes(document.graph):
        if node.op in MOVING or (node.op == "Pad" and not _fills(node, trace)):
            _pass_on(node, trace, found)
    return frozenset(found)


def kept_zeros(document: Document, trace: Trace) -> Mapping[str, Mask]:
    """The tensors that are 0 wherever the layer output behind them is.

    Returns:
        By name, a mask of the units that are exceptions: something nonzero is added to them,
        [units].
    """
    none = np.zeros(max(trace.units.count, 1), dtype=bool)
    found = dict.fromkeys(_leaving(document, trace, ("Y", "Y_h", "Y_c")), none)
    for node in all_nodes(document.graph):
        row = operator_of(node)
        spoilt = _makes_no_number(node) or (node.op == "Pad" and _fills(node, trace))
        zero = "" if row is None or spoilt else row.zero
        carrying = [tensor.name for tensor in node.inputs if tensor.name in trace.labels]
        results = [tensor.name for tensor in node.outputs if tensor.name in trace.labels]
        if not zero or not carrying or not results or not found.keys() >= set(carrying):
            continue
        other = none if zero == "each" else _other_than_zero(node, trace, trace.labels[results[0]])
        if other is not None:
            changed = np.any([other, *(found[name] for name in carrying)], axis=0)
            found |= dict.fromkeys(results, changed)
    return found


def _other_than_zero(node: gs.Node, trace: Trace, labels: Labels) -> Mask | None:
    """The units whose entries of the node's constants are not 0, [units]; None if not constants."""
    result = np.zeros(max(trace.units.count, 1), dtype=bool)
    for tensor in node.inputs:
        value = None if tensor.name in trace.labels else constant_value(tensor)
        if value is not None and value.ndim <= labels.ndim:
            met = labels[np.broadcast_to(value != 0, labels.shape)]
            result[met[met >= 0]] = True
        elif tensor.name not in trace.labels:
            return None
    return result


def _leaving(document: Document, trace: Trace, names: Sequence[str]) -> set[str]:
    """The named outputs of the layers of a trace."""
    layers = [layer for layer in all_layers(document.graph) if layer.name in trace.units.lanes]
    outputs = [layer.output(n) for layer in layers for n in names if n in layer.cell.outputs]
    return {tensor.name for tensor in outputs if tensor is not None}


def _pass_on(node: gs.Node, trace: Trace, found: set[str]) -> None:
    carrying = [tensor.name for tensor in node.inputs if tensor.name in trace.labels]
    if carrying and found.issuperset(carrying):
        found.update(tensor.name for tensor in node.outputs if tensor.name in trace.labels)


def _fills(node: gs.Node, trace: Trace) -> bool:
    """Whether padding adds entries of its own among those of units."""
    names = [node.inputs[0].name, node.outputs[0].name]
    if not all(name in trace.labels for name in names):
        return False
    before, after = (np.count_nonzero(trace.labels[name] >= 0) for name in names)
    return bool(after > before)


def _makes_no_number(node: gs.Node) -> bool:
    """Whether an operator's constant turns 0 into NaN: 0 * inf, 0 / 0."""
    if node.op not in ("Mul", "Div"):
        return False
    values = [constant_value(tensor) for tensor in node.inputs]
    finite = all(np.isfinite(value).all() for value in values if value is not None)
    divisor = values[1] if node.op == "Div" else None
    return not finite or (divisor is not None and not divisor.all())


def find_readers(document: Document, trace: Trace) -> list[Reader]:
    """All readers of the units of a trace, front to back; small kernels are read as a whole."""
    nodes, found = nodes_by_key(document.graph), []
    for reader in find_products(document, trace):
        if isinstance(reader, ProductReader):
            node, slot = nodes[reader.binding.node], reader.binding.bound.slot
            shape = constant_shape(node.inputs[slot]) or ()
            reader = replace(reader, kernel=joint_taps(node, shape))
        if (reader.labels >= 0).any():
            found.append(reader)
    return found


def find_products(document: Document, trace: Trace) -> list[Reader]:
    """All gates of recurrent layers, and all products that read or make units, front to back."""
    nodes = nodes_by_key(document.graph)
    layers = {layer.key: layer for layer in all_layers(document.graph)}
    twins = find_duplicates(layers.values())
    inputs: dict[str, Labels] = {}
    products: dict[str, list[Reader]] = {}
    first: dict[Hashable, str] = {}
    atoms = trace.first_of_atom
    for binding in (*trace.bindings, *_blind(trace, layers.values())):
        if binding.bound.reads is None or binding.node in products:
            continue
        if binding.node in layers and layers[binding.node].sums:
            inputs[binding.node] = binding.bound.labels.reshape(-1)
            continue
        node = nodes[binding.node]
        if node.op in RECURRENT and binding.node not in layers:
            continue  # some of its parameters are unknown: no place for a bias
        lines = np.moveaxis(binding.bound.labels, binding.bound.axis, -1)
        stack = int(np.prod(lines.shape[:-2])) if node.op in STACKED else groups_of(node)
        carried = node.name.startswith(HANDED_BACK)
        twin = first.setdefault(_reading(node, binding.bound), binding.node)
        made = trace.units.lanes.get(layers[binding.node].name) if binding.node in layers else None
        lane = None if made is None else made.reshape(-1)
        products[binding.node] = [
            ProductReader(binding, part, node.op, twin, carried, lane, groups_of(node))
            for part in range(stack)
        ]
    found: list[Reader] = []
    for key in nodes:
        if key in layers and layers[key].sums:
            layer = layers[key]
            absent = np.full(layer.input_size, NOBODY, dtype=np.int64)
            for reader in _gate_readers(layer, trace, inputs.get(key, absent)):
                labels = np.where(reader.labels < 0, NOBODY, atoms[reader.labels])
                same = (twins[layer.name], reader.name.removeprefix(layer.name), labels.tobytes())
                found.append(replace(reader, twin=first.setdefault(same, layer.name)))
        found += products.get(key, [])
    return found


def _blind(trace: Trace, layers: Iterable[Layer]) -> Iterator[Binding]:
    """Bindings for products of traced layers as if they read no units; to follow the real ones."""
    for layer in layers:
        if layer.name in trace.units.lanes and not layer.sums:
            weight, axis = layer.input("W"), layer.cell.features
            shape = () if weight is None else constant_shape(weight) or ()
            sizes = [1] * len(shape)
            sizes[axis] = shape[axis]
            labels = np.full(sizes, NOBODY, dtype=np.int64)
            bound = Bound(layer.slot("W"), axis - len(shape), labels, reads=layer.slot("X"))
            yield Binding(layer.key, bound)


def _reading(node: gs.Node, bound: Bound) -> Hashable:
    """A key for how a node reads a weight; equal for the steps of an unrolled layer."""
    turned = [node.attrs.get(name, 0) for name in ("transA", "transB", "alpha")]
    labels = (bound.labels.shape, bound.labels.tobytes())
    return (id(node.inputs[bound.slot]), bound.slot, bound.axis, node.op, *turned, *labels)


def _gate_readers(layer: Layer, trace: Trace, inputs: Labels) -> list[GateReader]:
    lanes = trace.units.lanes.get(layer.name)
    readers: list[GateReader] = []
    for direction in range(layer.directions):
        absent = np.full(layer.hidden, NOBODY, dtype=np.int64)
        states = absent if lanes is None else lanes[direction]
        for gates, sources in layer.sums:
            labels = np.concatenate([inputs if name == "X" else states for name in sources])
            reader = GateReader(layer.name, direction, gates, sources, labels, states, layer.name)
            readers.append(reader)
    return readers


@dataclass(frozen=True, eq=False)
class ReaderMatrix:
    """A reader, its weight, and properties of its columns.

    Attributes:
        reader: the reader.
        weight: [outputs, n].
        outputs: the unit behind each output, [outputs].
        labels: the unit behind each column, [n].
        moved: True where a column reads the state of a unit unchanged, [n].
        zeros: True where it reads 0 of a unit that is 0, [n].
        exact: whether the weight is held in floats, so that sums are not quantized again.
    """

    reader: Reader
    weight: Matrix
    outputs: Labels
    labels: Labels
    moved: Mask
    zeros: Mask
    exact: bool

    def reads_zero(self, zero: Mask) -> Mask:
        """A mask of the columns that always read 0 if the given units are 0, [n]."""
        return (self.labels >= 0) & self.zeros & zero[self.labels]


def find_matrices(document: Document, trace: Trace) -> list[ReaderMatrix]:
    """All products of a document, front to back; none if there are no units to read."""
    if not trace.units.count:
        return []
    moved, zeros = moved_states(document, trace), kept_zeros(document, trace)
    lookup, found = Lookup.of(document), []
    for reader in find_products(document, trace):
        own = np.zeros(len(reader.labels), dtype=bool)
        name = reader.source(lookup)
        if isinstance(reader, GateReader):
            own[reader.widths(lookup)[0] if "X" in reader.sources else 0 :] = True
        found.append(
            ReaderMatrix(
                reader=reader,
                weight=reader.weight(lookup).astype(np.float64),
                outputs=reader.outputs(lookup),
                labels=reader.labels,
                moved=own | (name in moved),
                zeros=own | _zero_columns(zeros.get(name), reader.labels),
                exact=_is_exact(reader, lookup),
            )
        )
    return found


def _zero_columns(spoilt: Mask | None, labels: Labels) -> Mask:
    """A mask of the columns that read 0 of a unit that is 0, [n]; all False for None."""
    return np.zeros(len(labels), bool) if spoilt is None else ~spoilt[labels] & (labels >= 0)


def _is_exact(reader: Reader, lookup: Lookup) -> bool:
    if isinstance(reader, GateReader):
        node = lookup.layers[reader.layer].node
        slots: Sequence[int] = (1, 2)
    else:
        assert isinstance(reader, ProductReader)
        node, slots = lookup.nodes[reader.binding.node], (reader.binding.bound.slot,)
    tensors = [node.inputs[slot] for slot in slots]
    real = all(dequantized(tensor) is None for tensor in tensors)
    return real and all(integers_of(node, slot) is None for slot in slots)
