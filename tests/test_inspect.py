"""What inspect measures is what the files measure; what it cannot know it says."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_rnn_prune import PruneError, apply, inspect, plan, prune, search
from onnx_rnn_prune.cost.cost import count_flops
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import Runner
from onnx_rnn_prune.operators.recurrent import find_layers
from onnx_rnn_prune.record import to_json
from onnx_rnn_prune.report.inspection import inspect_table
from onnx_rnn_prune.report.wording import sentences
from onnx_rnn_prune.trace.plan import LayerPlan, Plan
from onnx_rnn_prune.validate.timing import node_times, timings
from tests.fuzzing import fitting

LARGE, SMALL, WIDTH = 64, 8, 3
STACKED = f"""
m (float[t, b, {WIDTH}] x) => (float[t, 1, b, 2] scores) {{
    [first] a = GRU <hidden_size = {LARGE}> (x, W, R, B) s = Squeeze (a, one)
    [second] c = GRU <hidden_size = {SMALL}> (s, W2, R2) scores = MatMul (c, V)
}}"""
BRANCHES = f"""
m (float[t, b, {WIDTH}] x, bool yes) => (float[t, b, {LARGE}] y) {{
    [if] y = If (yes) <
        then_branch = then () => (float[t, b, {LARGE}] u) {{
            [taken] a = GRU <hidden_size = {LARGE}> (x, W, R, B) u = Squeeze (a, one)
        }},
        else_branch = other () => (float[t, b, {LARGE}] v) {{
            [other] c = GRU <hidden_size = {LARGE}> (x, W3, R3) v = Squeeze (c, one)
        }}
    >
}}"""
LOOP = f"""
m (float[t, b, {WIDTH}] x, int64 times) => (float[n, t, b, {LARGE}] y) {{
    true = Constant <value = bool {{1}}> ()
    [loop] last, y = Loop (times, true, x) <
        body = turn (int64 i, bool go, float[t, b, {WIDTH}] z)
            => (bool on, float[t, b, {WIDTH}] z1, float[t, b, {LARGE}] u) {{
            on = Identity (go) z1 = Neg (z)
            [turned] a = GRU <hidden_size = {LARGE}> (z, W, R, B) u = Squeeze (a, one)
        }}
    >
}}"""
SHAPES = {
    **dict.fromkeys(("W", "W3"), (1, 3 * LARGE, WIDTH)),
    **dict.fromkeys(("R", "R3"), (1, 3 * LARGE, LARGE)),
    "B": (1, 6 * LARGE),
    "W2": (1, 3 * SMALL, LARGE),
    "R2": (1, 3 * SMALL, SMALL),
    "V": (SMALL, 2),
}
FEED = {"x": np.random.default_rng(0).normal(size=(9, 2, WIDTH)).astype(np.float32)}


def model(text):
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    rng = np.random.default_rng(1)
    for name, shape in SHAPES.items():
        if f" {name}," in text or f" {name})" in text:
            value = rng.normal(scale=0.3, size=shape).astype(np.float32)
            proto.graph.initializer.append(numpy_helper.from_array(value, name))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([1]), "one"))
    return proto


def by_name(report):
    return {layer["name"]: layer for layer in report["layers"]}


def test_half_is_what_such_a_file_saves():
    original = model(STACKED)
    layers = by_name(inspect(original, data=FEED))
    for name, layer in layers.items():
        kept = {n: other["hidden"] for n, other in layers.items()}
        kept[name] = layer["half"]["units"]
        assert kept[name] == layer["hidden"] // 2
        plans = {n: LayerPlan(layers[n]["hidden"], (tuple(range(k)),)) for n, k in kept.items()}
        result = apply(original, Plan(plan(original).model, plans), data=FEED, recover="none")
        totals, half = result.report["totals"], layer["half"]
        assert half["params"] == totals["params_before"] - totals["params_after"] > 0
        assert half["bytes"] == totals["bytes_before"] - totals["bytes_after"] > 0
        flops = [count_flops(Document.read(m), find_layers) for m in (original, result.model)]
        assert half["flops"] == flops[0] - flops[1] > 0
        assert half["speedup"] > 0 and half["together"] == ()


def test_operations_are_a_product_and_a_sum_for_each_weight():
    layers = inspect(model(STACKED), data=FEED)["layers"]
    assert [layer["flops_per_step"] for layer in layers] == [
        2 * 3 * LARGE * (WIDTH + LARGE),
        2 * 3 * SMALL * (LARGE + SMALL),
    ]


def test_the_larger_layer_takes_more_time():
    layers = by_name(inspect(model(STACKED), data=[FEED] * 3))
    shares = {name: layer["share_of_time"] for name, layer in layers.items()}
    assert 0 < shares["second"] < shares["first"] < 1
    assert 0 < layers["second"]["time_ms"] < layers["first"]["time_ms"]


def test_all_layers_together_take_what_each_of_them_does():
    report = inspect(model(STACKED), data=[FEED] * 3)
    shares = [layer["share_of_time"] for layer in report["layers"]]
    assert max(shares) < report["share_of_time"] <= 1
    assert report["share_of_time"] == pytest.approx(sum(shares), rel=0.2)


@pytest.mark.parametrize("yes", [True, False])
def test_a_layer_that_no_run_comes_by_has_no_time(yes):
    report = inspect(model(BRANCHES), data={**FEED, "yes": np.array(yes)})
    layers = by_name(report)
    run, idle = ("taken", "other") if yes else ("other", "taken")
    assert layers[run]["time_ms"] > 0 and layers[run]["half"]
    assert layers[idle]["time_ms"] is None and layers[idle]["half"] is None
    assert "no input runs" in layers[idle]["pinned"]
    both = inspect(model(BRANCHES), data=[{**FEED, "yes": np.array(y)} for y in (True, False)])
    assert all(layer["time_ms"] > 0 and layer["half"] for layer in both["layers"])


def test_layers_among_many_small_nodes_get_their_share():
    """Profiling takes longer than such nodes do."""
    idle = " ".join(f"z{n + 1} = Neg (z{n})" for n in range(150))
    layers = " ".join(
        f"[l{n}] y{n} = GRU <hidden_size = {LARGE}> (x{n}, W, R) x{n + 1} = Squeeze (y{n}, one)"
        for n in range(3)
    )
    outside = f"m (float[t, b, {LARGE}] z0) => (float[t, b, {LARGE}] NAME) {{ {idle} NODES }}"
    models = [
        model(outside.replace("NAME", name).replace("NODES", nodes.replace("x0", "z150")))
        for name, nodes in (("x3", layers), ("z150", ""))
    ]
    rng, initializers = np.random.default_rng(0), models[0].graph.initializer
    del initializers[:]
    for name, width in (("W", LARGE), ("R", LARGE)):
        value = rng.normal(size=(1, 3 * LARGE, width)).astype(np.float32)
        initializers.append(numpy_helper.from_array(value, name))
    initializers.append(numpy_helper.from_array(np.array([1]), "one"))
    feed = {"z0": np.ones((2, 1, LARGE), np.float32)}
    share = node_times(Document.read(models[0]), ["y0", "y1", "y2"], [feed], "m").share_of(
        ["y0", "y1", "y2"]
    )
    _, without = timings(list(map(Runner, models)), feed, seconds=0.5)
    truth = 1 - 1 / without.ratio
    assert truth / 2 < share < min(2 * truth, 1)


def test_all_turns_of_a_loop_count():
    original = model(LOOP)
    times = [
        node_times(Document.read(original), ["a"], [{**FEED, "times": np.array(n)}], "m").nodes["a"]
        for n in (1, 16)
    ]
    assert times[1].ms > 4 * times[0].ms
    assert 0 < times[0].share <= 1 and 0 < times[1].share <= 1


def test_time_of_convolutions_in_another_layout():
    """onnxruntime names them after what they make together with what it fuses to them."""
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
    m (float[1, 16, 9, 9] x) => (float[1, 16, n, k] y) {
        [a] a = Conv (x, V, bias) [relu] b = Relu (a)
        [c] c = Conv (b, V) [norm] d = BatchNormalization (c, bias, bias, bias, one)
        [relu2] e = Relu (d) [f] f = Conv (e, V) [sum] y = Add (f, e)
    }""")
    weights = {"V": np.ones((16, 16, 1, 1)), "bias": np.ones(16), "one": np.ones(16)}
    proto.graph.initializer.extend(
        numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()
    )
    feed = {"x": np.ones((1, 16, 9, 9), np.float32)}
    for keys in (["a", "c", "f"], ["a"]):
        assert set(node_times(Document.read(proto), keys, [feed], "m").nodes) == set(keys)


def test_data_that_do_not_suit_are_an_error_and_made_up_ones_a_warning():
    original = model(STACKED)
    with pytest.raises(PruneError, match="x"):
        inspect(original, data={"x": np.zeros((2, 2, WIDTH + 1), np.float32)})
    shape = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        m (float[t, b, {WIDTH}] x, int64[3] to) => (float[a, c, d] y) {{
            z = Reshape (x, to) [rnn] y, n = GRU <hidden_size = {LARGE}> (z, W, R, B)
        }}"""
    )
    shape.graph.output[0].type.tensor_type.ClearField("shape")
    for name in ("W", "R", "B"):
        value = np.zeros(SHAPES[name], np.float32)
        shape.graph.initializer.append(numpy_helper.from_array(value, name))
    report = inspect(shape)
    (layer,) = report["layers"]
    assert (
        "could not trace" in report["warnings"][0]
        and "onnxruntime cannot run it" in report["warnings"][0]
    )
    assert layer["time_ms"] is None and layer["half"] is None and layer["outlets"] == []
    assert report["timed_on"]["shapes"] == {}
    assert json.loads(to_json(report)) and inspect_table(report)


def node(inputs, graph_inputs=""):
    text = f"""
    m (float[t, b, {WIDTH}] x{graph_inputs}) => (float[t, 1, b, {LARGE}] y) {{
        [rnn] y, n = GRU <hidden_size = {LARGE}> (x, {inputs})
    }}"""
    return model(text)


@pytest.mark.parametrize(
    ("inputs", "graph_inputs", "reason"),
    [
        ("W, R2, B", "", r"W \[1, 192, 3\] and R \[1, 24, 8\] are not the weights of one GRU"),
        ("W2, R2, B", "", "B has 384 entries but R implies 48"),
        ("W, R, B, , h", ", float[1, b, 60] h", "initial_h has 60 entries but R implies 64"),
    ],
)
def test_nodes_that_nothing_can_run_are_named(inputs, graph_inputs, reason):
    proto = node(inputs, graph_inputs)
    with pytest.raises(PruneError, match=f"no runtime can compute the GRU rnn: {reason}"):
        plan(proto)
    report = inspect(proto)
    (row,) = report["refused"]
    assert row["name"] == "rnn" and row["text"] and report["remedies"] == [row["remedy"]]
    assert inspect_table(report)


def test_open_sizes_are_no_misfits():
    proto = node("W, R, B, , h", f", float[1, b, {LARGE}] h")
    for dims in ([1, "b", LARGE], [1, "b", "units"]):
        value = onnx.helper.make_tensor_value_info("h", 1, dims)
        proto.graph.input[1].CopyFrom(value)
        feed = {**FEED, "h": np.zeros((1, 2, LARGE), np.float32)}
        assert inspect(proto, data=feed)["refused"] == []


def test_all_commands_count_units_and_weights_of_a_cell_alike():
    """Its layer is a product in a loop, whose output holds the sums of several gates."""
    path = Path(__file__).with_name("fixtures") / "cell_sru_loop.onnx"
    data = [fitting(onnx.load(path), number) for number in range(5)]
    (seen,) = inspect(path, data=data)["layers"]
    result = prune(path, keep=0.5, data=data)
    (row,) = result.report["layers"]
    assert (row["name"], row["hidden_before"]) == (seen["name"], seen["hidden"])
    assert row["hidden_after"] == seen["half"]["units"] == seen["hidden"] // 2
    (kept,) = result.plan.layers.values()
    assert kept.hidden_size == seen["hidden"] and len(kept.keep[0]) == row["hidden_after"]
    found = search(path, data=data, max_nrmse=0.9, layers="recurrent", trials=4).report
    (curve,) = found["sensitivity"]["layers"]
    assert curve["units"] == seen["hidden"] == curve["points"][-1]["kept"]
    assert list(curve["layers"]) == [seen["name"]]
    picked = found["search"]["candidates"][found["search"]["picked"] - 1]
    assert picked["kept"] == {seen["name"]: found["layers"][0]["hidden_after"]}
    totals = result.report["totals"]
    assert totals["rnn_params_before"] == row["params_before"] == seen["params"]
    assert totals["rnn_params_after"] == row["params_after"]


SHARED = f"""
m (float[t, b, {WIDTH}] x, bool yes) => (float[t, b, {LARGE}] y) {{
    [if] y = If (yes) <
        then_branch = then () => (float[t, b, {LARGE}] u) {{
            [taken] a = GRU <hidden_size = {LARGE}> (x, W, R, B) u = Squeeze (a, one)
        }},
        else_branch = other () => (float[t, b, {LARGE}] v) {{
            W1 = Identity (W) r = Transpose (R) R1 = Transpose (r)
            [other] c = GRU <hidden_size = {LARGE}> (x, W1, R1, B) v = Squeeze (c, one)
        }}
    >
}}"""


def test_weights_that_branches_share_count_once():
    branches = [{**FEED, "yes": np.array(yes)} for yes in (True, False)]
    report = inspect(model(SHARED), data=branches)
    first, second = report["layers"]
    assert second["params"] == 0 and first["params"] == 3 * LARGE * (WIDTH + LARGE + 2)
    assert first["params"] == report["model"]["params"] - 1
    totals = prune(model(SHARED), keep=0.5, data=branches).report["totals"]
    assert totals["rnn_params_before"] == totals["params_before"] - 1 == first["params"]
    own = inspect(model(BRANCHES), data=branches)
    biases = 6 * LARGE
    assert [layer["params"] for layer in own["layers"]] == [
        first["params"],
        first["params"] - biases,
    ]
    assert own["model"]["params"] - 1 == sum(layer["params"] for layer in own["layers"])


def test_what_rolling_brings_is_not_said_of_pruning():
    """What an exporter wrote out is larger and slower than the layer that it becomes."""
    path = Path(__file__).with_name("fixtures") / "tf_while_lstm.onnx"
    data = [fitting(onnx.load(path), number) for number in range(3)]
    report = inspect(path, data=data)
    assert report["rolling"]["rolled"] and report["rolling"]["speedup"] > 0
    for layer in report["layers"]:
        assert 0 < layer["half"]["bytes"] <= 8 * layer["half"]["params"]
    found = prune(path, keep=0.5, data=data).report
    assert found["rolled"] and found["rolled_speedup"] > 0
    (text,) = [text for label, text in sentences(found) if label == "Rolling"]
    assert text.startswith("alone: ") and "; with pruning: " in text
    assert prune(model(STACKED), keep=0.5, data=FEED).report.rolled_speedup is None


def test_a_cell_that_is_pruned_in_place_is_not_said_to_be_unprunable():
    path = Path(__file__).with_name("fixtures") / "cell_conv_lstm_loop.onnx"
    report = inspect(path, data=[fitting(onnx.load(path), 0)])
    (row,) = report["written_out"]
    assert row["in_place"] and not report["remedies"] and "the Loop final0 (" in row["text"]
