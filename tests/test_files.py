"""Writing: whole or not at all, and never over an input."""

import os

import onnx
import pytest
from onnx import helper, numpy_helper

from onnx_rnn_prune import prune
from onnx_rnn_prune.data import places
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.files import check_output, write_atomically
from onnx_rnn_prune.model.references import weight_files


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(28, "No space left")])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_writing_that_fails_leaves_nothing(error, step, tmp_path, monkeypatch):
    def fail(*_):
        raise error

    (tmp_path / "a").write_text("before")
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(PruneError if isinstance(error, OSError) else error):
        write_atomically(tmp_path / "a", b"after")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "before"


def test_a_place_is_tried_without_a_trace(tmp_path):
    check_output(tmp_path / "a", ())
    assert list(tmp_path.iterdir()) == []


def test_what_modules_are_read_from(tmp_path, monkeypatch):
    package = tmp_path / "my_package"
    package.mkdir()
    files = [package / "__init__.py", package / "feeds.py"]
    for path in files:
        path.write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert places("my_package.feeds:make") == tuple(files)
    assert places("my_package.absent:make") == tuple(files[:1])
    assert places("sys:path", "no_such_module_anywhere:make", None, {}, print) == ()


def test_weights_of_constants_lie_beside_the_model_too(tmp_path, model):
    proto = onnx.load(model)
    tensor = numpy_helper.from_array(numpy_helper.to_array(proto.graph.initializer[0]), "v")
    onnx.external_data_helper.set_external_data(tensor, "constants.data")
    proto.graph.node.append(helper.make_node("Constant", [], ["v"], value=tensor))
    onnx.save(proto, tmp_path / "apart.onnx")
    assert weight_files(tmp_path / "apart.onnx") == [tmp_path / "constants.data"]


@pytest.mark.parametrize("place", ["model.onnx", "link.onnx", "clips/0.npz", "model.data"])
def test_a_result_is_not_saved_over_an_input(place, model, clips, monkeypatch):
    onnx.save(
        onnx.load(model), model, save_as_external_data=True, location="model.data", size_threshold=0
    )
    (model.parent / "link.onnx").symlink_to(model)
    monkeypatch.chdir(model.parent)
    result = prune("model.onnx", keep=3, data="clips")
    before = (model.parent / place).read_bytes()
    monkeypatch.chdir(clips)
    with pytest.raises(PruneError, match="an input would be overwritten; name another file"):
        result.save(model.parent / place)
    assert (model.parent / place).read_bytes() == before
    for _ in range(2):
        result.save(model.parent / "small.onnx")
