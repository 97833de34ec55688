"""Every way in which units can flow no further: the reason, and the node where it is."""

import numpy as np
import onnx
import pytest

from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.opened_model import follow
from onnx_rnn_prune.operators.recurrent import find_layers
from onnx_rnn_prune.trace.propagation import GRAPH_OUTPUT, Outlet
from onnx_rnn_prune.traced_model import trace_model

HEAD = """
<ir_version: 8, opset_import: ["" : 17, "elsewhere.example" : 1]>
main (float[t, b, 3] x, int64[k] which, bool yes) => ({result})
<float[1, 8, 3] W, float[1, 8, 8] R, float[8, 2] V, int64[1] one = {{1}}, int64[1] last = {{2}},
 float[8] scale, int64[2] halves = {{4, 4}}, int64[4] heads = {{0, 0, 2, 4}}>
{{
  [rnn] Y = RNN <hidden_size = 8> (x, W, R)
  h = Squeeze (Y, one)
  {body}
}}
"""


def read(body, result="float[t, b, c] y"):
    """A layer of 8 units with something behind it."""
    text = HEAD.format(body=body, result=result)
    rng = np.random.default_rng(0)
    for name, shape in (("W", (1, 8, 3)), ("R", (1, 8, 8)), ("V", (8, 2)), ("scale", (8,))):
        sizes = ", ".join(map(str, shape))
        values = ", ".join(f"{value:.3f}" for value in rng.normal(0, 1, np.prod(shape)))
        text = text.replace(f"float[{sizes}] {name}", f"float[{sizes}] {name} = {{{values}}}", 1)
    return Document.read(onnx.parser.parse_model(text))


def prepared(body, result="float[t, b, c] y", names=None):
    document = read(body, result)
    feed = {"x": np.ones((5, 2, 3), np.float32), "which": np.array([1, 2]), "yes": np.array(True)}
    names = names or [layer.name for layer in find_layers(document.graph)]
    return trace_model(follow(document.write(), "it"), names, [feed])


STOPS = {
    "a graph output": (
        "y = Identity (h)",
        "leaves the model as its output y",
    ),
    "LayerNormalization": (
        "[norm] n = LayerNormalization <axis = -1> (h, scale)  y = MatMul (n, V)",
        "is read by LayerNormalization, through which units cannot be followed (norm)",
    ),
    "Softmax over units": (
        "[soft] n = Softmax <axis = -1> (h)  y = MatMul (n, V)",
        "Softmax mixes its units (soft)",
    ),
    "a mean over units": (
        "[mean] y = ReduceMean <axes = [2]> (h)",
        "ReduceMean mixes its units (mean)",
    ),
    "a product of two activations": (
        "turned = Transpose <perm = [0, 2, 1]> (h)  [scores] y = MatMul (h, turned)",
        "is multiplied by another activation (scores)",
    ),
    "an unknown operator": (
        "[what] y = elsewhere.example.Mystery (h)",
        "is read by Mystery, through which units cannot be followed (what)",
    ),
    "an operator of ours that has no rule": (
        "[hard] y = Hardmax (h)",
        "is read by Hardmax, through which units cannot be followed (hard)",
    ),
    "a residual": (
        "other = MatMul (x, U)  [add] z = Add (h, other)  y = MatMul (z, V)",
        "is combined with another activation in Add (add)",
    ),
    "uneven meetings": (
        "a, c = Split <axis = 2> (h, halves)  [both] z = Concat <axis = 2> (a, c)"
        "  back = Concat <axis = 2> (c, a)  [add] s = Add (z, back)  y = MatMul (s, V)",
        "Split takes only some of its units, all of which may be cut (Split a)",
    ),
    "two units met in another order": (
        "m = Constant <value_ints = [7, 1, 2, 3, 4, 5, 6, 0]> ()"
        "  r = Gather <axis = 2> (h, m)  [add] s = Add (h, r)  y = MatMul (s, V)",
        "its units are combined unevenly (add)",
    ),
    "a Reshape into heads": (
        "[split] s = Reshape (h, heads)  [soft] y = Softmax <axis = 1> (s)",
        "Reshape splits its units unevenly (split)",
    ),
    "a state": (
        "[next] y = GRU <hidden_size = 8> (z, W3, R3, , , Y_h)",
        "enters a state of GRU (next)",
    ),
    "a divisor": (
        "[div] z = Div (scale, h)  y = MatMul (z, V)",
        "divides by a unit (div)",
    ),
    "a power": (
        "p = Constant <value_float = -1.0> ()  [pow] z = Pow (h, p)  y = MatMul (z, V)",
        "is raised to a power that is not a positive constant (pow)",
    ),
    "units picked while the model runs": (
        "[pick] y = Gather <axis = 2> (h, which)",
        "its units are selected by a Gather that is computed at run time (pick)",
    ),
    "every other unit": (
        "s = Constant <value_ints = [0]> ()  e = Constant <value_ints = [8]> ()"
        "  [pick] y = Slice (h, s, e, last, last)",
        "units are selected by a Slice with steps (pick)",
    ),
    "one unit": (
        "i = Constant <value_int = 3> ()  [pick] y = Gather <axis = 2> (h, i)",
        "single units are selected by a Gather (pick)",
    ),
    "rows of a Gemm": (
        "m = Constant <value_ints = [2, -1]> ()  n = Transpose <perm = [2, 0, 1]> (h)"
        "  k = Constant <value_ints = [8, 10]> ()  z = Reshape (n, k)"
        "  [rows] y = Gemm <transA = 0> (z, T)",
        "its units lie on the rows of Gemm (rows)",
    ),
    "units in groups of a Conv": (
        "c = Transpose <perm = [1, 2, 0]> (h)  [conv] y = Conv <group = 4> (c, K)",
        "its units do not fill the groups of Conv evenly (conv)",
    ),
    "a body": (
        "[if] y = If (yes) <then_branch = t () => (float[t, b, c] u) { u = Neg (h) },"
        " else_branch = e () => (float[t, b, c] v) { v = Abs (h) }>",
        "is read in a branch that ran on different data, or never (Abs v)",
    ),
}


@pytest.mark.parametrize("case", STOPS)
def test_the_way_ends_restored(case):
    body, reason = STOPS[case]
    names = ["rnn", "rnn2"] if "Y_h" in body else None
    found = prepared(_complete(body), names=names)
    assert reason in set(found.restored.values()), found.restored
    assert not found.trace.restored


def _complete(body):
    """Constants and outputs that only some of the cases need."""
    rng = np.random.default_rng(1)
    needed = {"U": (3, 8), "W3": (1, 24, 8), "R3": (1, 24, 8), "T": (10, 2), "K": (8, 2, 1)}
    constants = ""
    for name, shape in needed.items():
        if name in body:
            sizes = ", ".join(map(str, shape))
            values = ", ".join(f"{value:.3f}" for value in rng.normal(0, 1, np.prod(shape)))
            constants += f"{name} = Constant <value = float[{sizes}] {{{values}}}> ()  "
    if "Y_h" in body:
        constants += "[rnn2] Z, Y_h = RNN <hidden_size = 8> (x, W, R)  z = Squeeze (Z, one)  "
    return constants + body


def test_each_outlet_ends_by_itself():
    """One layer, three readers: the graph output is restored, the products are not."""
    found = prepared(
        "[one_] a = MatMul (h, V)  g = Relu (h)  [two] c = MatMul (g, V)  y = Add (a, c)"
        "  k = Identity (Y)",
        "float[t, b, 2] y, float[t, d, b, 8] k",
    )
    assert found.ends == {Outlet("rnn", "Y", "h", 0): ("one_", "two")}
    assert found.restored == {Outlet("rnn", "Y", "k", 0): "leaves the model as its output k"}


def test_a_state_of_a_layer_that_is_cut_as_well_is_absorbed():
    found = prepared(_complete(STOPS["a state"][0]))
    ends = {outlet.output: names for outlet, names in found.ends.items()}
    assert ends["Y_h"] == ("onnx_rnn_prune/next_initial_h_select",)


def test_a_layer_that_nobody_reads_can_be_cut():
    found = prepared("y = Identity (x)")
    assert not found.restored and not found.ends


def test_the_output_itself_may_be_the_models():
    found = prepared("h2 = Identity (h)", "float[t, d, b, 8] Y")
    assert found.restored == {
        Outlet("rnn", "Y", GRAPH_OUTPUT, 0): "leaves the model as its output Y"
    }
