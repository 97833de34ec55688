"""Models with units planted in them that the model does not need."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.operators.recurrent import CELLS, Cell

BATCH = 4
# A gate whose bias is this is open or shut, whatever goes in.
_SHUT, _OPEN = -30.0, 30.0


@dataclass(frozen=True)
class Weights:
    """A layer by gates, and the weight of whoever reads it.

    Attributes:
        cell: the layout.
        w: [D, gates, H, I].
        r: [D, gates, H, H].
        b: [D, 2, gates, H].
        v: [D, H, outputs].
        start: initial_h, [D, H]; None for zeros.
    """

    cell: Cell
    w: Array
    r: Array
    b: Array
    v: Array
    start: Array | None = None


def draw_weights(op: str, directions: int, hidden: int, seed: int) -> Weights:
    rng = np.random.default_rng(seed)
    cell = next(cell for cell in CELLS if cell.op == op)
    gates = len(cell.gates)

    def normal(*shape: int) -> Array:
        return rng.normal(0, 0.6, shape)

    return Weights(
        cell,
        normal(directions, gates, hidden, 3),
        normal(directions, gates, hidden, hidden),
        normal(directions, 2, gates, hidden),
        normal(directions, hidden, 2),
    )


def add_unit(weights: Weights, kind: str, rng: np.random.Generator) -> Weights:
    """One more unit in each direction, last: dead, zero, duplicate or constant."""
    d, gates, h, _ = weights.w.shape
    w = np.concatenate([weights.w, rng.normal(0, 1, (d, gates, 1, 3))], axis=2)
    rows = np.concatenate([weights.r, rng.normal(0, 1, (d, gates, 1, h))], axis=2)
    b = np.concatenate([weights.b, rng.normal(0, 1, (d, 2, gates, 1))], axis=3)
    column = rng.normal(0, 1, (d, gates, h + 1, 1))
    v = rng.normal(0, 1, (d, 1, weights.v.shape[2]))
    own = weights.v.copy()
    if kind == "dead":
        column[:], v[:] = 0, 0
    elif kind == "duplicate":
        w[:, :, h], rows[:, :, h], b[..., h] = w[:, :, 0], rows[:, :, 0], b[..., 0]
        # The twins share what the first one alone gave to all others.
        column = 0.4 * rows[..., :1]
        rows[..., 0] *= 0.6
        v, own[:, 0] = 0.4 * own[:, :1], 0.6 * own[:, 0]
    elif kind == "zero":
        w[:, -1, h], rows[:, -1, h], column[:, -1, h], b[:, :, -1, h] = 0, 0, 0, 0
    elif kind == "constant":
        w[:, :, h], rows[:, :, h] = 0, 0
        column[:, :, h] = 0
        held = {"LSTM": "ifo", "GRU": "z", "RNN": ""}[weights.cell.op]
        for gate in held:
            value = _SHUT if gate in "fz" else _OPEN
            b[:, :, weights.cell.gates.index(gate), h] = value
    r = np.concatenate([rows, column], axis=3)
    start = _held(weights.cell, b) if kind == "constant" else None
    return Weights(weights.cell, w, r, b, np.concatenate([own, v], axis=1), start)


def _held(cell: Cell, b: Array) -> Array:
    """The state that the last unit holds from the first step on, and zeros for all others."""
    value = np.tanh(b.sum(axis=1)[:, -1, -1])
    start = np.zeros((len(b), b.shape[-1]))
    start[:, -1] = np.tanh(value) if cell.op == "LSTM" else value
    return start


def widened_model(weights: Weights) -> onnx.ModelProto:
    """X to Y to a MatMul over both directions side by side."""
    cell = weights.cell
    d, gates, h, width = weights.w.shape
    held = {
        "W": weights.w.reshape(d, gates * h, width),
        "R": weights.r.reshape(d, gates * h, h),
        "B": weights.b.reshape(d, 2 * gates * h),
        "V": weights.v.reshape(d * h, -1),
    }
    inputs = ["x", "W", "R", "B"]
    if weights.start is not None:
        held["initial_h"] = np.repeat(weights.start[:, None], BATCH, axis=1)
        inputs += ["", "initial_h"]
    node = helper.make_node(
        cell.op,
        inputs,
        ["Y"],
        "layer",
        hidden_size=h,
        direction="bidirectional" if d == 2 else "forward",
    )
    turned = helper.make_node("Transpose", ["Y"], ["turned"], perm=[0, 2, 1, 3])
    flat = helper.make_node("Reshape", ["turned", "target"], ["flat"])
    product = helper.make_node("MatMul", ["flat", "V"], ["y"])
    tensors = [numpy_helper.from_array(a.astype(np.float32), name) for name, a in held.items()]
    tensors.append(numpy_helper.from_array(np.array([0, 0, -1], np.int64), "target"))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["T", BATCH, width])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["T", BATCH, 2])
    graph = helper.make_graph([node, turned, flat, product], "widened", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
