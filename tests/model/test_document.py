"""What an edit does not touch comes out as it went in, byte for byte."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.edit import add_constant, set_input
from onnx_rnn_prune.model.walk import nodes_by_key
from oracle.draw import draw_model

RARE = """
<ir_version: 10, opset_import: ["" : 17, "elsewhere.example" : 1],
 producer_name: "someone", producer_version: "7", model_version: 3, domain: "a.b",
 doc_string: "what it is">
main (float[n, 4] x, float[4] bias, bool yes) => (float[n, 4] y, float[n, m] z)
<float[4] bias = {1, 2, 3, 4}, float[2] nobody = {1, 2}, float[4, 4] w, int64[1] one = {1}>
{
  [named] a = Add (x, bias)
  b = elsewhere.example.Twice <f = 0.5, empty: ints = [], names: strings = ["p", "q"]> (a)
  p, , q = elsewhere.example.Three (b, , x)
  y = If (yes) <
    then_branch = t () => (float[n, 4] u) <float[4] inner = {1, 1, 1, 1}> {
      s = Mul (b, inner)
      u = MatMul (s, w)
    },
    else_branch = e () => (float[n, 4] v) { v = MatMul (b, w) }
  >
  z = Identity (p)
}
<domain: "elsewhere.example", opset_import: ["" : 17]>
Twice <f> (x) => (y) { two = Constant <value_float: float = @f> () y = Mul (x, two) }
"""


def rare_model():
    """A model with everything that few models have."""
    text = RARE.replace("float[4, 4] w,", "float[4, 4] w = {" + ", ".join(["0.5"] * 16) + "},")
    model = onnx.parser.parse_model(text)
    graph = model.graph
    graph.doc_string = "the graph"
    helper.set_model_props(model, {"author": "me", "empty": ""})
    graph.metadata_props.add(key="k", value="v")
    graph.node[0].doc_string = "adds"
    graph.node[0].metadata_props.add(key="namespace", value="layer.0")
    graph.node[0].overload = ""
    graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, ["n", 4]))
    graph.value_info.append(helper.make_tensor_value_info("gone", TensorProto.FLOAT, None))
    graph.input[0].doc_string = "what comes in"
    graph.input[0].type.denotation = "IMAGE"
    note = graph.quantization_annotation.add(tensor_name="a")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="one")
    sparse = onnx.SparseTensorProto(dims=[4])
    sparse.values.CopyFrom(numpy_helper.from_array(np.array([3], np.float32), "sparse"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([1], np.int64), ""))
    graph.sparse_initializer.append(sparse)
    odd = graph.node[2].attribute
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, [None, 2])
    odd.append(helper.make_attribute("kind", kind))
    tensors = [numpy_helper.from_array(np.arange(3), "t0"), numpy_helper.from_array(np.eye(2), "")]
    odd.append(helper.make_attribute("tensors", tensors))
    odd.append(helper.make_attribute("nothing", [], attr_type=onnx.AttributeProto.FLOATS))
    odd.append(helper.make_attribute("sparse", sparse))
    odd.append(helper.make_attribute("blob", b"\\x00\\xff\\xfe"))
    odd[-1].doc_string = "bytes that are no text"
    model.training_info.add()
    return model


def test_a_rare_model_comes_out_as_it_went_in():
    model = rare_model()
    before = model.SerializeToString(deterministic=True)
    written = Document.read(model).write()
    assert str(written) == str(model)
    assert written.SerializeToString(deterministic=True) == before
    assert model.SerializeToString(deterministic=True) == before, "the source is left alone"


@pytest.mark.parametrize("seed", range(40))
def test_drawn_models_come_out_as_they_went_in(seed):
    model = draw_model(seed).model()
    assert Document.read(model).write() == model
    assert Document.read(model).copy().write() == model


def test_an_edit_changes_only_what_it_touches():
    model = rare_model()
    document = Document.read(model)
    node = nodes_by_key(document.graph)["a"]
    set_input(node, 1, add_constant(document.graph, "other", np.ones(4, np.float32)))
    written = document.write()
    assert list(written.graph.node[0].input) == ["x", "other"]
    assert written.graph.node[0].metadata_props == model.graph.node[0].metadata_props
    assert list(written.graph.node[1:]) == list(model.graph.node[1:])
    assert [t.name for t in written.graph.initializer] == ["bias", "nobody", "w", "one", "other"]
    assert written.graph.input == model.graph.input
    assert written.functions == model.functions


def test_a_new_name_of_a_node_is_written():
    document = Document.read(rare_model())
    document.graph.nodes[1].name = "twice"
    assert document.write().graph.node[1].name == "twice"


def test_nodes_that_are_gone_keep_their_identity():
    """Original messages are found by it, so another node would be written as the one gone."""
    document = Document.read(draw_model(3).model())
    nodes = list(document.graph.nodes)
    document.graph.nodes.clear()
    assert all(document.origins[id(node)][0] is node for node in nodes)


def test_an_overridden_dim_is_all_that_changes_in_a_description():
    model = rare_model()
    document = Document.read(model)
    document.graph.tensors()["a"].shape = ["n", 3]
    written = document.write()
    dims = written.graph.value_info[0].type.tensor_type.shape.dim
    assert (dims[0].dim_param, dims[1].dim_value) == ("n", 3)
