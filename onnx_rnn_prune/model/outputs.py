"""Parts of a model: with other outputs, and without what onnxruntime has never heard of."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

# Domains whose operators onnxruntime brings along.
_KNOWN_DOMAINS = {"com.microsoft", "com.microsoft.nchwc", "ai.onnx.training"}


def with_outputs(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """The part of a model that computes the named tensors, with just those as outputs.

    Graph inputs stay as they are. Tensors need no declared type: onnxruntime infers it.
    """
    wanted = list(dict.fromkeys(names))
    nodes = _needed(model.graph, set(wanted))
    result = onnx.ModelProto()
    result.ir_version = model.ir_version
    result.opset_import.extend(model.opset_import)
    result.functions.extend(model.functions)
    result.graph.name = model.graph.name
    result.graph.node.extend(nodes)
    read = names_read(nodes) | set(wanted)
    defaults = {tensor.name for tensor in model.graph.initializer}
    result.graph.input.extend(
        port for port in model.graph.input if port.name in read or port.name not in defaults
    )
    result.graph.initializer.extend(t for t in model.graph.initializer if t.name in read)
    result.graph.sparse_initializer.extend(
        t for t in model.graph.sparse_initializer if t.values.name in read
    )
    declared = {port.name: port for port in model.graph.output}
    for name in wanted:
        result.graph.output.append(declared.get(name, onnx.ValueInfoProto(name=name)))
    return result


def runnable_outputs(model: onnx.ModelProto) -> list[str]:
    """The furthest tensors that onnxruntime can compute.

    The graph's outputs; and where they depend on an operator of a foreign domain, what goes into
    that operator.
    """
    computed = computable(model)
    frontier: list[str] = []
    for node in model.graph.node:
        if not computed.issuperset(filter(None, node.output)):
            frontier.extend(name for name in node.input if name in computed)
    lost = {name for node in model.graph.node for name in node.output} - computed
    outputs = [port.name for port in model.graph.output if port.name not in lost]
    return outputs + list(dict.fromkeys(frontier))


def computable(model: onnx.ModelProto) -> set[str]:
    """What nodes compute without an operator of a foreign domain in the way, bodies included."""
    functions = {(function.domain, function.name) for function in model.functions}
    computed: set[str] = set()
    lost: set[str] = set()
    _sort_out(model.graph.node, functions, computed, lost)
    return computed


def _sort_out(
    nodes: Iterable[onnx.NodeProto],
    functions: set[tuple[str, str]],
    computed: set[str],
    lost: set[str],
) -> None:
    for node in nodes:
        foreign = not _known(node) and (node.domain, node.op_type) not in functions
        names = lost if foreign or lost.intersection(node_reads(node)) else computed
        names.update(name for name in node.output if name)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH and names is computed:
                computed.update(port.name for port in attribute.g.input)
                _sort_out(attribute.g.node, functions, computed, lost)


def node_reads(node: onnx.NodeProto) -> set[str]:
    """The tensors that a node reads, those that its bodies capture included."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            names |= names_read(attribute.g.node)
            names |= {port.name for port in attribute.g.output}
    return names


def names_read(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """All tensors that some nodes read."""
    return {name for node in nodes for name in node_reads(node)}


def _needed(graph: onnx.GraphProto, wanted: set[str]) -> list[onnx.NodeProto]:
    kept: list[onnx.NodeProto] = []
    wanted = set(wanted)
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted |= node_reads(node)
    return kept[::-1]


def _known(node: onnx.NodeProto) -> bool:
    if node.domain in ("", "ai.onnx", "ai.onnx.ml"):
        domain = "" if node.domain == "ai.onnx" else node.domain
        return bool(onnx.defs.has(node.op_type, domain))
    return node.domain in _KNOWN_DOMAINS
