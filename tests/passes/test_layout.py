"""Layers that onnxruntime does not run as they are: with the batch first, without a hidden size."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_rnn_prune import apply, compare, plan, prune
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import Runner
from onnx_rnn_prune.operators.recurrent import GRU, LSTM, RNN
from onnx_rnn_prune.passes.layout import Freeze, PlainProducts, SortNodes, TimeFirst
from onnx_rnn_prune.trace.plan import LayerPlan, Plan

CELLS = (LSTM, GRU, RNN)

SIZES = {"B": 3, "T": 5, "D": 2, "H": 4, "I": 2}


def make(cell, layout):
    """A bidirectional layer with initial states; all its outputs leave the model."""
    rng = np.random.default_rng(0)
    rows = len(cell.gates) * SIZES["H"]
    weights = {
        "W": rng.normal(size=(2, rows, SIZES["I"])),
        "R": rng.normal(size=(2, rows, SIZES["H"])),
        "B": rng.normal(size=(2, 2 * rows)),
    }
    states = [name for name in ("initial_h", "initial_c") if name in cell.inputs]
    axes = {"X": "BTI" if layout else "TBI", "Y": "BTDH" if layout else "TDBH"}
    state = "BDH" if layout else "DBH"
    shape = {name: [SIZES[a] for a in axes.get(name, state)] for name in ("X", *states)}
    node = helper.make_node(
        cell.op,
        ["X", "W", "R", "B", "", *states],
        list(cell.outputs),
        hidden_size=SIZES["H"],
        direction="bidirectional",
        layout=layout,
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shape.items()],
        [
            helper.make_tensor_value_info(
                n, TensorProto.FLOAT, [SIZES[a] for a in axes.get(n, state)]
            )
            for n in cell.outputs
        ],
        [numpy_helper.from_array(v.astype(np.float32), n) for n, v in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feed = {n: rng.normal(size=s).astype(np.float32) for n, s in shape.items()}
    return model, feed


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.op)
def test_time_first_computes_the_same(cell):
    """The other layout's model on turned inputs is the oracle."""
    model, feed = make(cell, layout=1)
    document = Document.read(model)
    assert TimeFirst()(document)
    turned = document.write()
    onnx.checker.check_model(turned, full_check=True)
    found = Runner(turned)(feed)
    other = {name: value.transpose(1, 0, 2) for name, value in feed.items()}
    for name, value in Runner(make(cell, layout=0)[0])(other).items():
        axes = (2, 0, 1, 3) if name == "Y" else (1, 0, 2)
        np.testing.assert_allclose(found[name], value.transpose(axes), atol=1e-6)


def halved(model, feed, mode="shrink"):
    """With 2 units for each direction: left to choose, `prune` leaves so small a layer whole."""
    whole = plan(model, keep=4)
    units = LayerPlan(SIZES["H"], ((0, 2), (1, 3)))
    return apply(
        model,
        Plan(whole.model, dict.fromkeys(whole.layers, units)),
        data=[feed, feed],
        mode=mode,
    )


def test_nothing_to_turn():
    assert not TimeFirst()(Document.read(make(CELLS[0], layout=0)[0]))


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.op)
def test_pruning_says_that_layers_were_turned(cell):
    model, feed = make(cell, layout=1)
    result = halved(model, feed)
    assert result.report["oracle"]["passed"]
    assert "layout=1" in result.report["warnings"][0]
    assert [port.name for port in result.model.graph.output] == list(cell.outputs)


@pytest.mark.parametrize("mode", ["shrink", "zero"])
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.op)
def test_a_missing_hidden_size_is_read_from_r(cell, mode):
    model, feed = make(cell, layout=0)
    without = onnx.ModelProto()
    without.CopyFrom(model)
    (node,) = without.graph.node
    node.attribute.remove(next(a for a in node.attribute if a.name == "hidden_size"))
    found, expected = (halved(m, feed, mode) for m in (without, model))
    onnx.checker.check_model(found.model, full_check=True)
    sizes = [a.i for n in found.model.graph.node for a in n.attribute if a.name == "hidden_size"]
    assert sizes == [2 if mode == "shrink" else 4]
    assert found.report["layers"] == expected.report["layers"]
    for name, value in Runner(expected.model)(feed).items():
        assert np.array_equal(Runner(found.model)(feed)[name], value)
    untouched = prune(without, keep=4, data=[feed, feed], mode=mode).model
    assert np.array_equal(Runner(untouched)(feed)["Y"], Runner(model)(feed)["Y"])


def test_models_that_do_not_run_as_they_are_can_be_compared():
    model, feed = make(CELLS[0], layout=1)
    (node,) = model.graph.node
    node.attribute.remove(next(a for a in node.attribute if a.name == "hidden_size"))
    small = halved(model, feed).model
    found = compare(model, small, data=feed)
    assert set(found["drift"]) == set(CELLS[0].outputs)
    assert compare(model, model, data=feed, max_nrmse=0)["passed"]


def test_nodes_in_any_order_are_taken():
    model, feed = make(CELLS[1], layout=0)
    node = model.graph.node[0]
    node.output[0] = "inner"
    for source, result in (("middle", "Y"), ("inner", "middle")):
        model.graph.node.append(helper.make_node("Relu", [source], [result]))
    result = halved(model, feed)
    onnx.checker.check_model(result.model, full_check=True)
    assert result.report["oracle"]["passed"]
    assert not SortNodes()(Document.read(result.model))


def test_a_layer_without_weights_is_an_error():
    model, _ = make(CELLS[1], layout=0)
    del model.graph.node[0].input[1:]
    with pytest.raises(PruneError, match="node .*: it has fewer than 3 inputs"):
        prune(model)


def test_slices_from_scalar_bounds():
    """PyTorch's exporter takes the states of stacked layers from one tensor of zeros like that."""
    model = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 18]>
        g (float[t, b, 2] x) => (float[t, b, 8] y)
        <float nought = {0}, int64[1] two = {2}, int64[1] width = {8}, float[2, b, 8] zeros,
         int64 s0 = {0}, int64 s1 = {1}, int64 s2 = {2}, int64[1] first = {0},
         int64[1] second = {1}> {
            batch = Shape <start = 1, end = 2> (x)
            shape = Concat <axis = 0> (two, batch, width)
            zeros = Expand (nought, shape)
            h0 = Slice (zeros, s0, s1, first)
            h1 = Slice (zeros, s1, s2, first)
            y0 = GRU <hidden_size = 8> (x, W0, R0, "", "", h0)
            z0 = Squeeze (y0, second)
            y1 = GRU <hidden_size = 8> (z0, W1, R1, "", "", h1)
            y = Squeeze (y1, second)
        }
    """)
    rng = np.random.default_rng(0)
    for name, width in {"W0": 2, "R0": 8, "W1": 8, "R1": 8}.items():
        weight = rng.normal(size=(1, 24, width)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weight, name))
    feeds = [{"x": rng.normal(size=(5, 2, 2)).astype(np.float32)} for _ in range(4)]
    result = prune(model, keep=4, data=feeds)
    assert result.report["oracle"]["passed"]
    assert Runner(result.model, optimize=False)(feeds[0])["y"].shape == (5, 2, 8)


@pytest.mark.parametrize(
    ("gemm", "added", "becomes"),
    [
        ("Gemm", "", "MatMul"),
        ("Gemm <transA = 1, transB = 1>", "", "MatMul"),
        ("Gemm <beta = 0.0>", ", b", "MatMul"),
        ("Gemm", ", b", "Gemm"),
        ("Gemm <alpha = 2.0>", "", "Gemm"),
    ],
)
def test_a_gemm_that_multiplies_a_weight_with_data_is_a_product(gemm, added, becomes):
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        m (float[3, 3] x) => (float[3, 3] y) {{ y = {gemm} (W, x{added}) }}
    """)
    for name, shape in (("W", (3, 3)), ("b", (3, 1))):
        value = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    document = Document.read(model)
    assert PlainProducts()(document) == (becomes == "MatMul")
    assert document.graph.nodes[-1].op == becomes
    feed = {"x": np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32)}
    assert np.allclose(Runner(document)(feed)["y"], Runner(model)(feed)["y"], atol=1e-5)


@pytest.mark.parametrize(
    ("equation", "becomes"),
    [
        ("abc,cd->abd", "MatMul"),
        ("abc, dc -> abd", "MatMul"),
        ("...c,cd->...d", "MatMul"),
        ("abc,cd->adb", "Einsum"),
        ("abb,bd->abd", "Einsum"),
        ("abc,cc->abc", "Einsum"),
    ],
)
def test_an_einsum_that_is_a_product_is_one(equation, becomes):
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        m (float[2, 3, 3] x) => (float[2, 3, 3] y) {{ y = Einsum <equation = "{equation}"> (x, W) }}
    """)
    weight = np.arange(9, dtype=np.float32).reshape(3, 3)
    model.graph.initializer.append(numpy_helper.from_array(weight, "W"))
    document = Document.read(model)
    assert PlainProducts()(document) == (becomes == "MatMul")
    assert document.graph.nodes[-1].op == becomes
    feed = {"x": np.random.default_rng(0).standard_normal((2, 3, 3)).astype(np.float32)}
    assert np.allclose(Runner(document)(feed)["y"], Runner(model)(feed)["y"], atol=1e-5)


@pytest.mark.parametrize("size", [1 << 28, 1 << 62])
def test_an_input_that_claims_a_huge_size_does_not_become_a_constant(size):
    graph = onnx.parser.parse_graph(f"g (float[{size}] x) => (float y) {{ y = ReduceSum (x) }}")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    with pytest.raises(PruneError, match="freeze.*too large"):
        Freeze({"x": "1"})(Document.read(model))
