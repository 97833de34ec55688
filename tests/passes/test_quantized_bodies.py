"""Layers with weights in 8 bits in both branches of an If."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnx_rnn_prune import inspect, prune
from onnx_rnn_prune.model.runner import Runner
from quantized import WIDTH, behind_dequantize, quantized, real_model, weights_of

WEIGHTS = {
    "DynamicQuantizeLSTM": lambda: quantized(real_model(hidden=16)),
    "per channel": lambda: quantized(real_model(hidden=16), per_channel=True),
    "DequantizeLinear": lambda: behind_dequantize(real_model(hidden=16), {"W0": 1, "R0": 1}),
}


def in_both_branches(model):
    """An If whose branches hold all nodes of a model; one of them with a negated result."""
    bodies = []
    for branch in ("then", "else"):
        graph = helper.make_graph([], branch, [], [])
        own = {name for node in model.graph.node for name in node.output}
        for node in model.graph.node:
            graph.node.append(node)
            node = graph.node[-1]
            for names in (node.input, node.output):
                names[:] = [f"{branch}_{name}" if name in own else name for name in names]
            node.name = f"{branch}_{node.name}" if node.name else ""
        result = f"{branch}_out"
        if branch == "else":
            graph.node.append(helper.make_node("Neg", [result], ["negated"]))
            result = "negated"
        graph.output.append(helper.make_tensor_value_info(result, TensorProto.FLOAT, ["T", "B", 3]))
        bodies.append(graph)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    choice = helper.make_node("If", ["yes"], ["out"], then_branch=bodies[0], else_branch=bodies[1])
    made.graph.ClearField("node")
    made.graph.ClearField("value_info")
    made.graph.node.append(choice)
    made.graph.input.append(helper.make_tensor_value_info("yes", TensorProto.BOOL, []))
    return made


def feeds():
    rng = np.random.default_rng(2)
    return [
        {
            "x": rng.standard_normal((6, 2, WIDTH)).astype(np.float32),
            "yes": np.array(number % 2 == 0),
        }
        for number in range(4)
    ]


@pytest.mark.parametrize("recover", ["none", "lstsq"])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_branches_go_on_sharing_integers(weights, recover):
    model = in_both_branches(WEIGHTS[weights]())
    assert len(inspect(model)["layers"]) == 2
    data = feeds()
    result = prune(model, keep=0.5, data=data, recover=recover)
    onnx.checker.check_model(result.model, full_check=True)
    found = weights_of(result.model)
    integers = [v for v in found.values() if v.dtype in (np.int8, np.uint8) and v.ndim == 3]
    assert sorted(v.size for v in integers) == [4 * 8 * WIDTH, 4 * 8 * 8]
    assert np.isfinite(Runner(result.model)(data[0])["out"]).all()


@pytest.mark.parametrize("weights", WEIGHTS)
def test_budget_counts_shared_integers_once(weights):
    model = in_both_branches(WEIGHTS[weights]())
    limit = int(0.7 * len(model.SerializeToString()))
    result = prune(model, budget=f"bytes={limit}", data=feeds(), recover="none")
    assert 0.6 * limit < len(result.model.SerializeToString()) <= limit
