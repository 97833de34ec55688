"""Dense layers and convolutions are cut as recurrent layers are."""

import numpy as np
import onnx.parser
import pytest
from onnx import numpy_helper

from onnx_rnn_prune import PruneError, apply, inspect, plan, prune, search
from onnx_rnn_prune.model.runner import Runner
from onnx_rnn_prune.operators.feed_forward import all_layers
from oracle.around import draw_around
from oracle.check import TRACED, check_case, check_prepared, draw_case
from oracle.recovered import recovered
from quantized import quantized

MANY = [*range(12), *(pytest.param(seed, marks=pytest.mark.draws) for seed in range(12, 200))]


@pytest.mark.parametrize("seed", MANY)
def test_zero_is_shrink_for_all_layers(seed):
    b = draw_around(seed)
    case = draw_case(b, seed, all_layers)
    check_prepared(case)
    check_case(case)
    if seed % 3 == 0:
        feeds = [b.feeds(*TRACED, seed=number) for number in range(4)]
        keep = case.plan.mask(case.traced.trace)
        check_case(case, recovered(case.traced, keep, feeds, ridge=1e-2))


def dense_model(weights):
    """Four products, by Gemm and MatMul; the second has no name, and its bias stands behind it."""
    model = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["": 17]>
        dense (float[N, 5] x) => (float[N, 3] y) {
            a = Gemm <transB = 1> (x, W1, b1)
            b = Relu (a)
            c = MatMul (b, W2)
            d = Add (c, b2)
            e = Relu (d)
            f = Gemm <alpha = 0.5> (e, W3, b3)
            g = Tanh (f)
            y = MatMul (g, W4)
        }
        """
    )
    for node, name in zip(model.graph.node, ["first", "", "second", "", "", "third"], strict=False):
        node.name = name
    for name, value in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    return model


def dense_weights(sizes):
    rng = np.random.default_rng(0)
    first, second, third = sizes
    shapes = {"W1": (first, 5), "b1": (first,), "W2": (first, second), "b2": (second,)}
    shapes |= {"W3": (second, third), "b3": (1, third), "W4": (third, 3)}
    return {name: rng.normal(0, 0.7, shape) for name, shape in shapes.items()}


def widened(weights):
    """Each layer with three units more: one that nobody reads, one of no weights, and a copy."""
    result = dict(weights)
    rows = {"W1": 0, "W2": 1, "W3": 1}
    for (name, axis), bias, reader, read in zip(
        rows.items(), ("b1", "b2", "b3"), ("W2", "W3", "W4"), (0, 0, 0), strict=True
    ):
        made = np.moveaxis(result[name], axis, 0)
        extra = np.stack([made[0, ::-1], np.zeros_like(made[0]), made[1]])
        result[name] = np.moveaxis(np.concatenate([made, extra]), 0, axis)
        flat = result[bias].reshape(-1)
        longer = np.concatenate([flat, [0.3, 0.0, flat[1]]])
        result[bias] = longer.reshape(*result[bias].shape[:-1], -1)
        wide = np.moveaxis(result[reader], read, 0)
        column = np.stack([np.zeros_like(wide[0]), wide[0], wide[1] * 0.25])
        wide = np.concatenate([wide, column])
        wide[1] *= 0.75
        result[reader] = np.moveaxis(wide, 0, read)
    return result


FEEDS = [{"x": np.random.default_rng(n).normal(size=(40, 5)).astype(np.float32)} for n in range(4)]
SIZES = (6, 7, 4)


def test_units_that_change_nothing_are_found_in_dense_layers():
    small = dense_model(dense_weights(SIZES))
    result = prune(dense_model(widened(dense_weights(SIZES))), layers="all", lossless=True)
    found = {row["name"]: row["hidden_after"] for row in result.report["layers"]}
    assert found == {"first": 6, "second": 7, "third": 4, "y": 3}
    for feed in FEEDS:
        left, right = Runner(small)(feed)["y"], Runner(result.model)(feed)["y"]
        assert np.allclose(left, right, rtol=1e-4, atol=1e-5)


def test_least_squares_finds_the_units_that_are_enough():
    """Pruned to the size that it was widened from, the model gives what it gave."""
    model = dense_model(widened(dense_weights(SIZES)))
    keep = {"first": 6, "second": 7, "third": 4}
    result = prune(model, layers="all", keep=keep, data=FEEDS, recover="lstsq")
    assert result.report["drift"]["y"]["nrmse"] < 0.02
    assert {row["hidden_after"] for row in result.report["layers"]} == {6, 7, 4, 3}
    assert result.report["oracle"]["passed"]


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize(("pads", "stride", "dilation"), [((1, 1), 1, 1), ((2, 0), 2, 2)])
def test_least_squares_finds_what_a_kernel_sees_at_other_places(group, pads, stride, dilation):
    """A channel that is another one, some places later, is computed from that; at borders, too."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(
        f"""
        <ir_version: 8, opset_import: ["": 17]>
        late (float[N, {2 * group}, T] x) => (float[N, {2 * group}, S] y) {{
            a = Conv <group = {group}, pads = [{dilation}, 0]> (x, W1)
            b = Relu (a)
            y = Conv <group = {group}, pads = {list(pads)}, strides = [{stride}],
                      dilations = [{dilation}]> (b, W2, b2)
        }}
        """
    )
    model.graph.node[0].name, model.graph.node[2].name = "first", "last"
    early = np.zeros((2 * group, 2, dilation + 1))
    early[0::2, 0, -1] = early[1::2, 0, 0] = 1.0
    reads = rng.normal(size=(2 * group, 2, 3))
    reads[:, 1, [0, 2]] = 0.0  # of the later one no place that lies outside of the kernel
    values = {"W1": early, "W2": reads, "b2": rng.normal(size=2 * group)}
    for name, value in values.items():
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    feeds = [{"x": rng.normal(size=(8, 2 * group, 30)).astype(np.float32)} for _ in range(4)]
    result = prune(model, layers="first", keep=0.5, data=feeds, recover="lstsq")
    assert result.report["drift"]["y"]["nrmse"] < 1e-3


def test_a_plan_names_dense_layers(tmp_path):
    model = dense_model(dense_weights(SIZES))
    chosen = plan(model, layers=["first", "third"], keep=0.5, data=FEEDS)
    assert {name: len(kept.keep[0]) for name, kept in chosen.layers.items()} == {
        "first": 3,
        "third": 2,
    }
    (tmp_path / "plan.json").write_text(chosen.to_json())
    result = apply(model, tmp_path / "plan.json", data=FEEDS)
    assert [row["hidden_after"] for row in result.report["layers"]] == [3, 2]
    shapes = {tensor.name: tuple(tensor.dims) for tensor in result.model.graph.initializer}
    assert (3, 5) in shapes.values() and (3, 7) in shapes.values()


def test_recurrent_layers_are_the_ones_that_are_cut_unless_others_are_asked_for():
    with pytest.raises(PruneError, match=r"no LSTM, GRU or RNN node; prune its dense"):
        prune(dense_model(dense_weights(SIZES)))


def test_a_layer_whose_units_leave_the_model_is_left_alone():
    result = prune(dense_model(dense_weights(SIZES)), layers="all", keep=0.5)
    last = result.report["layers"][-1]
    assert last["hidden_after"] == last["hidden_before"] == 3
    assert last["pinned"] == "leaves the model as its output y"


def test_a_glob_that_matches_no_layer_is_refused():
    with pytest.raises(PruneError, match=r"no layer matches 'head\*'"):
        prune(dense_model(dense_weights(SIZES)), layers="head*")


@pytest.mark.parametrize(("roll", "left"), ((False, [4] * 4 + [3]), (True, [4, 3])))
def test_steps_that_share_a_weight_are_one_layer_between_pads(roll, left):
    """What a product makes of each step is laid side by side, padded along the steps, and read."""
    model = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["": 17]>
        steps (float[2, 4, 5] x) => (float[2, 6, 3] y) {
            one, two, three, four = Split <axis = 1> (x)
            a = MatMul (one, W)
            b = MatMul (two, W)
            c = MatMul (three, W)
            d = MatMul (four, W)
            e = Concat <axis = 1> (a, b, c, d)
            f = Relu (e)
            g = Pad (f, pads)
            y = MatMul (g, V)
        }
        """
    )
    rng = np.random.default_rng(0)
    values = {"W": rng.normal(size=(5, 8)), "V": rng.normal(size=(8, 3))}
    for name, value in values.items():
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    pads = np.array([0, 1, 0, 0, 1, 0], np.int64)
    model.graph.initializer.append(numpy_helper.from_array(pads, "pads"))
    result = prune(model, layers="all", keep=0.5, roll=roll)
    assert [row["hidden_after"] for row in result.report["layers"]] == left
    sizes = [list(tensor.dims) for tensor in result.model.graph.initializer if len(tensor.dims) > 1]
    assert sorted(sizes) == [[4, 3], [5, 4]], "the weight is still shared"


def test_units_that_only_scale_others_go_with_them():
    """Squeeze and excite: the last convolution of the gate has no reader of its own."""
    model = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["": 17]>
        excited (float[N, 3, 6, 6] x) => (float[N, 2, 6, 6] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, W)
            b = Relu (a)
            mean = GlobalAveragePool (b)
            c = Conv (mean, U)
            d = Relu (c)
            e = Conv (d, V)
            f = Sigmoid (e)
            g = Mul (f, b)
            y = Conv (g, Z)
        }
        """
    )
    rng = np.random.default_rng(0)
    shapes = {"W": (8, 3, 3, 3), "U": (4, 8, 1, 1), "V": (8, 4, 1, 1), "Z": (2, 8, 1, 1)}
    for name, shape in shapes.items():
        value = rng.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    feeds = [{"x": rng.normal(size=(2, 3, 6, 6)).astype(np.float32)} for _ in range(4)]
    result = prune(model, layers="all", keep=0.5, data=feeds)
    assert [row["hidden_after"] for row in result.report["layers"]] == [4, 2, 4, 2]
    assert result.report["oracle"]["passed"]


SHUFFLE = """
    c = Reshape <allowzero = 0> (b, apart)
    d = Transpose <perm = [0, 2, 1, 3]> (c)
    e = Reshape (d, mixed)
"""
WITH_CHANNELS = [
    pytest.param(SHUFFLE, 4, id="channels that are shuffled go in all groups at once"),
    pytest.param("e = Sqrt (b)", 4, id="roots"),
    pytest.param("e = GroupNormalization <num_groups = 8> (b, s, s)", 4, id="each alone"),
    pytest.param("e = GroupNormalization <num_groups = 4> (b, s, s)", 4, id="groups go whole"),
    pytest.param("e = GroupNormalization <num_groups = 2> (b, s, s)", 8, id="groups stay"),
]


def test_groups_that_are_laid_side_by_side_to_be_normalized_stay():
    """As PyTorch writes them for older opsets."""
    model = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["": 17]>
        groups (float[N, 3, T] x) => (float[N, 2, T] y)
        <int64[3] apart = {0, 4, -1}, int64[3] back = {0, 8, -1}> {
            a = Conv (x, W)
            b = Reshape (a, apart)
            c = InstanceNormalization (b, s, s)
            d = Reshape (c, back)
            y = Conv (d, Z)
        }
        """
    )
    rng = np.random.default_rng(0)
    for name, shape in {"W": (8, 3, 1), "Z": (2, 8, 1), "s": (4,)}.items():
        value = rng.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    feeds = [{"x": rng.normal(size=(2, 3, 6 + n)).astype(np.float32)} for n in range(4)]
    row = inspect(model, layers="all", data=feeds)["layers"][0]
    assert "is normalized together with other units by InstanceNormalization" in row["pinned"]


@pytest.mark.parametrize(("nodes", "units"), WITH_CHANNELS)
def test_channels_are_followed_through(nodes, units):
    model = onnx.parser.parse_model(
        f"""
        <ir_version: 8, opset_import: ["": 21]>
        channels (float[N, 3, 6] x) => (float[N, 2, 6] y) {{
            a = Conv (x, W)
            b = Relu (a)
            {nodes}
            f = Conv <group = 2, pads = [1, 1]> (e, U)
            y = Conv (f, Z)
        }}
        """
    )
    model.graph.node[0].name = "first"
    rng = np.random.default_rng(0)
    shapes = {"W": (8, 3, 1), "U": (4, 4, 3), "Z": (2, 4, 1), "s": (8,)}
    values = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    values |= {"apart": np.array([0, 2, 4, 6]), "mixed": np.array([0, 8, 6])}
    for name, value in values.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    feeds = [{"x": rng.normal(size=(2, 3, 6)).astype(np.float32)} for _ in range(4)]
    result = prune(model, layers="first", keep=0.5, data=feeds)
    assert result.report["layers"][0]["hidden_after"] == units
    assert result.report["oracle"]["passed"]


@pytest.mark.parametrize("op", ["MatMulInteger", "DynamicQuantizeMatMul"])
def test_products_of_integers_are_layers(op):
    model = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["": 17]>
        integers (float[N, 40] x) => (float[N, 3] y) {
            a = MatMul (x, W1)
            b = Add (a, b1)
            c = Relu (b)
            d = MatMul (c, W2)
            e = Relu (d)
            y = MatMul (e, W3)
        }
        """
    )
    rng = np.random.default_rng(0)
    shapes = {"W1": (40, 48), "b1": (48,), "W2": (48, 32), "W3": (32, 3)}
    for name, shape in shapes.items():
        value = rng.normal(0, 0.2, shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    feeds = [{"x": rng.normal(size=(300, 40)).astype(np.float32)} for _ in range(4)]
    if op == "MatMulInteger":
        model = quantized(model)
    else:
        model = prune(model, layers="all", keep=1.0, quantize="int8").model
    assert op in {node.op_type for node in model.graph.node}
    result = prune(model, layers="all", keep=0.75, data=feeds)
    assert [row["hidden_after"] for row in result.report["layers"]] == [36, 24, 3]
    assert result.report["oracle"]["passed"]
    assert result.report["drift"]["y"]["nrmse"] < 0.5
    totals = result.report["totals"]
    assert totals["bytes_after"] < 0.85 * totals["bytes_before"]


def recurrent_model():
    """A dense layer, a GRU, and two more dense layers."""
    model = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["": 17]>
        both (float[T, 1, 6] x) => (float[T, 1, 3] y) {
            a = MatMul (x, W1)
            b = Relu (a)
            c = GRU <hidden_size = 16> (b, W, R)
            d = Squeeze (c, one)
            e = MatMul (d, W2)
            f = Relu (e)
            y = MatMul (f, W3)
        }
        """
    )
    rng = np.random.default_rng(0)
    shapes = {"W1": (6, 20), "W": (1, 48, 20), "R": (1, 48, 16), "W2": (16, 24), "W3": (24, 3)}
    for name, shape in shapes.items():
        value = rng.normal(0, 0.3, shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "one"))
    feeds = [{"x": rng.normal(size=(30, 1, 6)).astype(np.float32)} for _ in range(8)]
    return model, feeds


def test_a_model_of_dense_layers_is_told_how_to_cut_them():
    model = dense_model(dense_weights((6, 5, 4)))
    for call in (inspect, prune):
        with pytest.raises(PruneError, match="no LSTM, GRU or RNN node.*; prune its d"):
            call(model)


def test_inspect_lists_dense_layers_where_they_are_asked_for():
    model, feeds = recurrent_model()
    # In short sequences, a layer may take no longer than noting its time does, which counts as 0.
    feeds = [{"x": np.tile(feed["x"], (20, 1, 1))} for feed in feeds]
    report = inspect(model, data=feeds)
    assert [layer.op for layer in report.layers] == ["GRU"]
    assert report.share_of_others is not None and report.share_of_others > 0
    report = inspect(model, data=feeds, layers="all")
    assert [layer.op for layer in report.layers] == ["MatMul", "GRU", "MatMul", "MatMul"]
    assert report.layers[-1].pinned == "leaves the model as its output y"
    assert all(layer.half is not None for layer in report.layers[:-1])
    assert all(layer.time_ms for layer in report.layers)


def test_a_search_shares_the_cut_among_all_layers():
    model, feeds = recurrent_model()
    result = search(model, data=feeds, layers="all", params="30%", trials=8, strategy="uniform")
    assert result.report["totals"]["params_after"] <= 0.3 * result.report["totals"]["params_before"]
    kept = {row["name"]: row["hidden_after"] for row in result.report["layers"]}
    assert kept["a"] < 20 and kept["c"] < 16 and kept["e"] < 24 and kept["y"] == 3
    assert result.report["oracle"]["passed"]


def test_units_are_paid_for_in_what_their_layers_take():
    model, feeds = recurrent_model()
    for per in ("params", "flops", "ms"):
        result = prune(model, data=feeds, layers="all", allocate="global", per=per)
        assert result.report["oracle"]["passed"]


def test_halves_of_a_gated_unit_keep_the_same_units(tmp_path):
    """And the groups of a convolution equally many; a plan names the units of the whole layer."""
    model = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["": 17]>
        gates (float[N, 3, 12] x) => (float[N, 2, 12] y) {
            a = Conv <pads = [1, 1]> (x, W)
            left, right = Split <axis = 1> (a)
            b = Sigmoid (right)
            c = Mul (left, b)
            d = Conv <pads = [1, 1], group = 2> (c, U)
            e = Relu (d)
            y = Conv (e, V)
        }
        """
    )
    rng = np.random.default_rng(0)
    shapes = {"W": (16, 3, 3), "U": (12, 4, 3), "V": (2, 12, 1)}
    for name, shape in shapes.items():
        value = rng.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    feeds = [{"x": rng.normal(size=(4, 3, 12)).astype(np.float32)} for _ in range(4)]
    chosen = plan(model, layers="all", keep=0.5, data=feeds)
    first, second = (np.array(chosen.layers[name].keep[0]) for name in ("a", "d"))
    assert chosen.layers["a"].hidden_size == 16 and len(first) == 8
    assert (first[4:] - 8 == first[:4]).all(), "the halves are multiplied"
    assert [(first[:4] < 4).sum(), (second < 6).sum(), len(second)] == [2, 3, 6]
    assert plan(model, layers="all", keep=8, data=feeds).layers["a"] == chosen.layers["a"]
    (tmp_path / "plan.json").write_text(chosen.to_json())
    result = apply(model, tmp_path / "plan.json", data=feeds, recover="lstsq")
    assert [row["hidden_after"] for row in result.report["layers"]] == [8, 6]
    assert result.report["oracle"]["passed"]
    sizes = {t.name: list(t.dims) for t in result.model.graph.initializer}
    assert sorted(size for size in sizes.values() if len(size) == 3) == [
        [2, 6, 1],
        [6, 2, 3],
        [8, 3, 3],
    ]


@pytest.mark.parametrize("criterion", ["activation", "correlation", "cosine", "l2", "variance"])
def test_criteria_rank_units_of_all_layers(criterion):
    model, feeds = recurrent_model()
    result = prune(model, data=feeds, layers="all", criterion=criterion, recover="merge")
    assert [row["hidden_after"] for row in result.report["layers"]] == [10, 8, 12, 3]
    assert result.report["oracle"]["passed"]


def test_convolutions_of_large_pictures_are_refitted():
    """Of more places than a fit needs some are drawn, the same of the original and of the cut."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[n, 1, h, w] x) => (float[n, 2, h, w] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, W1)
            b = Relu (a)
            y = Conv <pads = [1, 1, 1, 1]> (b, W2)
        }
    """)
    rng = np.random.default_rng(0)
    for name, shape in (("W1", (64, 1, 3, 3)), ("W2", (2, 64, 3, 3))):
        value = rng.standard_normal(shape).astype(np.float32) / 8
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    data = [{"x": rng.standard_normal((1, 1, 60, 60)).astype(np.float32)} for _ in range(4)]
    result = prune(model, keep=0.5, data=data, layers="all", recover="lstsq")
    assert result.report.recovery.used == "lstsq"


def test_a_root_of_what_a_cut_unit_leaves_negative_is_a_stop():
    """sqrt(relu(h) + c - 1): without its unit and its c, -1 would be left."""
    text = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[N, 5] x) => (float[N, 3] y) <float one = {1.0}> {
            a = MatMul (x, W1)  b = Relu (a)  c = Add (b, C)  d = Sub (c, one)
            e = Sqrt (d)  y = MatMul (e, W2)
        }
    """)
    rng = np.random.default_rng(0)
    weights = {"W1": rng.normal(size=(5, 20)), "W2": rng.normal(size=(20, 3))}
    for name, value in {**weights, "C": rng.uniform(2, 3, 20)}.items():
        text.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    data = [{"x": rng.normal(size=(6, 5)).astype(np.float32)} for _ in range(4)]
    result = prune(text, keep=0.5, data=data, layers="all")
    assert [row.hidden_after for row in result.report.layers] == [20, 3]
