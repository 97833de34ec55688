"""Models that are called step by step, and the calls of whole episodes."""

import numpy as np
import onnx.parser
from onnx import numpy_helper

from onnx_rnn_prune.model.runner import Runner

HIDDEN, STEPS, EPISODES = 16, 12, 12
STATES = {"h": "hn", "c": "cn"}
TEXT = f"""
    <ir_version: 8, opset_import: ["" : 17]>
    policy (float[t, 1, 4] x, float[1, 1, {HIDDEN}] h, float[1, 1, {HIDDEN}] c)
        => (float[t, 1, 3] y, float[1, 1, {HIDDEN}] hn, float[1, 1, {HIDDEN}] cn) {{
        Y, hn, cn = LSTM <hidden_size = {HIDDEN}> (x, W, R, B, , h, c)
        flat = Squeeze (Y, axis)
        y = MatMul (flat, fc)
    }}
"""


def policy(spread=1.6, hidden=HIDDEN):
    """A policy: one step a call, or a whole episode in one."""
    rng = np.random.default_rng(3)
    model = onnx.parser.parse_model(TEXT.replace(f"{HIDDEN}", f"{hidden}"))
    weights = {
        "W": rng.normal(0, 0.5, (1, 4 * hidden, 4)),
        "R": rng.normal(0, spread / np.sqrt(hidden), (1, 4 * hidden, hidden)),
        "B": rng.normal(0, 0.3, (1, 8 * hidden)),
        "fc": rng.normal(0, 0.5, (hidden, 3)),
    }
    values = {name: value.astype(np.float32) for name, value in weights.items()}
    values["axis"] = np.array([1], np.int64)
    model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in values.items())
    return model


def episodes(count=EPISODES, seed=0):
    """Observations [steps, 1, 4] of each episode, which change slowly."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(count, STEPS, 1, 4))
    for step in range(1, STEPS):
        noise[:, step] = 0.8 * noise[:, step - 1] + 0.6 * noise[:, step]
    return list(noise.astype(np.float32))


def zeros():
    return {name: np.zeros((1, 1, HIDDEN), np.float32) for name in STATES}


def whole(observed):
    """A feed for each episode."""
    return [{"x": episode, **zeros()} for episode in observed]


def calls(model, observed):
    """A feed for each call, with the states that the original carries along."""
    run, feeds = Runner(model), []
    for episode in observed:
        states = zeros()
        for step in episode:
            feeds.append({"x": step[None], **states})
            outputs = run(feeds[-1])
            states = {name: outputs[output] for name, output in STATES.items()}
    return feeds


def bare(observed):
    """The calls of each episode without states."""
    return [[{"x": step[None]} for step in episode] for episode in observed]


def decoder():
    """Says which of 6 tokens comes next, one a call."""
    rng = np.random.default_rng(5)
    text = TEXT.replace("float[t, 1, 4] x", "int64[1, 1] token").replace("t, 1, 3", "1, 1, 6")
    text = text.replace("Y, hn", "x = Gather (E, token)\n        Y, hn").replace("] y", "] logits")
    text = text.replace("y = MatMul", "logits = MatMul")
    model = onnx.parser.parse_model(text)
    values = {t.name: numpy_helper.to_array(t) for t in policy().graph.initializer}
    values["E"] = rng.normal(0, 2, (6, 4)).astype(np.float32)
    values["fc"] = rng.normal(0, 2, (HIDDEN, 6)).astype(np.float32)
    model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in values.items())
    return model


def greedy(run, token, count):
    """The tokens that follow one, each being the answer to the one before."""
    found, states = [], zeros()
    for _ in range(count):
        outputs = run({"token": np.array([[token]]), **states})
        states = {name: outputs[output] for name, output in STATES.items()}
        token = int(outputs["logits"].argmax())
        found.append(token)
    return found


def words(model, count=12, length=8):
    """Streams of calls; the first of each has the tokens that the model itself goes on with."""
    run, rng = Runner(model), np.random.default_rng(2)
    parts = []
    for _ in range(count):
        drawn = rng.integers(0, 6, length)
        part = [{"token": np.array([[token]])} for token in drawn]
        parts.append([{**part[0], "labels": np.array(greedy(run, drawn[0], length))}, *part[1:]])
    return parts
