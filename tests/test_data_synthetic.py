"""Random feeds are repeatable, fit the model's inputs and find sizes with which it runs."""

import numpy as np
import onnx
import pytest

from onnx_rnn_prune.data import random_feeds
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.runner import Runner
from onnx_rnn_prune.model.signature import Port, inputs

F32 = np.dtype(np.float32)


def shapes(feeds):
    return {name: value.shape for name, value in next(iter(feeds)).items()}


def test_the_same_seed_gives_the_same_feeds():
    ports = (Port("x", F32, ("batch", "time", 5)), Port("n", np.dtype(np.int64), ("batch",)))
    first, again, other = (random_feeds(ports, seed=s, count=3) for s in (0, 0, 1))
    for one, two in zip(first, again, strict=True):
        assert all(np.array_equal(one[name], two[name]) for name in one)
    assert not np.array_equal(next(iter(first))["x"], next(iter(other))["x"])
    assert len({one["x"].tobytes() for one in first}) == 3, "feeds differ from each other"
    assert first.random and first.source == "random, seed 0"


def test_open_sizes():
    ports = (
        Port("x", F32, ("time", "batch", 5)),
        Port("h", F32, (1, "batch", 4)),
        Port("m", np.dtype(bool), ("other", None)),
    )
    found = shapes(random_feeds(ports, seed=0, count=1))
    assert found == {"x": (7, 2, 5), "h": (1, 2, 4), "m": (8, 9)}
    found = shapes(random_feeds(ports, seed=0, count=1, sizes={"time": 30, "m[1]": 1}))
    assert found["x"][0] == 30 and found["m"][1] == 1


def test_types():
    names = ["float16", "float64", "int8", "uint8", "bool", "object"]
    ports = tuple(Port(name, np.dtype(name), (64,)) for name in names)
    feed = next(iter(random_feeds(ports, seed=0, count=1)))
    assert all(feed[name].dtype == name for name in names)
    assert set(feed["int8"]) == {0, 1}
    assert abs(feed["float64"].mean()) < 0.5 < feed["float64"].std() < 1.5


@pytest.mark.parametrize("time_axis", [0, 1])
def test_one_size_under_two_names_is_found_by_trying(time_axis):
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        agraph (float[x_0, x_1, 3] x, float[h_0, 3] h) => (float[batch, 3] y) {{
            mean = ReduceMean <keepdims = 0, axes = [{time_axis}]> (x)
            y = Add(mean, h)
        }}
    """)
    runner = Runner(model)
    feeds = random_feeds(inputs(model), seed=0, count=2, run=runner)
    assert all(runner(feed) for feed in feeds)


def test_the_reason_why_nothing_runs():
    def fail(feed):
        raise PruneError(f"it hates {feed['x'].shape}", where="the model", remedy="feed nothing")

    ports = (Port("x", F32, ("batch", 5)),)
    message = r"\(x: float32\[batch, 5\]\); at last, it hates \(1, 5\); give data"
    with pytest.raises(PruneError, match=message):
        random_feeds(ports, seed=0, count=1, run=fail)


def test_where_all_sizes_are_fixed_nothing_was_guessed():
    def fail(feed):
        raise PruneError("its state is too wide", where="the model", remedy="look at it")

    with pytest.raises(PruneError, match=r"^the model: its state is too wide; look at it$"):
        random_feeds((Port("x", F32, (2, 5)),), seed=0, count=1, run=fail)


@pytest.mark.parametrize("port", [Port("s", None, None), Port("x", F32, None)])
def test_inputs_without_a_shape(port):
    with pytest.raises(PruneError, match=f"which shape the input '{port.name}' has.*; give data"):
        random_feeds((port,), seed=0, count=1)
