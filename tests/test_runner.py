"""Running a model from files gives what running it from memory gives."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from onnx_rnn_prune.model import runner
from onnx_rnn_prune.model.external import WeightFile, without_weights


@pytest.fixture
def model():
    """A linear layer with one weight that is large, one that is small, and one as typed data."""
    proto = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[n, 200] x) => (float[n, 100] y) {
            product = MatMul(x, w)
            sum = Add(product, b)
            y = Mul(sum, scale)
        }
    """)
    rng = np.random.default_rng(0)
    for name, shape in (("w", (200, 100)), ("b", (100,))):
        value = rng.normal(size=shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    scale = onnx.helper.make_tensor("scale", onnx.TensorProto.FLOAT, [1], [0.5])
    proto.graph.initializer.append(scale)
    return proto


def test_large_weights_lie_beside_the_graph(model, tmp_path):
    before = model.SerializeToString()
    weights = WeightFile(tmp_path / "weights")
    path = tmp_path / "model.onnx"
    onnx.save(without_weights(model, weights), path)
    weights.close()
    assert model.SerializeToString() == before
    assert path.stat().st_size < 3000
    assert (tmp_path / "weights").stat().st_size == 200 * 100 * 4
    ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_files_and_memory_give_the_same(model, monkeypatch):
    feed = {"x": np.random.default_rng(1).normal(size=(3, 200)).astype(np.float32)}
    expected = runner.Runner(model)(feed)["y"]
    monkeypatch.setattr(runner, "_LARGE", 0)
    assert np.array_equal(runner.Runner(model)(feed)["y"], expected)
