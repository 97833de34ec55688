"""Constants in every form, states that are zero, and what cleaning up leaves."""

import numpy as np
import onnx
import pytest

from onnx_rnn_prune.model.constants import constant_value, is_zero
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.walk import nodes_by_key
from onnx_rnn_prune.operators.recurrent import find_layers
from onnx_rnn_prune.passes.cleanup import DropUnread, picked_entries
from onnx_rnn_prune.passes.prepare import DropZeroStates, SelectStates


def read(body, opset=17, inputs="float[t, b, 2] x"):
    text = f"""
    <ir_version: 8, opset_import: ["" : {opset}]>
    main ({inputs}) => (float[t, d, b, h] Y)
    <float[1, 2, 2] w = {{1, 2, 3, 4}}, float[1, 1, 2] zeros = {{0, 0}}, int64[1] one = {{1}},
     float[1, 1, 2] start = {{0, 0.5}}, int64[1] zero = {{0}}>
    {{ {body} }}
    """
    return Document.read(onnx.parser.parse_model(text))


def layer_with(state, extra="", **how):
    body = f"n = Shape (x)  b = Slice (n, one, two)  s = Concat <axis = 0> (one, b, two)  {extra}"
    body = f"two = Constant <value_ints = [2]> () {body}"
    return read(f"{body} [rnn] Y = RNN <hidden_size = 2> (x, w, w, , , {state})", **how)


ZEROS = {
    "ConstantOfShape": "z = ConstantOfShape (s)",
    "ConstantOfShape that says so": "z = ConstantOfShape <value = float[1] {0.0}> (s)",
    "Expand": "z = Expand (zeros, s)",
    "an initializer": "z = Identity (zeros)",
    "Tile": "t = Concat <axis = 0> (one, b, one)  z = Tile (zeros, t)",
    "Concat": "e = Expand (zeros, s)  z = Concat <axis = 0> (e, e)",
    "Split": "e = Expand (zeros, s)  f = Concat <axis = 0> (e, e)  z, q = Split <axis = 0> (f)",
    "a slice of one for many": (
        "e = ConstantOfShape (s)  f = Concat <axis = 0> (e, e)  z = Slice (f, zero, one, zero)"
    ),
}


@pytest.mark.parametrize("case", ZEROS)
def test_zero_states_are_dropped(case):
    document = layer_with("z", ZEROS[case], opset=13)
    assert is_zero(nodes_by_key(document.graph)["Y"].inputs[5])
    assert DropZeroStates(("rnn",))(document)
    assert DropUnread()(document)
    assert [node.op for node in document.graph.nodes] == ["RNN"]
    assert list(document.write().graph.node[0].input) == ["x", "w", "w"]


@pytest.mark.parametrize(
    "extra",
    [
        "z = ConstantOfShape <value = float[1] {0.1}> (s)",
        "z = Expand (start, s)",
        "e = Expand (zeros, s)  z = Concat <axis = 0> (e, start)",
        "c = Cast <to = 1> (s)  z = Reshape (c, s)",
    ],
)
def test_other_states_stay(extra):
    document = layer_with("z", extra)
    assert not is_zero(nodes_by_key(document.graph)["Y"].inputs[5])
    assert not DropZeroStates(("rnn",))(document)


def test_a_default_that_the_caller_may_replace_is_no_constant_state():
    document = layer_with("zeros", inputs="float[t, b, 2] x, float[1, 1, 2] zeros")
    before = document.write()
    assert not DropZeroStates(("rnn",))(document)
    assert SelectStates(("rnn",))(document)
    after = document.write()
    assert after.graph.input == before.graph.input
    assert list(after.graph.initializer)[:5] == list(before.graph.initializer)


def test_before_ir_version_4_every_initializer_is_an_input():
    document = layer_with("zeros", inputs="float[t, b, 2] x, float[1, 1, 2] zeros")
    document.source.ir_version = 3
    assert DropZeroStates(("rnn",))(document)


DEEP = 2000


@pytest.mark.parametrize(
    "step", ["Identity ({0})", "Concat <axis = 0> ({0}, {0})", "Add ({0}, {0})"]
)
def test_long_ways_are_walked_once(step):
    """Sums double the ways with each step; a computed state may lie behind all of them."""
    steps = [f"s{n + 1} = {step.format(f's{n}')}" for n in range(DEEP)]
    document = read(f"s0 = Relu (x)  {'  '.join(steps)}  Y = Identity (s{DEEP})")
    last = document.graph.outputs[0]
    assert constant_value(last) is None
    assert not is_zero(last)
    body = f"s0 = Relu (x)  {'  '.join(steps)}  [rnn] Y = RNN <hidden_size = 2> "
    assert SelectStates(("rnn",))(read(f"{body} (x, w, w, , , s{DEEP})"))


def test_zeros_through_many_steps():
    steps = [f"z{n + 1} = Identity (z{n})" for n in range(DEEP)]
    document = read(f"z0 = Identity (zeros)  {'  '.join(steps)}  Y = Identity (z{DEEP})")
    assert is_zero(document.graph.outputs[0])


# One weight in the forms that exporters give it: opset, nodes.
WEIGHTS = [
    (7, "v = Unsqueeze <axes = [0]> (s)  s = Squeeze <axes = [0]> (w)"),
    (7, "v = Slice <axes = [0, 1], starts = [0, 0], ends = [1, 9]> (w)"),
    (11, "v = Slice (w, zero, one)"),
    (11, "v, u = Split <axis = 0, split = [1, 1]> (d)  d = Concat <axis = 0> (w, w)"),
    (13, "v, u = Split <axis = 0> (d)  d = Concat <axis = 0> (w, w)"),
    (18, "v, u = Split <axis = 0, num_outputs = 2> (d)  d = Concat <axis = 0> (w, w)"),
    (13, "v = Unsqueeze (s, zero)  s = Squeeze (w, zero)"),
    (21, "v = Transpose <perm = [0, 2, 1]> (t)  t = Transpose <perm = [0, 2, 1]> (w)"),
    (17, "v = Constant <value = float[1, 2, 2] {1, 2, 3, 4}> ()"),
    (17, "v = Add (w, f)  f = ConstantOfShape (n)  n = Shape (w)"),
    (17, "v = Div (q, w)  q = Mul (w, w)"),
    (6, "v = Neg (m)  m = Sub (t, u)  u = Add (t, w)  t = Sqrt (a)  a = Abs (w)"),
]


@pytest.mark.parametrize(("opset", "made"), WEIGHTS)
def test_weights_are_found_however_they_are_made(opset, made):
    nodes = "  ".join(reversed(made.split("  ")))
    document = read(f"{nodes} [rnn] Y = RNN <hidden_size = 2> (x, v, v)", opset)
    (layer,) = find_layers(document.graph)
    assert (layer.hidden, layer.input_size) == (2, 2)
    assert layer.constant("W").tolist() == [[[1, 2], [3, 4]]]
    assert constant_value(layer.node.inputs[1], opset).tolist() == [[[1, 2], [3, 4]]]


@pytest.mark.parametrize(
    ("opset", "made"),
    [
        (6, "v = Add <broadcast = 1, axis = 1> (w, w)"),
        (17, "i = Cast <to = 7> (w)  q = Div (i, i)  v = Cast <to = 1> (q)"),
        (17, "v = Exp (w)"),
        (17, "r = Relu (x)  v = Add (w, r)"),
    ],
)
def test_what_others_may_compute_otherwise_is_no_constant(opset, made):
    document = read(f"{made}  Y = Identity (v)", opset)
    assert constant_value(document.graph.outputs[0], opset) is None


def test_matrices_that_pick():
    def picked(rows):
        return picked_entries(np.array([rows], np.float32))

    assert picked([[0, 1, 0], [1, 0, 0]]).tolist() == [1, 0, 2], "a zero column takes the padding"
    assert picked([[1, 0], [1, 0]]) is None, "a sum"
    assert picked([[0.5]]) is None
    assert picked_entries(np.eye(2)[None].repeat(2, 0)) is None, "two directions"
    assert picked_entries(np.eye(2)) is None


def test_unread_nodes_go_and_captured_ones_stay():
    document = read(
        "a = Neg (x)  dead = Abs (a)  c = Abs (x)  yes = Constant <value = bool {1}> ()"
        "  Y = If (yes) <then_branch = t () => (float[t, d, b, h] u) { u = Neg (c) },"
        "  else_branch = e () => (float[t, d, b, h] v) { v = Abs (c) }>"
    )
    assert DropUnread()(document)
    assert [node.op for node in document.graph.nodes] == ["Abs", "Constant", "If"]
    assert not DropUnread()(document)
