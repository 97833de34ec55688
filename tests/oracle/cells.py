"""Cells that are no operator, written out in a Loop, in a Scan, or step by step."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import numpy_helper

from onnx_rnn_prune.model.runner import Feed
from onnx_rnn_prune.opened_model import follow
from onnx_rnn_prune.operators.feed_forward import all_layers
from onnx_rnn_prune.trace.dataflow import carried_products
from onnx_rnn_prune.trace.plan import Plan
from onnx_rnn_prune.traced_model import trace_model
from oracle.check import PROVED, TRACED, Case, draw_mask

WIDTH, STEPS, PIXELS = 5, 3, 4
FORMS = ("loop", "scan", "unrolled")
STARTS = ("zeros", "constant", "fed", "computed")
ENDS = ("head", "output", "softmax", "last")


@dataclass
class Written:
    """A model of one cell, in the text of `onnx.parser`, with its weights."""

    name: str
    form: str
    start: str
    end: str
    units: int
    rng: np.random.Generator
    weights: dict[str, np.ndarray] = field(default_factory=dict)

    def weight(self, name: str, *shape: int) -> str:
        if name not in self.weights:
            self.weights[name] = (0.5 * self.rng.standard_normal(shape)).astype(np.float32)
        return name

    def index(self, name: str, *values: int) -> str:
        self.weights[name] = np.array(values, np.int64)
        return name

    def step(self, p: str, x: str, states: list[str]) -> tuple[str, list[str]]:
        """The nodes of one step, whose names begin with p, and the states that they leave."""
        return CELLS[self.name](self, p, x, states)

    @property
    def image(self) -> bool:
        return self.name == "conv_lstm"

    def sizes(self, state: int) -> list[int | str]:
        count = self.units - 2 if self.name == "lstmp" and state == 0 else self.units
        return ["B", count, PIXELS, PIXELS] if self.image else ["B", count]

    def read(self) -> list[str]:
        """The names of the states that the cell begins with."""
        return [f"s{number}" for number in range(COUNTS.get(self.name, 2))]

    def starts(self) -> str:
        """Nodes that make the initial states."""
        lines = []
        for number, state in enumerate(self.read()):
            sizes = self.sizes(number)
            if self.start == "constant":
                self.weight(state, 1, *(int(size) for size in sizes[1:]))
                lines.append(f"b{number} = Expand ({state}, batch{number})")
                rest = ", ".join(f"{size}" for size in sizes[1:])
                lines[-1] = f"r{number} = Constant <value = int64[{len(sizes) - 1}] {{{rest}}}> () "
                lines[-1] += f"batch{number} = Concat <axis = 0> (count, r{number}) "
                lines[-1] += f"{state}_ = Expand ({state}, batch{number})"
            elif self.start != "fed":
                rest = ", ".join(f"{size}" for size in sizes[1:])
                line = f"r{number} = Constant <value = int64[{len(sizes) - 1}] {{{rest}}}> () "
                line += f"batch{number} = Concat <axis = 0> (count, r{number}) "
                line += f"{state}_ = ConstantOfShape (batch{number})"
                if self.start == "computed":
                    line = line.replace(f"{state}_ =", f"zero{number} =")
                    line += f" {state}_ = Cos (zero{number})"
                lines.append(line)
        return " ".join(lines)

    def model(self) -> onnx.ModelProto:
        frame = f", {PIXELS}, {PIXELS}" if self.image else ""
        states = self.read()
        begun = [state if self.start == "fed" else f"{state}_" for state in states]
        self.index("zero", 0)
        self.index("one", 1)
        self.index("two", 2)
        ports = [f"float[T, B, {WIDTH}{frame}] x"]
        if self.start == "fed":
            ports += [f"float[{_joined(self.sizes(n))}] {s}" for n, s in enumerate(states)]
        inner = getattr(self, f"_{self.form}")(states, begun)
        self.weight("V", self.units - 2 if self.name == "lstmp" else self.units, 3)
        tail = self._tail()
        text = f"""<ir_version: 8, opset_import: ["" : 17]>
            m ({", ".join(ports)}) => ({self.results()}) {{
                shape = Shape (x) count = Slice (shape, one, two)
                {self.starts()} {inner} {tail}
            }}"""
        proto = onnx.parser.parse_model(text)
        for name, value in self.weights.items():
            proto.graph.initializer.append(numpy_helper.from_array(value, name))
        onnx.checker.check_model(proto, full_check=True)
        return proto

    def results(self) -> str:
        h, seq = self.sizes(0), ["N", *self.sizes(0)]
        found = [f"float[{_joined(['N', *(['B', 3] if not self.image else ['B', 3, 4, 4])])}] y"]
        if self.end == "output":
            found = [f"float[{_joined(seq)}] y"]
        elif self.end == "last":
            found = [f"float[{_joined(h)}] y"]
        elif self.end == "softmax" and not self.image:
            found = [f"float[{_joined(seq)}] y"]
        return ", ".join(found)

    def _tail(self) -> str:
        if self.end == "output":
            return "y = Identity (hs)"
        if self.end == "last":
            return "y = Identity (final0)"
        if self.image:
            self.weight("K", 3, self.units, 1, 1)
            size = f"int64[4] {{-1, {self.units}, {PIXELS}, {PIXELS}}}"
            return f"""flat = Constant <value = {size}> () f = Reshape (hs, flat) v = Conv (f, K)
                whole = Shape (hs) lead = Slice (whole, zero, two)
                k3 = Constant <value = int64[3] {{3, {PIXELS}, {PIXELS}}}> ()
                form = Concat <axis = 0> (lead, k3) y = Reshape (v, form)"""
        return "y = MatMul (hs, V)" if self.end == "head" else "y = Softmax <axis = -1> (hs)"

    def _ports(self, names: list[str]) -> str:
        return ", ".join(f"float[{_joined(self.sizes(n))}] {name}" for n, name in enumerate(names))

    def _loop(self, states: list[str], begun: list[str]) -> str:
        lines, left = self.step("a_", "xt", [f"in{n}" for n in range(len(states))])
        finals = ", ".join(f"final{n}" for n in range(len(states)))
        ins, outs = self._ports([f"in{n}" for n in range(len(states))]), self._ports(left)
        out = f"float[{_joined(self.sizes(0))}] out"
        return f"""
            true = Constant <value = bool {{1}}> () first = Constant <value = int64 {{0}}> ()
            turns = Gather <axis = 0> (shape, first)
            {finals}, hs = Loop (turns, true, {", ".join(begun)}) <body = turn (
                int64 i, bool go, {ins}) => (bool on, {outs}, {out}) {{
                on = Identity (go) xt = Gather <axis = 0> (x, i)
                {lines} out = Identity ({left[0]})
            }}>"""

    def _scan(self, states: list[str], begun: list[str]) -> str:
        lines, left = self.step("a_", "xt", [f"in{n}" for n in range(len(states))])
        finals = ", ".join(f"final{n}" for n in range(len(states)))
        ins, outs = self._ports([f"in{n}" for n in range(len(states))]), self._ports(left)
        frame = f", {PIXELS}, {PIXELS}" if self.image else ""
        return f"""{finals}, hs = Scan <num_scan_inputs = 1, body = turn (
            {ins}, float[B, {WIDTH}{frame}] xt) => ({outs}, float[{_joined(self.sizes(0))}] out) {{
                {lines} out = Identity ({left[0]})
            }}> ({", ".join(begun)}, x)"""

    def _unrolled(self, _: list[str], begun: list[str]) -> str:
        lines, states, made = [], begun, []
        for t in range(STEPS):
            lines.append(f"i{t} = Constant <value = int64 {{{t}}}> ()")
            lines.append(f"x{t} = Gather <axis = 0> (x, i{t})")
            more, states = self.step(f"t{t}_", f"x{t}", states)
            lines.append(f"{more} u{t} = Unsqueeze ({states[0]}, zero)")
            made.append(f"u{t}")
        lines.append(f"hs = Concat <axis = 0> ({', '.join(made)})")
        lines += [f"final{n} = Identity ({state})" for n, state in enumerate(states)]
        return " ".join(lines)

    def feeds(self, steps: int, batch: int, seed: int) -> Feed:
        rng = np.random.default_rng(seed)
        frame = (PIXELS, PIXELS) if self.image else ()
        found = {"x": rng.standard_normal((max(steps, STEPS), batch, WIDTH, *frame))}
        for number, state in enumerate(self.read()):
            if self.start == "fed":
                found[state] = rng.standard_normal((batch, *self.sizes(number)[1:]))
        return {name: value.astype(np.float32) for name, value in found.items()}


def _joined(sizes: list[int | str]) -> str:
    return ", ".join(map(str, sizes))


def _min_gru(b: Written, p: str, x: str, states: list[str]) -> tuple[str, list[str]]:
    u = b.units
    b.weights["unit"] = np.float32(1)
    b.weight("Wz", WIDTH, u), b.weight("Wn", WIDTH, u), b.weight("bz", u), b.weight("bn", u)
    return (
        f"""{p}z0 = MatMul ({x}, Wz) {p}z1 = Add ({p}z0, bz) {p}z = Sigmoid ({p}z1)
        {p}n0 = MatMul ({x}, Wn) {p}n = Add ({p}n0, bn) {p}k = Sub (unit, {p}z)
        {p}o = Mul ({p}k, {states[0]}) {p}w = Mul ({p}z, {p}n) {p}h = Add ({p}o, {p}w)
        """,
        [f"{p}h"],
    )


def _sru(b: Written, p: str, x: str, states: list[str]) -> tuple[str, list[str]]:
    """c' = f c + (1 - f) W x, h = r tanh(c') + (1 - r) V x; the state h is not read."""
    u = b.units
    b.weights["unit"] = np.float32(1)
    b.weight("W3", WIDTH, 4 * u), b.weight("vf", u), b.weight("bf", u)
    return (
        f"""{p}all = MatMul ({x}, W3)
        {p}w, {p}f0, {p}r0, {p}x = Split <axis = -1> ({p}all)
        {p}fc = Mul (vf, {states[1]}) {p}f1 = Add ({p}f0, {p}fc) {p}f2 = Add ({p}f1, bf)
        {p}f = Sigmoid ({p}f2) {p}g = Sub (unit, {p}f) {p}o = Mul ({p}f, {states[1]})
        {p}n = Mul ({p}g, {p}w) {p}c = Add ({p}o, {p}n) {p}t = Tanh ({p}c)
        {p}r = Sigmoid ({p}r0) {p}q = Sub (unit, {p}r) {p}a = Mul ({p}r, {p}t)
        {p}b = Mul ({p}q, {p}x) {p}h = Add ({p}a, {p}b)""",
        [f"{p}h", f"{p}c"],
    )


def _gated(b: Written, p: str, x: str, states: list[str]) -> tuple[str, list[str]]:
    """Gates of W x + U h with a ReLU where an LSTM has tanh, coupled, in blocks by Slice."""
    u, h, c = b.units, *states
    b.weights["unit"] = np.float32(1)
    b.weight("W", WIDTH, 3 * u), b.weight("U", u, 3 * u), b.weight("bias", 3 * u)
    for n in range(4):
        b.index(f"at{n}", n * u)
    b.index("last", 1)
    cut = [f"{p}g{n} = Slice ({p}s, at{n}, at{n + 1}, last)" for n in range(3)]
    return (
        f"""{p}wx = MatMul ({x}, W) {p}uh = MatMul ({h}, U) {p}wu = Add ({p}wx, {p}uh)
        {p}s = Add ({p}wu, bias) {" ".join(cut)}
        {p}f = Sigmoid ({p}g0) {p}i = Sub (unit, {p}f) {p}j = Relu ({p}g1) {p}o = Sigmoid ({p}g2)
        {p}k = Mul ({p}f, {c}) {p}n = Mul ({p}i, {p}j) {p}c = Add ({p}k, {p}n)
        {p}a = Softsign ({p}c) {p}h = Mul ({p}o, {p}a)""",
        [f"{p}h", f"{p}c"],
    )


def _lstmp(b: Written, p: str, x: str, states: list[str]) -> tuple[str, list[str]]:
    """An LSTM whose output is projected, with one product a gate for the state."""
    u, h, c = b.units, *states
    b.weight("W", 4 * u, WIDTH), b.weight("bias", 4 * u), b.weight("P", u, u - 2)
    lines = [f"{p}wx = Gemm <transB = 1> ({x}, W, bias)"]
    lines.append(f"{p}w0, {p}w1, {p}w2, {p}w3 = Split <axis = -1> ({p}wx)")
    for n in range(4):
        b.weight(f"U{n}", u - 2, u)
        lines.append(f"{p}u{n} = MatMul ({h}, U{n}) {p}g{n} = Add ({p}w{n}, {p}u{n})")
    return (
        f"""{" ".join(lines)} {p}i = Sigmoid ({p}g0) {p}f = Sigmoid ({p}g1)
        {p}n = Tanh ({p}g2) {p}o = Sigmoid ({p}g3) {p}k = Mul ({p}f, {c}) {p}w = Mul ({p}i, {p}n)
        {p}c = Add ({p}k, {p}w) {p}t = Tanh ({p}c) {p}m = Mul ({p}o, {p}t)
        {p}h = MatMul ({p}m, P)""",
        [f"{p}h", f"{p}c"],
    )


def _conv_lstm(b: Written, p: str, x: str, states: list[str]) -> tuple[str, list[str]]:
    u, h, c = b.units, *states
    b.weight("K", 3, u, 1, 1), b.weight("W", 4 * u, WIDTH + u, 3, 3), b.weight("bias", 4 * u)
    return (
        f"""{p}xh = Concat <axis = 1> ({x}, {h})
        {p}s = Conv <pads = [1, 1, 1, 1]> ({p}xh, W, bias)
        {p}g0, {p}g1, {p}g2, {p}g3 = Split <axis = 1> ({p}s)
        {p}i = Sigmoid ({p}g0) {p}f = Sigmoid ({p}g1) {p}n = Tanh ({p}g2) {p}o = Sigmoid ({p}g3)
        {p}k = Mul ({p}f, {c}) {p}w = Mul ({p}i, {p}n) {p}c = Add ({p}k, {p}w)
        {p}t = Tanh ({p}c) {p}h = Mul ({p}o, {p}t)""",
        [f"{p}h", f"{p}c"],
    )


def _normed(b: Written, p: str, x: str, states: list[str]) -> tuple[str, list[str]]:
    """A gate, and what it lets in, of which the new state is normalized."""
    u = b.units
    b.weights["unit"] = np.float32(1)
    b.weight("W", WIDTH + u, 2 * u), b.weight("bias", 2 * u), b.weight("scale", u)
    return (
        f"""{p}xh = Concat <axis = -1> ({x}, {states[0]}) {p}wu = MatMul ({p}xh, W)
        {p}s = Add ({p}wu, bias) {p}g0, {p}g1 = Split <axis = -1> ({p}s)
        {p}z = Sigmoid ({p}g0) {p}n = Tanh ({p}g1) {p}k = Sub (unit, {p}z)
        {p}o = Mul ({p}k, {states[0]}) {p}w = Mul ({p}z, {p}n) {p}a = Add ({p}o, {p}w)
        {p}h = LayerNormalization ({p}a, scale)""",
        [f"{p}h"],
    )


def _normed_lstm(b: Written, p: str, x: str, states: list[str]) -> tuple[str, list[str]]:
    """An LSTM whose output is normalized before the next step reads it."""
    u, h, c = b.units, *states
    b.weight("W", WIDTH, 4 * u), b.weight("U", u, 4 * u), b.weight("bias", 4 * u)
    b.weight("scale", u)
    return (
        f"""{p}wx = MatMul ({x}, W) {p}uh = MatMul ({h}, U) {p}wu = Add ({p}wx, {p}uh)
        {p}s = Add ({p}wu, bias) {p}g0, {p}g1, {p}g2, {p}g3 = Split <axis = -1> ({p}s)
        {p}i = Sigmoid ({p}g0) {p}f = Sigmoid ({p}g1) {p}n = Tanh ({p}g2) {p}o = Sigmoid ({p}g3)
        {p}k = Mul ({p}f, {c}) {p}w = Mul ({p}i, {p}n) {p}c = Add ({p}k, {p}w)
        {p}t = Tanh ({p}c) {p}m = Mul ({p}o, {p}t)
        {p}h = LayerNormalization ({p}m, scale)""",
        [f"{p}h", f"{p}c"],
    )


CELLS = {
    "min_gru": _min_gru,
    "sru": _sru,
    "gated": _gated,
    "lstmp": _lstmp,
    "conv_lstm": _conv_lstm,
    "normed": _normed,
    "normed_lstm": _normed_lstm,
}
COUNTS = {"min_gru": 1, "normed": 1}


def draw_written(seed: int) -> Written:
    """Cells, forms, initial states and readers in turn, so that few seeds show all of each."""
    rng = random.Random(seed)
    name, form = list(CELLS)[seed % len(CELLS)], rng.choice(FORMS)
    end = rng.choice(ENDS)
    end = "head" if end == "softmax" and name == "conv_lstm" else end
    units = rng.choice([6, 8])
    return Written(name, form, rng.choice(STARTS), end, units, np.random.default_rng(seed))


def draw_written_case(b: Written, seed: int) -> Case:
    """Follows the units of a cell's layers, and draws which are kept."""
    model = b.model()
    opened = follow(model, "the drawn model", rolls=False)
    graph = opened.document.graph
    carried = carried_products(graph)
    names = [layer.name for layer in all_layers(graph) if layer.key in carried]
    traced = trace_model(opened, names, [b.feeds(*TRACED, seed)])
    plan = Plan.from_mask("", traced.trace, draw_mask(traced.trace, random.Random(seed + 1)))
    feeds = [b.feeds(*sizes, seed=seed + 1) for sizes in PROVED]
    return Case(model, traced, Plan.from_json(plan.to_json()), feeds)
