"""A constant that is added behind a convolution becomes its bias."""

import numpy as np
import onnx
import pytest

from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.passes.biases import FoldBiases
from rolling import Graph, drawn, run

CHANNELS, LENGTH = 6, 9


def model(shape, *, kind="Conv", own=False, group=1, axes=(2,), between="Squeeze", end=None):
    """A convolution [B, 6, 1, 9], its axes changed, and a constant of some shape added."""
    rng = np.random.default_rng(0)
    g = Graph()
    weight = drawn(
        rng, *((CHANNELS, 4 // group) if kind == "Conv" else (4, CHANNELS // group)), 1, 3
    )
    given = [g.constant(weight, "W")]
    if own:
        given.append(g.constant(drawn(rng, CHANNELS), "b"))
    x = g(kind, "x", *given, group=group, pads=[0, 1, 0, 1])
    if between is not None:
        x = g(between, x, np.array(axes))
    y = g("Add", g.constant(drawn(rng, *shape), "added"), x)
    y = g("Relu", y)
    rank = 4 + {"Squeeze": -1, "Unsqueeze": 1, None: 0}[between] * len(axes)
    g("Identity", end(g, x, y) if end else y)
    g.nodes[-1].output[0] = "y"
    return g.model({"x": ["B", 4, 1, LENGTH]}, {"y": max(rank, len(shape))})


def folded(proto):
    document = Document.read(proto)
    changed = FoldBiases()(document)
    written = document.write()
    onnx.checker.check_model(written, full_check=True)
    for batch in (1, 3):
        feed = {"x": drawn(np.random.default_rng(batch), batch, 4, 1, LENGTH)}
        one, other = run(proto, feed)[0], run(written, feed)[0]
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
    assert changed != any(node.op_type == "Add" for node in written.graph.node)
    return changed


@pytest.mark.parametrize("own", (False, True))
@pytest.mark.parametrize("kind", ("Conv", "ConvTranspose"))
@pytest.mark.parametrize(
    ("shape", "between", "axes"),
    (
        ((1, CHANNELS, 1), "Squeeze", (2,)),
        ((CHANNELS, 1), "Squeeze", (-2,)),
        ((CHANNELS, 1, 1), None, ()),
        ((1, CHANNELS, 1, 1, 1), "Unsqueeze", (2,)),
        ((CHANNELS, 1, 1), "Unsqueeze", (0,)),
        ((1,), "Squeeze", (2,)),
        ((), None, ()),
    ),
)
def test_one_number_for_each_channel_becomes_a_bias(shape, between, axes, kind, own):
    for group in (1, 2):
        assert folded(model(shape, kind=kind, own=own, between=between, axes=axes, group=group))


@pytest.mark.parametrize(
    ("shape", "between"),
    (
        ((LENGTH,), "Squeeze"),
        ((CHANNELS, LENGTH), "Squeeze"),
        ((5, 1, CHANNELS, 1, 1), None),  # adds an axis
        ((1, 1, 5, 1), None),  # repeats a convolution's only row
    ),
)
def test_other_constants_stay(shape, between):
    assert not folded(model(shape, between=between))


def test_channels_that_a_constant_repeats_stay():
    proto = model((7, 1, 1), between=None)
    weight = next(each for each in proto.graph.initializer if each.name == "W")
    one = onnx.numpy_helper.to_array(weight)[:1]
    weight.CopyFrom(onnx.numpy_helper.from_array(one, "W"))
    assert not folded(proto)


def test_a_convolution_that_is_read_without_the_constant_keeps_its_bias():
    assert not folded(model((1, CHANNELS, 1), end=lambda g, x, y: g("Mul", x, y)))


def test_a_convolution_that_is_an_output_keeps_its_bias():
    proto = model((1, CHANNELS, 1))
    source = next(node.output[0] for node in proto.graph.node if node.op_type == "Conv")
    shape = ["B", CHANNELS, 1, LENGTH]
    proto.graph.output.append(onnx.helper.make_tensor_value_info(source, 1, shape))
    assert not folded(proto)


def test_a_constant_that_is_added_in_a_body_stays():
    """A body may not output a tensor of the graph around it."""
    rng, g = np.random.default_rng(0), Graph()
    inner, other = Graph(prefix="then_"), Graph(prefix="else_")
    convolved = g("Conv", "x", g.constant(drawn(rng, CHANNELS, 4, 1, 3), "W"), pads=[0, 1, 0, 1])
    added = inner("Add", convolved, drawn(rng, CHANNELS, 1, 1))
    high = g("Greater", g("ReduceMean", "x", keepdims=0), 0.0)
    zeros = np.zeros((1, CHANNELS, 1, LENGTH), np.float32)
    branches = {"then_branch": inner.body(added), "else_branch": other.body(other("Neg", zeros))}
    g("If", high, **branches)
    g.nodes[-1].output[0] = "y"
    proto = g.model({"x": ["B", 4, 1, LENGTH]}, {"y": 4})
    document = Document.read(proto)
    assert not FoldBiases()(document)
