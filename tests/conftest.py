"""What some tests need beyond the extra `test`, and a small model with data for it, as files."""

import contextlib
import gc
import importlib.util
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnx_rnn_prune  # noqa: F401  it turns off what onnxruntime sends, before a test imports it
from onnx_rnn_prune.search import problem
from onnx_rnn_prune.selection import profitability
from onnx_rnn_prune.validate import timing

sys.path.append(str(Path(__file__).resolve().parent.parent / "tools"))

from fetch_models import default_folder

SLOWER, LEAST, ROUNDS = profitability.SLOWER, timing._LEAST, timing._ROUNDS
RUNS = timing.timings.__kwdefaults__["rounds"]

# By marker: whether what its tests need is here, and what brings it.
NEEDS = {
    "torch": (importlib.util.find_spec("torch"), "pip install '.[distill]' brings PyTorch"),
    "browser": (
        shutil.which("chromium") and shutil.which("chromedriver"),
        "apt-get install chromium chromium-driver brings a browser",
    ),
    "published": (default_folder().is_dir(), "python tools/fetch_models.py brings the models"),
}


def pytest_collection_modifyitems(items):
    """Tests whose needs are not met are skipped, and say what would run them."""
    for item in items:
        for name, (is_here, remedy) in NEEDS.items():
            if not is_here and item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=remedy))


@pytest.fixture(autouse=True, scope="session")
def frozen():
    """Thousands of tests are objects, too: no garbage collection need look at them."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="session")
def cache_folder(tmp_path_factory):
    """What is timed in tests is kept apart from what the user of this machine had timed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def any_speed():
    """Models of ten microseconds are written whether or not they run faster here and now.

    They are timed all the same, but a few times only. To a search, each unit takes as long as any
    other: what one saves cannot be measured, and which cuts are tried must not be chance.
    """
    with pytest.MonkeyPatch.context() as patch:
        set_speed(patch, slower=0.0, least=0.0, rounds=10, runs=10)
        patch.setattr(problem, "predicted", lambda *_: lambda counts: float(sum(counts)))
        yield


@pytest.fixture
def speed_counts(monkeypatch):
    """What is slower is refused, as it is in use; a test says itself how fast it is."""
    set_speed(monkeypatch, SLOWER, LEAST, ROUNDS, RUNS)


def set_speed(patch, slower, least, rounds, runs):
    patch.setattr(profitability, "SLOWER", slower)
    patch.setattr(timing, "_LEAST", least)
    patch.setattr(timing, "_ROUNDS", rounds)
    patch.setitem(timing.timings.__kwdefaults__, "rounds", runs)


@pytest.fixture
def model(tmp_path):
    """A GRU with a linear layer behind it, as a file."""
    hidden, size = 6, 4
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[time, batch, {size}] x) => (float[time, batch, 3] logits) {{
            Y = GRU <hidden_size = {hidden}> (x, W, R, B)
            flat = Squeeze(Y, axis)
            logits = MatMul(flat, fc)
        }}
    """)
    shapes = {
        "W": (1, 3 * hidden, size),
        "R": (1, 3 * hidden, hidden),
        "B": (1, 6 * hidden),
        "fc": (hidden, 3),
    }
    for name, shape in shapes.items():
        array = rng.normal(size=shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    axis = onnx.numpy_helper.from_array(np.array([1]), "axis")
    proto.graph.initializer.append(axis)
    proto.graph.node[0].name = "rnn"
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    return path


@pytest.fixture
def clips(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for number in range(4):
        x = rng.normal(size=(12 + number, 2, 4)).astype(np.float32)
        np.savez(folder / f"{number}.npz", x=x)
    return folder


@pytest.fixture
def nobody(tmp_path, monkeypatch):
    """Does what follows in the folder of the test, without root's right to read and write all."""
    if not hasattr(os, "seteuid"):
        pytest.skip("this system has no permissions of that kind")

    @contextlib.contextmanager
    def become():
        before, around = os.geteuid(), [tmp_path, *tmp_path.parents]
        modes = {place: place.stat().st_mode for place in around}
        hidden = {place: mode for place, mode in modes.items() if not mode & 0o001}
        for place, mode in hidden.items():
            place.chmod(mode | 0o011)
        os.seteuid(before or 65534)
        try:
            yield
        finally:
            os.seteuid(before)
            for place, mode in hidden.items():
                place.chmod(mode)

    monkeypatch.chdir(tmp_path)
    return become
