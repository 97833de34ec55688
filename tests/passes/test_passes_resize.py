"""Operators on the units' way whose sizes follow a cut; each model as text, each cut by hand."""

import numpy as np
import onnx
import pytest

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import Runner
from onnx_rnn_prune.model.walk import nodes_by_key
from onnx_rnn_prune.opened_model import follow
from onnx_rnn_prune.operators.recurrent import find_layers
from onnx_rnn_prune.trace.plan import LayerPlan, Plan
from onnx_rnn_prune.traced_model import trace_model
from onnx_rnn_prune.validate import oracle

HIDDEN = 6
KEEP = ((0, 2, 3, 5), (1, 2, 3, 4))


def layer(directions, body, opset=17, result="float[t, b, 2] y"):
    """A layer of 6 units a direction, read by a product with V behind some operators."""
    rng = np.random.default_rng(0)
    direction = "bidirectional" if directions == 2 else "forward"
    text = f"""
    <ir_version: 8, opset_import: ["" : {opset}]>
    main (float[t, b, 3] x) => ({result})
    <float[{directions}, 6, 3] W, float[{directions}, 6, 6] R, float[12, 2] V2, float[6, 2] V,
     int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] three = {{3}},
     int64[1] back = {{-1}}, int64[1] far = {{-99}}, int64[1] end = {{99}}, int64[1] rest = {{-1}},
     int64[1] six = {{6}}>
    {{ [rnn] Y = RNN <hidden_size = 6, direction = "{direction}"> (x, W, R) {body} }}
    """
    shapes = {"W": (directions, 6, 3), "R": (directions, 6, 6), "V": (6, 2), "V2": (12, 2)}
    for name, shape in shapes.items():
        values = ", ".join(f"{value:.4f}" for value in rng.normal(0, 1, np.prod(shape)))
        sizes = ", ".join(map(str, shape))
        text = text.replace(f"float[{sizes}] {name}", f"float[{sizes}] {name} = {{{values}}}", 1)
    return onnx.parser.parse_model(text)


def shrink(model, keep, feed=(5, 3)):
    """The shrunk model, proved against the zeroed one in other sizes."""
    traced = trace_model(follow(model, "it"), ["rnn"], [{"x": np.ones((*feed, 3), np.float32)}])
    plan = Plan("", {"rnn": LayerPlan(HIDDEN, keep)})
    zeroed, shrunk = (traced.cut(plan, m).write() for m in ("zero", "shrink"))
    onnx.checker.check_model(shrunk, full_check=True)
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.normal(0, 1, (t, b, 3)).astype(np.float32)} for t, b in ((5, 3), (7, 2))]
    found = oracle(Runner(zeroed, optimize=False), Runner(shrunk, optimize=False), feeds)
    assert found, found.reason
    return traced, Document.read(shrunk)


def values_of(document, key, slot):
    return nodes_by_key(document.graph)[key].inputs[slot].values.tolist()


ABSORBED = {
    "Squeeze": "h = Squeeze (Y, one)",
    "Slice backwards": ("s = Squeeze (Y, one)  h = Slice (s, back, far, two, back)"),
    "Slice of all": "s = Squeeze (Y, one)  h = Slice (s, zero, end, two)",
    "Reshape to a constant": (
        "t = Constant <value_ints = [0, 0, 6]> ()  p = Transpose <perm = [0, 2, 1, 3]> (Y)"
        "  h = Reshape (p, t)"
    ),
    "Reshape with the rest": (
        "t = Constant <value_ints = [0, 0, -1]> ()  p = Transpose <perm = [0, 2, 1, 3]> (Y)"
        "  h = Reshape (p, t)"
    ),
    "Reshape to computed sizes": (
        "p = Transpose <perm = [0, 2, 1, 3]> (Y)  n = Shape (p)"
        "  a = Slice (n, zero, two)  u = Slice (n, three, end)  t = Concat <axis = 0> (a, u)"
        "  h = Reshape (p, t)"
    ),
    "Reshape to computed sizes and the rest": (
        "p = Transpose <perm = [0, 2, 1, 3]> (Y)  n = Shape (p)"
        "  a = Slice (n, zero, two)  t = Concat <axis = 0> (a, rest)  h = Reshape (p, t)"
    ),
    "time and units on one axis, and apart": (
        "s = Squeeze (Y, one)  p = Transpose <perm = [1, 0, 2]> (s)  n = Shape (p)"
        "  b = Slice (n, zero, one)  t = Slice (n, one, two)  u = Slice (n, two, three)"
        "  tu = Mul (t, u)  flat = Concat <axis = 0> (b, tu)  f = Reshape (p, flat)"
        "  r = Relu (f)  apart = Concat <axis = 0> (b, t, u)  q = Reshape (r, apart)"
        "  h = Transpose <perm = [1, 0, 2]> (q)"
    ),
    "Expand along another axis": (
        "s = Squeeze (Y, one)  n = Shape (x)  a = Slice (n, zero, two)"
        "  t = Concat <axis = 0> (a, one)  h = Expand (s, t)"
    ),
    "Gather in another order": (
        "s = Squeeze (Y, one)  i = Constant <value_ints = [5, 0, -2, 3, 1, 2]> ()"
        "  h = Gather <axis = 2> (s, i)"
    ),
    "Split and Concat of whole lanes": (
        "s = Squeeze (Y, one)  d = Concat <axis = 2> (s, s)"
        "  a, c = Split <axis = 2> (d)  h = Add (a, c)"
    ),
}


@pytest.mark.parametrize("case", ABSORBED)
def test_units_pass(case):
    model = layer(
        1, ABSORBED[case] + "  [read] y = MatMul (h, V)", opset=13 if "Split" in case else 17
    )
    traced, shrunk = shrink(model, KEEP[:1])
    assert not traced.restored
    assert traced.ends and all(ends == ("read",) for ends in traced.ends.values())
    (found,) = find_layers(shrunk.graph)
    assert found.hidden == 4
    weights = [t for t in shrunk.graph.tensors().values() if t.name.startswith("V")]
    assert [list(t.shape) for t in weights] == [[4, 2]]


def test_uneven_split_of_an_axis_with_other_features():
    model = layer(
        1,
        "s = Squeeze (Y, one)  d = Concat <axis = 2> (x, s)"
        "  n = Constant <value_ints = [5, 4]> ()  a, c = Split <axis = 2> (d, n)"
        "  e = Concat <axis = 2> (c, a, x)  [read] y = MatMul (e, V2)",
    )
    traced, shrunk = shrink(model, KEEP[:1])
    assert traced.restored, "c holds a piece of the units, all of which may be cut"
    model = layer(
        1,
        "s = Squeeze (Y, one)  d = Concat <axis = 2> (x, s, x)"
        "  n = Constant <value_ints = [5, 7]> ()  a, c = Split <axis = 2> (d, n)"
        "  e = Concat <axis = 2> (c, a)  [read] y = MatMul (e, V2)",
    )
    traced, shrunk = shrink(model, KEEP[:1])
    assert not traced.restored
    assert values_of(shrunk, "a", 1) == [4, 6], "x x x u0 | u2 u3 u5 x x x"


@pytest.mark.parametrize(
    ("start", "rest", "bounds"),
    [
        (10, "x1", [8, 0]),  # x1 x0 u5 u3 u2 u0 x2 x1
        (7, "x, x1", [5, 0]),  # u4 is cut: u3 u2 u0 x2 x1
    ],
)
def test_slice_backwards_of_an_axis_with_other_features(start, rest, bounds):
    """x0 x1 x2 u0 ... u5 x0 x1 x2, from an entry back to the second."""
    model = layer(
        1,
        "s = Squeeze (Y, one)  d = Concat <axis = 2> (x, s, x)  x1 = Slice (x, zero, two, two)"
        f"  i = Constant <value_ints = [{start}]> ()  p = Slice (d, i, zero, two, back)"
        f"  k = Concat <axis = 2> (p, {rest})  [read] y = MatMul (k, V2)",
    )
    traced, shrunk = shrink(model, KEEP[:1])
    assert not traced.restored
    assert [*values_of(shrunk, "p", 1), *values_of(shrunk, "p", 2)] == bounds


DIRECTIONS = {
    "side by side": "p = Transpose <perm = [0, 2, 1, 3]> (Y)"
    "  t = Constant <value_ints = [0, 0, 12]> ()  h = Reshape (p, t)",
    "one after the other": "a, c = Split <axis = 1> (Y)  d = Squeeze (a, one)"
    "  e = Squeeze (c, one)  h = Concat <axis = 2> (e, d)",
    "selected one by one": "i = Constant <value_int = 0> ()  j = Constant <value_int = -1> ()"
    "  d = Gather <axis = 1> (Y, i)  e = Gather <axis = 1> (Y, j)  h = Concat <axis = 2> (d, e)",
    "with a scale of each": "m = Constant <value = float[2, 1, 1] {0.5, 2.0}> ()  n = Mul (Y, m)"
    "  p = Transpose <perm = [0, 2, 1, 3]> (n)"
    "  t = Constant <value_ints = [0, 0, -1]> ()  h = Reshape (p, t)",
    "with a scale on another axis": "p = Transpose <perm = [0, 2, 3, 1]> (Y)"
    "  m = Constant <value = float[6, 1] {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}> ()  n = Mul (p, m)"
    "  q = Transpose <perm = [0, 1, 3, 2]> (n)"
    "  t = Constant <value_ints = [0, 0, -1]> ()  h = Reshape (q, t)",
}


@pytest.mark.parametrize("case", DIRECTIONS)
def test_directions_keep_their_own_units(case):
    model = layer(2, DIRECTIONS[case] + "  [read] y = MatMul (h, V2)", opset=13)
    traced, shrunk = shrink(model, KEEP)
    assert not traced.restored
    weights = [t for t in shrunk.graph.tensors().values() if t.name.startswith("V2")]
    assert [list(t.shape) for t in weights] == [[8, 2]]


def test_directions_laced_into_one_another_keep_the_same_units():
    """Entry by entry: forward, backward, forward ...; what is left laces in the same way."""
    body = (
        "p = Transpose <perm = [0, 2, 3, 1]> (Y)  t = Constant <value_ints = [0, 0, 12]> ()"
        "  [lace] h = Reshape (p, t)  y = MatMul (h, V2)"
    )
    traced, _ = shrink(layer(2, body), KEEP[:1] * 2)
    assert not traced.restored
    with pytest.raises(PruneError, match="they must keep the same ones"):
        shrink(layer(2, body), KEEP)


def test_units_that_meet_entries_of_nobody_are_restored():
    body = (
        "s = Squeeze (Y, one)  f = Concat <axis = 2> (x, x)"
        "  d = Concat <axis = 2> (s, f)  e = Concat <axis = 2> (f, s)"
        "  [add] h = Add (d, e)  y = MatMul (h, V2)"
    )
    traced, _ = shrink(layer(1, body), KEEP[:1])
    assert set(traced.restored.values()) == {"is combined with another activation in Add (add)"}
