"""Cells of each operator, written out step by step as exporters and people do."""

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH, UNITS, STEPS = 5, 6, 5


@dataclass
class Graph:
    """Nodes in the making; each method adds one and returns the name of its output."""

    weights: dict = field(default_factory=dict)
    nodes: list = field(default_factory=list)
    count: int = 0

    def __call__(self, op, *inputs, outputs=1, **attributes):
        self.count += 1
        names = [f"{op.lower()}_{self.count}_{number}" for number in range(outputs)]
        given = [self.constant(item) if not isinstance(item, str) else item for item in inputs]
        self.nodes.append(helper.make_node(op, given, names, f"n{self.count}", **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, value, name=None):
        value = np.asarray(value)
        if value.dtype == np.float64:
            value = value.astype(np.float32)
        self.count += 1
        name = name or f"c{self.count}"
        self.weights[name] = value
        return name

    def model(self, inputs, outputs, rank, opset=17):
        ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()]
        open_shape = [f"size_{axis}" for axis in range(rank)]
        ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, open_shape) for n in outputs]
        initializers = [numpy_helper.from_array(v, n) for n, v in self.weights.items()]
        graph = helper.make_graph(self.nodes, "g", ports, ends, initializers)
        opsets = [helper.make_opsetid("", opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def drawn(rng, *shape):
    return (rng.standard_normal(shape) * 0.5).astype(np.float32)


def lstm(rng, activation="Sigmoid", form="plain"):
    """A step of an LSTM: forms plain, peepholes, coupled, coupled_input, tanh_gates and joint."""
    gates = 4
    weights = [drawn(rng, size, gates * UNITS) for size in (WIDTH, UNITS)]
    bias, eyes = drawn(rng, gates * UNITS), drawn(rng, 3, UNITS)

    def step(g, x, h, c):
        if form == "joint":
            both = g.constant(np.concatenate(weights), "joint")
            total = g("Add", g("MatMul", g("Concat", x, h, axis=-1), both), g.constant(bias, "b"))
        else:
            first = g("MatMul", x, g.constant(weights[0], "W"))
            total = g("Add", first, g("MatMul", h, g.constant(weights[1], "R")))
            total = g("Add", total, g.constant(bias, "b"))
        i, f, o, n = g("Split", total, outputs=4, axis=-1)
        if form == "peepholes":
            i, f = (g("Add", v, g("Mul", c, eyes[at])) for at, v in ((0, i), (1, f)))
        i, f = gate(g, i), gate(g, f)
        n = g("Tanh", n)
        if form == "coupled":
            i = g("Sub", 1.0, f)
        if form == "coupled_input":
            f = g("Sub", 1.0, i)
        new = g("Add", g("Mul", f, c), g("Mul", i, n))
        if form == "peepholes":
            o = g("Add", o, g("Mul", eyes[2], new))
        return g("Mul", gate(g, o), g("Tanh", new)), new

    def gate(g, value):
        if form == "tanh_gates":
            return g("Add", g("Mul", g("Tanh", g("Mul", value, 0.5)), 0.5), 0.5)
        if form == "exp_gates":
            return g("Div", 1.0, g("Add", 1.0, g("Exp", g("Neg", value))))
        if form == "clip_gates":
            return g("Clip", g("Add", g("Mul", value, 0.2), 0.5), 0.0, 1.0)
        return g(activation, value)

    return step


def gru(rng, after=True, turned=False, form="sum", minimal=False):
    """A step of a GRU: forms sum, difference and complement, which say how z blends."""
    w, r = drawn(rng, WIDTH, 3 * UNITS), drawn(rng, UNITS, 3 * UNITS)
    b, rb = drawn(rng, 3 * UNITS), drawn(rng, 3 * UNITS)

    def step(g, x, h, c):
        first = g("Add", g("MatMul", x, g.constant(w, "W")), g.constant(b, "b"))
        xz, xr, xn = g("Split", first, outputs=3, axis=-1)
        if after:
            second = g("Add", g("MatMul", h, g.constant(r, "R")), g.constant(rb, "rb"))
            hz, hr, hn = g("Split", second, outputs=3, axis=-1)
        else:
            parts = np.split(r, 3, axis=1)
            hz, hr = (g("MatMul", h, g.constant(parts[n], f"R{n}")) for n in (0, 1))
        z = g("Sigmoid", g("Add", xz, hz))
        reset = z if minimal else g("Sigmoid", g("Add", xr, hr))
        if not after:
            hn = g("MatMul", g("Mul", reset, h), g.constant(parts[2], "R2"))
        else:
            hn = g("Mul", reset, hn)
        new = g("Tanh", g("Add", xn, hn))
        old = (new, h) if turned else (h, new)
        if form == "difference":
            return g("Add", old[1], g("Mul", z, g("Sub", old[0], old[1]))), c
        return g("Add", g("Mul", z, old[0]), g("Mul", g("Sub", 1.0, z), old[1])), c

    return step


def rnn(rng, activation="Tanh"):
    """A step without gates."""
    w, r, b = drawn(rng, WIDTH, UNITS), drawn(rng, UNITS, UNITS), drawn(rng, UNITS)

    def step(g, x, h, c):
        first = g("MatMul", x, g.constant(w, "W"))
        total = g("Add", first, g("MatMul", h, g.constant(r, "R")))
        return g(activation, g("Add", total, g.constant(b, "b"))), c

    return step


def unrolled(step, steps=STEPS, backwards=False, ends=False, change=None):
    """Steps one after another, on x [T, B, WIDTH], with the states before them as inputs."""
    g = Graph()
    h, c, outputs = "h0", "c0", []
    for number in range(steps):
        at = steps - 1 - number if backwards else number
        x = g("Gather", "x", np.int64(at), axis=0)
        if change is not None:
            x, h = change(g, number, x, h, outputs)
        h, c = step(g, x, h, c)
        outputs.append(h)
    ordered = outputs[::-1] if backwards else outputs
    rows = [g("Unsqueeze", name, np.array([0])) for name in ordered]
    wanted = [h, *([c] if c != "c0" else [])] if ends else [g("Concat", *rows, axis=0)]
    inputs = {"x": ["time", "batch", WIDTH], "h0": ["batch", UNITS]}
    inputs |= {"c0": ["batch", UNITS]} if c != "c0" else {}
    return g.model(inputs, wanted, 2 if ends else 3)


def feeds(model, steps=STEPS, batches=(3, 1)):
    """Feeds of several batches."""
    rng = np.random.default_rng(7)
    found = []
    for batch in batches:
        feed = {}
        for port in model.graph.input:
            dims = [d.dim_value or d.dim_param for d in port.type.tensor_type.shape.dim]
            sizes = [{"time": steps, "batch": batch}.get(size, size) for size in dims]
            feed[port.name] = rng.standard_normal(sizes).astype(np.float32)
        found.append(feed)
    return found


def operators(model):
    """The recurrent nodes of a model."""
    return [node for node in model.graph.node if node.op_type in ("LSTM", "GRU", "RNN")]


def attributes(node):
    return {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
