"""Units that provably change nothing are found, all of them and no others, and go without loss."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, numpy_helper

from onnx_rnn_prune import inspect, plan, prune
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.runner import Runner
from onnx_rnn_prune.operators.meets import meet
from onnx_rnn_prune.operators.table import operator_of
from oracle.widen import BATCH, add_unit, draw_weights, widened_model

LAYERS = [(op, d) for op in ("LSTM", "GRU", "RNN") for d in (1, 2)]
FEED = {"x": np.random.default_rng(1).normal(0, 1, (30, BATCH, 3)).astype(np.float32)}


def widened(op, directions, kinds, seed=0):
    weights = draw_weights(op, directions, 5, seed)
    rng = np.random.default_rng(seed)
    for kind in kinds:
        weights = add_unit(weights, kind, rng)
    return weights


def check(model, after, feed=FEED, **counts):
    """The first layer keeps so many units, the model computes the same, and the report says why."""
    result = prune(model, lossless=True)
    assert plan(model, lossless=True) == result.plan
    layer = result.report["layers"][0]
    assert layer["hidden_after"] == after, result.report["lossless"]
    left, right = Runner(model)(feed), Runner(result.model)(feed)
    for name, value in left.items():
        assert np.allclose(right[name], value, atol=1e-5), np.abs(right[name] - value).max()
    row = result.report["lossless"][0]
    wanted = dict.fromkeys(("dead", "zero", "constant", "duplicate"), 0) | counts
    assert {kind: row[kind] for kind in wanted} == wanted
    if after < layer["hidden_before"]:
        assert result.report["oracle"]["passed"]
        assert result.report["recovery"]["used"] == "lossless"
    return result


@pytest.mark.parametrize("kind", ["dead", "zero", "constant", "duplicate"])
@pytest.mark.parametrize(("op", "directions"), LAYERS)
def test_planted_units_are_found(op, directions, kind):
    model = widened_model(widened(op, directions, ["dead", kind]))
    counts = {"dead": directions}
    counts[kind] = counts.get(kind, 0) + directions
    check(model, 5, **counts)


@pytest.mark.parametrize(("op", "directions"), LAYERS)
def test_a_layer_without_such_units_stays_as_it_is(op, directions):
    model = widened_model(widened(op, directions, []))
    result = check(model, 5)
    assert result.model.SerializeToString() == model.SerializeToString()
    assert not any("calibrated" in text for text in result.report["warnings"])


@pytest.mark.parametrize("linear", [0, 1])
@pytest.mark.parametrize("kind", ["zero", "constant", "duplicate"])
def test_both_forms_of_gru(kind, linear):
    weights = widened("GRU", 1, [kind])
    b = weights.b.copy()
    if kind == "constant":  # the reset gate scales the second bias of the candidate in one form
        b[:, 0, 2, 5], b[:, 1, 2, 5] = b[:, :, 2, 5].sum(axis=1), 0
    model = widened_model(replace(weights, b=b))
    attribute = onnx.helper.make_attribute("linear_before_reset", linear)
    model.graph.node[0].attribute.append(attribute)
    check(model, 5, **{kind: 1})


def test_units_that_only_read_each_other_are_dead():
    weights = widened("LSTM", 1, ["dead", "dead"])
    r = weights.r.copy()
    r[:, :, 5, 6], r[:, :, 6, 5], r[:, :, 5, 5] = 0.3, 0.4, 0.5
    check(widened_model(replace(weights, r=r)), 5, dead=2)
    r[:, 0, 0, 6] = 1e-3  # one gate of a live unit reads the second, and so both live
    check(widened_model(replace(weights, r=r)), 7)


def test_what_only_zero_units_read_is_dead():
    weights = widened("GRU", 1, ["dead", "zero"])
    r = weights.r.copy()
    r[:, 0, 6, 5] = 0.7  # through the update gate of a unit that is 0 all the same
    check(widened_model(replace(weights, r=r)), 5, dead=1, zero=1)
    r[:, 2, 6, 5] = 0.7
    check(widened_model(replace(weights, r=r)), 7)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_a_bias_keeps_a_unit_from_being_zero(op):
    weights = widened(op, 1, ["zero"])
    b = weights.b.copy()
    b[:, 0, -1, 5] = 0.25
    check(widened_model(replace(weights, b=b)), 6)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_an_initial_state_keeps_a_unit_from_being_zero(op):
    weights = widened(op, 1, ["zero"])
    start = np.zeros((1, 6))
    start[:, 5] = 0.5
    check(widened_model(replace(weights, start=start)), 6)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_a_constant_that_starts_elsewhere_must_not_be_read_by_its_layer(op):
    weights = widened(op, 1, ["constant"])
    other = replace(weights, start=None)
    check(widened_model(other), 6)
    r = weights.r.copy()
    r[..., 5] = 0
    check(widened_model(replace(other, r=r)), 5, constant=1)


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_what_converges_is_not_constant(op):
    """Weights of 0 and open gates only in part: the state nears a number, step by step."""
    weights = widened(op, 1, ["constant"])
    b, r = weights.b.copy(), weights.r.copy()
    r[..., 5] = 0
    b[:, :, "iofc".index("f") if op == "LSTM" else 0, 5] = 0.1
    check(widened_model(replace(weights, b=b, r=r, start=None)), 6)


def test_padding_of_short_sequences_shows_zeros_in_place_of_a_constant():
    model = widened_model(widened("RNN", 1, ["constant"]))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(BATCH, np.int32), "lens"))
    model.graph.node[0].input[4] = "lens"
    check(model, 6)


def test_duplicates_that_read_each_other_in_other_shares_are_equal():
    """Only sums over classes are the same: the partition has to be refined, not just compared."""
    weights = widened("LSTM", 1, ["duplicate", "duplicate"])
    r = weights.r.copy()
    total = r[..., [0, 5, 6]].sum(axis=-1)
    shares = np.random.default_rng(3).dirichlet(np.ones(3), size=total.shape)
    r[..., [0, 5, 6]] = total[..., None] * shares
    result = check(widened_model(replace(weights, r=r)), 5, duplicate=2)
    assert result.plan.layers["layer"].keep == ((0, 1, 2, 3, 4),)
    r[:, 1, 5, 2] += 1e-3  # one gate of one of them reads another unit a little more
    check(widened_model(replace(weights, r=r)), 7)  # and the others what they read of that one


def test_directions_keep_equally_many():
    weights = widened("GRU", 2, ["dead", "dead"])
    v = weights.v.copy()
    v[1, 5] = 0.5
    result = check(widened_model(replace(weights, v=v)), 6, dead=3)
    assert result.report["lossless"][0]["removed"] == 2


def test_one_unit_stays():
    weights = widened("GRU", 1, [])
    model = widened_model(replace(weights, v=np.zeros_like(weights.v)))
    check(model, 1, dead=5)


TWO = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[t, b, 3] x) => (float[t, 1, b, 2] y) {{
        [first] Y = LSTM <hidden_size = 4> (x, W, R, B)
        z = {between}
        s = Squeeze (z, one)
        [second] Z = GRU <hidden_size = 4, linear_before_reset = 1> (s, W2, R2, B2)
        y = MatMul (Z, V)
    }}
"""


def two_layers(between="Identity (Y)", seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"W": (1, 16, 3), "R": (1, 16, 4), "B": (1, 32), "V": (4, 2)}
    shapes |= {"W2": (1, 12, 4), "R2": (1, 12, 4), "B2": (1, 24)}
    values = {name: rng.normal(0, 0.5, shape) for name, shape in shapes.items()}
    return between, values


def written(between, values):
    model = onnx.parser.parse_model(
        TWO.format(between=between).replace("z = Sqrt", "p = Abs (Y)\n z = Sqrt")
    )
    for name, value in values.items():
        tensor = numpy_helper.from_array(value.astype(np.float32), name)
        model.graph.initializer.append(tensor)
    others = {"one": np.array([1]), "zero": np.array(0), "c": np.array([2, 1, 3, 0.5], np.float32)}
    others["gap"] = others["c"] * np.array([1, 1, 0, 1], np.float32)
    others["hole"] = others["c"] * np.array([1, 1, 1, 0], np.float32)
    others["inf"] = np.where(others["hole"] > 0, others["c"], np.float32(np.inf))
    for name, value in others.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    return model


@pytest.mark.parametrize("between", ["Identity (Y)", "Sigmoid (Y)"])
def test_duplicates_of_one_layer_make_duplicates_of_the_next(between):
    """Units of the second layer read equal units of the first in other shares."""
    _, values = two_layers()
    for name, blocks in (("W", 4), ("R", 4), ("B", 8)):
        value = values[name].reshape(blocks, 4, -1)
        value[:, 3] = value[:, 0]
    for name, blocks in (("R2", 3), ("B2", 6)):
        value = values[name].reshape(blocks, 4, -1)
        value[:, 3] = value[:, 1]
    w2 = values["W2"].reshape(3, 4, 4)
    w2[:, 3] = w2[:, 1]
    w2[:, 3, 0] += 0.25
    w2[:, 3, 3] -= 0.25
    result = check(written(between, values), 3, duplicate=1)
    assert result.report["lossless"][1]["duplicate"] == 1
    assert result.report["layers"][1]["hidden_after"] == 3


LAST = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[t, b, 3] x) => (float[1, b, 2] y) {{
        [layer] {outputs} = {op} <hidden_size = 7> (x, W, R, B)
        y = MatMul ({read}, V)
    }}
"""


@pytest.mark.parametrize(
    ("op", "outputs", "read"),
    [
        ("LSTM", ", Y_h", "Y_h"),
        ("GRU", ", Y_h", "Y_h"),
        ("RNN", ", Y_h", "Y_h"),
        ("LSTM", ", , Y_c", "Y_c"),
    ],
)
def test_a_layer_of_which_only_the_last_state_is_read(op, outputs, read):
    weights = widened(op, 1, ["dead", "zero"])
    model = onnx.parser.parse_model(LAST.format(op=op, outputs=outputs, read=read))
    w, r = (value.reshape(1, -1, value.shape[-1]) for value in (weights.w, weights.r))
    held = {"W": w, "R": r, "B": weights.b.reshape(1, -1), "V": weights.v[0]}
    for name, value in held.items():
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    check(model, 5, dead=1, zero=1)


def with_a_zero_unit(between):
    """The first layer's last unit is 0, and stands behind an operator for the second layer."""
    _, values = two_layers()
    for name, blocks in (("W", 4), ("R", 4)):
        values[name].reshape(blocks, 4, -1)[3, 2] = 0
    values["B"].reshape(2, 4, 4)[:, 3, 2] = 0
    return between, values


# Operators as they are written between two layers, each in the oldest opset that has it.
# fmt: off
KEEP_ZEROS = {
    17: (
        "Abs (Y)", "Ceil (Y)", "Celu (Y)", "CumSum (Y, zero)", "Div (Y, c)", "Dropout (Y)",
        "Elu (Y)", "Erf (Y)", "Floor (Y)", "HardSwish (Y)", "Identity (Y)", "LeakyRelu (Y)",
        "Mul (Y, c)", "Neg (Y)", "PRelu (Y, c)", "Pow (Y, c)", "Relu (Y)", "Round (Y)", "Selu (Y)",
        "Sign (Y)", "Sin (Y)", "Softsign (Y)", "Sum (Y)", "Tanh (Y)", "ThresholdedRelu (Y)",
        "Sqrt (p)", "Add (Y, gap)", "Sub (gap, Y)", "Max (Y, gap)",
    ),
    18: ("Mish (Y)",),
    20: ("Gelu (Y)",),
    24: ("Swish (Y)",),
}
# fmt: on


@pytest.mark.parametrize(
    ("opset", "between"), [(opset, op) for opset, ops in KEEP_ZEROS.items() for op in ops]
)
def test_zeros_count_where_what_stands_in_the_way_keeps_them(opset, between):
    model = written(*with_a_zero_unit(between))
    model.opset_import[0].version = opset
    check(model, 3, zero=1)


@pytest.mark.parametrize("between", ["Sigmoid (Y)", "Add (Y, c)", "Div (Y, hole)", "Mul (Y, inf)"])
def test_zeros_do_not_count_where_they_become_other_numbers(between):
    """For the second layer, that is; the first itself still reads 0."""
    model = written(*with_a_zero_unit(between))
    result = prune(model, lossless=True)
    assert result.report["layers"][0]["hidden_after"] == 4


def test_one_table_says_which_operators_keep_zeros():
    """It is what onnxruntime computes, for all operators that go through tensors entry by entry."""
    tested = {text.split()[0] for texts in KEEP_ZEROS.values() for text in texts}
    tried = []
    for schema in onnx.defs.get_all_schemas():
        node = gs.Node(schema.name, domain=schema.domain)
        floats = "tensor(float)" in schema.outputs[0].types if schema.outputs else False
        row = operator_of(node)
        left_out = not floats or schema.name in ("Where", "Clip")
        if row is None or row.rule is not meet or left_out:
            continue  # of the two that are left out it is the other inputs that say
        at_zero, of_zeros = makes_zero(schema)
        tried.append(schema.name)
        assert row.zero == ("each" if at_zero else "all" if of_zeros else ""), schema.name
        assert not at_zero or schema.name in tested, "each is tested between layers"
    assert len(tried) > 30


def makes_zero(schema):
    """Whether an operator makes 0 of 0 and other numbers; and of zeros alone."""
    names = ["x"] if schema.max_input == 1 and schema.min_input else ["x", "other"]
    float_ = TensorProto.FLOAT
    ports = [onnx.helper.make_tensor_value_info(name, float_, [2]) for name in (*names, "y")]
    node = onnx.helper.make_node(schema.name, names, ["y"])
    graph = onnx.helper.make_graph([node], "one", ports[:-1], ports[-1:])
    opset = onnx.helper.make_opsetid("", schema.since_version)
    run = Runner(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8))
    above = schema.name in ("Div", "Pow")  # where units meet 0 there, they are not followed
    others = [[0.5, 2.0] if above else [0.5, -0.5], [1.0, 1.0] if above else [0.0, 0.0]]
    zeros = np.zeros(2, np.float32)
    found = [run({"x": zeros, "other": np.array(other, np.float32)})["y"] for other in others]
    return tuple(not value.any() for value in found)


def test_restored_outputs_show_duplicates_as_before():
    """A layer that is an output of the model: units are merged, and shown in all their places."""
    weights = widened("GRU", 1, ["zero"] * 6)
    weights = replace(weights, v=np.ones_like(weights.v))
    model = widened_model(weights)
    port = onnx.helper.make_tensor_value_info("Y", onnx.TensorProto.FLOAT, ["T", 1, BATCH, 11])
    model.graph.output.append(port)
    result = prune(model, lossless=True)
    left, right = Runner(model)(FEED), Runner(result.model)(FEED)
    assert all(np.allclose(left[name], right[name], atol=1e-5) for name in left)


@pytest.mark.parametrize(
    "options",
    [
        {"keep": 0.5},
        {"budget": "params=50%"},
        {"criterion": "l2"},
        {"recover": "bias"},
        {"align": 2},
        {"min_units": 3},
    ],
)
def test_there_is_one_way_to_say_what_stays(options):
    model = widened_model(widened("RNN", 1, []))
    option = f"{next(iter(options))}="
    with pytest.raises(
        PruneError, match=f"lossless=: it already determines which units to keep, as would {option}"
    ):
        prune(model, lossless=True, **options)
    if option != "recover=":
        with pytest.raises(PruneError, match=f"masks=: it already determines .* as would {option}"):
            prune(model, masks={"layer": np.ones(5, bool)}, **options)
    with pytest.raises(PruneError, match="lossless=: .* as would masks="):
        prune(model, lossless=True, masks={})
    with pytest.raises(PruneError, match="lossless=: 1 is neither True nor False"):
        prune(model, lossless=1)


# -- merge -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("op", "directions"), LAYERS)
def test_merging_duplicates_is_exact(op, directions):
    model = widened_model(widened(op, directions, ["duplicate", "duplicate"]))
    lane = np.array([True] * 5 + [False] * 2)
    result = prune(model, masks={"layer": lane}, recover="merge")
    assert result.report["recovery"]["used"] == "merge"
    left, right = Runner(model)(FEED)["y"], Runner(result.model)(FEED)["y"]
    assert np.allclose(left, right, atol=1e-5), np.abs(left - right).max()
    other = Runner(prune(model, masks={"layer": lane}).model)(FEED)["y"]
    assert np.abs(left - other).max() > 1e-2, "without it something is lost"


def test_merging_goes_with_any_choice_of_units():
    model = widened_model(widened("LSTM", 2, []))
    result = prune(model, keep=3, recover="merge")
    assert result.report["oracle"]["passed"] and result.report["layers"][0]["hidden_after"] == 3


# -- masks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("one", [True, False])
def test_masks_from_training_are_a_plan(one, tmp_path):
    model = widened_model(widened("GRU", 2, []))
    lane = np.array([True, False, True, True, False])
    lanes = np.stack([lane, lane if one else lane[::-1]])
    np.savez(tmp_path / "masks.npz", layer=lane if one else lanes)
    result = prune(model, masks=tmp_path / "masks.npz")
    keep = [tuple(np.flatnonzero(row)) for row in lanes]
    assert list(result.plan.layers["layer"].keep) == keep
    assert plan(model, masks=tmp_path / "masks.npz") == result.plan
    assert result.report["oracle"]["passed"]
    with pytest.raises(PruneError, match="would overwrite an input"):
        result.save(tmp_path / "masks.npz")


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"other": np.ones(5, bool)}, "the model has no layer 'other'; its layers are l"),
        ({"layer": np.ones(4, bool)}, r"layer is bool with shape \[4\]; give .* \[2, 5\] or \[5"),
        ({"layer": np.ones((1, 5), bool)}, r"is bool with shape \[1, 5\]"),
        ({"layer": np.ones(5)}, "is float64 with shape"),
        ({"layer": np.eye(5, dtype=bool)[:2] | (np.arange(5) > [[3], [2]])}, "keeps 2, 3 units"),
        ({"layer": np.zeros(5, bool)}, "keeps 0, 0 units; keep the same number .* at least one"),
        ({}, "they do not name any layer; the layers are layer"),
        ("absent.npz", r"absent\.npz: cannot be read"),
        (5, "masks cannot be given as int"),
    ],
)
def test_masks_that_do_not_fit_are_an_error(masks, message):
    with pytest.raises(PruneError, match=message) as caught:
        prune(widened_model(widened("GRU", 2, [])), masks=masks)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_archive_is_an_error(tmp_path):
    model = widened_model(widened("GRU", 1, []))
    path = tmp_path / "masks.npz"
    for content in (b"", b"no archive", b"PK\x03\x04 and no more"):
        path.write_bytes(content)
        with pytest.raises(PruneError, match="masks=: .* cannot be read"):
            prune(model, masks=path)
    np.save(tmp_path / "one.npy", np.ones(5, bool))
    with pytest.raises(PruneError, match="masks=: .* cannot be read"):
        prune(model, masks=tmp_path / "one.npy")


def test_groups_that_training_set_to_zero_go(tmp_path):
    """Weights and readers of a unit that are zero: what group sparsity leaves behind."""
    weights = widened("LSTM", 1, [])
    w, r, b, v = (value.copy() for value in (weights.w, weights.r, weights.b, weights.v))
    for unit in (1, 3):
        w[:, :, unit], r[:, :, unit], r[..., unit], b[..., unit], v[:, unit] = 0, 0, 0, 0, 0
    model = widened_model(replace(weights, w=w, r=r, b=b, v=v))
    result = check(model, 3, zero=2)
    onnx.save(result.model, tmp_path / "small.onnx")
    assert inspect(tmp_path / "small.onnx")["layers"][0]["hidden"] == 3
