"""Running a model from files gives what running it from memory gives."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model import runner
from onnx_rnn_prune.model.checks import anchor
from onnx_rnn_prune.model.external import is_reference, stored_bytes
from onnx_rnn_prune.model.runnable import guarded
from onnx_rnn_prune.model.runner import Runner


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


def apart(model, folder):
    """A model whose weights lie in a file of a folder."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    onnx.external_data_helper.convert_model_to_external_data(result, location="w", size_threshold=0)
    onnx.external_data_helper.write_external_data_tensors(result, str(folder))
    for tensor in result.graph.initializer:
        if is_reference(tensor):
            anchor(tensor, folder / "model.onnx")
    return result


@pytest.mark.parametrize("kind", ["FLOAT16", "BFLOAT16", "DOUBLE", "INT8", "BOOL"])
def test_new_weights_of_all_types_beside_files(kind, model, tmp_path):
    """A model with files gets a weight that is in none; those of rare types stay in the message."""
    model = apart(model, tmp_path)
    number = onnx.TensorProto.DataType.Value(kind)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(number)
    value = np.ones((200, 100)).astype(dtype)
    model.graph.initializer.append(numpy_helper.from_array(value, "new"))
    model.graph.node.append(onnx.helper.make_node("Identity", ["new"], ["out"]))
    model.opset_import[0].version, model.ir_version = 23, 11
    model.graph.output.append(onnx.helper.make_tensor_value_info("out", number, [200, 100]))
    ran = runner.Runner(model, outputs=["y", "out"])
    assert "out" in ran.outputs


def test_files_and_memory_give_the_same(model, tmp_path, monkeypatch):
    feed = {"x": np.random.default_rng(1).normal(size=(3, 200)).astype(np.float32)}
    expected = runner.Runner(model)(feed)["y"]
    assert np.array_equal(runner.Runner(apart(model, tmp_path))(feed)["y"], expected)
    monkeypatch.setattr(runner, "LARGE", 0)
    assert np.array_equal(runner.Runner(model)(feed)["y"], expected)


SCALAR_BOUNDS = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[2, n] x) => (float[1, n] y)
<int64 zero = {0}, int64 one = {1}, int64 two = {2}, int64[1] axis = {0}> {
    first = Slice(x, zero, one, axis)
    second = Slice(x, one, two, axis)
    y = Sub(first, second)
}
"""


def test_a_wrong_size_is_told_with_the_one_expected(model):
    with pytest.raises(PruneError, match=r"indices: index: 1 Got: 7 Expected: 200; check"):
        runner.Runner(model)({"x": np.ones((3, 7), np.float32)})


def test_what_runs_only_once_it_is_rewritten_is_rewritten():
    """onnxruntime refuses scalar bounds where a Slice runs, and by default makes a Split of two."""
    model = onnx.parser.parse_model(SCALAR_BOUNDS)
    rows = runner.Runner(model, optimize=False)
    with pytest.raises(PruneError, match=r"cannot run it on the feed \(x \[3, 4\]\)"):
        rows({"x": np.ones((3, 4), np.float32)})
    feed = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}
    for optimize in (False, True):
        assert runner.Runner(model, optimize=optimize)(feed)["y"].tolist() == [[-4] * 4]


def sliced(op, axis, inside=False):
    """A layer that reads what is left of x from entry 3 on along an axis; in a branch if wanted."""
    gates = {"LSTM": 4, "GRU": 3}[op]
    body = f"rest = Slice (x, from, to, axis) y = {op} <hidden_size = 2> (rest, W, R)"
    if inside:
        branches = [
            f"b{n} () => (float[t, d, b, h] y{n}) {{ {body.replace('y =', f'y{n} =')} }}"
            for n in (1, 2)
        ]
        body = f"y = If (yes) <then_branch = {branches[0]}, else_branch = {branches[1]}>"
    proto = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        m (float[n, m, 2] x, bool yes) => (float[t, d, b, h] y) {{ {body} }}""")
    rng = np.random.default_rng(0)
    values = {"W": rng.normal(size=(1, 2 * gates, 2)), "R": rng.normal(size=(1, 2 * gates, 2))}
    values = {name: value.astype(np.float32) for name, value in values.items()}
    values |= {"from": np.array([3]), "to": np.array([99]), "axis": np.array([axis])}
    proto.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in values.items())
    return proto


@pytest.mark.parametrize("options", [{}, {"outputs": ["y"]}, {"outputs": ["y"], "optimize": False}])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(("op", "axis"), [("GRU", 0), ("GRU", 1), ("LSTM", 1)])
def test_a_layer_that_gets_nothing_ends_no_process(op, axis, inside, options):
    """As onnxruntime's own kernels do; where a layer gets something, numbers are the same."""
    model = sliced(op, axis, inside)
    feed = {"x": np.ones((5, 5, 2), np.float32), "yes": np.array(True)}
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    run = Runner(model, **options)
    assert np.array_equal(run(feed)["y"], session.run(["y"], feed)[0])
    with pytest.raises(PruneError, match="axis . of the input of .* is empty"):
        run({**feed, "x": feed["x"][:2] if axis == 0 else feed["x"][:, :2]})


def test_sizes_do_not_load_a_model_again(monkeypatch):
    """One that may fail on a sequence without entries is loaded twice, not for each size."""
    loaded, load = [], runner._loadable
    monkeypatch.setattr(runner, "_loadable", lambda *given: (loaded.append(given), load(*given))[1])
    run = Runner(sliced("GRU", 0))
    for size in range(4, 9):
        run({"x": np.ones((size, 5, 2), np.float32), "yes": np.array(True)})
    assert len(loaded) == 2


def test_an_lstm_takes_no_steps():
    model, feed = sliced("LSTM", 0), {"x": np.ones((2, 5, 2), np.float32), "yes": np.array(True)}
    assert Runner(model, outputs=["y"])(feed)["y"].shape == (0, 1, 5, 2)


@pytest.mark.parametrize("size", [1, 250, 4000, 16384, 32700, 540000])
def test_the_size_of_a_model_is_that_of_its_message(size):
    """Whatever the lengths in it take."""
    proto = sliced("GRU", 0, inside=True)
    for number in range(3):
        value = np.zeros(size + number, np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(value, f"weight{number}"))
    proto.graph.initializer.append(onnx.helper.make_tensor("few", 1, [size], [0.5] * size))
    assert stored_bytes(proto, proto) == proto.ByteSize()


@pytest.mark.parametrize("broken", ["attributes", "inputs", "outputs"])
def test_nodes_that_are_none_are_left_to_onnxruntime(broken):
    proto = sliced("GRU", 0)
    layer = proto.graph.node[1]
    proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["c"], value_int=1, other=2))
    if broken == "attributes":
        assert guarded(proto).graph.node[0] == proto.graph.node[0]
        return
    layer.ClearField("input" if broken == "inputs" else "output")
    with pytest.raises(PruneError, match="cannot load it"):
        Runner(proto, outputs=["y"])


def test_what_onnxruntime_reports_is_not_printed_as_well(capfd):
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        m (int64[1] n) => (float[k] y) { y = ConstantOfShape (n) }""")
    with pytest.raises(PruneError):
        Runner(model)({"n": np.array([2**62])})
    assert capfd.readouterr().err == ""
