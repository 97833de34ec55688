"""Layers and readers whose weights are held in 8 bits."""

import random

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_rnn_prune import prune
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.integers import Integers, hold_unsigned
from onnx_rnn_prune.model.runner import Runner
from onnx_rnn_prune.opened_model import follow
from onnx_rnn_prune.trace.plan import Plan
from onnx_rnn_prune.traced_model import trace_model
from oracle.check import Case, check_case, draw_mask
from quantized import (
    CONVOLUTIONS,
    SIGNED,
    UNSIGNED,
    behind_dequantize,
    convolutional,
    feeds_of,
    in_7_bits,
    quantized,
    real_model,
    statically,
    step_by_step,
    weights_of,
)

KINDS = {"signed": SIGNED, "unsigned": UNSIGNED}


def real(model):
    return model


def dequantized_head(model):
    return behind_dequantize(model, {"head": None})


def pruned(model, keep=0.5, recover="none"):
    """The pruned model; it computes what the zeroed one does."""
    result = prune(model, keep=keep, data=feeds_of(model), criterion="l2", recover=recover)
    # Dead units change neither a range nor a sum of integers: the two agree to the last bit.
    assert result.report["oracle"]["max_abs_diff"] < 1e-6
    onnx.checker.check_model(result.model, full_check=True)
    return result


def outlets(result):
    return [
        (row["end"], row["reason"])
        for layer in result.report["layers"]
        for row in layer["outlets"]
        if row["end"] != "unused"
    ]


@pytest.mark.parametrize("keep", [0.75, 0.5, 0.25])
@pytest.mark.parametrize("per_channel", [False, True], ids=["per tensor", "per channel"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("directions", [1, 2])
def test_stacked_layers_shrink(keep, per_channel, kind, directions):
    real = real_model(directions=directions, layers=2)
    model = quantized(real, kind=KINDS[kind], per_channel=per_channel)
    result = pruned(model, keep)
    kept = round(8 * keep)
    for layer in result.report["layers"]:
        assert (layer["op"], layer["hidden_after"]) == ("DynamicQuantizeLSTM", kept)
    assert {end for end, _ in outlets(result)} == {"absorbed"}
    found = weights_of(result.model)
    widths = [6, directions * kept]
    for number, width in enumerate(widths):
        assert found[f"W{number}_quantized"].shape == (directions, width, 4 * kept)
        assert found[f"R{number}_quantized"].shape == (directions, kept, 4 * kept)
        for name in ("scale", "zero_point"):
            shape = (directions, 4 * kept) if per_channel else (directions,)
            assert found[f"R{number}_{name}"].shape == shape
    assert found["head_quantized"].shape == (directions * kept, 3)
    assert len(result.model.SerializeToString()) < len(model.SerializeToString())


@pytest.mark.parametrize("options", [{"peepholes": True}, {"states": True}], ids=str)
@pytest.mark.parametrize("directions", [1, 2])
def test_options_of_a_layer(options, directions):
    pruned(quantized(real_model(hidden=7, directions=directions, **options), per_channel=True))


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("per_channel", [False, True], ids=["per tensor", "per channel"])
def test_real_layer_is_read_by_integers(op, per_channel):
    model = quantized(real_model(op=op), per_channel=per_channel, left=("rnn0",))
    assert model.graph.node[0].op_type == op
    assert outlets(pruned(model)) == [("absorbed", "")]


@pytest.mark.parametrize("recover", ["bias", "lstsq"])
@pytest.mark.parametrize("per_channel", [False, True], ids=["per tensor", "per channel"])
@pytest.mark.parametrize("kind", KINDS)
def test_recovery_writes_integers_again(recover, per_channel, kind):
    real = real_model(hidden=16, layers=2)
    model = quantized(real, kind=KINDS[kind], per_channel=per_channel)
    plain, result = pruned(model), pruned(model, recover=recover)
    if recover == "lstsq":
        assert result.report["recovery"]["used"] in ("bias", "lstsq")  # the better of the two
        errors = [run.report["drift"]["out"]["nrmse"] for run in (result, plain)]
        assert errors[0] < 0.9 * errors[1]
    before, after = (weights_of(run.model) for run in (plain, result))
    assert {name: (v.dtype, v.shape) for name, v in before.items()} == {
        name: (v.dtype, v.shape) for name, v in after.items()
    }
    assert len(result.model.SerializeToString()) <= len(plain.model.SerializeToString()) + 8


def test_units_whose_zero_becomes_something_else_are_restored():
    """A cut unit's 0.5 could be the range of what is quantized."""
    result = pruned(quantized(real_model(hidden=64, behind=("Relu", "Sigmoid"))))
    ((end, reason),) = outlets(result)
    assert end == "restored"
    assert reason.startswith(
        "DynamicQuantizeLinear takes its range from what Sigmoid makes of a cut"
    )


def test_units_that_stay_zero_are_followed():
    assert outlets(pruned(quantized(real_model(behind=("Relu", "Tanh"))))) == [("absorbed", "")]


def test_state_that_does_not_rest_at_zero():
    activations = ["Sigmoid", "Tanh", "Affine"]
    real = real_model(activations=activations, activation_alpha=[0.8], activation_beta=[0.3])
    result = pruned(quantized(real, left=("rnn0",)))
    ((_, reason),) = outlets(result)
    assert reason.startswith("DynamicQuantizeLinear takes its range from what LSTM makes of a cut")


def test_scales_in_another_place():
    """Where the scale is not found, units are not followed into the integers."""
    model = quantized(real_model(), left=("rnn0",))
    for node in model.graph.node:
        if node.op_type == "Cast":
            last = next(n for n in model.graph.node if node.output[0] in n.input)
            model.graph.node.append(helper.make_node("Identity", node.output, ["same"]))
            last.input[list(last.input).index(node.output[0])] = "same"
    ((end, reason),) = outlets(pruned(model))
    assert end == "restored"
    assert reason.startswith("is read by a MatMulInteger whose scales are not where")


def quantizing_product(**options):
    """DynamicQuantizeMatMul, which onnxruntime makes of the four nodes when it optimizes."""
    model = quantized(real_model(), **options)
    kept = [n for n in model.graph.node if n.op_type in ("DynamicQuantizeLSTM", "Transpose")]
    kept += [n for n in model.graph.node if n.op_type == "Reshape"]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    names = ["flat0", "head_quantized", "head_scale", "head_zero_point"]
    model.graph.node.append(
        helper.make_node("DynamicQuantizeMatMul", names, ["out"], domain="com.microsoft")
    )
    return model


def test_product_that_quantizes_its_data():
    result = pruned(quantizing_product(), recover="lstsq")
    assert outlets(result) == [("absorbed", "")]


@pytest.mark.parametrize("recover", ["none", "lstsq"])
def test_products_that_share_a_signed_weight(recover):
    model = quantized(step_by_step(3))
    assert sum("head_quantized" in node.input for node in model.graph.node) == 3
    result = pruned(model, recover=recover)
    assert {end for end, _ in outlets(result)} == {"absorbed"}


@pytest.mark.parametrize("make", [real, quantized, dequantized_head])
def test_a_weight_that_products_share_is_fitted_once(make):
    """On all that they read, so that the file does not grow with their number."""
    model = make(step_by_step(8))
    result = prune(model, keep=0.5, data=feeds_of(model, 12), recover="lstsq")
    found = weights_of(result.model)
    assert [v.shape for v in found.values() if v.ndim == 2 and v.size == 8 * 3] == [(8, 3)]
    assert sum(v.shape == (3,) for v in found.values()) <= 2  # the bias, and maybe scales
    assert result.report["recovery"]["used"] == "lstsq"


@pytest.mark.parametrize("per_channel", [False, True], ids=["per tensor", "per channel"])
@pytest.mark.parametrize("make", [lambda **o: quantized(step_by_step(2), **o), quantizing_product])
def test_unsigned_weights_mean_the_same(make, per_channel):
    model = in_7_bits(make(per_channel=per_channel))
    document = Document.read(model)
    hold_unsigned(document.graph)
    held = {tensor.data_type for tensor in document.write().graph.initializer}
    assert onnx.TensorProto.INT8 not in held
    for feed in feeds_of(model):
        outs = [Runner(each, optimize=False)(feed)["out"] for each in (model, document)]
        assert np.array_equal(*outs)


FORMS = {
    "dynamic": lambda model: quantized(model, kind=UNSIGNED),
    "dynamic per channel": lambda model: quantized(model, kind=UNSIGNED, per_channel=True),
    "static": statically,
    "static per channel": lambda model: statically(model, per_channel=True),
}


def integer_convolutions(form, kind):
    model = FORMS[form](convolutional(kind))
    ops = {node.op_type for node in model.graph.node}
    assert ops & {"ConvInteger", "QLinearConv"} and "Conv" not in ops
    return model, feeds_of(model)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_zero_is_shrink_for_convolutions_of_integers(kind, form):
    model, feeds = integer_convolutions(form, kind)
    opened = follow(model, "the model", layers=("all",))
    traced = trace_model(opened, [layer.name for layer in opened.layers], feeds[:1])
    for seed in range(5):
        mask = draw_mask(traced.trace, random.Random(seed))
        plan = Plan.from_mask("", traced.trace, mask)
        check_case(Case(model, traced, plan, feeds))


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("one axis", "dynamic per channel"),
        ("groups", "dynamic"),
        ("one axis", "static per channel"),
    ],
)
def test_convolutions_of_integers_shrink(kind, form):
    """What is written is as wide as it was, and recovery makes it better."""
    model, feeds = integer_convolutions(form, kind)
    options = {"layers": "all", "data": feeds, "budget": "bytes=100%"}
    plain, fitted = (prune(model, keep=0.5, recover=r, **options) for r in ("none", "lstsq"))
    kept = [row["hidden_after"] for row in fitted.report["layers"]]
    assert kept == [6, 6, 4, 4, 4, 4]
    drifts = [each.report["drift"]["out"]["nrmse"] for each in (fitted, plain)]
    assert drifts[0] < 0.9 * drifts[1]
    kernels = [v for v in weights_of(fitted.model).values() if v.ndim > 2 and v.itemsize == 1]
    assert sorted(len(kernel) for kernel in kernels) == [4, 6, 6]


@pytest.mark.parametrize("per_channel", [False, True])
def test_operators_of_integers_in_real_form_compute_the_same(per_channel):
    """To the last bit, since onnxruntime runs the same kernels."""
    model = in_7_bits(statically(convolutional("pictures"), per_channel))
    document = follow(model, "the model", layers=("all",)).document
    assert not any(node.op.startswith("QLinear") for node in document.graph.nodes)
    for feed in feeds_of(model):
        outs = [Runner(each)(feed)["out"] for each in (model, document)]
        assert np.array_equal(*outs)


def test_equal_weights_are_equal_integers():
    rng = np.random.default_rng(0)
    values = rng.integers(-90, 91, (2, 5, 6)).astype(np.int8)
    scale = rng.uniform(0.1, 1, (2, 1, 6)).astype(np.float32)
    held = Integers(values, scale, np.zeros((2, 1, 6), np.int8))
    assert np.array_equal(held.holding(held.real()).values, values)
    other = held.real().copy()
    other[0, :, 0] *= 3
    found = held.holding(other)
    assert found.values.min() >= values.min() and found.values.max() <= values.max()
    assert np.array_equal(found.values[1], values[1])
    assert np.all(np.abs(found.real() - other) <= 0.5 * found.scale * (1 + 1e-5))
