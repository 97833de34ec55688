"""Models in half, double and bfloat16 precision, and weights that are held in a narrower type."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnx_rnn_prune import apply, bench, compare, inspect, plan, prune
from onnx_rnn_prune.errors import ConstraintError, PruneError
from onnx_rnn_prune.model.runner import Runner

BFLOAT16 = ml_dtypes.bfloat16
CELLS = {"LSTM": 4, "GRU": 3, "RNN": 1}
WEIGHTS = ("W", "R", "B", "fc", "fb")
TYPES = {np.float16: "float16", np.float32: "float", np.float64: "double", BFLOAT16: "bfloat16"}
MODEL = """
    <ir_version: 10, opset_import: ["" : {opset}]>
    g ({kind}[time, batch, 5] x) => ({kind}[time, batch, 3] y)
    <{kind}[time, batch, 16] mid>
    {{
        {casts}
        Y = {op} <hidden_size = 16> (x, W{wide}, R{wide}, B{wide})
        mid = Squeeze(Y, axis)
        p = MatMul(mid, {turned})
        y = Add(p, fb{wide})
    }}
"""


def make(op, computes, held, opset=17, turned=""):
    """A model that computes in one type and holds its weights in another."""
    code = helper.np_dtype_to_tensor_dtype(np.dtype(computes))
    cast = held != computes
    casts = [f"{name}w = Cast <to = {code}> ({name})" for name in WEIGHTS] if cast else []
    wide = "w" if cast else ""
    if turned:
        casts.append(f"turned = Transpose (fc{wide})")
    text = MODEL.format(
        kind=TYPES[computes],
        opset=opset,
        op=op,
        wide=wide,
        casts="\n".join(casts),
        turned=turned or f"fc{wide}",
    )
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    gates = CELLS[op]
    fc = (3, 16) if turned else (16, 3)
    shapes = [(1, gates * 16, 5), (1, gates * 16, 16), (1, 2 * gates * 16), fc, (3,)]
    for name, shape in zip(WEIGHTS, shapes, strict=True):
        value = (0.4 * rng.normal(size=shape)).astype(held)
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([1]), "axis"))
    return proto


def test_a_model_that_single_precision_cannot_hold_is_refused():
    """In it, the twin computes something else, and would prove nothing."""
    model = make("LSTM", np.float64, np.float64)
    weight = next(t for t in model.graph.initializer if t.name == "fc")
    large = numpy_helper.to_array(weight) * 1e39
    weight.CopyFrom(numpy_helper.from_array(large, "fc"))
    for call in (prune, inspect, lambda m: prune(m, data=feeds(np.float64))):
        with pytest.raises(PruneError, match=r"^weight 'fc': it has values beyond the range"):
            call(model)


def test_what_grows_beyond_single_precision_proves_nothing():
    model = make("LSTM", np.float64, np.float64)
    weight = next(t for t in model.graph.initializer if t.name == "fc")
    weight.CopyFrom(numpy_helper.from_array(np.full((16, 3), 3e38), "fc"))
    bias = next(t for t in model.graph.initializer if t.name == "fb")
    bias.CopyFrom(numpy_helper.from_array(np.full(3, 3e38), "fb"))
    with pytest.raises(ConstraintError, match="output y is not a number.*give data="):
        prune(model, recover="none", data=feeds(np.float64))
    large = [{"x": feed["x"] * 1e60} for feed in feeds(np.float64)]
    with pytest.raises(PruneError, match=r"^input 'x' of .*: it has values beyond the range"):
        prune(make("LSTM", np.float64, np.float64), data=large)


def feeds(computes):
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(size=(9, 2, 5)).astype(computes)} for _ in range(6)]


def held_types(model):
    kinds = {t.data_type for t in model.graph.initializer if t.name != "axis"}
    return {helper.tensor_dtype_to_np_dtype(kind) for kind in kinds}


@pytest.mark.parametrize(
    ("op", "keep"), [("LSTM", 0.75), ("GRU", 0.5), ("RNN", 0.25), ("LSTM", 0.25)]
)
@pytest.mark.parametrize("recover", ["none", "lstsq"])
@pytest.mark.parametrize(
    ("computes", "held"),
    [
        (np.float16, np.float16),
        (np.float64, np.float64),
        (BFLOAT16, BFLOAT16),
        (np.float32, np.float16),
        (np.float32, BFLOAT16),
    ],
)
def test_the_type_of_the_weights_stays(computes, held, op, recover, keep):
    model = make(op, computes, held, opset=22 if computes is BFLOAT16 else 17)
    result = prune(model, keep=keep, data=feeds(computes), recover=recover)
    assert result.report["oracle"]["passed"]
    assert held_types(result.model) == {np.dtype(held)}
    onnx.checker.check_model(result.model, full_check=True)
    assert len(result.model.SerializeToString()) < len(model.SerializeToString())
    assert result.report["totals"]["bytes_after"] == len(result.model.SerializeToString())
    before, after = (sorted(n.op_type for n in m.graph.node) for m in (model, result.model))
    assert before == after
    assert [str(port) for port in result.model.graph.output] == list(map(str, model.graph.output))
    if recover == "lstsq":
        plain = prune(model, keep=keep, data=feeds(computes), recover="none")
        drifts = [r.report["drift"]["y"]["nrmse"] for r in (result, plain)]
        assert drifts[0] < drifts[1]


@pytest.mark.parametrize("mode", ["shrink", "zero"])
def test_a_weight_that_is_widened_and_turned(mode):
    model = make("GRU", np.float32, BFLOAT16, turned="turned")
    result = prune(model, keep=4, data=feeds(np.float32), recover="lstsq", mode=mode)
    assert held_types(result.model) == {np.dtype(BFLOAT16)}
    assert len(result.model.SerializeToString()) < len(model.SerializeToString()) + 100


def test_what_is_written_is_what_was_proven():
    model = make("LSTM", np.float32, np.float16)
    result = prune(model, keep=4, data=feeds(np.float32), recover="none", mode="zero")
    for name in ("W", "R", "fc"):
        before, after = (
            next(numpy_helper.to_array(t) for t in m.graph.initializer if t.name == name)
            for m in (model, result.model)
        )
        assert np.all((after == before) | (after == 0))
    small = prune(model, keep=4, data=feeds(np.float32), recover="none")
    outputs = [Runner(r.model)(feeds(np.float32)[0])["y"] for r in (result, small)]
    np.testing.assert_allclose(*outputs, atol=1e-6)


@pytest.mark.parametrize("computes", [np.float64, BFLOAT16])
def test_a_type_without_kernels_is_run_as_a_twin(computes):
    model = make("LSTM", computes, computes, opset=22)
    feed = feeds(computes)[0]
    twin = make("LSTM", np.float32, np.float32, opset=22)
    for tensor, like in zip(twin.graph.initializer, model.graph.initializer, strict=True):
        if tensor.name != "axis":
            value = numpy_helper.to_array(like).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    expected = Runner(twin)({"x": feed["x"].astype(np.float32)})["y"]
    found = Runner(model)(feed)["y"]
    assert found.dtype == computes
    assert np.array_equal(found, expected.astype(computes))
    result = prune(model, keep=8, data=feeds(computes))
    assert any("checks used a float32 copy" in line for line in result.report["warnings"])


def test_every_command_takes_a_double_model(tmp_path):
    model, data = make("GRU", np.float64, np.float64), feeds(np.float64)
    onnx.save(model, tmp_path / "model.onnx")
    chosen = plan(tmp_path / "model.onnx", keep=8, data=data)
    result = apply(tmp_path / "model.onnx", chosen, data=data)
    result.save(tmp_path / "small.onnx")
    assert inspect(tmp_path / "model.onnx")["layers"][0]["outlets"][0]["end"] == "absorbed"
    found = compare(tmp_path / "model.onnx", tmp_path / "small.onnx", data=data)
    assert found["drift"]["y"]["nrmse"] == pytest.approx(result.report["drift"]["y"]["nrmse"], 0.5)
    assert len(bench([tmp_path / "model.onnx", tmp_path / "small.onnx"], data=data)["rows"]) == 2


@pytest.mark.parametrize("held", [np.float16, BFLOAT16])
def test_a_budget_knows_the_type_that_is_held(held):
    model = make("LSTM", np.float32, held)
    limit = len(model.SerializeToString()) // 2
    result = prune(model, budget=f"bytes={limit}")
    assert 0.85 * limit < len(result.model.SerializeToString()) <= limit


def test_types_in_nodes_and_bodies_have_twins():
    text = """
        <ir_version: 10, opset_import: ["" : 17]>
        g (double[time, 1, 2] x, bool yes) => (double[time, 1, 1, 4] y, int64 n) {
            shape = Constant <value = int64[3] {1, 1, 4}> ()
            start = ConstantOfShape <value = double[1] {0.25}> (shape)
            none = Constant <value_string: string = ""> ()
            Y = RNN <hidden_size = 4> (x, W, R, , , start)
            y = If (yes) <
                then_branch = t () => (double[time, 1, 1, 4] u) {
                    half = Constant <value = double {0.5}> ()
                    u = Mul (Y, half)
                },
                else_branch = e () => (double[time, 1, 1, 4] v) {
                    as_is = Cast <to = 11> (Y)
                    v = Identity (as_is)
                }
            >
            n = Size (y)
        }
    """
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in (("W", (1, 4, 2)), ("R", (1, 4, 4))):
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape), name))
    feed = {"x": rng.normal(size=(5, 1, 2)), "yes": np.array(True)}
    found = Runner(model)(feed)
    assert (found["y"].dtype, found["n"].dtype) == (np.float64, np.int64)
    opposite = Runner(model)({**feed, "yes": np.array(False)})
    np.testing.assert_allclose(found["y"], opposite["y"] / 2)
