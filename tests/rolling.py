"""Cells of each operator, written out step by step as exporters and people do."""

from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.roll.rolling import roll

WIDTH, UNITS, STEPS = 5, 6, 5


@dataclass
class Graph:
    """Nodes in the making; each method adds one and returns the name of its output."""

    weights: dict = field(default_factory=dict)
    nodes: list = field(default_factory=list)
    count: int = 0
    prefix: str = ""

    def __call__(self, op, *inputs, outputs=1, **attributes):
        self.count += 1
        stem = f"{self.prefix}{op.lower()}_{self.count}"
        names = [f"{stem}_{number}" for number in range(outputs)]
        given = [self.constant(item) if not isinstance(item, str) else item for item in inputs]
        self.nodes.append(helper.make_node(op, given, names, f"node_{stem}", **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, value, name=None):
        value = np.asarray(value)
        if value.dtype == np.float64:
            value = value.astype(np.float32)
        self.count += 1
        name = name or f"{self.prefix}c{self.count}"
        self.weights[name] = value
        return name

    def body(self, output):
        """A body without inputs; its constants are its own."""
        initializers = [numpy_helper.from_array(v, n) for n, v in self.weights.items()]
        end = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        return helper.make_graph(self.nodes, f"{self.prefix}body", [], [end], initializers)

    def model(self, inputs, outputs, opset=17):
        ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()]
        ends = [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, [f"{n}_{a}" for a in range(rank)])
            for n, rank in outputs.items()
        ]
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

    step.cells = 2

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


def rnn(rng, activation="Tanh", width=WIDTH):
    """A step without gates."""
    w, r, b = drawn(rng, width, UNITS), drawn(rng, UNITS, UNITS), drawn(rng, UNITS)

    def step(g, x, h, c):
        first = g("MatMul", x, g.constant(w, f"W_{width}"))
        total = g("Add", first, g("MatMul", h, g.constant(r, f"R_{width}")))
        return g(activation, g("Add", total, g.constant(b, f"b_{width}"))), c

    return step


def operator(rng, op, **choices):
    """A step that an operator takes which stands in the body."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    sizes = {"W": (WIDTH,), "R": (UNITS,), "B": ()}
    weights = {n: drawn(rng, 1, (1 + (n == "B")) * gates * UNITS, *s) for n, s in sizes.items()}

    def step(g, x, h, c):
        first = np.array([0])
        given = [g.constant(value, f"{op}_{name}") for name, value in weights.items()]
        states = [g("Unsqueeze", state, first) for state in (h, c)[: 1 + (op == "LSTM")]]
        ends = g(
            op,
            g("Unsqueeze", x, first),
            *given,
            "",
            *states,
            outputs=2 + (op == "LSTM"),
            hidden_size=UNITS,
            **choices,
        )
        h, *c = (g("Squeeze", end, first) for end in ends[1:])
        return h, *(c or [""])

    step.cells = 1 + (op == "LSTM")
    return step


def unrolled(step, steps=STEPS, backwards=False, ends=False, change=None, mask=None, out="held"):
    """Steps one after another, on x [T, B, WIDTH], with the states before them as inputs.

    Args:
        step: of a cell.
        steps: how many.
        backwards: whether the last step comes first.
        ends: whether the states after the last step are asked for, not the outputs.
        change: changes what a step reads.
        mask: held where a further input, mask [T, B, 1], is 0: "where" or "blend" says how.
        out: what outputs are there: held with the state, zero, or own, what the last one was.
    """
    g = Graph()
    h, c, outputs = "h0", "c0", []
    for number in range(steps):
        at = steps - 1 - number if backwards else number
        x = g("Gather", "x", np.int64(at), axis=0)
        if change is not None:
            x, h = change(g, number, x, h, outputs)
        before = h, c
        h, c = step(g, x, h, c)
        if mask:
            flag = g("Gather", g("Greater", "mask", 0.0), np.int64(at), axis=0)
            last = outputs[-1] if out == "own" and outputs else np.zeros((), np.float32)
            put = g("Where", flag, h, last) if out != "held" else None
            h = held(g, flag, h, before[0], mask)
            c = held(g, flag, c, before[1], mask) if c != "c0" else c
        outputs.append(put or h if mask else h)
    ordered = outputs[::-1] if backwards else outputs
    rows = [g("Unsqueeze", name, np.array([0])) for name in ordered]
    wanted = [h, *([c] if c != "c0" else [])] if ends else [g("Concat", *rows, axis=0)]
    inputs = {"x": ["time", "batch", WIDTH], "h0": ["batch", UNITS]}
    inputs |= {"c0": ["batch", UNITS]} if c != "c0" else {}
    inputs |= {"mask": ["time", "batch", 1]} if mask else {}
    return g.model(inputs, dict.fromkeys(wanted, 2 if ends else 3))


def body_of(inputs, outputs, g):
    """A body; ports are (name, type, shape), where None stands for a sequence."""
    ports = [
        [helper.make_tensor_value_info(n, kind, shape) for n, kind, shape in side]
        for side in (inputs, outputs)
    ]
    return helper.make_graph(g.nodes, "body", *ports)


STATE = (TensorProto.FLOAT, ["batch", UNITS])


def repeated(
    step, op="Loop", backwards=False, mask=None, zero=False, ends=False, two=None, joined=None
):
    """The steps in the body of a Loop, which counts on its own, or of a Scan.

    Args:
        step: of a cell.
        op: Loop or Scan.
        backwards: whether the last step comes first.
        mask: held where a further input, mask [T, B, 1], is 0: "where" or "blend" says how.
        zero: outputs are 0 where that is 0, not held.
        ends: whether the states after the last step are asked for, too.
        two: the step of a second cell that reads the first one's h.
        joined: of a Loop, puts outputs into a sequence that is joined along this new axis, or by
            ScatterND or ScatterElements into a tensor that was made before.
    """
    g, b = Graph(), Graph(prefix="b_")
    b.weights = g.weights
    lstm = getattr(step, "cells", 1) == 2
    names = ["h", "c"] if lstm else ["h"]
    names += ["h2"] if two is not None else []
    if op == "Loop":
        at = b("Sub", b("Sub", "steps", np.int64(1)), "j") if backwards else "j"
        x = b("Gather", "x", at, axis=0)
        m = b("Gather", "flags", at, axis=0) if mask else None
    else:
        x, m = "x_now", "flag_now" if mask else None
    old = {"h": "b_h", "c": "b_c"}
    h, c = step(b, x, "b_h", "b_c")
    new = {"h": h, "c": c}
    if two is not None:
        new["h2"], old["h2"] = two(b, h, "b_h2", "")[0], "b_h2"
    kept = dict(new)
    for name in names if mask else []:
        kept[name] = held(b, m, new[name], old[name], mask)
    last = names[-1] if two is not None else "h"
    put = kept[last]
    if zero:
        put = b("Where", m, new[last], np.zeros((), np.float32))
    carried = [b("Identity", kept[name]) for name in names]
    put = b("Identity", put)
    finals = [f"{name}_last" for name in names]
    starts = [f"{name}0" for name in names]
    states = [(old[name], *STATE) for name in names]
    after = [(name, *STATE) for name in carried]
    sides = [("x_now", TensorProto.FLOAT, ["batch", WIDTH])]
    sides += [("flag_now", TensorProto.BOOL, ["batch", 1])] if mask else []
    if mask:
        g.nodes.append(helper.make_node("Greater", ["mask", g.constant(0.0)], ["flags"], "flags"))
    if op == "Loop":
        shape = g("Shape", "x")
        steps = g("Gather", shape, np.int64(0), axis=0)
        g.nodes.append(helper.make_node("Identity", [steps], ["steps"], "steps"))
        going = b("Identity", "going")
        ports = [("j", TensorProto.INT64, []), ("going", TensorProto.BOOL, []), *states]
        ends_ = [(going, TensorProto.BOOL, []), *after]
        inputs = ["steps", g.constant(np.array(True)), *starts]
        last = "ys" if joined is None else "all"
        if joined is None:
            body = body_of(ports, [*ends_, (put, *STATE)], b)
        elif isinstance(joined, str):
            where = b("Reshape", at, np.array([1, 1]))
            row = b("Unsqueeze", put, np.array([0]))
            if joined == "ScatterElements":
                where = b("Expand", b("Reshape", at, np.array([1, 1, 1])), b("Shape", row))
            so_far = b(joined, "so_far", where, row, **({"axis": 0} if "El" in joined else {}))
            body = body_of(
                [*ports, ("so_far", TensorProto.FLOAT, ["time", "batch", UNITS])],
                [*ends_, (so_far, TensorProto.FLOAT, ["time", "batch", UNITS])],
                b,
            )
            sizes = g(
                "Concat", g("Slice", shape, np.array([0]), np.array([2])), np.array([UNITS]), axis=0
            )
            inputs.append(g("Expand", np.zeros((1, 1, 1)), sizes))
            last = "ys"
        else:
            grown = b("SequenceInsert", "so_far", put)
            body = body_of(ports, ends_, b)
            for side, word in ((body.input, "so_far"), (body.output, grown)):
                side.append(helper.make_tensor_sequence_value_info(word, *STATE))
            inputs.append(g("SequenceEmpty"))
        g.nodes.append(helper.make_node("Loop", inputs, [*finals, last], "loop", body=body))
        if isinstance(joined, int):
            join = {"axis": joined, "new_axis": 1}
            g.nodes.append(helper.make_node("ConcatFromSequence", [last], ["ys"], "join", **join))
    else:
        body = body_of([*states, *sides], [*after, (put, *STATE)], b)
        inputs = [*starts, "x", *(["flags"] if mask else [])]
        turned = [int(backwards)] * len(sides)
        scan = helper.make_node("Scan", inputs, [*finals, "ys"], "scan", body=body)
        settings = {"num_scan_inputs": len(sides), "scan_input_directions": turned}
        settings["scan_output_directions"] = [int(backwards)]
        scan.attribute.extend(helper.make_attribute(k, v) for k, v in settings.items())
        g.nodes.append(scan)
    inputs = {"x": ["time", "batch", WIDTH]}
    inputs |= {name: ["batch", UNITS] for name in starts}
    inputs |= {"mask": ["time", "batch", 1]} if mask else {}
    outputs = {"ys": 3} | ({name: 2 for name in finals} if ends else {})
    return g.model(inputs, outputs)


def held(g, mask, new, old, how):
    """What a state is where a truth value says whether a step counts."""
    if how == "where":
        return g("Where", mask, new, old)
    kept, lost = (g("Cast", m, to=1) for m in (mask, g("Not", mask)))
    return g("Add", g("Mul", kept, new), g("Mul", old, lost))


def feeds(model, steps=STEPS, batches=(4, 1)):
    """Feeds of several batches."""
    rng = np.random.default_rng(7)
    found = []
    for batch in batches:
        feed = {}
        for port in model.graph.input:
            dims = [d.dim_value or d.dim_param for d in port.type.tensor_type.shape.dim]
            sizes = [{"time": steps, "batch": batch, "other": 1}.get(size, size) for size in dims]
            feed[port.name] = rng.standard_normal(sizes).astype(np.float32)
        if "mask" in feed:  # the first sequence has no step that counts, the second no other one
            feed["mask"][:, :1] = -1
            feed["mask"][:, 1:2] = 1
        found.append(feed)
    return found


def operators(model):
    """The recurrent nodes of a model."""
    return [node for node in model.graph.node if node.op_type in ("LSTM", "GRU", "RNN")]


def attributes(node):
    return {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}


def hoisted(model):
    """The same with the products of the input computed for all steps at once."""
    body = next((node for node in model.graph.node if node.op_type == "Loop"), None)
    nodes = model.graph.node if body is None else body.attribute[0].g.node
    makers = {name: node for node in nodes for name in node.output}
    names = {}
    for node in nodes:
        gather = makers.get(node.input[0]) if node.op_type == "MatMul" else None
        if gather is not None and gather.op_type == "Gather" and gather.input[0] in ("x", *names):
            name = f"x_times_{node.input[1]}"
            names[name] = node.input[1]
            gather.input[0] = name
            node.op_type = "Identity"
            del node.input[1:]
    for name, weight in names.items():
        made = helper.make_node("MatMul", ["x", weight], [name], f"{name}_node")
        model.graph.node.insert(0, made)
    return model


def started_at_zero(model):
    """The same from states of 0, of which exporters leave nothing in the first step."""
    zeros, same, nodes = {"h0", "c0"}, {}, []
    for node in model.graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]
        lost = zeros.intersection(node.input)
        kept = [name for name in node.input if name not in zeros]
        if not lost:
            nodes.append(node)
        elif node.op_type in ("MatMul", "Mul", "Split"):
            zeros.update(node.output)
        elif node.op_type == "Sub" and node.input[0] in zeros:
            nodes.append(helper.make_node("Neg", kept, node.output, node.name))
        else:  # Add, or Sub of 0
            same[node.output[0]] = kept[0]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for port in [port for port in model.graph.input if port.name in zeros]:
        model.graph.input.remove(port)
    return model


def random_model(rng):
    """A random cell, written out in a random way, and its number of steps."""
    kinds = {
        "lstm": lambda: lstm(rng, form=str(rng.choice(LSTM_FORMS))),
        "gru": lambda: gru(
            rng,
            after=bool(rng.integers(2)),
            turned=bool(rng.integers(2)),
            form=str(rng.choice(["sum", "difference"])),
        ),
        "rnn": lambda: rnn(rng, str(rng.choice(["Tanh", "Relu", "Sigmoid", "Elu", "Softsign"]))),
    }
    kind = str(rng.choice(list(kinds)))
    step = kinds[kind]()
    steps, back = int(rng.integers(3, 9)), bool(rng.integers(2))
    ends = bool(rng.integers(2))
    way = str(rng.choice(WAYS))
    mask = [None, "where", "blend"][int(rng.integers(3))]
    if "unrolled" in way:
        out = str(rng.choice(["held", "zero", "own"]))
        model = unrolled(step, steps, back, ends, mask=mask, out=out)
    else:
        zero, axis = bool(mask) and bool(rng.integers(2)), int(rng.integers(3))
        joined = axis if "joined" in way else None
        model = repeated(step, way.split()[-1], back, mask, zero, ends, joined=joined)
    return (hoisted(model) if "hoisted" in way else model), steps


WAYS = ("unrolled", "hoisted unrolled", "Loop", "joined Loop", "hoisted Loop", "Scan")
LSTM_FORMS = (
    "plain",
    "peepholes",
    "coupled",
    "coupled_input",
    "tanh_gates",
    "exp_gates",
    "clip_gates",
)


def run(model, feed):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feed)


def rolled(model, given=None, fewest=2):
    """The rolled model and what is said of it; the same outputs were seen."""
    given = given or feeds(model)
    found = roll(Document.read(model), given, fewest)
    written = found.document.write()
    onnx.checker.check_model(written)
    for feed in given:
        for one, other in zip(run(model, feed), run(written, feed), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
    return written, found
