"""Operators in PyTorch against onnxruntime, and their gradients against differences."""

import itertools

import numpy as np
import onnx
import pytest
from onnx import helper

torch = pytest.importorskip("torch", reason="pip install '.[distill]' brings PyTorch")

from onnx_rnn_prune import prune  # noqa: E402
from onnx_rnn_prune.model.document import Document  # noqa: E402
from onnx_rnn_prune.model.integers import holds_integers, weight_value  # noqa: E402
from onnx_rnn_prune.model.runner import Runner  # noqa: E402
from onnx_rnn_prune.model.signature import inputs as inputs_of  # noqa: E402
from onnx_rnn_prune.model.walk import node_key, nodes_by_key  # noqa: E402
from onnx_rnn_prune.operators.feed_forward import all_layers  # noqa: E402
from onnx_rnn_prune.recovery.distill.network import (  # noqa: E402
    OPERATORS,
    Region,
    build,
    find_region,
    refuses,
    to_torch,
    unshared,
    write_learned,
)
from onnx_rnn_prune.recovery.distill.products import INTEGERS  # noqa: E402
from quantized import UNSIGNED, calm, convolutional, in_7_bits, quantized, real_model  # noqa: E402

pytestmark = pytest.mark.torch


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def positive(*shape):
    return np.abs(normal(*shape)) + 0.5


def ints(*values):
    return np.array(values, dtype=np.int64)


def one(op, *inputs, opset=17, outputs=1, **attrs):
    """A model of one node whose inputs are fed; None stands for one that is left out."""
    names = ["" if value is None else f"i{slot}" for slot, value in enumerate(inputs)]
    results = [f"o{slot}" for slot in range(outputs)]
    node = helper.make_node(op, names, results, **attrs)
    feed = {name: np.asarray(value) for name, value in zip(names, inputs, strict=True) if name}
    ports = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
        )
        for name, value in feed.items()
    ]
    graph = helper.make_graph([node], "one", ports, [onnx.ValueInfoProto(name=n) for n in results])
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8), feed


def both(op, *inputs, **how):
    """What onnxruntime and the table make of the same inputs."""
    model, feed = one(op, *inputs, **how)
    wanted = Runner(model, optimize=False)(feed)
    document = Document.read(model)
    node = document.graph.nodes[0]
    assert not refuses(node, document.graph.opset)
    region = Region((node_key(node),), tuple(feed), tuple(wanted), (), {}, True)
    given = {name: to_torch(value) for name, value in feed.items()}
    found = build(document, region)(given, {}, region.targets)
    return wanted, {name: value.numpy() for name, value in found.items()}


X = normal(2, 3, 4)
IMAGE = normal(2, 4, 7, 6)
ONE = ["Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "HardSwish", "Identity", "Mish", "Neg", "Relu"]
ONE += ["Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Tanh", "Elu", "Celu"]
ONE += ["HardSigmoid", "LeakyRelu", "ThresholdedRelu", "Dropout", "IsNaN", "Size", "Softmax"]
ONE += ["LogSoftmax", "Flatten", "Transpose", "Shape", "LpNormalization", "Squeeze"]
ONE += ["ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"]
ONE += ["ReduceProd", "ReduceSum", "ReduceSumSquare"]
TWO = ["Add", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean"]
TWO += ["Min", "Mul", "PRelu", "Sub", "Sum"]
CASES = [
    *[(op, (X,), {"opset": 18 if op == "Mish" else 17}) for op in ONE],
    *[(op, (X, normal(3, 1)), {}) for op in TWO],
    *[(op, (X > 0, X > 0.5), {}) for op in ("And", "Or", "Xor")],
    *[(op, (positive(2, 3),), {}) for op in ("Log", "Sqrt", "Reciprocal")],
    ("Not", (X > 0,), {}),
    ("Div", (ints(-7, 7, 9), ints(2, -2, 4)), {}),
    ("Pow", (positive(2, 3), np.float32(2.5)), {}),
    ("Pow", (X, ints(2, 3, 1, 2)), {}),
    ("Gelu", (X,), {"opset": 20}),
    ("Gelu", (X,), {"opset": 20, "approximate": "tanh"}),
    ("Clip", (X, np.float32(-0.5), None), {}),
    ("Clip", (X,), {"opset": 6, "min": -0.3, "max": 0.4}),
    ("Cast", (X,), {"to": 7}),
    ("Cast", (X > 0,), {"to": 1}),
    ("Where", (X > 0, X, normal(4)), {}),
    ("Softmax", (X,), {"opset": 11}),
    ("Softmax", (X,), {"axis": 1}),
    ("LogSoftmax", (X,), {"opset": 11, "axis": 2}),
    *[("ReduceMean", (X,), {"axes": axes, "keepdims": 0}) for axes in ([0], [1, -1])],
    ("ReduceMean", (X, ints(1)), {"opset": 18}),
    ("ReduceSum", (X, ints()), {"noop_with_empty_axes": 1}),
    ("ReduceMax", (X,), {"axes": [1, 2], "keepdims": 1}),
    ("LayerNormalization", (X, normal(4), normal(4)), {}),
    ("LayerNormalization", (X, normal(3, 4)), {"axis": 1, "outputs": 1}),
    ("BatchNormalization", (IMAGE, *[positive(4)] * 4), {}),
    ("InstanceNormalization", (IMAGE, normal(4), normal(4)), {}),
    ("GroupNormalization", (IMAGE, normal(4), normal(4)), {"opset": 21, "num_groups": 2}),
    *[
        ("CumSum", (X, np.int64(1)), {"exclusive": out, "reverse": back})
        for out, back in itertools.product((0, 1), (0, 1))
    ],
    ("MatMul", (X, normal(4, 5)), {}),
    ("MatMul", (normal(5, 3), X), {}),
    ("MatMul", (normal(4), X.transpose(0, 2, 1)), {}),
    ("Gemm", (normal(3, 4), normal(5, 4), normal(5)), {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("Gemm", (normal(4, 3), normal(4, 5)), {"transA": 1}),
    ("Einsum", (X, normal(2, 4, 5)), {"equation": "bij,bjk->bik"}),
    ("Conv", (IMAGE, normal(6, 2, 3, 2), normal(6)), {"group": 2, "pads": [1, 0, 2, 1]}),
    ("Conv", (IMAGE, normal(3, 4, 3, 2)), {"strides": [2, 1], "dilations": [1, 2]}),
    *[
        ("Conv", (X, normal(5, 3, 3)), {"auto_pad": pad, "strides": [2]})
        for pad in ("SAME_UPPER", "SAME_LOWER", "VALID")
    ],
    ("ConvTranspose", (X, normal(3, 5, 3)), {"strides": [2]}),
    (
        "ConvTranspose",
        (IMAGE, normal(4, 3, 3, 2), normal(6)),
        {"group": 2, "pads": [1, 0, 0, 1], "strides": [2, 3], "output_padding": [1, 0]},
    ),
    *[
        ("AveragePool", (IMAGE,), {"kernel_shape": [3, 2], "pads": [1, 1, 0, 0], **more})
        for more in ({}, {"count_include_pad": 1}, {"strides": [2, 2]})
    ],
    ("MaxPool", (IMAGE,), {"kernel_shape": [2, 3], "strides": [2, 1], "pads": [0, 1, 1, 1]}),
    ("MaxPool", (X,), {"kernel_shape": [2], "dilations": [2]}),
    ("GlobalAveragePool", (IMAGE,), {}),
    ("GlobalMaxPool", (IMAGE,), {}),
    ("Reshape", (X, ints(0, -1, 2)), {}),
    ("Flatten", (X,), {"axis": 2}),
    ("Flatten", (X,), {"axis": -1}),
    ("Flatten", (X,), {"axis": 0}),
    ("Transpose", (X,), {"perm": [1, 2, 0]}),
    ("Shape", (X,), {"start": 1, "end": -1}),
    ("Squeeze", (normal(1, 3, 1), ints(0)), {}),
    ("Squeeze", (normal(1, 3, 1),), {"opset": 11, "axes": [2]}),
    ("Unsqueeze", (X, ints(0, -1)), {}),
    ("Unsqueeze", (X,), {"opset": 11, "axes": [1, 3]}),
    ("Slice", (X, ints(1, -3), ints(99, -1), ints(1, 2)), {}),
    ("Slice", (X, ints(-1, 0), ints(-99, 4), ints(2, 0), ints(-2, 1)), {}),
    ("Slice", (X, ints(3), ints(1), ints(1)), {}),
    ("Slice", (X,), {"opset": 9, "starts": [1], "ends": [2], "axes": [1]}),
    ("Gather", (X, ints(2, -1, 0)), {"axis": 1}),
    ("Gather", (X, np.array([[0, 1], [1, 0]])), {"axis": 0}),
    ("Gather", (normal(5), np.int64(-2)), {}),
    ("GatherElements", (X, ints(2, -1, 0, 1).reshape(1, 1, 4)), {"axis": 1}),
    ("GatherND", (X, np.array([[0, 1], [1, 2]])), {}),
    ("Concat", (X, normal(2, 1, 4)), {"axis": -2}),
    ("Split", (X, ints(1, 3)), {"axis": 2, "outputs": 2}),
    ("Split", (normal(5, 2),), {"opset": 18, "num_outputs": 2, "outputs": 2}),
    ("Split", (X,), {"opset": 11, "axis": 1, "split": [1, 2], "outputs": 2}),
    ("Expand", (normal(3, 1), ints(2, 1, 4)), {}),
    ("Tile", (X, ints(2, 1, 3)), {}),
    ("Pad", (X, ints(0, 1, 0, 2, 0, -1), np.float32(3)), {}),
    ("Pad", (X, ints(1, 0, 2, 0), None, ints(0, 2)), {"opset": 18}),
    ("Pad", (X, ints(0, 0, 2, 0, 1, 1)), {"mode": "reflect"}),
    ("Pad", (X, ints(0, 0, 2, 1, 1, 1)), {"mode": "edge"}),
    ("ConstantOfShape", (ints(2, 3),), {}),
    ("Range", (np.int64(1), np.int64(9), np.int64(3)), {}),
    ("ReverseSequence", (X, ints(1, 2, 1)), {"time_axis": 0, "batch_axis": 1}),
    ("ReverseSequence", (X, ints(3, 2)), {"time_axis": 1, "batch_axis": 0}),
]


@pytest.mark.parametrize(
    ("op", "inputs", "how"), CASES, ids=[f"{n}-{case[0]}" for n, case in enumerate(CASES)]
)
def test_operators_compute_what_onnxruntime_does(op, inputs, how):
    wanted, found = both(op, *inputs, **how)
    for name, value in wanted.items():
        assert found[name].shape == value.shape
        np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=2e-6)


def test_every_row_of_the_table_is_tried():
    assert {case[0] for case in CASES} | {"LSTM", "GRU", "RNN"} == set(OPERATORS) - set(INTEGERS)


GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
WAYS = {"forward": 1, "reverse": 1, "bidirectional": 2}
KINDS = [
    ("LSTM", {}),
    ("LSTM", {"peepholes": True}),
    ("LSTM", {"activations": ["HardSigmoid", "Softsign", "Relu"]}),
    ("GRU", {"linear_before_reset": 0}),
    ("GRU", {"linear_before_reset": 1}),
    ("RNN", {}),
    ("RNN", {"activations": ["Relu"]}),
]


@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("op", "kind"), KINDS)
def test_recurrent_layers_compute_what_onnxruntime_does(op, kind, way, states, lengths):
    steps, batch, width, hidden, gates, both_ways = 5, 3, 4, 6, GATES[op], WAYS[way]
    kind = dict(kind)
    inputs = [
        normal(steps, batch, width),
        normal(both_ways, gates * hidden, width, seed=1) * 0.5,
        normal(both_ways, gates * hidden, hidden, seed=2) * 0.5,
        normal(both_ways, 2 * gates * hidden, seed=3) * 0.5 if states else None,
        np.array([5, 2, 4], dtype=np.int32) if lengths else None,
        normal(both_ways, batch, hidden, seed=4) if states else None,
    ]
    if op == "LSTM":
        inputs.append(normal(both_ways, batch, hidden, seed=5) if states else None)
        inputs.append(normal(both_ways, 3 * hidden, seed=6) if kind.pop("peepholes", 0) else None)
    if "activations" in kind:
        kind["activations"] = kind["activations"] * both_ways
    count = 3 if op == "LSTM" else 2
    wanted, found = both(op, *inputs, outputs=count, hidden_size=hidden, direction=way, **kind)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=2e-6)


QUANTIZED = {
    "layers": lambda: quantized(real_model(layers=2)),
    "both ways": lambda: quantized(real_model(directions=2), kind=UNSIGNED),
    "states": lambda: quantized(real_model(layers=2, states=True), per_channel=True),
    "peepholes": lambda: quantized(real_model(peepholes=True)),
    "pictures": lambda: quantized(convolutional("pictures")),
    "groups": lambda: quantized(convolutional("groups"), per_channel=True),
    "by this tool": lambda: prune(calm(real_model(hidden=400)), keep=1.0, quantize="int8").model,
}


@pytest.mark.parametrize("name", QUANTIZED)
def test_weights_in_integers_are_learned_and_written_back(name):
    """All but the rounding of what they are multiplied by is computed as onnxruntime does."""
    document = Document.read(in_7_bits(QUANTIZED[name]()))
    keys = [layer.name for layer in all_layers(document.graph)]
    region = find_region(document, keys)
    assert region.whole and not region.missing
    network = build(document, region)
    rng = np.random.default_rng(0)
    feed = {
        port.name: rng.normal(size=[d if isinstance(d, int) else 7 for d in port.dims])
        for port in inputs_of(document.source)
    }
    feed = {key: value.astype(np.float32) for key, value in feed.items()}
    given = [key for key in region.given if key not in feed]
    run = Runner(document, outputs=[*given, *region.targets], optimize=False)
    wanted = run(feed)
    known = {key: to_torch({**feed, **wanted}[key]) for key in region.given}
    for key, value in network(known, {}, region.targets).items():
        assert np.std(value.numpy() - wanted[key]) < 0.03 * np.std(wanted[key])
    opset = document.graph.opset
    learned = unshared(document, network)
    held = [
        (place, network.constants[key].numpy())
        for key, (place, *_) in learned.items()
        if holds_integers(nodes_by_key(document.graph)[place[0]], place[1], opset)
    ]
    assert held
    for (key, slot), value in held:
        node = nodes_by_key(document.graph)[key]
        before = weight_value(node, slot, opset)
        write_learned(document.graph, [(node, slot)], 0.5 * value)
        error = weight_value(node, slot, opset) - 0.5 * before
        assert np.abs(error).max() < 0.01 * np.abs(before).max()


@pytest.mark.parametrize(
    ("op", "attrs", "reason"),
    [
        ("LSTM", {"clip": 1.0}, "LSTM has clip"),
        ("LSTM", {"input_forget": 1}, "LSTM has input_forget"),
        ("GRU", {"activations": ["Affine", "Tanh"]}, "GRU has the activation Affine"),
        ("TopK", {}, "TopK is not supported"),
        ("MaxPool", {"ceil_mode": 1}, "MaxPool has ceil_mode"),
    ],
)
def test_what_cannot_be_computed_is_said(op, attrs, reason):
    node = helper.make_node(op, ["x", "W", "R"], ["y"], **attrs)
    graph = helper.make_graph([node], "g", [], [])
    assert refuses(Document.read(helper.make_model(graph)).graph.nodes[0], 17) == reason


def test_a_region_ends_where_gradients_do():
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[time, batch, 4] x) => (int64[time, batch] best) {
            scaled = Mul(x, x)
            Y = GRU <hidden_size = 6> (scaled, W, R)
            flat = Squeeze(Y, axis)
            logits = MatMul(flat, fc)
            best = ArgMax <axis = -1, keepdims = 0> (logits)
        }
    """)
    shapes = {"W": (1, 18, 4), "R": (1, 18, 6), "fc": (6, 3)}
    for name, shape in shapes.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(normal(*shape), name))
    model.graph.initializer.append(onnx.numpy_helper.from_array(ints(1), "axis"))
    model.graph.node[1].name = "rnn"
    document = Document.read(model)
    region = find_region(document, ["rnn"])
    assert region.given == ("scaled",)
    assert region.targets == region.scores == ("logits",)
    assert region.missing == {"best": "ArgMax is not supported"}
    assert region.whole
    assert set(build(document, region).weights) == {"W", "R", "fc"}
