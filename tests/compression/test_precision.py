"""Weights in fewer bits, products in integers: what becomes of numbers, files and interfaces."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType

from onnx_rnn_prune import PruneError, prune
from onnx_rnn_prune.compression.precision import (
    Bits,
    Float16,
    Quantize,
    QuantizeWeights,
    UseIntegerOperators,
)
from onnx_rnn_prune.cost.cost import count_params
from onnx_rnn_prune.model.constants import require_constant
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import Runner
from onnx_rnn_prune.operators.recurrent import find_layers
from onnx_rnn_prune.passes import Pipeline
from onnx_rnn_prune.passes.cleanup import DropUnread
from quantized import calm, feeds_of, quantized, real_model

FORMS = ["int8", "fp16", "bits=8", "bits=4", "bits=3", "bits=2"]


def held(model, form):
    document = Document.read(model)
    assert QuantizeWeights(form)(document)
    DropUnread()(document)
    return Document.read(document.write())


def recurrent(document):
    return {
        f"{layer.name}.{letter}": layer.constant(letter)
        for layer in find_layers(document.graph)
        for letter in ("W", "R")
    }


def worst(one, other, model):
    """The largest deviation of an output, relative to its spread."""
    runners = Runner(one), Runner(other)
    found = 0.0
    for feed in feeds_of(model):
        for left, right in zip(*(runner(feed).values() for runner in runners), strict=True):
            found = max(found, float(np.sqrt(np.mean((left - right) ** 2)) / left.std()))
    return found


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_no_weight_moves_by_more_than_half_a_step_of_its_output(op, directions, bits):
    model = real_model(op=op, hidden=45 if op == "RNN" else 33, directions=directions)
    before = recurrent(Document.read(model))
    after = recurrent(held(model, Bits(bits)))
    assert before.keys() == after.keys()
    for name, weight in before.items():
        step = np.abs(weight).max(axis=2, keepdims=True) / (2 ** (bits - 1) - 1)
        error = np.abs(weight - after[name])
        assert np.all(error <= step * (0.5 + 1e-5)), name
        if weight.size >= 1024:
            assert error.max() > 0.4 * step.min(), "and it is in so many bits"
            levels = np.unique(np.rint(after[name] / step))
            assert len(levels) <= 2**bits - 1


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_what_is_zero_stays_so(bits):
    model = real_model(hidden=40)
    tensor = next(item for item in model.graph.initializer if item.name == "R0")
    value = numpy_helper.to_array(tensor).copy()
    value[:, ::3] = 0
    value[:, :, ::2] = 0
    tensor.CopyFrom(numpy_helper.from_array(value, "R0"))
    after = recurrent(held(model, Bits(bits)))["rnn0.R"]
    assert np.all(after[value == 0] == 0)
    assert np.any(after)


@pytest.mark.parametrize(("bits", "share"), [(8, 0.25), (4, 0.125), (3, 0.125), (2, 0.0625)])
def test_integers_share_bytes(bits, share):
    """The rest of the file, scales included, is small beside weights of this size."""
    model = real_model(hidden=256)
    size = held(model, Bits(bits)).source.ByteSize() / model.ByteSize()
    assert share < size < share * 1.05 + 0.03


def test_weights_held_narrower_count_as_what_they_are():
    model = real_model(hidden=64)
    before = count_params(Document.read(model))
    assert count_params(held(model, Float16())) == before
    scales = 4 * 64 * 2
    for bits in (8, 4, 2):
        assert before <= count_params(held(model, Bits(bits))) <= before + scales


def test_half_precision_rounds_to_11_bits_and_leaves_what_it_cannot_hold():
    model = real_model(hidden=40, layers=2)
    large = next(item for item in model.graph.initializer if item.name == "R1")
    value = numpy_helper.to_array(large).copy()
    value[0, 0, 0] = 1e6
    large.CopyFrom(numpy_helper.from_array(value, "R1"))
    before, after = recurrent(Document.read(model)), recurrent(held(model, Float16()))
    np.testing.assert_array_equal(after["rnn1.R"], value)
    for name in ("rnn0.R", "rnn1.W"):
        assert np.any(before[name] != after[name])
        np.testing.assert_allclose(after[name], before[name], rtol=2**-11, atol=1e-7)


@pytest.mark.parametrize("directions", [1, 2])
def test_integers_are_near_those_of_the_runtimes_own_quantizer(directions):
    """Ours have a scale for each output and 7 bits, its have one for each direction and 8."""
    model = real_model(hidden=64, directions=directions, layers=2, peepholes=True, states=True)
    document = Document.read(model)
    assert UseIntegerOperators()(document)
    DropUnread()(document)
    ours, theirs = document.write(), quantized(model, kind=QuantType.QInt8)
    assert [n.op_type for n in ours.graph.node].count("DynamicQuantizeLSTM") == 2
    assert worst(model, ours, model) < max(0.03, 1.5 * worst(model, theirs, model))
    assert ours.ByteSize() < 0.35 * model.ByteSize()


def products(gemm_bias, alpha=1.0, turned=0):
    """MatMul, and Gemm in one of its forms."""
    rng = np.random.default_rng(3)
    weights = {
        "W": rng.normal(size=(1, 4 * 40, 6)),
        "R": rng.normal(size=(1, 4 * 40, 40)) / 6,
        "M": rng.normal(size=(40, 48)) / 6,
        "G": rng.normal(size=(32, 48) if turned else (48, 32)) / 6,
        "C": rng.normal(size=gemm_bias),
    }
    nodes = [
        helper.make_node("LSTM", ["x", "W", "R"], ["", "h"], hidden_size=40),
        helper.make_node("Squeeze", ["h", "axes"], ["s"]),
        helper.make_node("MatMul", ["s", "M"], ["m"]),
        helper.make_node("Gemm", ["m", "G", "C"], ["y"], alpha=alpha, transB=turned),
    ]
    ports = [helper.make_tensor_value_info("x", 1, ["T", "B", 6])]
    outs = [helper.make_tensor_value_info("y", 1, ["B", 32])]
    held = [numpy_helper.from_array(v.astype(np.float32), n) for n, v in weights.items()]
    held.append(numpy_helper.from_array(np.array([0]), "axes"))
    graph = helper.make_graph(nodes, "products", ports, outs, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.mark.parametrize(
    ("bias", "alpha", "turned", "integers"),
    [((32,), 1.0, 0, 2), ((1, 32), 1.0, 1, 2), ((1,), 1.0, 0, 1), ((32,), 0.5, 1, 1)],
)
def test_products_that_the_runtime_has_in_integers(bias, alpha, turned, integers):
    model = products(bias, alpha, turned)
    document = Document.read(model)
    assert Pipeline((UseIntegerOperators(), QuantizeWeights(Bits(8)), DropUnread()))(document)
    result = document.write()
    ops = [node.op_type for node in result.graph.node]
    assert ops.count("DynamicQuantizeMatMul") == integers
    assert ops.count("Gemm") == 2 - integers
    assert result.ByteSize() < 0.5 * model.ByteSize()
    assert worst(model, result, model) < 0.05


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
@pytest.mark.parametrize("form", FORMS)
def test_pruned_and_quantized(form, op):
    model = calm(real_model(op=op, hidden=64, layers=2, states=op == "LSTM"))
    helper.set_model_props(model, {"author": "somebody"})
    result = prune(model, data=feeds_of(model), keep=0.5, quantize=form)
    assert result.report["oracle"]["passed"]
    units, quantized_ = result.report["stages"]
    assert (units["name"], quantized_["name"]) == ("units", form)
    assert [row["hidden_after"] for row in result.report["layers"]] == [32, 32]
    assert quantized_["bytes"] == result.model.ByteSize() < 0.7 * units["bytes"]
    for field in ("input", "output"):
        ports = [getattr(item.graph, field) for item in (model, result.model)]
        assert list(ports[0]) == list(ports[1])
    assert result.model.metadata_props == model.metadata_props
    onnx.checker.check_model(result.model)
    limit = {"fp16": 0.005, "int8": 0.05, "bits=8": 0.05, "bits=4": 0.3}.get(form, 1.5)
    for name, drift in quantized_["drift"].items():
        assert drift["rmse"] != units["drift"][name]["rmse"]
        assert abs(drift["nrmse"] - units["drift"][name]["nrmse"]) < limit


@pytest.mark.parametrize("form", FORMS)
def test_a_model_is_quantized_once(form):
    once = Quantize(form)(Document.read(real_model(hidden=64)), None, None).write()
    with pytest.raises(PruneError, match="already quantized"):
        Quantize(form)(Document.read(once), None, None)


def test_a_model_that_the_runtimes_quantizer_wrote_is_refused():
    model = quantized(real_model(hidden=64))
    with pytest.raises(PruneError, match=r"quantize='int8': no weight of 1024 entries"):
        prune(model, keep=0.5, quantize="int8")


def test_an_old_opset_is_refused():
    model = real_model(hidden=64)
    model.opset_import[0].version = 6
    document = Document.read(model)
    with pytest.raises(PruneError, match="opset 6"):
        Quantize("fp16")(document, None, None)  # it looks at no data


@pytest.mark.parametrize("value", ["int4", "bits=1", "bits=9", "bits=", "", 8, True, ["int8"]])
def test_what_is_no_form_is_refused(value):
    with pytest.raises(PruneError, match="quantize="):
        prune(real_model(), quantize=value)


@pytest.mark.parametrize("form", ["int8", "fp16", "bits=4"])
def test_a_quantized_model_can_be_pruned(form):
    """What is held in bits is a constant to all that looks for one."""
    model = calm(real_model(hidden=64))
    small = Quantize(form)(Document.read(model), None, None).write()
    result = prune(small, keep=0.5, data=feeds_of(model))
    assert result.report["oracle"]["passed"]
    assert result.report["layers"][0]["hidden_after"] == 32


def test_one_weight_that_two_read_is_stored_once():
    model = products((32,))
    node = model.graph.node[2]
    again = helper.make_node("MatMul", ["s", "M"], ["m2"])
    model.graph.node.insert(3, again)
    model.graph.node.insert(4, helper.make_node("Add", ["m", "m2"], ["sum"]))
    model.graph.node[5].input[0] = "sum"
    assert node.input[1] == again.input[1]
    for passes in ((UseIntegerOperators(),), (QuantizeWeights(Bits(8)),)):
        document = Document.read(model)
        assert Pipeline((*passes, DropUnread()))(document)
        left = [node.inputs[1] for node in document.graph.nodes if "MatMul" in node.op]
        assert left[0] is left[1]
        assert require_constant(left[0]).shape == (40, 48)
