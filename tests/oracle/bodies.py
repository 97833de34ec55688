"""A whole model put into the body of an If, a Loop or a Scan."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper

from models import FOREIGN, Builder, Value

_TURNS = 2


def put_in_body(b: Builder) -> None:
    """All nodes of a model inside one node; constants and inputs stay outside."""
    if b.opset < 11 or any(node.domain == FOREIGN for node in b.nodes):
        return
    b.domains |= {node.domain for node in b.nodes} - {""}
    body = b.rng.choice([_if, _loop, _scan])
    b.used.append(f"body{body.__name__}")
    inner, b.nodes, b.used = b.nodes, [], [*b.used]
    body(b, inner)


def _if(b: Builder, inner: list[onnx.NodeProto]) -> None:
    """The same layers in both branches, reading the same weights, and others behind them."""
    yes = b.feed("yes", dtype=np.bool_)
    names = [out.name for out in b.outputs]
    branches = {"then_branch": _graph("then", inner, b.outputs, _then)}
    branches["else_branch"] = _graph("else", inner, b.outputs, _else)
    b.node("If", [yes.name], names, **branches)


def _loop(b: Builder, inner: list[onnx.NodeProto]) -> None:
    turns, go = b.const(np.array(_TURNS)), b.const(np.array(True))
    names = [out.name for out in b.outputs]
    body = _graph("turn", inner, b.outputs, _then)
    body.input.extend(
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        ]
    )
    body.node.append(helper.make_node("Identity", ["go"], ["go_on"]))
    body.output.insert(0, helper.make_tensor_value_info("go_on", TensorProto.BOOL, []))
    b.node("Loop", [turns.name, go.name], names, body=body)
    b.outputs = [Value(out.name, (_TURNS, *out.shape)) for out in b.outputs]


def _scan(b: Builder, inner: list[onnx.NodeProto]) -> None:
    turns = b.const(np.zeros(_TURNS, np.float32))
    names = [out.name for out in b.outputs]
    body = _graph("turn", inner, b.outputs, _then)
    body.input.append(helper.make_tensor_value_info("turn", TensorProto.FLOAT, []))
    b.node("Scan", [turns.name], names, body=body, num_scan_inputs=1)
    b.outputs = [Value(out.name, (_TURNS, *out.shape)) for out in b.outputs]


def _then(name: str) -> str:
    return f"{name}_then"


def _else(name: str) -> str:
    return f"{name}_else"


def _graph(
    title: str, nodes: list[onnx.NodeProto], outputs: list[Value], rename: Callable[[str], str]
) -> onnx.GraphProto:
    """A body with nodes whose tensors have names of their own."""
    made = {name: rename(name) for node in nodes for name in node.output if name}
    copies = [_renamed(node, made) for node in nodes]
    results = [
        helper.make_tensor_value_info(made[out.name], TensorProto.FLOAT, out.shape)
        for out in outputs
    ]
    return helper.make_graph(copies, title, [], results)


def _renamed(node: onnx.NodeProto, names: dict[str, str]) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [names.get(name, name) for name in node.input]
    copy.output[:] = [names.get(name, name) for name in node.output]
    for attribute in copy.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            inside = {name: names[name] for item in attribute.g.node for name in item.input}
            inner = [
                _renamed(item, {**inside, **{n: f"{names[i]}_{n}" for n in item.output}})
                for item, i in ((item, item.input[0]) for item in attribute.g.node)
            ]
            for port, item in zip(attribute.g.output, inner, strict=True):
                port.name = item.output[0]
            del attribute.g.node[:]
            attribute.g.node.extend(inner)
    return copy
