"""Learning over calls in a row, each from the states that the model itself left."""

from functools import partial
from itertools import islice

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_rnn_prune import pipeline, prune
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import Runner
from onnx_rnn_prune.operators.recurrent import find_layers
from onnx_rnn_prune.recovery.distill.configuration import TrainingConfig

torch = pytest.importorskip("torch", reason="pip install '.[distill]' brings PyTorch")

from onnx_rnn_prune.recovery.distill.batches import APART, Piece, windows  # noqa: E402
from onnx_rnn_prune.recovery.distill.calls import Calls  # noqa: E402
from onnx_rnn_prune.recovery.distill.network import (  # noqa: E402
    build,
    find_region,
    to_torch,
)
from onnx_rnn_prune.recovery.distill.training import Task  # noqa: E402

HIDDEN = 16
SHAPES = {
    "W": (1, 4 * HIDDEN, 4),
    "R": (1, 4 * HIDDEN, HIDDEN),
    "B": (1, 8 * HIDDEN),
    "W2": (1, 3 * HIDDEN, HIDDEN),
    "R2": (1, 3 * HIDDEN, HIDDEN),
    "B2": (1, 6 * HIDDEN),
    "fc": (HIDDEN, 3),
    "kernel": (4, 4, 2),
}
INTEGERS = {"zero": [0], "one": [1], "two": [2], "three": [3], "axis": [1]}
# Both states of an LSTM in one tensor, from which it takes them and into which it puts them again.
PACKED = (
    f"float[t, 1, 4] x, float[2, 1, {HIDDEN}] s",
    f"float[t, 1, 3] y, float[2, 1, {HIDDEN}] sn",
    f"""
        h = Slice (s, zero, one, zero)
        c = Slice (s, one, two, zero)
        Y, hn, cn = LSTM <hidden_size = {HIDDEN}> (x, W, R, B, , h, c)
        flat = Squeeze (Y, axis)
        y = MatMul (flat, fc)
        sn = Concat <axis = 0> (hn, cn)
    """,
)
# The last state of a call is what is read of it, and a layer above starts anew in each call.
LAST = (
    f"float[3, 1, 4] x, float[1, 1, {HIDDEN}] h, float[1, 1, {HIDDEN}] c",
    f"float[1, 1, 3] y, float[1, 1, {HIDDEN}] hn, float[1, 1, {HIDDEN}] cn",
    f"""
        Y, hn, cn = LSTM <hidden_size = {HIDDEN}> (x, W, R, B, , h, c)
        flat = Squeeze (Y, axis)
        Y2, last = GRU <hidden_size = {HIDDEN}, linear_before_reset = 1> (flat, W2, R2, B2)
        both = Add (last, hn)
        y = MatMul (both, fc)
    """,
)
# What comes of a layer waits for the next call before a convolution.
CACHE = (
    f"float[1, 1, 4] x, float[1, 1, {HIDDEN}] h, float[1, 1, {HIDDEN}] c, float[1, 1, 3] s",
    f"float[1, 1, 3] y, float[1, 1, {HIDDEN}] hn, float[1, 1, {HIDDEN}] cn, float[1, 1, 3] sn",
    f"""
        Y, hn, cn = LSTM <hidden_size = {HIDDEN}> (x, W, R, B, , h, c)
        sn = MatMul (hn, fc)
        old = Tanh (s)
        y = Add (sn, old)
    """,
)
# A flag makes the layer forget what it is given.
FLAG = (
    f"float[1, 1, 4] x, float[1, 1, 1] go, float[1, 1, {HIDDEN}] h, float[1, 1, {HIDDEN}] c",
    f"float[1, 1, 3] y, float[1, 1, {HIDDEN}] hn, float[1, 1, {HIDDEN}] cn",
    f"""
        mine = Mul (h, go)
        Y, hn, cn = LSTM <hidden_size = {HIDDEN}> (x, W, R, B, , mine, c)
        y = MatMul (hn, fc)
    """,
)
# The model does not go on from what the layer left, but from half of that.
HALVED = (
    f"float[1, 1, 4] x, float[1, 1, {HIDDEN}] h, float[1, 1, {HIDDEN}] c",
    f"float[1, 1, 3] y, float[1, 1, {HIDDEN}] hn, float[1, 1, {HIDDEN}] cn",
    f"""
        Y, left, cn = LSTM <hidden_size = {HIDDEN}> (x, W, R, B, , h, c)
        hn = MatMul (left, half)
        y = MatMul (left, fc)
    """,
)
STATES = {"h": "hn", "c": "cn", "s": "sn"}
# Each with whether all calls can be computed at once.
MODELS = {
    "packed": (PACKED, True),
    "last": (LAST, True),
    "cache": (CACHE, False),
    "flag": (FLAG, False),
    "halved": (HALVED, False),
}


def made(inputs, outputs, body):
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g ({inputs}) => ({outputs}) {{ {body} }}
    """)
    rng = np.random.default_rng(0)
    values = {name: rng.normal(0, 0.4, shape) for name, shape in SHAPES.items()}
    values["half"] = 0.5 * np.eye(HIDDEN)
    values = {name: value.astype(np.float32) for name, value in values.items()}
    values |= {name: np.array(value) for name, value in INTEGERS.items()}
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in values.items() if name in used
    )
    return model


def sizes_of(model):
    return {
        value.name: [dim.dim_value or 2 for dim in value.type.tensor_type.shape.dim]
        for value in model.graph.input
    }


def drawn(model, calls, rows, seed=1):
    """What some calls are given, [calls, rows, ...], and the states of the first, [rows, ...]."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=(rows, *size) if name in STATES else (calls, rows, *size)).astype(
            np.float32
        )
        for name, size in sizes_of(model).items()
    }


def calls_of(model, wanted=("y",)):
    document = Document.read(model)
    states = {name: STATES[name] for name in sizes_of(model) if name in STATES}
    layers = [layer.name for layer in find_layers(document.graph)]
    network = build(document, find_region(document, layers[:1], states))
    call = {name: to_torch(value[0]) for name, value in drawn(model, 1, 1).items()}
    call = {name: value if name in STATES else value[0] for name, value in call.items()}
    return Calls.of(network, states, wanted, call)


def in_turn(model, given):
    """What onnxruntime computes call by call, with the states carried along."""
    run = Runner(model)
    found = {"y": [], **{name: [] for name in given if name in STATES}}
    series = {name: value for name, value in given.items() if name not in STATES}
    calls, rows = given["x"].shape[:2]
    for row in range(rows):
        states = {name: given[name][row] for name in given if name in STATES}
        shown = []
        for call in range(calls):
            outputs = run({**{n: value[call, row] for n, value in series.items()}, **states})
            states = {name: outputs[STATES[name]] for name in states}
            shown.append(outputs["y"])
        found["y"].append(np.stack(shown))
        for name, value in states.items():
            found[name].append(value)
    stacked = {name: np.stack(values) for name, values in found.items()}
    return {**stacked, "y": stacked["y"].swapaxes(0, 1)}


@pytest.mark.parametrize("name", MODELS)
def test_calls_compute_what_onnxruntime_does_in_turn(name):
    parts, at_once = MODELS[name]
    model = made(*parts)
    given, calls = drawn(model, 5, 3), calls_of(model)
    assert (calls.joined is not None) == at_once
    found = calls({n: to_torch(value) for n, value in given.items()}, {}, ["y"])
    for output, right in in_turn(model, given).items():
        np.testing.assert_allclose(found[output].numpy(), right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, (_, at_once) in MODELS.items() if at_once])
def test_gradients_go_through_the_states_as_they_do_call_by_call(name):
    model = made(*MODELS[name][0])
    given = {n: to_torch(value) for n, value in drawn(model, 5, 3).items()}
    at_once = calls_of(model)
    found = []
    for calls in (at_once, Calls(at_once.network, at_once.states, 5, 3)):
        weights = {n: calls.constants[n].clone().requires_grad_() for n in ("W", "R", "fc")}
        first = given["x"].clone().requires_grad_()
        outputs = calls({**given, "x": first}, weights, ["y"])
        outputs["y"][-1].square().sum().backward()  # of the last call
        assert first.grad[0].abs().max() > 1e-6  # reaches back to the first
        found.append([first.grad, *(part.grad for part in weights.values())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def piece(model, calls, seed):
    """A stream as the model computes it."""
    given = {n: to_torch(v)[:, 0] for n, v in drawn(model, calls, 1, seed).items() if n == "x"}
    state, states, outputs = torch.zeros(sizes_of(model)["s"]), [], []
    run = calls_of(model)
    for call in range(calls):
        states.append(state)
        found = run({"x": given["x"][call][None, None], "s": state[None]}, {}, ["y"])
        outputs.append(found["y"][0, 0])
        state = found["s"][0]
    kept = {"s": torch.stack(states[::APART])}
    return Piece(given, kept, {"y": torch.stack(outputs)}, {})


def test_windows_go_on_from_the_states_that_the_one_before_left():
    model = made(*PACKED)
    pieces = [piece(model, length, seed) for seed, length in enumerate((6, 6, 3 * APART))]
    calls = calls_of(model)
    task = Task(calls, ("W", "R", "fc"), {"y": 1.0}, (), (), None)
    states, found = {}, []
    lessons = list(islice(windows(pieces, 2, 4, 0), 30))
    for lesson in lessons:
        assert lesson.given["x"].shape[:2] == lesson.wanted["y"].shape[:2] == (2, 4)
        loss, states = task.loss(lesson, calls.constants, states)
        found.append(float(loss))
        assert not states["s"].requires_grad
    # The model itself computes what it is to learn, if each window goes on where the last ended.
    assert max(found) < 1e-10
    anew = [n for n, lesson in enumerate(lessons) if "s" in lesson.given]
    assert 0 in anew and len(anew) < len(lessons) / 2


def faint(model, count):
    """With few effects of the last units, which others can learn to make up for."""
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor).copy()
        if tensor.name == "R":
            value[:, :, -count:] *= 0.3
        if tensor.name == "fc":
            value[-count:] *= 0.3
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return model


def streams(model, count, calls, seed):
    rng = np.random.default_rng(seed)
    steps = np.sin(rng.normal(size=(count, calls, 1, 1, 4)).cumsum(1) / 3) * 2
    return [[{"x": step} for step in each] for each in steps.astype(np.float32)]


def closed_loop(original, pruned, data):
    """NRMSE of y with both files' own states carried along."""
    given = {"x": np.array([[call["x"] for call in each] for each in data]).swapaxes(0, 1)}
    given["s"] = np.zeros((len(data), 2, 1, HIDDEN), np.float32)
    right, found = (in_turn(each, given)["y"] for each in (original, pruned))
    return np.sqrt(np.mean((found - right) ** 2)) / right.std()


def test_training_on_streams_brings_the_closed_loop_nearer(monkeypatch):
    monkeypatch.setattr(
        pipeline, "TrainingConfig", partial(TrainingConfig, steps=200, trials=4, rate=0.1)
    )
    model = faint(made(*PACKED), 8)
    data, others = streams(model, 8, 300, 0), streams(model, 8, 300, 1)  # two windows each
    fitted, trained = (
        prune(model, keep=8, data=data, stream=True, recover=recover)
        for recover in ("lstsq", "distill")
    )
    assert trained.report["recovery"]["used"] == "distill", trained.report["recovery"]
    before, after = (closed_loop(model, each.model, others) for each in (fitted, trained))
    assert after < 0.9 * before
    # What only picks the kept states out of those that a caller hands back does not learn.
    ops = [[node.op_type for node in each.model.graph.node] for each in (fitted, trained)]
    assert ops[0] == ops[1] and "Gather" in ops[0]
