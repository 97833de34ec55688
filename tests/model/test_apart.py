"""Models with weights in files of their own."""

import multiprocessing
import os
import random
import re
import resource
import shutil
import time

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from onnx_rnn_prune import apply, compare, inspect, plan, prune
from onnx_rnn_prune.cli import run
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.files import load_model, save_apart
from onnx_rnn_prune.trace.plan import fingerprint

MODEL = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (int64[time, batch] tokens) => (float[time, batch, 3] logits) {
        x = Gather(table, tokens)
        Y = GRU <hidden_size = 16> (x, W, R, B)
        flat = Squeeze(Y, axis)
        logits = MatMul(flat, fc)
    }
"""
SHAPES = {"table": (100, 24), "W": (1, 48, 24), "R": (1, 48, 16), "B": (1, 96), "fc": (16, 3)}


def small_model():
    proto = onnx.parser.parse_model(MODEL)
    rng = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        value = rng.normal(size=shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([1]), "axis"))
    return proto


def feeds():
    rng = np.random.default_rng(1)
    return [{"tokens": rng.integers(0, 100, (9, 2))} for _ in range(4)]


@pytest.fixture
def whole(tmp_path):
    path = tmp_path / "whole" / "model.onnx"
    path.parent.mkdir()
    onnx.save(small_model(), path)
    return path


def save_with_weights_apart(folder):
    path = folder / "model.onnx"
    onnx.save(
        small_model(), path, save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    return path


@pytest.fixture
def model(tmp_path):
    """The same model as `whole`, with its weights in weights.bin."""
    folder = tmp_path / "apart"
    folder.mkdir()
    return save_with_weights_apart(folder)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    return prune(save_with_weights_apart(tmp_path_factory.mktemp("pruned")), keep=8)


def outputs(path):
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, feeds()[0])[0]


def loaded(path):
    """A model file with all its weights."""
    proto = onnx.load(path)
    for tensor in proto.graph.initializer:
        tensor.ClearField("data_location")  # says that they were read
    return proto


def weight(path, name):
    """A weight of a model file and its entry in it."""
    proto = onnx.load(path, load_external_data=False)
    return proto, next(tensor for tensor in proto.graph.initializer if tensor.name == name)


def rewrite(path, name, **entries):
    """Gives a weight another place."""
    proto, tensor = weight(path, name)
    for entry in tensor.external_data:
        entry.value = entries.get(entry.key, entry.value)
    path.write_bytes(proto.SerializeToString())


@pytest.mark.parametrize("data", [None, feeds()])
def test_weights_that_are_apart_stay_so(model, whole, data, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    result = prune(model, keep=8, data=data)
    graph, weights = result.save(out / "small.onnx")
    assert graph == out / "small.onnx"
    assert re.fullmatch(r"small\.onnx\.[0-9a-f]{12}\.data", weights.name)
    assert sorted(out.iterdir()) == [graph, weights]
    expected = prune(whole, keep=8, data=data)
    assert result.model == expected.model
    assert loaded(out / "small.onnx") == expected.model
    expected.save(whole.parent / "small.onnx")
    shutil.rmtree(model.parent)
    assert np.array_equal(outputs(out / "small.onnx"), outputs(whole.parent / "small.onnx"))
    written = sum(path.stat().st_size for path in out.iterdir())
    assert abs(result.report["totals"]["bytes_after"] - written) < 50
    assert written < expected.report["totals"]["bytes_after"] + 1000


def test_nothing_is_cut(model, whole, tmp_path):
    result = prune(model, keep="100%")
    result.save(tmp_path / "same.onnx")
    assert loaded(tmp_path / "same.onnx") == small_model()
    assert np.array_equal(outputs(tmp_path / "same.onnx"), outputs(whole))


def test_small_weights_need_no_file(tmp_path, model):
    rewritten = onnx.load(model)
    onnx.save(rewritten, model, save_as_external_data=True, location="other", size_threshold=0)
    result = prune(model, keep=1, budget="bytes=90%")
    for tensor in list(result.written.graph.initializer):
        if tensor.name == "table":
            tensor.CopyFrom(numpy_helper.from_array(np.zeros((2, 24), np.float32), "table"))
    assert result.save(tmp_path / "small.onnx") == (tmp_path / "small.onnx",)


@pytest.mark.parametrize("share", [75, 90])
def test_a_budget_counts_both_files(model, share, tmp_path):
    limit = sum(path.stat().st_size for path in model.parent.iterdir()) * share // 100
    result = prune(model, budget=f"bytes={limit}")
    name = "small" * 20 + ".onnx"
    written = sum(path.stat().st_size for path in result.save(tmp_path / name))
    assert 0.8 * limit < written <= limit


def test_a_plan_is_for_the_weights_too(model, whole, tmp_path):
    chosen = plan(model, keep=8)
    moved = tmp_path / "moved"
    shutil.copytree(model.parent, moved)
    assert apply(moved / "model.onnx", chosen).plan == chosen
    content = bytearray((moved / "weights.bin").read_bytes())
    content[1000] ^= 1
    (moved / "weights.bin").write_bytes(content)
    with pytest.raises(PruneError, match="made for another model"):
        apply(moved / "model.onnx", chosen)
    assert fingerprint(load_model(whole)) != chosen.model


def test_the_other_commands_read_them(model, whole):
    assert compare(model, whole)["drift"]["logits"]["max_abs"] == 0
    sizes = [inspect(path)["model"]["bytes"] for path in (model, whole)]
    assert abs(sizes[0] - sizes[1]) < 1000


@pytest.mark.parametrize(
    ("name", "place", "reason"),
    [
        (
            "table",
            {"location": "../out.bin"},
            "'../out.bin', which is outside the folder of the model",
        ),
        (
            "table",
            {"location": "/etc/passwd"},
            "'/etc/passwd', which is outside the folder of the model",
        ),
        ("table", {"location": "link.bin"}, "'link.bin', which is outside the folder of the model"),
        ("W", {"location": "gone.bin"}, "'gone.bin', but there is no such file"),
        ("W", {"offset": "99000"}, "'weights.bin', but that file is too short"),
        ("W", {"offset": "-4"}, "'weights.bin', but that file is too short"),
        ("fc", {"length": "7"}, "'weights.bin', but that file is too short"),
        ("fc", {"offset": "x"}, "'weights.bin' cannot be read"),
    ],
)
def test_weights_that_are_not_there(model, name, place, reason, tmp_path, capsys):
    outside = tmp_path / "out.bin"
    outside.write_bytes(bytes(100_000))
    (model.parent / "link.bin").symlink_to(outside)
    rewrite(model, name, **place)
    assert run(["prune", str(model), "-o", str(tmp_path / "small.onnx")]) == 1
    error = capsys.readouterr().err.strip()
    assert f"weight '{name}': " in error
    assert reason in error
    assert "\n" not in error


def test_a_message_without_its_folder(model):
    with pytest.raises(PruneError, match="weight 'table': it refers to a file"):
        prune(onnx.load(model, load_external_data=False))


def test_weights_of_an_input_stay(pruned, tmp_path):
    """They are called as those of the output are, which would go where it is written anew."""
    out, other = tmp_path / "small.onnx", tmp_path / "other.onnx"
    _, weights = pruned.save(out)
    shutil.copy(out, other)
    before = weights.read_bytes()
    assert run(["prune", str(other), "-o", str(out), "--keep", "4"]) == 0
    assert weights.read_bytes() == before
    assert outputs(other).shape == outputs(out).shape


def test_weights_go_with_the_graph_that_they_belong_to(pruned, model, tmp_path):
    """Those of the model that was there before, and those that a killed process left."""
    out = tmp_path / "small.onnx"
    left = tmp_path / "small.onnx.0123456789ab.data"
    others = [tmp_path / name for name in ("small.onnx.data", "a.onnx.0123456789ab.data")]
    for path in (left, *others):
        path.write_text("weights")
    first = pruned.save(out)
    wanted = outputs(out)
    assert sorted(tmp_path.glob("*.*")) == sorted([*first, *others])
    second = prune(model, keep=4).save(out)
    assert sorted(tmp_path.glob("*.*")) == sorted([*second, *others]) and second != first
    assert pruned.save(out) == first and np.array_equal(outputs(out), wanted)
    prune(small_model(), keep=4).save(out)
    assert sorted(tmp_path.glob("*.*")) == sorted([out, *others])


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left")])
@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("calls", [0, 1])
@pytest.mark.parametrize("there", [True, False])
def test_both_files_or_none(error, step, calls, there, model, pruned, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    if there:
        prune(model, keep=4).save(out / "small.onnx")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    done, really = [], getattr(os, step)

    def fail(*arguments):
        done.append(arguments)
        if len(done) == calls + 1:
            raise error
        return really(*arguments)

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(PruneError if isinstance(error, OSError) else error):
        pruned.save(out / "small.onnx")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def write_for_ever(out, models):
    while True:
        for model in models:
            save_apart(model, out)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked here")
@pytest.mark.parametrize("count", [30, pytest.param(1000, marks=pytest.mark.slow)])
def test_whatever_moment_a_process_is_killed_at_the_model_is_whole(count, model, tmp_path):
    """Two processes write two models to one place: it holds one of them, never half of each."""
    rng, out = random.Random(0), tmp_path / "out" / "small.onnx"
    out.parent.mkdir()
    results = [prune(model, keep=keep) for keep in (4, 8)]
    models, wanted = [result.written for result in results], set()
    for result in results:
        result.save(out)
        wanted.add(outputs(out).tobytes())
    forking = multiprocessing.get_context("fork")  # a new one would import for a second first
    for _ in range(count):
        both = [
            forking.Process(target=write_for_ever, args=(out, order))
            for order in (models, models[::-1])
        ]
        for process in both:
            process.start()
        time.sleep(rng.random() / 10)
        for process in both:
            process.kill()
            process.join()
        assert outputs(out).tobytes() in wanted
    results[1].save(out)
    assert len(list(out.parent.iterdir())) == 2, "what was left behind is gone"


@pytest.mark.slow
def test_more_than_one_message_can_hold(tmp_path):
    """A table of 2.2 GB that is mostly a hole in its file."""
    rows = 550_000
    path, proto = tmp_path / "big.onnx", small_model()
    weights = proto.graph.initializer
    shapes = {"table": (rows, 1000), "W": (1, 48, 1000)}
    for tensor in weights:
        if tensor.name == "W":
            value = np.random.default_rng(2).normal(0, 0.05, shapes["W"]).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value, "W"))
        if tensor.name == "table":
            tensor.Clear()
            tensor.name, tensor.data_type = "table", onnx.TensorProto.FLOAT
            tensor.dims.extend(shapes["table"])
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="big.bin")
    path.write_bytes(proto.SerializeToString())
    written = np.random.default_rng(3).normal(size=(100, 1000)).astype(np.float32)
    with open(tmp_path / "big.bin", "wb") as file:
        file.write(written.tobytes())
        file.truncate(rows * 1000 * 4)
    result = prune(path, keep=8, data=feeds())
    assert result.report["oracle"]["passed"]
    with pytest.raises(PruneError, match="larger than the 2 GB"):
        _ = result.model
    out = tmp_path / "out"
    out.mkdir()
    assert run(["prune", str(path), "-o", str(out / "small.onnx"), "--keep", "8"]) == 0
    sizes = [file.stat().st_size for file in result.save(out / "small.onnx")]
    assert abs(sum(sizes) - result.report["totals"]["bytes_after"]) < 50
    shutil.move(tmp_path / "big.bin", tmp_path / "gone.bin")
    assert outputs(out / "small.onnx").shape == (9, 2, 3)
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
