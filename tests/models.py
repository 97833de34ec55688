"""Writing models node by node, in the form that operators have in each opset."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnx_rnn_prune.model.runner import Array, Feed

Dim = int | str
FOREIGN = "elsewhere.example"
MICROSOFT = "com.microsoft"
_TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.int32): TensorProto.INT32,
    np.dtype(np.bool_): TensorProto.BOOL,
}


@dataclass(frozen=True)
class Value:
    """A tensor of the model: its name and shape; T and B stand for sizes that vary."""

    name: str
    shape: tuple[Dim, ...]

    @property
    def width(self) -> int:
        size = self.shape[-1]
        assert isinstance(size, int)
        return size


class Builder:
    """A model in the making.

    Args:
        rng: where numbers come from.
        opset: the version of the ONNX operators.
        integers: whether some weights are held in 8 bits.
    """

    def __init__(self, rng: random.Random, opset: int, integers: bool = True) -> None:
        self.rng, self.opset, self.integers = rng, opset, integers
        self.normal = np.random.default_rng(rng.getrandbits(32)).normal
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: dict[str, tuple[tuple[Dim, ...], np.dtype[Any]]] = {}
        self.outputs: list[Value] = []
        self.used: list[str] = []
        self.domains: set[str] = set()
        self._count = 0

    # -- tensors ---------------------------------------------------------------------------------

    def fresh(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}_{self._count}"

    def feed(self, name: str, *shape: Dim, dtype: Any = np.float32) -> Value:
        """A graph input."""
        self.inputs[name] = (shape, np.dtype(dtype))
        return Value(name, shape)

    def numbers(self, *shape: int, scale: float = 0.7) -> Array:
        return self.normal(0, scale, shape).astype(np.float32)

    def const(self, value: Any, dtype: Any = None) -> Value:
        """An initializer or a Constant node."""
        array = np.asarray(value, dtype=dtype)
        name = self.fresh("c")
        floats_only = self.opset < 9 and array.dtype != np.float32
        if floats_only or self.rng.random() < 0.7:
            self.initializers.append(numpy_helper.from_array(array, name))
        else:
            tensor = numpy_helper.from_array(array, f"{name}_value")
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        return Value(name, array.shape)

    def ints(self, *values: int) -> Value:
        return self.const(np.array(values, dtype=np.int64))

    def weight(self, array: Array) -> Value:
        """A constant, held as such or computed from others by moving entries."""
        how = self.rng.choice(["held"] * 6 + ["slice", "concat", "transpose", "unsqueeze"])
        if how == "held" and self.opset >= 10 and self.integers and self.rng.random() < 0.1:
            how = "dequantize"
        self.used.append(f"weight by {how}")
        if how == "slice":
            axis = self.rng.randrange(array.ndim)
            wide = np.concatenate([array, array.take([0], axis)], axis)
            return self.slice(self.const(wide), axis, 0, array.shape[axis])
        if how == "concat":
            axis = self.rng.randrange(array.ndim)
            if array.shape[axis] > 1:
                cut = self.rng.randrange(1, array.shape[axis])
                parts = [self.const(part) for part in np.split(array, [cut], axis)]
                return Value(self.op("Concat", *parts, axis=axis), array.shape)
        if how == "transpose" and array.ndim > 1:
            perm = list(range(array.ndim))
            self.rng.shuffle(perm)
            held = self.const(np.ascontiguousarray(np.transpose(array, np.argsort(perm))))
            return self.transpose(held, *perm)
        if how == "dequantize":
            scale = np.float32(max(np.abs(array).max(initial=0), 1e-3) / 127)
            held = self.const(np.round(array / scale).astype(np.int8))
            zero = self.const(np.int8(0))
            return Value(self.op("DequantizeLinear", held, self.const(scale), zero), array.shape)
        if how == "unsqueeze" and array.shape[0] == 1:
            return self.unsqueeze(self.const(array[0]), 0)
        return self.const(array)

    # -- operators -------------------------------------------------------------------------------

    def node(
        self, op: str, inputs: list[str], outputs: list[str], domain: str = "", **attrs: Any
    ) -> None:
        name = self.fresh(op) if self.rng.random() < 0.8 else ""
        self.nodes.append(helper.make_node(op, inputs, outputs, name, domain=domain, **attrs))
        self.used.append(op)

    def op(self, op: str, *inputs: Value | str, domain: str = "", **attrs: Any) -> str:
        """A node with one output, whose name is returned."""
        result = self.fresh(op.lower())
        names = [item if isinstance(item, str) else item.name for item in inputs]
        self.node(op, names, [result], domain, **attrs)
        return result

    def like(self, op: str, x: Value, *others: Value | str, **attrs: Any) -> Value:
        """An operator whose output has the shape of its first input."""
        return Value(self.op(op, x, *others, **attrs), x.shape)

    def transpose(self, x: Value, *perm: int) -> Value:
        return Value(self.op("Transpose", x, perm=perm), tuple(x.shape[axis] for axis in perm))

    def squeeze(self, x: Value, axis: int) -> Value:
        shape = x.shape[:axis] + x.shape[axis + 1 :]
        if self.opset < 13:
            return Value(self.op("Squeeze", x, axes=[axis]), shape)
        return Value(self.op("Squeeze", x, self.ints(axis)), shape)

    def unsqueeze(self, x: Value, axis: int) -> Value:
        shape = (*x.shape[:axis], 1, *x.shape[axis:])
        if self.opset < 13:
            return Value(self.op("Unsqueeze", x, axes=[axis]), shape)
        return Value(self.op("Unsqueeze", x, self.ints(axis)), shape)

    def slice(self, x: Value, axis: int, start: int, end: int, step: int = 1) -> Value:
        size = x.shape[axis]
        length: Dim = len(
            range(*slice(start, end, step).indices(size if isinstance(size, int) else 99))
        )  # type: ignore[arg-type]
        shape = (*x.shape[:axis], length, *x.shape[axis + 1 :])
        if self.opset < 10:
            assert step == 1
            return Value(self.op("Slice", x, starts=[start], ends=[end], axes=[axis]), shape)
        bounds = [self.ints(start), self.ints(end), self.ints(axis)]
        if step != 1 or self.rng.random() < 0.5:
            bounds.append(self.ints(step))
        return Value(self.op("Slice", x, *bounds), shape)

    def split(self, x: Value, axis: int, *sizes: int) -> list[Value]:
        names = [self.fresh("part") for _ in sizes]
        inputs, attrs = [x.name], {"axis": axis}
        if len(set(sizes)) == 1 and self.rng.random() < 0.5:
            attrs.update({"num_outputs": len(sizes)} if self.opset >= 18 else {})
        elif self.opset < 13:
            attrs["split"] = sizes  # type: ignore[assignment]
        else:
            inputs.append(self.ints(*sizes).name)
        self.node("Split", inputs, names, **attrs)
        shapes = [(*x.shape[:axis], size, *x.shape[axis + 1 :]) for size in sizes]
        return [Value(name, shape) for name, shape in zip(names, shapes, strict=True)]

    def gather(self, x: Value, axis: int, index: int | list[int]) -> Value:
        picked: tuple[Dim, ...] = () if isinstance(index, int) else (len(index),)
        name = self.op("Gather", x, self.const(np.array(index, dtype=np.int64)), axis=axis)
        return Value(name, x.shape[:axis] + picked + x.shape[axis + 1 :])

    def reduce(self, op: str, x: Value, axis: int, keepdims: int) -> Value:
        middle: tuple[Dim, ...] = (1,) * keepdims
        shape = x.shape[:axis] + middle + x.shape[axis + 1 :]
        if self.opset < (13 if op == "ReduceSum" else 18):
            return Value(self.op(op, x, axes=[axis], keepdims=keepdims), shape)
        return Value(self.op(op, x, self.ints(axis), keepdims=keepdims), shape)

    def pad(self, x: Value, axis: int, before: int, after: int) -> Value:
        pads = [0] * (2 * len(x.shape))
        pads[axis], pads[axis + len(x.shape)] = before, after
        size = x.shape[axis]
        grown: Dim = size + before + after if isinstance(size, int) else f"{size}+"
        shape = (*x.shape[:axis], grown, *x.shape[axis + 1 :])
        if self.opset < 11:
            return Value(self.op("Pad", x, pads=pads), shape)
        return Value(self.op("Pad", x, self.ints(*pads)), shape)

    def concat(self, axis: int, *parts: Value) -> Value:
        sizes = [part.shape[axis] for part in parts]
        total: Dim = sum(sizes) if all(isinstance(n, int) for n in sizes) else "T+"  # type: ignore[arg-type]
        x = parts[0]
        shape = (*x.shape[:axis], total, *x.shape[axis + 1 :])
        return Value(self.op("Concat", *parts, axis=axis), shape)

    def reshape(self, x: Value, target: Value, *shape: Dim) -> Value:
        return Value(self.op("Reshape", x, target), shape)

    def size_of(self, x: Value, axis: int) -> Value:
        """One size of a tensor as a vector of one entry, in one of the exporters' ways."""
        shape = Value(self.op("Shape", x), (len(x.shape),))
        if self.rng.random() < 0.5:
            return self.slice(shape, 0, axis, axis + 1)
        if self.rng.random() < 0.5:
            return self.gather(shape, 0, [axis])
        return self.unsqueeze(self.gather(shape, 0, axis), 0)

    # -- the whole -------------------------------------------------------------------------------

    def output(self, x: Value) -> None:
        name = f"out{len(self.outputs)}"
        self.node("Identity", [x.name], [name])
        self.outputs.append(Value(name, x.shape))

    def model(self) -> onnx.ModelProto:
        inputs = [
            helper.make_tensor_value_info(name, _TYPES[dtype], shape)
            for name, (shape, dtype) in self.inputs.items()
        ]
        outputs = [
            helper.make_tensor_value_info(out.name, TensorProto.FLOAT, out.shape)
            for out in self.outputs
        ]
        graph = helper.make_graph(self.nodes, "drawn", inputs, outputs, self.initializers)
        opsets = [helper.make_opsetid("", self.opset)]
        domains = {node.domain for node in self.nodes} - {""}
        opsets += [helper.make_opsetid(domain, 1) for domain in sorted(domains | self.domains)]
        ir_version = 10 if self.opset > 20 else 8
        return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)

    def feeds(self, steps: int, batch: int, seed: int = 0) -> Feed:
        """Random inputs for some number of time steps and sequences."""
        rng = np.random.default_rng([seed, steps, batch])
        fixed_steps, fixed_batch = self.inputs["x"][0][:2]
        steps = fixed_steps if isinstance(fixed_steps, int) else steps
        batch = fixed_batch if isinstance(fixed_batch, int) else batch
        result = {}
        for name, (shape, dtype) in self.inputs.items():
            sizes = [{"T": steps, "B": batch}.get(n, n) for n in shape]  # type: ignore[call-overload]
            if dtype == np.int32:
                result[name] = rng.integers(1, steps + 1, sizes, dtype=np.int32)
            elif dtype == np.bool_:
                result[name] = np.array(rng.random() < 0.5)
            else:
                result[name] = rng.normal(0, 1, sizes).astype(dtype)
        return result
