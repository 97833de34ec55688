"""Models with weights in 8 bits, as onnxruntime's own quantizer writes them."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from onnx_rnn_prune.model.runner import Feed

WIDTH = 6
SIGNED, UNSIGNED = QuantType.QInt8, QuantType.QUInt8
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def real_model(
    *,
    op: str = "LSTM",
    hidden: int = 8,
    directions: int = 1,
    layers: int = 1,
    behind: tuple[str, ...] = (),
    states: bool = False,
    peepholes: bool = False,
    **attributes: Any,
) -> onnx.ModelProto:
    """Layers one behind the other, some operators that take one input, and a MatMul with a bias."""
    rng = np.random.default_rng([hidden, directions, layers])
    weights: dict[str, Any] = {}
    nodes = []
    ports = {"x": ["T", "B", WIDTH]}
    outs = {"out": ["T", "B", 3]}
    x, width, rows = "x", WIDTH, GATES[op] * hidden
    if directions == 2:
        attributes["direction"] = "bidirectional"
    for number in range(layers):
        given = {
            "W": rng.normal(0, 0.6, (directions, rows, width)),
            "R": rng.normal(0, 0.6, (directions, rows, hidden)),
            "B": rng.normal(0, 0.4, (directions, 2 * rows)),
        }
        names = [f"{letter}{number}" for letter in given]
        weights.update(zip(names, given.values(), strict=True))
        results = [f"Y{number}"]
        if states:
            ports.update({f"{s}{number}": [directions, "B", hidden] for s in ("h", "c")})
            outs.update({f"{s}n{number}": [directions, "B", hidden] for s in ("h", "c")})
            names += ["", f"h{number}", f"c{number}"]
            results += [f"hn{number}", f"cn{number}"]
        if peepholes:
            names += [""] * (6 - len(names)) + [f"P{number}"]
            weights[f"P{number}"] = rng.normal(0, 0.4, (directions, 3 * hidden))
        nodes.append(
            helper.make_node(
                op, [x, *names], results, name=f"rnn{number}", hidden_size=hidden, **attributes
            )
        )
        nodes.append(
            helper.make_node("Transpose", [f"Y{number}"], [f"turned{number}"], perm=[0, 2, 1, 3])
        )
        x, width = f"flat{number}", directions * hidden
        nodes.append(helper.make_node("Reshape", [f"turned{number}", "shape"], [x]))
    for number, name in enumerate(behind):
        nodes.append(helper.make_node(name, [x], [f"behind{number}"]))
        x = f"behind{number}"
    weights.update(head=rng.normal(0, 0.5, (width, 3)), bias=rng.normal(0, 0.5, 3))
    nodes.append(helper.make_node("MatMul", [x, "head"], ["product"], name="head_product"))
    nodes.append(helper.make_node("Add", ["product", "bias"], ["out"]))
    initializers = [
        numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()
    ]
    initializers.append(numpy_helper.from_array(np.array([0, 0, width]), "shape"))
    inputs, outputs = (
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
            for name, dims in all_.items()
        ]
        for all_ in (ports, outs)
    )
    graph = helper.make_graph(nodes, "real", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def calm(model: onnx.ModelProto) -> onnx.ModelProto:
    """With weights that do not amplify every rounding, as those drawn at random do."""
    for tensor in model.graph.initializer:
        if tensor.name[0] in "WR":
            value = numpy_helper.to_array(tensor) * np.float32(0.2)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return model


def quantized(
    model: onnx.ModelProto,
    *,
    kind: QuantType = SIGNED,
    per_channel: bool = False,
    left: tuple[str, ...] = (),
) -> onnx.ModelProto:
    """The model as quantize_dynamic writes it; the nodes called `left` stay as they are."""
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder) / "real.onnx", Path(folder) / "quantized.onnx"
        onnx.save(model, source)
        quantize_dynamic(
            source,
            result,
            weight_type=kind,
            per_channel=per_channel,
            nodes_to_exclude=list(left),
        )
        logging.disable(logging.NOTSET)
        return onnx.load(result)


CONVOLUTIONS = {"one axis": (3,), "pictures": (3, 3), "groups": (3, 3), "depthwise": (3, 3)}


def convolutional(kind: str) -> onnx.ModelProto:
    """Convolutions, a GRU over the last axis, and dense layers."""
    rng, kernel = np.random.default_rng(0), CONVOLUTIONS[kind]
    group = {"groups": 2, "depthwise": 12}.get(kind, 1)
    shapes: dict[str, Any] = {"k1": (12, 4, *kernel), "b1": 12, "k2": (12, 12 // group, *kernel)}
    shapes |= {"k3": (8, 12, *kernel), "b3": 8, "m": (8, 9), "mb": 9, "m2": (4, 9), "c2": 4}
    shapes |= {"W": (1, 24, 8), "R": (1, 24, 8), "B": (1, 48)}
    pads = [1] * 2 * len(kernel)
    places = "T" if len(kernel) == 1 else "4, T"
    mean = "Identity (k)" if len(kernel) == 1 else "ReduceMean <axes = [2], keepdims = 0> (k)"
    model = onnx.parser.parse_model(
        f"""
        <ir_version: 8, opset_import: ["": 17]>
        net (float[B, 4, {places}] x) => (float[B, 4] out)
        <int64[1] one = {{1}}> {{
            c = Conv <pads = {pads}> (x, k1, b1)
            d = Relu (c)
            e = Conv <pads = {pads}, group = {group}> (d, k2)
            f = Relu (e)
            h = Conv <pads = {pads}> (f, k3, b3)
            k = Relu (h)
            flat = {mean}
            t = Transpose <perm = [2, 0, 1]> (flat)
            Y = GRU <hidden_size = 8> (t, W, R, B)
            y = Squeeze (Y, one)
            p = MatMul (y, m)
            q = Add (p, mb)
            r = Relu (q)
            last = ReduceMean <axes = [0], keepdims = 0> (r)
            out = Gemm <transB = 1> (last, m2, c2)
        }}
        """
    )
    for node in model.graph.node:
        node.name = f"{node.output[0]}_node"
    for name, shape in shapes.items():
        value = rng.normal(0, 0.3, shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    return model


class _Reader(CalibrationDataReader):
    def __init__(self, feeds: list[Feed]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)


def statically(model: onnx.ModelProto, per_channel: bool = False) -> onnx.ModelProto:
    """The model with QLinearConv and the like, as quantize_static writes them."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "quantized.onnx"
        options = {"quant_format": QuantFormat.QOperator, "per_channel": per_channel}
        logging.disable(logging.WARNING)
        quantize_static(model, result, _Reader(feeds_of(model)), **options)
        logging.disable(logging.NOTSET)
        return onnx.load(result)


def step_by_step(steps: int, hidden: int = 16) -> onnx.ModelProto:
    """A dense layer that is applied to each of the first steps alone, as tf2onnx writes it."""
    model = real_model(hidden=hidden)
    graph = model.graph
    nodes = [node for node in graph.node if node.output[0] not in ("product", "out")]
    constants = {"zero": [0], **{f"step{n}": [n] for n in range(steps + 1)}}
    for n in range(steps):
        nodes += [
            helper.make_node("Slice", ["flat0", f"step{n}", f"step{n + 1}", "zero"], [f"part{n}"]),
            helper.make_node("MatMul", [f"part{n}", "head"], [f"product{n}"], f"head{n}"),
            helper.make_node("Add", [f"product{n}", "bias"], [f"sum{n}"]),
        ]
    nodes.append(helper.make_node("Concat", [f"sum{n}" for n in range(steps)], ["out"], axis=0))
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(
        numpy_helper.from_array(np.array(value), name) for name, value in constants.items()
    )
    return model


def in_7_bits(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with half its signed integers, whose sums do not overflow without VNNI."""
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.dtype == np.int8 and value.ndim > 1:
            tensor.CopyFrom(numpy_helper.from_array(value // np.int8(2), tensor.name))
    return model


def feeds_of(model: onnx.ModelProto, count: int = 4) -> list[Feed]:
    """Random inputs of several lengths."""
    rng = np.random.default_rng(1)
    return [
        {
            port.name: rng.normal(
                0,
                1,
                [
                    {"T": 20 + n, "B": 3}.get(d.dim_param, d.dim_value)
                    for d in port.type.tensor_type.shape.dim
                ],
            ).astype(np.float32)
            for port in model.graph.input
        }
        for n in range(count)
    ]


def weights_of(model: onnx.ModelProto) -> dict[str, Any]:
    """Initializers by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def behind_dequantize(
    model: onnx.ModelProto, axes: dict[str, int | None], kind: type = np.int8
) -> onnx.ModelProto:
    """Some weights as integers, with a scale for all or for each entry of an axis."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    nodes, graph = [], result.graph
    for tensor in list(graph.initializer):
        if tensor.name not in axes:
            continue
        value, axis = numpy_helper.to_array(tensor), axes[tensor.name]
        others = tuple(n for n in range(value.ndim) if n != axis)
        scale = np.abs(value).max(axis=others, keepdims=True) / np.float32(127)
        zero = 0 if kind == np.int8 else 128
        integers = (np.rint(value / scale) + zero).astype(kind)
        scale = scale.reshape(-1 if axis is not None else ())
        parts = {"q": integers, "scale": scale, "zero": np.full(scale.shape, zero, kind)}
        names = [f"{tensor.name}_{part}" for part in parts]
        graph.initializer.remove(tensor)
        graph.initializer.extend(map(numpy_helper.from_array, parts.values(), names))
        attributes = {} if axis is None else {"axis": axis}
        nodes.append(helper.make_node("DequantizeLinear", names, [tensor.name], **attributes))
    nodes += graph.node
    del graph.node[:]
    graph.node.extend(nodes)
    return result
