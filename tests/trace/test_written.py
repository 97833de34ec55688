"""Recurrences without a recurrent node are found and named; what only looks like one is not."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_rnn_prune import PruneError, inspect, prune
from onnx_rnn_prune.opened_model import read_model, written_out
from onnx_rnn_prune.options import Inputs

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
sys.path.append(str(ROOT / "tools"))

from fetch_models import default_folder  # noqa: E402

# By fixture: what the cell is like, how often the file has one, how, and over how many steps.
FOUND = {
    "dynamo_lstm_cell": ("LSTM", 1, "unrolled", 7),
    "dynamo_rnn_relu_bi": ("RNN", 2, "unrolled", 7),
    "dynamo_rnn_tanh": ("RNN", 1, "unrolled", 7),
    "dynamo_gru_scan": ("GRU", 1, "scan", 1),
    "flax_gru": ("GRU", 1, "loop", 1),
    "haiku_gru": ("GRU", 1, "loop", 1),
    "jax_gru": ("GRU", 1, "loop", 1),
    "jax_lstm": ("LSTM", 1, "loop", 1),
    "keras_rnn_bi": ("RNN", 2, "loop", 1),
    "tf_while_gru": ("GRU", 1, "loop", 1),
    "tf_while_lstm": ("LSTM", 1, "loop", 1),
    "keras_gru": ("GRU", 1, "loop", 1),
    "keras_torch_gru": ("GRU", 1, "single step", 1),
    "keras_torch_lstm": ("LSTM", 1, "single step", 1),
    "tf2onnx_gru_reset_before": ("GRU", 1, "loop", 1),
    "tf2onnx_lstm_masked": ("LSTM", 1, "loop", 1),
    "tf2onnx_rnn": ("RNN", 1, "loop", 1),
    "torchscript_gru_cell": ("GRU", 1, "unrolled", 7),
    "torchscript_lstm_cell": ("LSTM", 1, "unrolled", 7),
}
UNITS = 8  # of every layer in the fixtures
WIDTH, HIDDEN = 3, 4
SHAPES = {
    **dict.fromkeys(("W", "W2"), (WIDTH, HIDDEN)),
    **dict.fromkeys(("R", "R2", "S", "S2"), (HIDDEN, HIDDEN)),
    **dict.fromkeys(("Z", "G"), (HIDDEN, HIDDEN)),
    "B": (1, HIDDEN),
    "V": (HIDDEN, HIDDEN),
    "W4": (WIDTH, 4 * HIDDEN),
    "R4": (HIDDEN, 4 * HIDDEN),
    "K4": (WIDTH + HIDDEN, 4 * HIDDEN),
}


def model(text, functions="", copies=()):
    """A model from text, with numbers for the weights that it reads.

    Args:
        text: the graph, in which `@` stands for float[b, HIDDEN].
        functions: local functions.
        copies: names of weights with the entries of R.
    """
    text = text.replace("@", f"float[b, {HIDDEN}]").replace("$", f"float[b, {WIDTH}]")
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17, "own" : 1]> {text} {functions}'
    )
    rng = np.random.default_rng(0)
    read = text.replace(",", " ").replace(")", " ").replace("(", " ").split()
    values = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    values.update((name, values["R"]) for name in copies)
    for name, value in values.items():
        if name in read:
            proto.graph.initializer.append(numpy_helper.from_array(value, name))
    return proto


def unrolled(steps, name=lambda step: "R", activation="Tanh"):
    """An RNN cell, one step after another."""
    lines = [
        f"u{n} = MatMul (h{n}, {name(n)}) i{n} = MatMul (x{n}, W) s{n} = Add (u{n}, i{n})"
        f" h{n + 1} = {activation} (s{n})"
        for n in range(steps)
    ]
    inputs = ", ".join(f"$ x{n}" for n in range(steps))
    return f"m ({inputs}, @ h0) => (@ h{steps}) {{ {' '.join(lines)} }}"


def found(proto):
    return written_out(read_model(proto, Inputs(roll=False)))


@pytest.mark.parametrize("name", FOUND)
def test_fixtures_are_named(name):
    like, count, kind, steps = FOUND[name]
    path = FIXTURES / f"{name}.onnx"
    names = {node.name for node in nodes_of(onnx.load(path).graph)}
    report = inspect(path, roll=False)
    assert len(report["written_out"]) == count
    for row in report["written_out"]:
        assert (row["like"], row["kind"], row["steps"]) == (like, kind, steps)
        assert row["units"] == UNITS
        assert row["nodes"] and names.issuperset((row["at"], *row["nodes"]))
        if report["layers"]:  # its products are cut where they stand
            continue
        with pytest.raises(PruneError, match="leave out roll=False") as caught:
            prune(path, roll=False)
        assert row["text"] in str(caught.value) and report["remedies"][0] in str(caught.value)
        assert "leave out --no-roll" in caught.value.for_shell


def test_a_convolutional_cell_has_as_many_units_as_channels():
    (row,) = inspect(FIXTURES / "cell_conv_lstm_loop.onnx", roll=False)["written_out"]
    assert (row["like"], row["units"]) == ("LSTM", UNITS)


def test_a_prune_that_cuts_nothing_says_what_is_no_layer():
    report = prune(model(unrolled(3)), layers="all", keep=1.0, roll=False).report
    assert [text for text in report.warnings if "is decomposed, unrolled over 3 steps" in text]


def nodes_of(graph):
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from nodes_of(attribute.g)


def test_no_fixture_with_a_node_has_one_written_out():
    others = [path for path in FIXTURES.glob("*.onnx") if path.stem not in FOUND]
    others = [path for path in others if not path.stem.startswith("cell_")]
    assert len(others) > 40
    assert [path.stem for path in others if found(onnx.load(path))] == []


@pytest.mark.published
def test_published_models():
    rows = inspect(default_folder() / "silero_vad_no_lstm.onnx", roll=False)["written_out"]
    assert [(row["kind"], row["like"], row["units"]) for row in rows] == [
        ("single step", "LSTM", 128)
    ] * 2
    assert [row["weights"] for row in rows] == [
        (f"{prefix}.decoder.rnn.weight_hh",) for prefix in ("model", "model_8k")
    ]
    assert len({row["scope"] for row in rows}) == 2


@pytest.mark.parametrize("steps", [2, 3, 5])
@pytest.mark.parametrize("activation", ["Tanh", "Relu", "Sigmoid"])
def test_steps_are_counted(steps, activation):
    (cell,) = found(model(unrolled(steps, activation=activation)))
    assert (cell.kind, cell.steps, cell.like, cell.units) == ("unrolled", steps, "RNN", HIDDEN)
    assert cell.weights == ("R",)


def test_weights_are_the_same_if_their_entries_are():
    names = ("R", "R2", "S")
    proto = model(unrolled(3, names.__getitem__), copies=("R2", "S"))
    assert [cell.steps for cell in found(proto)] == [3]
    assert found(model(unrolled(3, names.__getitem__))) == ()


SCAN = """
m (float[t, b, 3] x, @ h0) => (@ last, float[t, b, 4] all) {
    [scan] last, all = Scan (h0, x) <
        num_scan_inputs = 1, body = step (@ h, $ e) => (@ h1, @ out) {
            [own] u = MatMul (h, R) i = MatMul (e, W) s = Add (u, i)
            h1 = Tanh (s) out = Identity (h1)
        }
    >
}"""
LOOP = """
m (int64 n, $ x, @ h0) => (@ last) {
    true = Constant <value = bool {1}> ()
    [loop] last, kept = Loop (n, true, h0, R) <
        body = step (int64 i, bool go, @ h, float[4, 4] r) => (bool on, @ h1, float[4, 4] r1) {
            on = Identity (go) r1 = Identity (r) [own] u = MatMul (h, r) e = MatMul (x, W)
            s = Add (u, e) h1 = Tanh (s)
        }
    >
}"""


@pytest.mark.parametrize(("text", "kind"), [(SCAN, "scan"), (LOOP, "loop")])
def test_what_a_body_carries_comes_back(text, kind):
    (cell,) = found(model(text))
    assert (cell.kind, cell.at, cell.nodes) == (kind, kind, ("own",))
    assert (cell.weights, cell.units, cell.steps) == (("R",), HIDDEN, 1)
    assert f"in the {kind.title()} {kind}" in str(cell)


# As tf2onnx writes an LSTM of Keras 3 with a batch of 1: one product is the other's bias.
ADDED_BY_GEMM = """
m (int64 n, float[1, 3] x, float[1, 4] h0, float[1, 4] c0) => (float[1, 4] last, float[1, 4] kept) {
    true = Constant <value = bool {1}> ()
    [loop] last, kept = Loop (n, true, h0, c0) <
        body = step (int64 i, bool go, float[1, 4] h, float[1, 4] c)
            => (bool on, float[1, 4] h1, float[1, 4] c1) {
            on = Identity (go) axis = Constant <value = int64[1] {0}> ()
            [own] u = MatMul (h, R4) v = Squeeze (u, axis) s = Gemm (x, W4, v)
            a, b, d, e = Split <axis = 1> (s) f = Sigmoid (a) g = Sigmoid (b) o = Sigmoid (d)
            t = Tanh (e) k = Mul (f, c) l = Mul (g, t) c1 = Add (k, l) q = Tanh (c1)
            h1 = Mul (o, q)
        }
    >
}"""
# As TensorFlow 1 writes cells: input and state lie side by side.
SIDE_BY_SIDE = ADDED_BY_GEMM.replace(
    "[own] u = MatMul (h, R4) v = Squeeze (u, axis) s = Gemm (x, W4, v)",
    "both = Concat <axis = 1> (x, h) [own] s = MatMul (both, K4)",
)


@pytest.mark.parametrize("text", [ADDED_BY_GEMM, SIDE_BY_SIDE], ids=["added by Gemm", "beside"])
def test_units_are_those_of_the_state(text):
    (cell,) = found(model(text))
    assert (cell.kind, cell.like, cell.units, cell.nodes) == ("loop", "LSTM", HIDDEN, ("own",))


def test_functions_are_looked_into():
    text = """m ($ x0, $ x1, @ h0) => (@ h2) {
        h1 = own.cell (x0, h0, R, W) h2 = own.cell (x1, h1, R, W)
    }"""
    function = """<domain: "own", opset_import: ["" : 17]>
    cell (x, h, r, w) => (y) {
        u = MatMul (h, r) i = MatMul (x, w) s = Add (u, i) y = Tanh (s)
    }"""
    assert [(cell.kind, cell.steps) for cell in found(model(text, function))] == [("unrolled", 2)]


# A gated step of which nothing comes back; h is kept as far as z says.
GATED = """
m ($ x, @ h) => (@ y) {
    a = MatMul (h, R) z = Sigmoid (a) c = MatMul (h, S) n = Tanh (c)
    one = Constant <value = float {1}> () o = Sub (one, z) k = Mul (z, h) t = Mul (o, n)
    y = Add (k, t)
}"""


def test_a_single_step_shows_by_its_gate():
    (cell,) = found(model(GATED))
    assert (cell.kind, cell.units) == ("single step", HIDDEN)
    for op in ("Sigmoid", "Tanh"):
        assert found(model(GATED.replace(op, "Relu"))) == ()


LOOKALIKES = {
    "dense layers": "a = MatMul (h, R) b = Tanh (a) c = MatMul (b, S) y = Sigmoid (c)",
    "one weight read side by side": """
        a = MatMul (h, R) b = Neg (h) c = MatMul (b, R) d = Tanh (a) e = Tanh (c) y = Add (d, e)""",
    "one weight, and nothing but products": "a = MatMul (h, R) y = MatMul (a, R)",
    "one weight behind a normalization each time": """
        a = MatMul (h, R) b = Relu (a) c = LayerNormalization (b, B) d = MatMul (c, R)
        e = Relu (d) y = LayerNormalization (e, B)""",
    "a normalization that is written out": """
        a = MatMul (h, R) b = Relu (a) m = ReduceMean <axes = [-1]> (b) c = Sub (b, m)
        q = Mul (c, c) v = ReduceMean <axes = [-1]> (q) w = Sqrt (v) n = Div (c, w)
        d = MatMul (n, R) y = Relu (d)""",
    "squeeze and excite": """
        a = MatMul (h, R) b = Relu (a) c = MatMul (b, S) d = Sigmoid (c) y = Mul (d, h)""",
    "a gated residual": """
        a = MatMul (h, R) g = Sigmoid (a) c = MatMul (h, S) k = Mul (g, c) y = Add (k, h)""",
    "a WaveNet": """
        a = MatMul (h, R) g = Sigmoid (a) c = MatMul (h, S) t = Tanh (c) k = Mul (g, t)
        o = MatMul (k, V) y = Add (o, h)""",
}


@pytest.mark.parametrize("name", LOOKALIKES)
def test_lookalikes_are_none(name):
    proto = model(f"m (@ h) => (@ y) {{ {LOOKALIKES[name]} }}")
    onnx.checker.check_model(proto)
    assert found(proto) == ()
    with pytest.raises(PruneError, match="no decomposed one"):
        inspect(proto, roll=False)


def test_a_body_that_carries_nothing_back_is_none():
    text = LOOP.replace("u = MatMul (h, r)", "u = MatMul (q, r)").replace(
        "on = Identity (go)", "on = Identity (go) q = MatMul (x, W2)"
    )
    assert found(model(text)) == ()


def test_nodes_beside_one_that_is_written_out_are_pruned():
    text = (
        unrolled(3)
        .replace("m (", "m (float[t, b, 3] z, ")
        .replace("=> (", "=> (float[t, 1, b, 4] Y, ")
    )
    proto = model(
        text.replace("{", "{ [gru] all = GRU <hidden_size = 4> (z, GW, GR) Y = MatMul (all, V) ")
    )
    for name, width in (("GW", WIDTH), ("GR", HIDDEN)):
        value = np.random.default_rng(1).normal(size=(1, 3 * HIDDEN, width)).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    report = inspect(proto, roll=False)
    assert "gru" in [layer["name"] for layer in report["layers"]]
    assert [row["steps"] for row in report["written_out"]] == [3]
    result = prune(proto, keep=1, roll=False)
    assert result.report["oracle"]["passed"]
    after = {layer["name"]: layer["hidden_after"] for layer in result.report["layers"]}
    assert after["gru"] == 1
