"""Made-up feeds are repeatable, fit the model's inputs and find sizes with which it runs."""

import re
import resource
import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_rnn_prune import compare, inspect, prune
from onnx_rnn_prune.arguments import Sizes
from onnx_rnn_prune.calibration import open_data, proof_feeds
from onnx_rnn_prune.data import random_feeds, sizes
from onnx_rnn_prune.data.shapes import equal
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import Runner
from onnx_rnn_prune.opened_model import open_model, read_model
from onnx_rnn_prune.options import Inputs
from onnx_rnn_prune.trace.states import state_inputs

LSTM = "y, yh, yc = LSTM <hidden_size = 4> (x, w, r)"


def build(body, ports, result="float[p, q, s, t] y", weights=(), opset=17):
    """A model in the text that onnx.parser reads, with random weights of these shapes."""
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> g ({ports}) => ({result}) {{ {body} }}'
    )
    rng = np.random.default_rng(0)
    for name, value in dict(weights).items():
        if isinstance(value, tuple):
            value = (rng.normal(size=value) / 4).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return model


def recurrent(width, gates=4, units=4):
    """The weights of one direction of a layer that reads so many entries."""
    return {"w": (1, gates * units, width), "r": (1, gates * units, units)}


def made(model, count=3, **options):
    document, runner = Document.read(model), Runner(model)
    states = state_inputs(document)
    feeds = list(random_feeds(document, runner, seed=0, count=count, states=states, **options))
    for feed in feeds:
        runner(feed)
    return feeds


def shapes(model, **options):
    return {name: value.shape for name, value in made(model, **options)[0].items()}


def test_the_same_seed_gives_the_same_feeds():
    model = build("y = Mul(x, x)", "float[batch, time, 5] x", "float[a, b, c] y")
    document, runner = Document.read(model), Runner(model)
    first, again, other = (random_feeds(document, runner, seed=s, count=3) for s in (0, 0, 1))
    for one, two in zip(first, again, strict=True):
        assert all(np.array_equal(one[name], two[name]) for name in one)
    assert not np.array_equal(next(iter(first))["x"], next(iter(other))["x"])
    assert len({one["x"].tobytes() for one in first}) == 3, "feeds differ from each other"
    assert first.random and first.source == "random, seed 0"


def test_feeds_are_of_several_sizes():
    model = build(LSTM, "float[time, batch, 5] x", "float[a, b, c, d] y", recurrent(5))
    assert [feed["x"].shape for feed in made(model)] == [(7, 2, 5), (11, 1, 5), (5, 3, 5)]


def test_types():
    names = ["float16", "double", "int8", "uint8", "bool", "string"]
    ports = ", ".join(f"{name}[64] {name}_" for name in names)
    outputs = ", ".join(f"{name}[64] {name}_same" for name in names)
    body = "\n".join(f"{name}_same = Identity({name}_)" for name in names)
    feed = made(build(body, ports, outputs))[0]
    assert all(feed[f"{name}_"].dtype == np.dtype(name) for name in names[:-1])
    assert feed["string_"].dtype == object
    assert set(feed["int8_"]) == {0, 1}
    assert abs(feed["double_"].mean()) < 0.5 < feed["double_"].std() < 1.5


# What stands behind an input, and the shapes that follow from it.
SOLVED = {
    "the width that a layer's W has": (
        LSTM,
        "float[t, n, width] x",
        recurrent(5),
        {"x": (7, 2, 5)},
    ),
    "behind a product and a transposition": (
        """f = MatMul(a, m)
           x = Transpose <perm = [1, 0, 2]> (f)
           y, yh = GRU <hidden_size = 4> (x, w, r)""",
        "float[?, ?, ?] a",
        recurrent(6, gates=3) | {"m": (9, 6)},
        {"a": (2, 7, 9)},
    ),
    "states and lengths": (
        "y, yh, yc = LSTM <hidden_size = 4> (x, w, r, , lengths, h, c)",
        "float[t, n, i] x, int32[k] lengths, float[d, e, f] h, float[?, ?, ?] c",
        recurrent(5),
        {"x": (7, 2, 5), "lengths": (2,), "h": (1, 2, 4), "c": (1, 2, 4)},
    ),
    "inputs side by side": (
        f"x = Concat <axis = 2> (a, b)\n{LSTM}",
        "float[t, n, 2] a, float[u, m, 3] b",
        recurrent(5),
        {"a": (7, 2, 2), "b": (7, 2, 3)},
    ),
    "a mask as long as what it masks": (
        f"m = Unsqueeze(mask, last)\n x = Mul(a, m)\n {LSTM}",
        "float[t, n, f] a, float[u, v] mask",
        recurrent(5) | {"last": np.array([2])},
        {"a": (7, 2, 5), "mask": (7, 2)},
    ),
    "channels of a convolution": (
        f"f = Conv <strides = [2]> (a, k)\n x = Transpose <perm = [2, 0, 1]> (f)\n {LSTM}",
        "float[n, c, t] a",
        recurrent(5) | {"k": (5, 3, 2)},
        {"a": (2, 3, 16)},
    ),
    "a reshape with constants": (
        f"b = Reshape(a, s)\n x = Transpose <perm = [1, 0, 2]> (b)\n {LSTM}",
        "float[n, i] a",
        recurrent(5) | {"s": np.array([0, 6, 5])},
        {"a": (2, 30)},
    ),
    "a reflection longer than the guess": (
        f"""p = Pad <mode = "reflect"> (a, pads)
            f = Conv <strides = [8]> (p, k)
            x = Transpose <perm = [2, 0, 1]> (f)
            {LSTM}""",
        "float[n, 1, samples] a",
        recurrent(5) | {"k": (5, 1, 32), "pads": np.array([0, 0, 24, 0, 0, 24])},
        {"a": (2, 1, 25)},
    ),
    "the height that pooling brings to one": (
        f"""f = Conv <strides = [8, 2]> (a, k)
            s = Squeeze(f, second)
            x = Transpose <perm = [2, 0, 1]> (s)
            {LSTM}""",
        "float[n, 1, height, width] a",
        recurrent(5) | {"k": (5, 1, 16, 4), "second": np.array([2])},
        {"a": (2, 1, 16, 16)},
    ),
    "chunks of a signal": (
        f"b = Reshape(a, s)\n x = Transpose <perm = [1, 0, 2]> (b)\n {LSTM}",
        "float[n, samples] a",
        recurrent(20) | {"s": np.array([0, -1, 20])},
        {"a": (2, 80)},
    ),
    "a picture whose channels come last": (
        f"""p = Transpose <perm = [0, 3, 1, 2]> (a)
            f = Conv <strides = [4, 2]> (p, k)
            t = Transpose <perm = [3, 0, 1, 2]> (f)
            x = Reshape(t, s)
            {LSTM}""",
        "float[a, b, c, d] a",
        recurrent(30) | {"k": (5, 3, 4, 4), "s": np.array([0, 0, -1])},
        {"a": (2, 24, 16, 3)},
    ),
    "8-bit products": (
        f"""q, scale, zero = DynamicQuantizeLinear(a)
            i = ConvInteger <strides = [2]> (q, k, zero)
            f = Cast <to = 1> (i)
            x = Transpose <perm = [2, 0, 1]> (f)
            {LSTM}""",
        "float[n, c, t] a",
        recurrent(5) | {"k": np.ones((5, 3, 4), np.uint8)},
        {"a": (2, 3, 16)},
    ),
    "the only length that a dense layer takes": (
        f"""{LSTM}
            b = Transpose <perm = [2, 1, 0, 3]> (y)
            f = Flatten(b)
            z = Gemm(f, g)""",
        "float[t, n, 5] x",
        recurrent(5) | {"g": (36, 2)},
        {"x": (9, 2, 5)},
    ),
}


@pytest.mark.parametrize("case", SOLVED)
def test_sizes_follow_from_the_graph(case):
    body, ports, weights, expected = SOLVED[case]
    result = "float[p, q] z" if " z = " in body else "float[a0, a1, a2, a3] y"
    model = build(body, ports, result, weights)
    assert shapes(model) == expected
    report = prune(model, keep=0.5, recover="none").report
    assert report["oracle"]["passed"] and report["data"]["random"]


def test_inspect_measures_on_them():
    body, ports, weights, expected = SOLVED["the height that pooling brings to one"]
    found = inspect(build(body, ports, "float[a0, a1, a2, a3] y", weights))
    assert found["timed_on"]["shapes"] == {"a": list(expected["a"])}
    assert found["layers"][0]["time_ms"] is not None


def test_two_sides_of_an_image_grow_together():
    """A convolution takes no side shorter than its kernel, and what is behind, one size only."""
    body = f"""
        f = Conv <strides = [16, 16]> (a, k)
        g = Flatten(f)
        b = Gemm(g, d)
        x = Unsqueeze(b, first)
        {LSTM}"""
    weights = recurrent(5) | {"k": (2, 3, 32, 32), "d": (2 * 13 * 13, 5), "first": np.array([0])}
    model = build(body, "float[n, c, h, w0] a", "float[a0, a1, a2, a3] y", weights)
    assert shapes(model) == {"a": (2, 3, 224, 224)}


@pytest.mark.parametrize("time_axis", [0, 1])
def test_one_size_under_two_names(time_axis):
    model = build(
        f"mean = ReduceMean <keepdims = 0, axes = [{time_axis}]> (x) \n y = Add(mean, h)",
        "float[x_0, x_1, 3] x, float[h_0, 3] h",
        "float[batch, 3] y",
    )
    for feed in made(model):
        assert feed["h"].shape[0] == feed["x"].shape[1 - time_axis]


def test_token_ids_lie_in_their_table():
    model = build(
        f"t = Transpose <perm = [1, 0]> (ids)\n x = Gather(table, t)\n {LSTM}",
        "int64[n, t0] ids",
        "float[a0, a1, a2, a3] y",
        recurrent(5) | {"table": (900, 5)},
    )
    ids = np.concatenate([feed["ids"].ravel() for feed in made(model)])
    assert ids.min() >= 0 and 600 < ids.max() < 900


def test_ids_given_as_floats():
    model = build(
        f"i = Cast <to = 7> (ids)\n x = Gather(table, i)\n {LSTM}",
        "float[t, n] ids",
        "float[a0, a1, a2, a3] y",
        recurrent(5) | {"table": (30, 5)},
    )
    ids = made(model)[0]["ids"]
    assert ids.dtype == np.float32 and np.array_equal(ids, np.floor(ids)) and ids.max() > 9


def test_lengths_are_those_of_the_sequences():
    """Also where layers see shorter sequences than come in."""
    body = """
        f = Conv <strides = [2]> (a, k)
        x = Transpose <perm = [2, 0, 1]> (f)
        less = Sub(lengths, two)
        half = Div(less, two)
        whole = Add(half, one)
        short = Cast <to = 6> (whole)
        y, yh, yc = LSTM <hidden_size = 4> (x, w, r, , short)
    """
    constants = {"one": np.array(1), "two": np.array(2)}
    weights = recurrent(5) | {"k": (5, 3, 2)} | constants
    ports = "float[n, 3, t] a, int64[m] lengths"
    for feed in made(build(body, ports, "float[a0, a1, a2, a3] y", weights)):
        assert set(feed["lengths"]) == {feed["a"].shape[2]}


def test_what_one_number_is_compared_with_is_fed_in_turn():
    """Both branches are taken, so that no layer is left alone."""
    lstm = LSTM.replace("x,", "a,").replace("4", "32")
    body = f"""
        fast = Equal(rate, fast_rate)
        out = If (fast) <
            then_branch = one () => (float[a0, a1, a2, a3] y) {{ {lstm} }},
            else_branch = two () => (float[b0, b1, b2, b3] z) {{
                {lstm.replace("y,", "z,").replace("w, r", "v, u")} }}
        >"""
    other = {"v": (1, 128, 5), "u": (1, 128, 32), "fast_rate": np.array(16000)}
    weights = recurrent(5, units=32) | other
    model = build(body, "float[t, n, 5] a, int64 rate", "float[c0, c1, c2, c3] out", weights)
    assert [int(feed["rate"]) for feed in made(model)] == [16000, 8000, 16000]
    layers = prune(model, keep=0.5).report["layers"]
    assert [layer["hidden_after"] for layer in layers] == [16, 16]


def test_states_are_small_and_settings_positive():
    model = build(
        "s = Mul(x, speed)\n y, yh, yc = LSTM <hidden_size = 4> (s, w, r, , , h, h)",
        "float[t, n, 5] x, float[1] speed, float[1, n, 4] h",
        "float[a0, a1, a2, a3] y",
        recurrent(5),
    )
    for feed in made(model):
        assert 0 < np.abs(feed["h"]).max() < 1 and 0.5 <= feed["speed"][0] <= 1


def test_numbers_that_suit_are_found():
    """No tensor has a negative size."""
    body = f"""
        least = ReduceMin <keepdims = 0> (scale)
        whole = Cast <to = 7> (least)
        size = Unsqueeze(whole, first)
        zeros = ConstantOfShape(size)
        {LSTM}"""
    outputs = "float[a0, a1, a2, a3] y, float[b0] zeros"
    weights = recurrent(5) | {"first": np.array([0])}
    for feed in made(build(body, "float[t, n, 5] x, float[m, 60] scale", outputs, weights)):
        assert feed["scale"].min() >= 0


def test_no_thousands_of_sequences_are_tried():
    """Each is compared with each other one, so that memory would grow with their square."""
    model = build(LSTM, "float[time, batch, 5] x", "float[a, b, c, d] y", recurrent(5))
    tried = []

    def run(feed):
        tried.append(feed["x"].shape)
        raise PruneError("it runs on nothing")

    with pytest.raises(PruneError, match="found no size"):
        random_feeds(Document.read(model), run, seed=0, count=1)
    assert max(batch for _, batch, _ in tried) <= 512 < max(steps for steps, _, _ in tried)


def test_sizes_that_are_asked_for():
    model = build(LSTM, "float[time, batch, 5] x", "float[a, b, c, d] y", recurrent(5))
    assert {f["x"].shape for f in made(model, asked={"x": (30, 4, 5)})} == {(30, 4, 5)}
    assert [f["x"].shape for f in made(model, asked={"time": (30,)})] == [
        (30, 2, 5),
        (30, 1, 5),
        (30, 3, 5),
    ]
    result = prune(model, keep=0.5, size={"batch": 4, "time": 3})
    assert result.report["oracle"]["passed"]
    assert inspect(model, size={"x": "3x4x5"})["timed_on"]["shapes"] == {"x": [3, 4, 5]}
    assert compare(model, model, size={"time": 3})["passed"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"y": 3}, "no input or dimension named 'y'; its inputs are x: float32.time, batch, 5."),
        ({"tim": 3}, "no input or dimension named 'tim'; did you mean 'time'"),
        ({"x": (3, 4)}, "input 'x': it has 3 axes, but 3x4 has 2; give one size for each axis"),
        ({"x": (3, 4, 6)}, "it has size 6 on axis 2, but the model expects 5"),
        ({"x": (3, 4, 5), "time": 4}, "'time' cannot be both 3 and 4"),
        ({"time": 0}, "time=0 is not a size; give input=1x512 or dimension=4"),
        ({"x": "3x?"}, "x=3x. is not a size"),
        ([3], "does not map inputs to sizes"),
    ],
)
def test_sizes_that_do_not_fit(asked, message):
    model = build(LSTM, "float[time, batch, 5] x", "float[a, b, c, d] y", recurrent(5))
    with pytest.raises(PruneError, match=f"^size=.*{message}"):
        inspect(model, size=asked)


def test_sizes_beside_data():
    model = build(LSTM, "float[time, batch, 5] x", "float[a, b, c, d] y", recurrent(5))
    with pytest.raises(
        PruneError, match="it applies to random inputs only, not to data=; leave one of the two out"
    ):
        prune(model, data={"x": np.zeros((3, 1, 5))}, size={"time": 3})


def test_sizes_read_from_text():
    assert Sizes().read({"x": "1x512", "batch": "4", "y": 3}, "--size") == {
        "x": (1, 512),
        "batch": (4,),
        "y": (3,),
    }


def test_a_refusal_names_the_axis_and_the_option():
    """Whatever its sizes, a place behind the end of a table is asked for."""
    body = f"""
        shape = Shape(a)
        place = Add(shape, far)
        row = Gather(table, place)
        flat = Unsqueeze(a, first)
        x = Concat <axis = 2> (flat, flat, flat, flat, flat)
        {LSTM}"""
    constants = {"far": np.array(3), "first": np.array([2]), "table": np.zeros(3, np.float32)}
    outputs = "float[p, q, s, t] y, float[o] row"
    model = build(body, "float[n, samples] a", outputs, recurrent(5) | constants)
    message = r"found no size of axis 0 of input 'a' for which .*size=\{'a': '16000x1'\}$"
    with pytest.raises(PruneError, match=message):
        prune(model, keep=0.5)
    assert re.search(message, inspect(model)["warnings"][-1])


def test_a_size_that_is_asked_for_and_does_not_do():
    model = build(LSTM, "float[time, batch, width] x", "float[a, b, c, d] y", recurrent(5))
    message = r"^size=: the model does not run with width=6, whatever .*W must have shape"
    with pytest.raises(PruneError, match=message):
        inspect(model, size={"width": 6})


def test_where_all_sizes_are_fixed_nothing_was_guessed():
    model = build("y = Add(x, z)", "float[2, 5] x, float[3, 5] z", "float[a, b] y")

    def fail(feed):
        raise PruneError("its state is too wide", where="the model", remedy="look at it")

    with pytest.raises(PruneError, match=r"^the model: its state is too wide; look at it$"):
        random_feeds(Document.read(model), fail, seed=0, count=1)


@pytest.mark.parametrize(
    ("dims", "asked", "message"),
    [
        ("268435456, 1, 3", {}, "axis 0 of input 'x' has size 268435456.*give data, or declare"),
        ("time, 268435456, 3", {}, "axis 1 of input 'x' has size 268435456"),
        (
            "time, 1, 3",
            {"x": "268435456x1x3"},
            "axis 0 of input 'x'.*268435456.*lower size=",
        ),
        ("time, batch, 3", {"time": 1 << 28, "batch": 1}, "axis 0 of input 'x' has size 268435456"),
    ],
)
def test_a_size_that_no_one_can_want_made_up(dims, asked, message):
    """Whether the file claims it or the user: nothing of that size is allocated."""
    model = build(LSTM, f"float[{dims}] x", weights=recurrent(3))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 30), before[1]))
    try:
        with pytest.raises(PruneError, match=message) as caught:
            made(model, asked=Sizes().read(asked, "--size"))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dims", ["0, batch, 3", "time, 0, 3", "time, batch, 0"])
def test_an_input_that_is_declared_empty_is_refused(dims):
    """Before anything runs: at length 0, onnxruntime would end the process."""
    model = build(LSTM, f"float[{dims}] x", weights=recurrent(3))
    with pytest.raises(PruneError, match="axis . of input 'x' has size 0"):
        made(model)


def test_a_prune_without_data_is_proven_on_several_sizes():
    opened = open_model(build(LSTM, "float[time, batch, 5] x", "float[a, b, c, d] y", recurrent(5)))
    feeds = proof_feeds(opened, open_data(opened, Inputs()).validation)
    assert [feed["x"].shape for feed in feeds] == [(7, 2, 5), (11, 1, 5), (5, 3, 5)]


def test_models_as_exporters_write_them_need_few_runs():
    count = 0
    for path in sorted((Path(__file__).parents[1] / "fixtures").glob("*.onnx")):
        opened = read_model(path)
        if opened.invalid_nodes:
            continue
        runs = []

        def run(feed, runner=opened.run(), runs=runs):  # noqa: B008
            runs.append(feed)
            return runner(feed)

        feeds = random_feeds(opened.document, run, seed=0, count=3)
        assert len(runs) < 15 and all(map(run, feeds))
        count += 1
    assert count > 60


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (LSTM, (7, 2, 5)),
        (f"t = Unsqueeze(x0, second)\n x = Transpose <perm = [1, 0, 2]> (t)\n {LSTM}", (2, 5)),
    ],
)
def test_inputs_without_a_shape(body, expected):
    """The graph takes one number of axes only."""
    weights = recurrent(5) | {"second": np.array([1])}
    name = "x0" if "x0" in body else "x"
    model = build(body, f"float[t] {name}", "float[a, b, c, d] y", weights)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    assert shapes(model) == {name: expected}


def test_a_shape_that_is_asked_for():
    model = build(LSTM, "float[t] x", "float[a, b, c, d] y", recurrent(5))
    model.graph.input[0].type.tensor_type.ClearField("shape")
    assert shapes(model, asked={"x": (3, 2, 5)}) == {"x": (3, 2, 5)}


def test_inputs_that_are_no_tensors():
    model = build("y = Identity(x)", "float[a] x", "float[a] y")
    model.graph.input.append(
        onnx.helper.make_tensor_sequence_value_info("s", onnx.TensorProto.FLOAT, None)
    )
    with pytest.raises(PruneError, match="declare the shape of input 's'.*; give data"):
        random_feeds(Document.read(model), print, seed=0, count=1)


def test_attributes_out_of_range_name_no_axis():
    """Any number but 0 transposes; an axis that is not there is nobody's."""
    gemm = onnx.helper.make_node("Gemm", ["a", "b"], ["y"], transA=2**31, transB=-3)
    assert list(equal(gemm, {"a": (2, 3), "b": (4, 5)})) == [(2, 5)]
    turned = onnx.helper.make_node("ReverseSequence", ["a", "n"], ["y"], batch_axis=9)
    assert not list(equal(turned, {"a": (2, 3), "n": (3,)}))


def test_where_a_large_size_takes_long_in_vain_no_larger_one_is_tried(monkeypatch):
    document, tried = Document.read(build("y = MatMul(x, v)", "float[a, b, c] x, float[3] v")), []

    def run(feed):
        tried.extend(feed["x"].shape)
        raise PruneError("axis 255")

    monkeypatch.setattr(sizes, "_PATIENCE", -1)
    with pytest.raises(PruneError, match="axis 255"):
        random_feeds(document, run, seed=0, count=1)
    assert max(tried) == 1600


def test_sizes_with_which_a_model_does_not_run_leave_no_feeds_behind():
    document, fed = Document.read(build("y = MatMul(x, v)", "float[a, b, c] x, float[3] v")), []

    def run(feed):
        fed.extend(map(weakref.ref, feed.values()))
        assert sum(ref() is not None for ref in fed) <= 2 * len(feed)
        raise PruneError("too wide") from ValueError()

    with pytest.raises(PruneError, match="too wide"):
        random_feeds(document, run, seed=0, count=1)
    assert len(fed) > 10
