"""Operators that mix an axis: along that of directions units meet, along their own they stop."""

import numpy as np
import onnx
import pytest

from onnx_rnn_prune import prune

REDUCTIONS = (
    "ReduceSum",
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceLogSumExp",
)


def model(body, opset):
    """A bidirectional layer of 8 units, something behind it, and a head that reads 8 features."""
    text = f"""
    <ir_version: 8, opset_import: ["" : {opset}]>
    main (float[t, b, 3] x) => (float[n] y)
    {{
      [rnn] Y = GRU <hidden_size = 8, direction = "bidirectional"> (x, W, R)
      {body}
      p = MatMul (h, V)
      y = Reshape (p, flat)
    }}
    """
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in {"W": (2, 24, 3), "R": (2, 24, 8), "V": (8, 5)}.items():
        values = rng.normal(size=shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    for name, value in {"flat": [-1], "directions": 1}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), name))
    return proto


CASES = {op: (f"h = {op} <axes = [1], keepdims = 0> (Y)", 11) for op in REDUCTIONS}
CASES |= {
    "kept": ("h = ReduceMax <axes = [1], keepdims = 1> (Y)", 11),
    "time as well": ("h = ReduceMean <axes = [0, 1], keepdims = 0> (Y)", 11),
    "Softmax": ("s = Softmax <axis = 1> (Y)  h = ReduceMax <axes = [1]> (s)", 13),
    "CumSum": ("s = CumSum (Y, directions)  h = ReduceMax <axes = [1]> (s)", 13),
}


@pytest.mark.parametrize("case", CASES)
def test_directions_meet(case):
    result = prune(model(*CASES[case]), keep=3, criterion="random")
    (layer,) = result.report["layers"]
    assert {outlet["end"] for outlet in layer["outlets"]} == {"absorbed", "unused"}
    assert result.report["oracle"]["passed"]
    (plan,) = result.plan.layers.values()
    assert plan.keep[0] == plan.keep[1] and len(plan.keep[0]) == 3


@pytest.mark.parametrize("op", REDUCTIONS)
def test_units_of_one_lane_do_not(op):
    body = f"m = {op} <axes = [1, 3], keepdims = 1> (Y)  h = Mul (Y, m)"
    result = prune(model(body, 11), keep=3, criterion="random")
    (layer,) = result.report["layers"]
    assert f"{op} mixes its units" in str([outlet["reason"] for outlet in layer["outlets"]])
