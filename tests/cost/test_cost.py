"""A budget counts what is written: the file obeys it, and no unit more would fit."""

import numpy as np
import onnx
import pytest

from onnx_rnn_prune import apply, inspect, plan, prune
from onnx_rnn_prune.cost.budget import KINDS
from onnx_rnn_prune.cost.cost import count_flops, count_params
from onnx_rnn_prune.cost.price import price_of
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.opened_model import follow
from onnx_rnn_prune.operators.feed_forward import all_layers
from onnx_rnn_prune.operators.recurrent import find_layers
from onnx_rnn_prune.selection.allocation import choose
from onnx_rnn_prune.selection.profitability import place
from onnx_rnn_prune.selection.sharing import cost_of_cuts
from onnx_rnn_prune.trace.plan import Plan
from onnx_rnn_prune.traced_model import trace_model
from oracle.check import traced_feeds
from oracle.draw import draw_model


def measured(model, kind, find=find_layers):
    if kind == "bytes":
        return model.ByteSize()
    document = Document.read(model)
    return count_params(document) if kind == "params" else count_flops(document, find)


def stack(direction="forward"):
    """Two layers without biases; both of them, and the second one's last state, leave the model."""
    rng = np.random.default_rng(0)
    lanes = 2 if direction == "bidirectional" else 1
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[t, b, 4] x) => (float[t, {lanes}, b, 24] Y, float[t, b, 5] z, float[1, b, 20] Q_h)
        <int64[3] flat = {{0, 0, -1}}, int64[1] one = {{1}}> {{
            [first] Y = LSTM <hidden_size = 24, direction = "{direction}"> (x, W, R)
            turned = Transpose <perm = [0, 2, 1, 3]> (Y)
            h = Reshape (turned, flat)
            [second] Q, Q_h = GRU <hidden_size = 20> (h, W2, R2)
            q = Squeeze (Q, one)
            z = MatMul (q, V)
        }}
    """)
    shapes = {"W": (lanes, 96, 4), "R": (lanes, 96, 24), "V": (20, 5)}
    shapes |= {"W2": (1, 60, 24 * lanes), "R2": (1, 60, 20)}
    for name, shape in shapes.items():
        values = rng.normal(size=shape).astype(np.float32) / 3
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return model


FEEDS = [
    {"x": np.random.default_rng(n).normal(size=(30, 4, 4)).astype(np.float32)} for n in range(8)
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("direction", "data", "recover"),
    [
        ("forward", None, None),
        ("bidirectional", None, None),
        ("forward", FEEDS, "none"),
        ("bidirectional", FEEDS, "lstsq"),
        ("forward", FEEDS, "lstsq"),
    ],
)
def test_the_file_obeys_and_no_unit_more_would_fit(kind, direction, data, recover):
    model = stack(direction)
    limit = int(0.4 * measured(model, kind))
    budget = f"{kind}={limit}"
    asked = {"criterion": "l2", "layers": "recurrent"}
    result = prune(model, budget=budget, data=data, recover=recover, **asked)
    assert measured(result.model, kind) <= limit
    assert result.report["recovery"]["used"] == (recover or "none")
    for name, layer in result.plan.layers.items():
        more = [
            (*lane, next(unit for unit in range(layer.hidden_size) if unit not in lane))
            for lane in layer.keep
        ]
        layers = {**result.plan.layers, name: type(layer)(layer.hidden_size, tuple(more))}
        larger = apply(model, Plan(result.plan.model, layers), data=data, recover=recover)
        assert measured(larger.model, kind) > limit


@pytest.mark.parametrize("kind", KINDS)
def test_a_budget_for_all_keeps_all(kind):
    assert plan(stack(), budget=f"{kind}=100%").cut() == ()
    assert plan(stack(), budget=f"{kind}=99%").cut() != ()


def mixed():
    """Kernels, a GRU between dense layers, and an output."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[30, 4, 6] x) => (float[30, 4, 3] z) {
            [kernels] c = Conv <pads = [1, 1]> (x, K)
            C = Relu (c)
            turned = Transpose <perm = [0, 2, 1]> (C)
            [dense] d = MatMul (turned, A)
            D = Relu (d)
            [gru] Y = GRU <hidden_size = 10> (D, W, R)
            flat = Constant <value_ints = [30, 6, 10]> ()
            h = Reshape (Y, flat)
            four = Slice (h, zero, end, axis)
            [last] z = MatMul (four, V)
        }
    """)
    shapes = {"K": (9, 4, 3), "A": (9, 12), "W": (1, 30, 12), "R": (1, 30, 10), "V": (10, 3)}
    for name, shape in shapes.items():
        values = rng.normal(size=shape).astype(np.float32) / 3
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    for name, number in {"zero": 0, "end": 4, "axis": 1}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([number]), name))
    return model


@pytest.mark.parametrize(("allocate", "per"), [("uniform", "units"), ("global", "flops")])
@pytest.mark.parametrize("layers", [("all",), ("dense", "kernels")])
def test_operations_of_dense_layers_and_convolutions_count_where_these_may_be_cut(
    layers, allocate, per
):
    def flops(kernels, dense, gru):
        return 2 * (12 * kernels + kernels * dense + 3 * gru * (dense + gru) + 3 * gru)

    model, full = mixed(), {"kernels": 9, "dense": 12, "gru": 10}
    assert measured(model, "flops", all_layers) == flops(**full)
    limit = int(0.6 * flops(**full))
    asked = {"budget": "flops=60%", "allocate": allocate, "per": per, "criterion": "l2"}
    result = prune(model, layers=layers, **asked)
    kept = full | {n: len(layer.keep[0]) for n, layer in result.plan.layers.items() if n in full}
    assert kept != full
    assert measured(result.model, "flops", all_layers) == flops(**kept) <= limit
    for name in [name for name in full if kept[name] < full[name]]:
        assert flops(**kept | {name: kept[name] + 1}) > limit
    assert prune(model, **asked).plan == prune(model, layers="all", **asked).plan
    asked["layers"] = "recurrent"
    only = prune(model, **asked).plan.layers["gru"].keep[0]
    assert 3 * len(only) * (12 + len(only)) <= 0.6 * 660 < 3 * (len(only) + 1) * (13 + len(only))


def test_operations_of_depthwise_convolutions_count():
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[2, 3, 8] x) => (float[2, 2, 8] z) {
            [kernels] c = Conv (x, K)
            d = Conv <group = 16, pads = [1, 1]> (c, D)
            z = Conv (d, V)
        }
    """)
    for name, shape in {"K": (16, 3, 1), "D": (16, 1, 3), "V": (2, 16, 1)}.items():
        values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    assert measured(model, "flops", all_layers) == 2 * 16 * (3 + 3 + 2)
    kept = prune(model, budget="flops=60%", criterion="l2").plan.layers["kernels"].keep[0]
    assert len(kept) == 9


def test_inspect_counts_the_operations_that_half_of_a_dense_layer_saves():
    layers = {row["name"]: row for row in inspect(mixed(), layers=("all",))["layers"]}
    assert layers["dense"]["half"]["flops"] == 2 * 6 * (9 + 30)
    assert layers["kernels"]["half"]["flops"] == 2 * 4 * (12 + 12)
    assert layers["gru"]["half"]["flops"] == 2 * (660 - 3 * 5 * 17 + 3 * 5)


@pytest.mark.parametrize("layers", ["recurrent", "all"])
@pytest.mark.parametrize(
    "seeds", [range(20), pytest.param(range(20, 100), marks=pytest.mark.draws)]
)
def test_what_is_counted_is_what_is_written(layers, seeds):
    """To the entry, but where two readers of one weight happen to keep equal parts of it."""
    exact = []
    for seed in seeds:
        drawn = draw_model(seed)
        opened = follow(drawn.model(), "the drawn model", layers=(layers,))
        names = [layer.name for layer in opened.layers]
        traced = trace_model(opened, names, traced_feeds(drawn, seed))
        trace, rng = traced.trace, np.random.default_rng(seed)
        if not all(group.size > 1 for group in trace.groups):
            continue  # a layer that keeps all is not prepared for a cut
        scores = rng.random(trace.units.count)
        counts = [int(rng.integers(1, group.size)) for group in trace.groups]
        plan = Plan.from_mask("", trace, choose(trace, scores, counts))
        cost = cost_of_cuts(traced, scores, refits=False)
        document = traced.document.copy()
        place(document, traced, plan)
        written = traced.cut(plan, "shrink", document).write()
        params = cost("params", counts) - measured(written, "params")
        assert params >= 0, seed
        assert cost("flops", counts) == measured(written, "flops", opened.find_counted), seed
        exact.append(params == 0)
        if exact[-1] and not any("select_padded" in node.name for node in written.graph.node):
            assert -5 < cost("bytes", counts) - measured(written, "bytes") < 20, seed
    assert len(exact) > 0.5 * len(seeds) and sum(exact) > 0.95 * len(exact)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_steps_share_count_once(kind):
    """And operations for each of the steps."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[b, 9] x) => (float[b, 6] y) {
            p, q, r = Split <axis = 1> (x)
            a = MatMul (p, U)  b = MatMul (q, U)  c = MatMul (r, U)
            d = Relu (a)  e = Relu (b)  f = Relu (c)
            i = MatMul (d, V)  j = MatMul (e, V)  k = MatMul (f, V)
            y = Concat <axis = 1> (i, j, k)
        }
    """)
    rng = np.random.default_rng(0)
    for name, shape in {"U": (3, 24), "V": (24, 2)}.items():
        values = rng.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    opened = follow(model, "it", layers=("all",))
    feed = {"x": rng.normal(size=(4, 9)).astype(np.float32)}
    traced = trace_model(opened, [layer.name for layer in opened.layers], [feed])
    trace = traced.trace
    scores = rng.random(trace.units.count)
    sizes = [group.size for group in trace.groups]
    assert sorted(sizes) == [24]
    counts = [10]
    cost = cost_of_cuts(traced, scores, refits=False)
    plan = Plan.from_mask("", trace, choose(trace, scores, counts))
    assert cost(kind, counts) == pytest.approx(
        measured(traced.cut(plan, "shrink").write(), kind, all_layers),
        abs=50 if kind == "bytes" else 0,
    )
    units = price_of("units", traced.document, trace, lambda: cost)
    assert units(counts) == 10
