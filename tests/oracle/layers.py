"""Recurrent layers with every option that onnxruntime takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from models import MICROSOFT, Builder, Value
from onnx_rnn_prune.operators.recurrent import GRU, LSTM, QUANTIZED_LSTM, RNN, Cell

_GATES = ["Sigmoid", "HardSigmoid"]
_OTHERS = ["Tanh", "Relu", "Softsign", "LeakyRelu", "ScaledTanh", "Elu", "Affine"]


@dataclass(frozen=True)
class Drawn:
    """A layer: its outputs by specified name, those that are omitted left out."""

    cell: Cell
    directions: int
    hidden: int
    outputs: dict[str, Value]
    weights: dict[str, Value] = field(default_factory=dict)


def draw_layer(
    b: Builder,
    x: Value,
    *,
    hidden: int | None = None,
    direction: str | None = None,
    wanted: tuple[str, ...] = (),
    share: Drawn | None = None,
    start: dict[str, Value] | None = None,
    cell: Cell | None = None,
) -> Drawn:
    """A random layer that reads x [T, B, I].

    Args:
        b: the model in the making.
        x: what the layer reads.
        hidden: H, drawn where it is not given.
        direction: drawn where it is not given.
        wanted: outputs that may not be omitted.
        share: a layer of the same sizes whose W and R this one takes.
        start: initial states.
        cell: drawn where it is not given.
    """
    rng = b.rng
    cell = share.cell if share else cell or rng.choice((LSTM, GRU, RNN))
    direction = direction or rng.choice(["forward", "reverse", "bidirectional"])
    d = 2 if direction == "bidirectional" else 1
    h = hidden or rng.choice([1, *range(2, 10)])
    gates = len(cell.gates)
    weights = dict(share.weights) if share else {}
    if not share:
        weights["W"] = b.weight(b.numbers(d, gates * h, x.width))
        weights["R"] = b.weight(b.numbers(d, gates * h, h))
    given = {"X": x, **weights, **_optional_inputs(b, cell, x, d, h)}
    given.update({name: state for name, state in (start or {}).items() if name in cell.inputs})
    inputs = [given[name].name if name in given else "" for name in cell.inputs]
    while not inputs[-1]:
        inputs.pop()
    outputs = _draw_outputs(b, cell, wanted)
    b.node(cell.op, inputs, outputs, **_attributes(b, cell, direction, d, h))
    return Drawn(cell, d, h, _values(cell, outputs, x, d, h), weights)


def _values(cell: Cell, outputs: list[str], x: Value, d: int, h: int) -> dict[str, Value]:
    steps, batch = x.shape[0], x.shape[1]
    shapes = ((steps, d, batch, h), (d, batch, h), (d, batch, h))
    return {
        name: Value(tensor, shape)
        for name, tensor, shape in zip(cell.outputs, outputs, shapes, strict=False)
        if tensor
    }


def _draw_outputs(b: Builder, cell: Cell, wanted: tuple[str, ...]) -> list[str]:
    """Names of the outputs in order, empty for those that are omitted."""
    chosen = {name for name in cell.outputs if b.rng.random() < 0.3} | set(wanted)
    chosen = chosen or {b.rng.choice(cell.outputs)}
    outputs = [b.fresh(name) if name in chosen else "" for name in cell.outputs]
    while not outputs[-1]:
        outputs.pop()
    return outputs


def _optional_inputs(b: Builder, cell: Cell, x: Value, d: int, h: int) -> dict[str, Value]:
    rng, gates = b.rng, len(cell.gates)
    given = {}
    if rng.random() < 0.7:
        given["B"] = b.weight(b.numbers(d, 2 * gates * h, scale=0.3))
    if cell.op == "LSTM" and rng.random() < 0.3:
        given["P"] = b.weight(b.numbers(d, 3 * h, scale=0.5))
    if rng.random() < 0.2:
        b.used.append("sequence_lens")
        known = "lengths" in b.inputs
        given["sequence_lens"] = (
            Value("lengths", x.shape[1:2])
            if known
            else b.feed("lengths", x.shape[1], dtype=np.int32)
        )
    kind = rng.choice(["none", "none", "zeros", "zeros", "constant", "input"])
    states = [name for name in ("initial_h", "initial_c") if name in cell.inputs]
    for name in states:
        if rng.random() < 0.8:
            given.update(_state(b, kind, name, x, d, h))
    return given


def _state(b: Builder, kind: str, name: str, x: Value, d: int, h: int) -> dict[str, Value]:
    b.used.append(f"{name} {kind}")
    if kind == "input":
        return {name: b.feed(b.fresh(name), d, x.shape[1], h)}
    batch = x.shape[1]
    if isinstance(batch, int) and b.rng.random() < 0.5:
        scale = 0.0 if kind == "zeros" else 0.7
        return {name: b.weight(b.numbers(d, batch, h, scale=scale))}
    if kind == "zeros" and b.opset >= 9:
        size = b.concat(0, b.ints(d), b.size_of(x, 1), b.ints(h))
        if b.rng.random() < 0.5:
            return {name: Value(b.op("ConstantOfShape", size), (d, x.shape[1], h))}
        zero = b.const(np.zeros((d, 1, h), np.float32))
        return {name: Value(b.op("Expand", zero, size), (d, x.shape[1], h))}
    if kind == "constant" and b.opset >= 8:
        start = b.const(b.numbers(d, 1, h))
        size = b.concat(0, b.ints(d), b.size_of(x, 1), b.ints(h))
        return {name: Value(b.op("Expand", start, size), (d, x.shape[1], h))}
    return {}


def _attributes(b: Builder, cell: Cell, direction: str, d: int, h: int) -> dict[str, Any]:
    rng = b.rng
    attrs: dict[str, Any] = {"hidden_size": h}
    if direction != "forward" or rng.random() < 0.5:
        attrs["direction"] = direction
    if cell.op == "GRU" and rng.random() < 0.5:
        attrs["linear_before_reset"] = rng.randint(0, 1)
    if rng.random() < 0.1:
        attrs["clip"] = 0.8
    if cell.op == "LSTM" and rng.random() < 0.1:
        attrs["input_forget"] = 1
    if rng.random() < 0.2:
        names = []
        for _ in range(d):
            names += [
                rng.choice(_GATES if default == "Sigmoid" else _OTHERS)
                for default in cell.activations
            ]
        attrs["activations"] = names
    return attrs


def draw_quantized(b: Builder, x: Value) -> Drawn:
    """A DynamicQuantizeLSTM, with one scale for each direction or for each row of W and R."""
    rng, h = b.rng, b.rng.randint(2, 9)
    d = rng.choice([1, 2])
    weights: dict[str, Value] = {"X": x}
    for letter, width in (("W", x.width), ("R", h)):
        value = b.numbers(d, width, 4 * h)
        axes = rng.choice([(1,), (1, 2)])
        scale = np.abs(value).max(axis=axes, keepdims=True) / 127 + 1e-6
        weights[letter] = b.const(np.round(value / scale).astype(np.int8))
        weights[f"{letter}_scale"] = b.const(np.squeeze(scale, axes).astype(np.float32))
        weights[f"{letter}_zero_point"] = b.const(np.zeros(np.squeeze(scale, axes).shape, np.int8))
    if rng.random() < 0.7:
        weights["B"] = b.const(b.numbers(d, 8 * h, scale=0.3))
    inputs = [weights[name].name if name in weights else "" for name in QUANTIZED_LSTM.inputs]
    outputs = _draw_outputs(b, QUANTIZED_LSTM, ("Y",))
    direction = "bidirectional" if d == 2 else rng.choice(["forward", "reverse"])
    attrs = {"hidden_size": h, "direction": direction}
    b.node(QUANTIZED_LSTM.op, inputs, outputs, domain=MICROSOFT, **attrs)
    return Drawn(QUANTIZED_LSTM, d, h, _values(QUANTIZED_LSTM, outputs, x, d, h))


def draw_stacked(b: Builder, x: Value) -> Drawn:
    """Two layers, one behind the other, all of whose states come and leave in one tensor."""
    cell, h = b.rng.choice((LSTM, GRU, RNN)), b.rng.randint(2, 6)
    direction = b.rng.choice(["forward", "bidirectional"])
    d = 2 if direction == "bidirectional" else 1
    names = [name for name in ("initial_h", "initial_c") if name in cell.inputs]
    rows = 2 * len(names)
    state = b.feed(b.fresh("state"), rows * d, x.shape[1], h)
    parts = iter(b.split(state, 0, *[d] * rows))
    if b.rng.random() < 0.5:
        parts = iter([b.slice(state, 0, row * d, row * d + d) for row in range(rows)])
    finals = []
    for _ in range(2):
        start = {name: next(parts) for name in names}
        wanted = ("Y", "Y_h", "Y_c") if cell is LSTM else ("Y", "Y_h")
        layer = draw_layer(
            b, x, hidden=h, direction=direction, wanted=wanted, start=start, cell=cell
        )
        finals += [layer.outputs[name] for name in wanted[1:]]
        turned = b.transpose(layer.outputs["Y"], 0, 2, 1, 3)
        x = b.reshape(turned, b.ints(0, 0, d * h), x.shape[0], x.shape[1], d * h)
    b.output(b.concat(0, *finals))
    return layer
