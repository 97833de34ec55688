"""What a model says about its inputs and outputs."""

import numpy as np
import onnx

from onnx_rnn_prune.model.signature import Port, inputs, outputs


def test_sizes_are_fixed_named_or_open():
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[3, batch, ?] x, float w, int64[] n, float[2] default) => (float[3, batch, ?] y)
        <float[2] default = {0, 0}> { y = Relu(x) }
    """)
    assert inputs(model)[0] == Port("x", np.dtype(np.float32), (3, "batch", None))
    assert [port.name for port in inputs(model)] == ["x", "w", "n"], "defaults need no feed"
    assert inputs(model)[2].dtype == np.int64
    assert outputs(model) == (Port("y", np.dtype(np.float32), (3, "batch", None)),)


def test_unknown_rank_and_scalar_differ():
    shape = onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, None)
    scalar = onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, [])
    graph = onnx.helper.make_graph([], "g", [shape, scalar], [])
    found = inputs(onnx.helper.make_model(graph))
    assert [port.dims for port in found] == [None, ()]


def test_a_size_below_zero_is_open():
    value = onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, [-1, 4])
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [value], []))
    assert inputs(model)[0].dims == (None, 4)


def test_sizes_that_have_a_placeholder_for_a_name_are_open():
    names = ["?", "None", "-1", "unk", "unk__5", "batch"]
    value = onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, names)
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [value], []))
    assert inputs(model)[0].dims == (None, None, None, None, "unk__5", "batch")


def test_a_sequence_has_no_dtype():
    value = onnx.helper.make_tensor_sequence_value_info("s", onnx.TensorProto.FLOAT, None)
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [value], []))
    assert inputs(model) == (Port("s", None, None),)


def test_a_port_reads_well():
    assert str(Port("x", np.dtype(np.float32), (3, "batch", None))) == "x: float32[3, batch, ?]"
    assert str(Port("x", np.dtype(object), None)) == "x: str"
