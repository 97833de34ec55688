"""A model as all else here, and onnxruntime, wants it: sorted, time first, with hidden sizes."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger import G_LOGGER
from onnx_graphsurgeon.util.exception import OnnxGraphSurgeonException

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.constants import constant_value
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.edit import fresh_name, insert_before, insert_node, replace_constant
from onnx_rnn_prune.model.walk import all_nodes, places
from onnx_rnn_prune.operators.layers import Layer
from onnx_rnn_prune.operators.recurrent import find_layers

# Axes of layout=0 in terms of layout=1, and back, by input and output name.
_INPUTS = {"X": [1, 0, 2], "initial_h": [1, 0, 2], "initial_c": [1, 0, 2]}
_OUTPUTS = {"Y": [2, 0, 1, 3], "Y_h": [1, 0, 2], "Y_c": [1, 0, 2]}


@dataclass(frozen=True)
class TimeFirst:
    """Rewrites layout=1 as layout=0 between Transposes, which computes the same."""

    def __call__(self, document: Document) -> bool:
        changed = False
        for layer in find_layers(document.graph):
            if layer.node.attrs.pop("layout", 0) == 1:
                _turn(document.graph, layer)
                changed = True
        return changed


@dataclass(frozen=True)
class SortNodes:
    """Puts each node behind those it reads from: ONNX demands that, and onnxruntime does not."""

    def __call__(self, document: Document) -> bool:
        computed: set[int] = set()
        for node in document.graph.nodes:
            if any(tensor.inputs and id(tensor) not in computed for tensor in node.inputs):
                try:
                    with G_LOGGER.suppress(G_LOGGER.CRITICAL + 1):
                        document.graph.toposort()
                except OnnxGraphSurgeonException as error:
                    raise PruneError(
                        "its nodes form a cycle",
                        where="the model",
                        remedy="check the file with onnx.checker, and export it again",
                    ) from error
                return True
            computed.update(map(id, node.outputs))
        return False


@dataclass(frozen=True)
class UniqueNames:
    """Renames tensors of bodies that have the name of a tensor in another body."""

    def __call__(self, document: Document) -> bool:
        taken: set[str] = set()
        renamed = []
        for place in places(document.graph):
            made = [tensor for node in place.graph.nodes for tensor in node.outputs]
            for tensor in (*place.graph.inputs, *made):
                if tensor.name and tensor.name in taken:
                    renamed.append(tensor)
                taken.add(tensor.name)
        for tensor in renamed:
            tensor.name = fresh_name(document.graph, tensor.name)
        return bool(renamed)


@dataclass(frozen=True)
class StateHiddenSize:
    """Writes the attribute `hidden_size` where it is missing, since R tells it."""

    def __call__(self, document: Document) -> bool:
        changed = False
        for layer in find_layers(document.graph):
            if "hidden_size" not in layer.node.attrs:
                layer.node.attrs["hidden_size"] = layer.hidden
                changed = True
        return changed


@dataclass(frozen=True)
class ListBounds:
    """Writes scalar bounds of a Slice as lists of one, which ONNX demands.

    PyTorch writes scalars, and onnxruntime runs them where it rewrites several Slices as a Split.
    """

    def __call__(self, document: Document) -> bool:
        changed = False
        for node in all_nodes(document.graph):
            for slot in range(1, len(node.inputs)) if node.op == "Slice" else ():
                bound = constant_value(node.inputs[slot], document.graph.opset)
                if bound is not None and bound.ndim == 0:
                    replace_constant(document.graph, node, slot, bound.reshape(1))
                    changed = True
        return changed


def _turn(graph: gs.Graph, layer: Layer) -> None:
    layer.node.name = layer.name  # its first output's name may have been its name
    for name, axes in _INPUTS.items():
        tensor = layer.input(name)
        if tensor is not None:
            turned = gs.Variable(fresh_name(graph, f"{layer.name}_{name}_time_first"))
            made = gs.Node("Transpose", turned.name, {"perm": axes}, [tensor], [turned])
            layer.node.inputs[layer.slot(name)] = turned
            insert_before(graph, made, before=layer.node)
    for slot, name in enumerate(layer.cell.outputs):
        tensor = layer.output(name)
        if tensor is not None:
            inner = gs.Variable(fresh_name(graph, f"{layer.name}_{name}_time_first"))
            layer.node.outputs[slot] = inner
            made = gs.Node("Transpose", inner.name, {"perm": _OUTPUTS[name]}, [inner], [tensor])
            insert_node(graph, made, after=layer.node)
