"""Layers as records: nodes that produce units, and where those lie in their parameters."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.constants import constant_shape, constant_value
from onnx_rnn_prune.model.integers import set_weight, weight_value
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.model.walk import all_nodes, node_key, places
from onnx_rnn_prune.operators.labels import Labels

MATRICES = ("W", "R")


@dataclass(frozen=True)
class Cell:
    """The layout of one operator, in the letters of the ONNX specification.

    A feed-forward operator is described as a recurrent one without the loop: X is its data, W its
    weight, B its bias, Y its output, and it has one gate.

    Attributes:
        op: the operator.
        gates: its gates in the order in which W, R and B stack them.
        inputs: names of its inputs.
        outputs: names of its outputs.
        places: for each output, the axis of the directions (None if there is none) and that of the
            units.
        activations: the default activation of each gate, and of an LSTM's state.
        sums: which gates sum which signals before their activation: X the input, H the previous
            state, rH that state times the reset gate. Signals that are summed directly can stand in
            for one another. Empty if there is only one product, which is a reader like any other.
        unit_axes: for each parameter, the axes of units, each with its number of blocks of H
            entries.
        features: the axis of W for the entries of X.
        domain: of the operator.
        scales: the scales and zero points of the integers in W and R. A dead entry may hold
            anything, and keeps its value; if there is one per direction, they have no axis of
            units.
        stacked: whether the first axis of each parameter is that of the directions.
        attribute: the attribute that holds the number of units; empty if only the parameters tell.
        restores: whether its outputs may be restored to full width; for a single product, that
            costs more than the cut saves.
        spatial: whether its weight is a kernel that slides over positions.
    """

    op: str
    gates: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    places: Mapping[str, tuple[int | None, int]]
    activations: tuple[str, ...]
    sums: tuple[tuple[str, tuple[str, ...]], ...]
    unit_axes: Mapping[str, tuple[tuple[int, int], ...]]
    features: int = 2
    domain: str = ""
    scales: tuple[str, ...] = ()
    stacked: bool = True
    attribute: str = "hidden_size"
    restores: bool = True
    spatial: bool = False

    @property
    def parameters(self) -> tuple[str, ...]:
        """The inputs that must be constants."""
        return tuple(name for name in self.unit_axes if not name.startswith("initial_"))


# Activations with f(0) = 0.
_ODD = frozenset(("elu", "leakyrelu", "relu", "scaledtanh", "softsign", "tanh"))

# With linear_before_reset, the reset gate multiplies R h, so X and H are not summed directly.
LINEAR_BEFORE_RESET_SUMS = (("zr", ("X", "H")), ("h", ("X",)), ("h", ("H",)))


@dataclass(frozen=True, eq=False)
class Layer:
    """A typed view of one node that produces units.

    Attributes:
        node: the node; its parameters are constants.
        cell: its layout.
        name: the node's name if it is unique in the graph, else its first output's.
        directions: D, 1 or 2; for a layer without directions, the number of consecutive lanes that
            its units are divided into, which keep equally many each.
        hidden: H, units per direction.
        input_size: I, the width of X.
        scope: path to its graph, as in `If_12.then_branch`; empty for the main graph.
    """

    node: gs.Node
    cell: Cell
    name: str
    directions: int
    hidden: int
    input_size: int
    scope: str

    @property
    def key(self) -> str:
        """A key by which the layer is found in a copy of its graph."""
        return node_key(self.node)

    @property
    def direction(self) -> str:
        """forward, reverse or bidirectional."""
        return str(self.node.attrs.get("direction", "forward"))

    def slot(self, name: str) -> int:
        """The position of an input."""
        return self.cell.inputs.index(name)

    def input(self, name: str) -> gs.Tensor | None:
        """An input by its specified name, or None if it is omitted."""
        if name not in self.cell.inputs:
            return None
        slot = self.slot(name)
        if slot >= len(self.node.inputs) or not self.node.inputs[slot].name:
            return None
        return self.node.inputs[slot]

    def constant(self, name: str) -> Array | None:
        """An input's value, or None if it is omitted or not constant.

        W, R and B are dequantized and in the layout of an LSTM, GRU or RNN, whatever the cell's
        own: [D, gates * H, n] and [D, gates * H] or twice that. For a convolution, n counts the
        taps of all input channels.
        """
        tensor = self.input(name)
        if tensor is None or constant_shape(tensor) is None:
            return None
        if name in MATRICES:
            return self._turned(name, weight_value(self.node, self.slot(name)))
        value = constant_value(tensor)
        if value is None or self.cell.stacked:
            return value
        lanes = self.directions, self.hidden
        return np.array(np.broadcast_to(value.reshape(-1), (self._width,)).reshape(lanes))

    def set_constant(self, graph: gs.Graph, name: str, value: Array) -> None:
        """Sets a parameter of a layer with directions, given in the layout of `constant`."""
        assert self.cell.stacked
        turned = self._turned(name, value) if name in MATRICES else value
        set_weight(graph, self.node, self.slot(name), turned)

    def _turned(self, name: str, weight: Array) -> Array:
        axis = self.cell.unit_axes[name][0][0]
        if self.cell.stacked:
            return np.moveaxis(weight, axis, 1)
        return np.moveaxis(weight, axis, 0).reshape(self.directions, self.hidden, -1)

    def held(self, name: str) -> Array:
        """The value of an input known to be constant, such as a layer's W and R."""
        value = self.constant(name)
        assert value is not None, f"{name} of {self.name} is not constant"
        return value

    def output(self, name: str) -> gs.Tensor | None:
        """An output by its specified name, or None if it is omitted."""
        slot = self.cell.outputs.index(name)
        if slot >= len(self.node.outputs) or not self.node.outputs[slot].name:
            return None
        return self.node.outputs[slot]

    def placed(self, name: str, lanes: Labels, shape: tuple[int, ...] | None) -> Labels:
        """Labels of an output in its shape in a run, or in the smallest shape if that is unknown.

        Args:
            name: of the output.
            lanes: the unit ids, [D, H].
            shape: of the output.
        """
        directions, units = self.cell.places[name]
        least = max(units + 1, -units, 2)
        sizes = [1] * (least if shape is None else len(shape))
        sizes[units] = self._width
        if directions is not None:
            sizes[directions] = self.directions
        labels = lanes.reshape(sizes)
        return labels if shape is None else np.broadcast_to(labels, shape)

    @property
    def sums(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """See `Cell.sums`; depends on this node's attributes."""
        if self.node.attrs.get("linear_before_reset", 0):
            return LINEAR_BEFORE_RESET_SUMS
        return self.cell.sums

    @property
    def rests_at_zero(self) -> bool:
        """Whether the state of a unit without weights and biases stays 0."""
        named = self.node.attrs.get("activations") or self.cell.activations
        defaults = self.cell.activations * self.directions
        odd = all(
            str(name).lower() in _ODD
            for name, default in zip(named, defaults, strict=False)
            if default == "Tanh"
        )
        bias = self.input("B")
        return odd and (bias is None or bool(self._own_axes("B")))

    def _own_axes(self, name: str) -> tuple[tuple[int, int], ...]:
        """The unit axes of a parameter; none if one entry serves all units."""
        shape = constant_shape(self.node.inputs[self.slot(name)])
        axes = self.cell.unit_axes[name]
        if shape is None:  # a state, whose shape is specified
            return axes
        rank = len(shape)
        fits = all(
            -rank <= axis < rank and shape[axis] == blocks * self._width for axis, blocks in axes
        )
        return axes if fits else ()

    def own_labels(self, name: str, lanes: Labels) -> Iterator[tuple[int, Labels]]:
        """For each unit axis of a parameter or state, the axis from the end and its labels.

        Args:
            name: of the input.
            lanes: the unit ids, [D, H].
        """
        shape = constant_shape(self.node.inputs[self.slot(name)])
        rank = 3 if shape is None else len(shape)
        for axis, blocks in self._own_axes(name):
            labels = np.tile(lanes, (1, blocks)) if self.cell.stacked else lanes.reshape(1, -1)
            sizes = [1] * rank
            if self.cell.stacked:
                sizes[0] = self.directions
            sizes[axis] = labels.shape[1]
            yield axis % rank - rank, labels.reshape(sizes)

    @property
    def _width(self) -> int:
        """Units along the unit axis: those of one direction, or of all lanes."""
        return self.lanes * self.hidden

    @property
    def lanes(self) -> int:
        """Number of lanes that form what users see as one direction."""
        return 1 if self.cell.stacked else self.directions

    def in_lanes(self, count: int) -> Layer:
        """The layer with `count` lanes; itself if it has directions or they do not divide it."""
        if self.cell.stacked or self._width % count:
            return self
        return replace(self, directions=count, hidden=self._width // count)

    def params(self, kept: int | None = None) -> int:
        """Number of weights with `kept` units per direction (H by default)."""
        return sum(self.entries(name, kept) for name in self.cell.parameters)

    def entries(self, name: str, kept: int | None = None) -> int:
        """Number of weights in one parameter; 0 for scales and zero points."""
        tensor = self.input(name)
        if tensor is None or name in self.cell.scales:
            return 0
        sizes = list(constant_shape(tensor) or ())
        for axis, blocks in self._own_axes(name):
            sizes[axis] = blocks * self.lanes * (self.hidden if kept is None else kept)
        return prod(sizes)

    def flops(self) -> int:
        """Operations of the matrix products per time step of one sequence, or per position.

        A multiplication and an addition for each entry of W and R: for a recurrent layer with G
        gates, 2 D G H (I + H).
        """
        return 2 * sum(self.entries(name) for name in MATRICES if name in self.cell.inputs)


def count_weights(layers: Iterable[Layer]) -> dict[str, int]:
    """Number of weights by layer name; shared weights count for the first layer that reads them.

    Weights computed from the same constants to the same values are shared.
    """
    seen: dict[frozenset[str], list[gs.Tensor]] = {}
    found = {}
    for layer in layers:
        own = {name: layer.input(name) for name in layer.cell.parameters}
        new = {
            name: tensor
            for name, tensor in own.items()
            if tensor is not None
            and not any(_same(tensor, other) for other in seen.get(_roots(tensor), ()))
        }
        for tensor in new.values():
            seen.setdefault(_roots(tensor), []).append(tensor)
        found[layer.name] = sum(map(layer.entries, new))
    return found


def _roots(tensor: gs.Tensor) -> frozenset[str]:
    """The constants, other than short ones, that a constant is computed from; itself if none."""
    if not tensor.inputs or not tensor.inputs[0].inputs:
        return frozenset([tensor.name])
    wide = [t for t in tensor.inputs[0].inputs if prod(constant_shape(t) or ()) > 2]
    return frozenset().union(*map(_roots, wide))


def _same(one: gs.Tensor, other: gs.Tensor) -> bool:
    """Whether two constants with the same roots are equal."""
    if one is other or not (one.inputs and one.inputs[0].inputs):
        return one is other
    first, second = constant_value(one), constant_value(other)
    return first is not None and second is not None and np.array_equal(first, second)


def named_nodes(
    graph: gs.Graph, wanted: Callable[[gs.Node], bool]
) -> Iterator[tuple[gs.Node, str, str]]:
    """Some nodes of a graph and its bodies, each with the name that users know and its scope."""
    every = list(all_nodes(graph))
    nodes = [node for node in every if wanted(node)]
    if not nodes:
        return
    names = Counter(node.name for node in every)
    homes = [(place.scope, place.graph.nodes) for place in places(graph)]
    scopes = {id(node): scope for scope, inside in homes for node in inside}
    for node in nodes:
        name = node.name
        if not name or names[name] > 1:
            key = node_key(node)  # another node may have this name
            name = key if key not in names else f"{node.op}:{key}"
        yield node, name, scopes[id(node)]


def find_duplicates(layers: Iterable[Layer]) -> dict[str, str]:
    """For each layer, the first one with the same operator and the same parameters.

    Exporters put one layer into both branches of an If, with shared weights.
    """
    layers = list(layers)
    alike = Counter(map(_outline, layers))
    first: dict[tuple[object, ...], str] = {}
    found = {}
    for layer in layers:
        outline = _outline(layer)
        essence = (*outline, _digest(layer)) if alike[outline] > 1 else outline
        found[layer.name] = first.setdefault(essence, layer.name)
    return found


def _outline(layer: Layer) -> tuple[object, ...]:
    """A cheap key that tells most layers apart without comparing weights."""
    attributes = sorted((name, str(value)) for name, value in layer.node.attrs.items())
    return (layer.cell.op, layer.directions, layer.hidden, layer.input_size, *attributes)


def _digest(layer: Layer) -> bytes:
    digest = hashlib.sha256()
    for name in layer.cell.parameters:
        value = layer.constant(name)
        if value is not None:  # hashed without copying
            digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        digest.update(b"-")
    return digest.digest()
