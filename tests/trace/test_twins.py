"""Layers with the same weights in both branches of an If: one plan, whatever reads them."""

import re

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_rnn_prune import apply, plan, prune
from onnx_rnn_prune.model.runner import Runner

HIDDEN, WIDTH = 10, 3
GATES = {"LSTM": 4, "GRU": 3}

# From Y [t, 2, b, H] to z [t, b, 3].
READERS = {
    "summed": "s = ReduceSum <keepdims = 0> (Y, one) z = MatMul (s, V1)",
    "largest": "s = ReduceMax <axes = [1], keepdims = 0> (Y) z = MatMul (s, V1)",
    "side by side": "s = Transpose <perm = [0, 2, 1, 3]> (Y) w = Reshape (s, wide)"
    " z = MatMul (w, V2)",
    "one direction": "s = Gather <axis = 1> (Y, first) z = MatMul (s, V1)",
    "crossed": "f, r = Split <axis = 1> (Y) b = Gather <axis = 3> (r, backwards)"
    " a = Add (f, b) s = Squeeze (a, one) z = MatMul (s, V1)",
    "folded": "f, r = Split <axis = 1> (Y) l, h = Split <axis = 3> (f) a = Add (l, h)"
    " s = Squeeze (a, one) z = MatMul (s, V3)",
    "normalized": "s = ReduceSum <keepdims = 0> (Y, one) n = Softmax <axis = 2> (s)"
    " z = MatMul (n, V1)",
    "residual": "g = MatMul (x, U) s = Gather <axis = 1> (Y, first) a = Add (s, g)"
    " z = MatMul (a, V1)",
    "final": "t = Softmax <axis = 2> (Y_h) f = Gather <axis = 0> (t, first)"
    " e = Add (zeros, f) z = MatMul (e, V1)",
}


def branch(letter, reader, op):
    """A branch that runs the layer on another multiple of x; its tensors begin with a letter."""
    layer = f'Y, Y_h = {op} <hidden_size = {HIDDEN}, direction = "bidirectional"> (i, W, R, B)'
    text = f"i = Mul (x, {letter}_times) {layer} {READERS[reader]}"
    made = {name for names in re.findall(r"([\w, ]+) = [A-Z]", text) for name in names.split(", ")}
    for name in made:
        text = re.sub(rf"(?<!\w){name.strip()}(?!\w)", f"{letter}_{name.strip()}", text)
    return f"{letter} () => (float[t, b, 3] {letter}_z) {{ {text} }}"


def model(then, other, op="GRU"):
    proto = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        m (float[t, b, {WIDTH}] x, bool yes) => (float[t, b, 3] z) {{
            nothing = Mul (x, none)
            zeros = ReduceMean <axes = [2]> (nothing)
            z = If (yes) <
                then_branch = {branch("p", then, op)}, else_branch = {branch("q", other, op)}
            >
        }}""")
    rng = np.random.default_rng(0)
    rows = GATES[op] * HIDDEN
    floats = {
        "W": (2, rows, WIDTH),
        "R": (2, rows, HIDDEN),
        "B": (2, 2 * rows),
        "U": (WIDTH, HIDDEN),
        "V1": (HIDDEN, 3),
        "V2": (2 * HIDDEN, 3),
        "V3": (HIDDEN // 2, 3),
    }
    values = {name: 0.5 * rng.normal(size=shape) for name, shape in floats.items()}
    values |= {"p_times": 0.5, "q_times": 2.0, "none": 0.0}
    integers = {"one": [1], "first": 0, "wide": [0, 0, 2 * HIDDEN]}
    integers["backwards"] = list(range(HIDDEN))[::-1]
    for name, value in values.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
    for name, value in integers.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    return proto


def feeds(*choices):
    rng = np.random.default_rng(1)
    return [
        {"x": rng.normal(size=(8 + n, 2, WIDTH)).astype(np.float32), "yes": np.array(choice)}
        for n, choice in enumerate(3 * choices)
    ]


def check(original, chosen, **arguments):
    """Zeroed and shrunk agree in both branches, whichever was run before."""
    small = apply(original, chosen, recover="none", **arguments)
    zero = apply(original, chosen, recover="none", mode="zero", **arguments)
    assert small.report["oracle"]["passed"]
    left, right = Runner(zero.model, optimize=False), Runner(small.model, optimize=False)
    for feed in feeds(True, False):
        np.testing.assert_allclose(left(feed)["z"], right(feed)["z"], rtol=1e-5, atol=1e-6)
    first, second = chosen.layers.values()
    assert first.keep == second.keep
    return small


PAIRS = [("summed", other) for other in READERS]
PAIRS += [("side by side", "crossed"), ("one direction", "folded"), ("crossed", "normalized")]


@pytest.mark.parametrize(("then", "other"), PAIRS)
def test_twins_that_are_read_in_different_ways(then, other):
    original = model(then, other)
    chosen = plan(original, keep=4, criterion="random", data=feeds(True, False))
    small = check(original, chosen, data=feeds(True, False))
    assert [row["hidden_after"] for row in small.report["layers"]] == [4, 4]
    sizes = [list(tensor.dims) for tensor in small.model.graph.initializer]
    assert sizes.count([2, 12, WIDTH]) == sizes.count([2, 12, 4]) == 1


def test_sums_of_one_twin_bind_the_directions_of_both():
    chosen = plan(model("summed", "side by side"), keep=4, data=feeds(True, False))
    keeps = [layer.keep for layer in chosen.layers.values()]
    assert keeps[0] == keeps[1] and keeps[0][0] == keeps[0][1]


@pytest.mark.parametrize("other", ["side by side", "residual", "crossed"])
@pytest.mark.parametrize("runs", [True, False])
def test_a_twin_in_a_branch_that_nothing_ran_is_cut_along(other, runs):
    """It is restored there, since nothing is known of its readers, and still computes right."""
    original = model("summed", other, "LSTM") if runs else model(other, "summed", "LSTM")
    chosen = plan(original, keep=4, data=feeds(runs))
    small = check(original, chosen, data=feeds(runs))
    ends = [{row["end"] for row in layer["outlets"]} for layer in small.report["layers"]]
    assert ["restored" in end for end in ends] == [not runs, runs]


@pytest.mark.parametrize("other", ["side by side", "normalized"])
def test_twins_are_recovered_alike(other):
    result = prune(model("summed", other), keep=4, data=feeds(True, False), recover="lstsq")
    assert result.report["oracle"]["passed"]
    assert [row["hidden_after"] for row in result.report["layers"]] == [4, 4]


def test_a_layer_that_nothing_runs_is_left_alone_when_it_alone_is_asked_for():
    """Its twin is not asked for, and nothing is there to look at."""
    original = model("summed", "residual")
    result = prune(original, keep=4, only="q_Y", data=feeds(True))
    assert [row["hidden_after"] for row in result.report["layers"]] == [HIDDEN, HIDDEN]
    pinned = [row["pinned"] for row in result.report["layers"]]
    assert any("no input runs z.else_branch" in text for text in pinned if text)
