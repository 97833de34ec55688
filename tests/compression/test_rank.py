"""Inputs of lower rank: planted ranks are found, and what is fitted is best."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnx_rnn_prune import PruneError, prune
from onnx_rnn_prune.compression.rank import FactorInputs, Rank, Reading, read_inputs, read_rank
from onnx_rnn_prune.data import open_feeds
from onnx_rnn_prune.evidence.moments import Moments
from onnx_rnn_prune.model import signature
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import Runner
from onnx_rnn_prune.operators.recurrent import find_layers
from onnx_rnn_prune.progress import silent
from quantized import WIDTH, calm, feeds_of, quantized, real_model


def planted(op="LSTM", directions=1, rank=3, hidden=32, bias=True):
    """Two layers; the weight of the second one's input is of a low rank."""
    model = calm(real_model(op=op, hidden=hidden, directions=directions, layers=2))
    rng = np.random.default_rng(5)
    for tensor in model.graph.initializer:
        if tensor.name == "W1":
            rows, width = int(np.prod(tensor.dims[:2])), tensor.dims[2]
            value = rng.normal(0, 0.4, (rows, rank)) @ rng.normal(0, 0.4, (rank, width))
            value = value.reshape(tensor.dims).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value, "W1"))
    if not bias:
        for node in model.graph.node:
            if node.op_type == op:
                del node.input[3:]
    return model


def opened_feeds(model, feeds):
    return open_feeds(feeds, signature.inputs(model), frozenset())


def same(one, other, feeds, tolerance=2e-5):
    runners = Runner(one), Runner(other)
    for feed in feeds:
        for left, right in zip(*(runner(feed).values() for runner in runners), strict=True):
            np.testing.assert_allclose(left, right, atol=tolerance, rtol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_a_planted_rank_is_found_and_costs_nothing(op, directions, given, bias):
    model = planted(op, directions, bias=bias)
    document = Document.read(model)
    feeds = opened_feeds(model, feeds_of(model))
    readings = read_inputs(document, feeds, silent) if given else {}
    assert FactorInputs(Rank(count=3), readings)(document)
    layers = {layer.name: layer for layer in find_layers(document.graph)}
    assert (layers["rnn0"].input_size, layers["rnn1"].input_size) == (3, 3)
    # The first layer's input is six wide, and would lose half of its directions.
    document = Document.read(model)
    assert FactorInputs(Rank(count=WIDTH), readings)(document)
    result = document.write()
    onnx.checker.check_model(result)
    assert [layer.input_size for layer in find_layers(document.graph)] == [6, 6]
    same(model, result, feeds_of(model))
    assert result.ByteSize() < model.ByteSize()


def test_energy_finds_the_planted_rank():
    result = prune(planted(), keep=1.0, data=feeds_of(planted()), rank="energy=99.999%")
    sizes = {
        layer.name: layer.input_size for layer in find_layers(Document.read(result.model).graph)
    }
    assert sizes == {"rnn0": 6, "rnn1": 3}
    same(planted(), result.model, feeds_of(planted()), 1e-3)


def test_fit_is_the_best_of_its_rank():
    """No other factors and bias of the rank come closer to W x on the same samples."""
    rng = np.random.default_rng(2)
    model = real_model(hidden=16, layers=1)
    weight = find_layers(Document.read(model).graph)[0].constant("W")[0].astype(np.float64)
    samples = rng.normal(size=(500, WIDTH)) @ rng.normal(size=(WIDTH, WIDTH)) + rng.normal(
        size=WIDTH
    )
    reading = Reading(Moments.of(samples), np.ones(len(weight)))
    document = Document.read(model)
    assert FactorInputs(Rank(count=2), {"rnn0": reading})(document)
    layer = find_layers(document.graph)[0]
    inner = document.graph.nodes[0].inputs[1].values
    before = find_layers(Document.read(model).graph)[0].constant("B")[0]
    added = (layer.constant("B")[0] - before)[: len(weight)]
    error = samples @ weight.T - (samples @ inner @ layer.constant("W")[0].T + added)
    centred = samples - samples.mean(axis=0)
    values = np.linalg.svd(centred @ weight.T, compute_uv=False)
    least = np.sum(values[2:] ** 2)  # Eckart and Young
    assert least * 0.999 < np.sum(error**2) < least * 1.01
    np.testing.assert_allclose(error.mean(axis=0), 0, atol=1e-4)


def test_inputs_that_do_not_vary_are_taken_to_vary_alike():
    """The mean goes into the bias exactly; about it, the fit is that without data."""
    model = real_model(hidden=16)
    weight = find_layers(Document.read(model).graph)[0].constant("W")
    constant = np.full((9, WIDTH), 2.0)
    results = []
    for moments in (Moments.of(constant), Reading.none(64, WIDTH).moments):
        document = Document.read(model)
        reading = Reading(moments, np.ones(64))
        assert FactorInputs(Rank(count=2), {"rnn0": reading})(document)
        layer = find_layers(document.graph)[0]
        inner = document.graph.nodes[0].inputs[1].values
        results.append(layer.constant("W")[0] @ inner.T)
        if moments.mean.any():
            seen = results[0] @ constant[0] + layer.constant("B")[0, :64]
            before = find_layers(Document.read(model).graph)[0].constant("B")[0, :64]
            np.testing.assert_allclose(seen, weight[0] @ constant[0] + before, atol=1e-5)
    np.testing.assert_allclose(results[0], results[1], atol=1e-5)


def test_layers_of_both_branches_go_on_sharing():
    inner = [
        helper.make_node("LSTM", ["x", "W", "R"], ["{0}y"], hidden_size=24),
        helper.make_node("ReduceMean", ["{0}y"], ["{0}z"], axes=[1], keepdims=0),
    ]
    bodies = []
    for letter in "ab":
        nodes = []
        for node in inner:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.input[:] = [name.format(letter) for name in node.input]
            copy.output[:] = [name.format(letter) for name in node.output]
            nodes.append(copy)
        out = helper.make_tensor_value_info(f"{letter}z", 1, ["T", "B", 24])
        bodies.append(helper.make_graph(nodes, letter, [], [out]))
    rng = np.random.default_rng(4)
    weights = {"W": rng.normal(size=(1, 96, 20)), "R": rng.normal(size=(1, 96, 24)) / 9}
    graph = helper.make_graph(
        [helper.make_node("If", ["flag"], ["y"], then_branch=bodies[0], else_branch=bodies[1])],
        "two",
        [
            helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", 1, ["T", "B", 20]),
        ],
        [helper.make_tensor_value_info("y", 1, ["T", "B", 24])],
        [numpy_helper.from_array(v.astype(np.float32), n) for n, v in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feeds = [
        {"flag": np.array(flag), "x": rng.normal(1, 1, (9, 3, 20)).astype(np.float32)}
        for flag in (True, False, True, False)
    ]
    document = Document.read(model)
    readings = read_inputs(document, opened_feeds(model, feeds), silent)
    assert len(readings) == 1
    assert FactorInputs(Rank(count=8), readings)(document)
    result = document.write()
    first, second = (layer.node for layer in find_layers(Document.read(result).graph))
    for slot in (1, 2, 3):
        assert first.inputs[slot].name == second.inputs[slot].name
    assert result.ByteSize() < model.ByteSize()
    for form in ("int8", "bits=4"):
        small = prune(model, keep=1.0, data=feeds, rank=8, quantize=form)
        rows = small.report["stages"]
        assert rows[2]["bytes"] < rows[1]["bytes"] < rows[0]["bytes"]
        assert rows[2]["drift"]["y"]["nrmse"] < rows[1]["drift"]["y"]["nrmse"] + 0.3


def test_stages_of_a_prune():
    model = planted(hidden=48)
    result = prune(model, keep=0.5, data=feeds_of(model), rank="50%", quantize="fp16")
    assert [row["name"] for row in result.report["stages"]] == ["units", "rank 0.5", "fp16"]
    sizes = [row["bytes"] for row in result.report["stages"]]
    assert sizes == sorted(sizes, reverse=True)
    assert result.report["oracle"]["passed"]


def test_a_rank_that_saves_nothing_is_refused():
    model = real_model(hidden=16)
    with pytest.raises(PruneError, match=r"rank=6: no layer has a weight"):
        prune(model, keep=1.0, rank=6)


def test_a_model_in_integers_is_refused():
    model = quantized(real_model(hidden=16))
    with pytest.raises(PruneError, match=r"rank=3: no layer has a weight"):
        prune(model, keep=1.0, rank=3, data=feeds_of(model))


@pytest.mark.parametrize("value", [0, -1, "0%", "120%", "x", "", "units=3", "energy=3", True, [3]])
def test_what_is_no_rank_is_refused(value):
    with pytest.raises(PruneError, match="rank="):
        read_rank(value)


def test_a_rank_above_all_says_what_a_rank_may_be():
    with pytest.raises(PruneError, match="^rank=: .*; give at most 100%, or a number such as 32$"):
        read_rank("200%")


def test_what_is_a_rank():
    assert read_rank("25%").rank == read_rank(0.25).rank == Rank(share=0.25)
    assert read_rank("32").rank == read_rank(32).rank == Rank(count=32)
    assert read_rank("energy=99%").rank == Rank(energy=0.99)
