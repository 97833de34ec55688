"""How much work is done: memory, runs and walks, which are counted where time would be noise."""

import subprocess
import sys
import tracemalloc
import weakref
from functools import partial

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import rolling
from onnx_rnn_prune.calibration import open_data
from onnx_rnn_prune.evidence.evidence import Tapped
from onnx_rnn_prune.evidence.gates import GateReader
from onnx_rnn_prune.evidence.moments import Moments, MomentStore
from onnx_rnn_prune.evidence.runs import Runs
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import NamedFeed, Streaming
from onnx_rnn_prune.opened_model import follow, written_out
from onnx_rnn_prune.options import Inputs
from onnx_rnn_prune.progress import silent
from onnx_rnn_prune.recovery import least_squares
from onnx_rnn_prune.roll.rolling import roll
from onnx_rnn_prune.selection.context import ScoringContext
from onnx_rnn_prune.selection.criteria import CRITERIA
from onnx_rnn_prune.selection.influence import influence_of
from onnx_rnn_prune.trace.decomposed import find_decomposed
from onnx_rnn_prune.traced_model import trace_model

UNITS, WIDTH = 8, 5
# A process prints the peak of its own resident memory in MB, and may not map more than 4 GB. (The
# peak that getrusage knows of includes what the process that started it had.)
LIMITED = """
import re, resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (1 << 32, 1 << 32))
from onnx_rnn_prune.cli import run
code = run(sys.argv[1:])
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
raise SystemExit(code)
"""


def claiming(size, *, makes):
    """A GRU in a file of a few kB that claims a tensor of many entries.

    Args:
        size: how many.
        makes: whether a constant of that size is made; otherwise a vector of three is declared so.
    """
    rng = np.random.default_rng(0)
    made = """
        all = ConstantOfShape (size)
        some = Slice (all, start, end)
        W = Reshape (some, shape)
    """
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[time, batch, {WIDTH}] x) => (float[time, batch, {UNITS}] y) {{
            {made if makes else "W = Identity (weight)"}
            Y = GRU <hidden_size = {UNITS}> (x, W, R)
            sizes = Shape (Y)
            first = Slice (sizes, start, two)
            last = Slice (sizes, three, four)
            flat = Concat <axis = 0> (first, last)
            y = Reshape (Y, flat)
        }}
    """)
    values = {
        "R": rng.normal(size=(1, 3 * UNITS, UNITS)),
        "weight": rng.normal(size=(1, 3 * UNITS, WIDTH)),
        "shape": [1, 3 * UNITS, WIDTH],
        "size": [size],
        "start": [0],
        "end": [3 * UNITS * WIDTH],
        "two": [2],
        "three": [3],
        "four": [4],
    }
    for name, value in values.items():
        kind = np.int64 if isinstance(value, list) else np.float32
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, kind), name))
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("sizes", 7, [size]))
    return model


def limited(*arguments):
    """Runs a command in a process with little memory; its code, its peak in MB and its errors."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *map(str, arguments)],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    return done.returncode, int(done.stdout.splitlines()[-1]), done.stderr


def peak_of(work):
    """The peak of memory that Python allocates during some work, in bytes."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_outdated_sizes_of_tensors_take_no_memory(tmp_path):
    onnx.save(claiming(1 << 28, makes=False), tmp_path / "model.onnx")
    output = ["-o", tmp_path / "small.onnx", "--budget", "bytes=90%"]
    code, peak, errors = limited("prune", tmp_path / "model.onnx", *output)
    assert code == 0, errors
    assert peak < 300


@pytest.mark.parametrize("command", ["inspect", "prune", "bench"])
def test_constants_that_a_few_bytes_make_large_are_refused(command, tmp_path):
    onnx.save(claiming(1 << 28, makes=True), tmp_path / "model.onnx")
    output = ["-o", tmp_path / "small.onnx"] if command == "prune" else []
    code, peak, errors = limited(command, tmp_path / "model.onnx", *output)
    assert code == 1 and errors.count("\n") == 1
    assert "ConstantOfShape all: it would turn 1 entries into 268435456" in errors
    assert peak < 300


def test_inputs_of_declared_sizes_that_no_feed_has_are_refused(tmp_path):
    model = claiming(3, makes=False)
    held = onnx.helper.make_tensor_value_info("held", onnx.TensorProto.FLOAT, [1 << 31, 3, 2])
    model.graph.input.append(held)
    halves = [f"half{n}" for n in range(2)]
    model.graph.node.append(onnx.helper.make_node("Split", ["held"], halves, axis=0))
    model.graph.output.append(onnx.helper.make_tensor_value_info("half0", 1, None))
    onnx.save(model, tmp_path / "model.onnx")
    code, peak, errors = limited("inspect", tmp_path / "model.onnx")
    assert code == 1 and errors.count("\n") == 1
    assert "input 'held': its shape [2147483648, 3, 2] would take 12884901888 entries" in errors
    assert peak < 300


def chain(steps):
    """A GRU, and behind it a written-out residual network of so many steps."""
    model = claiming(3, makes=False)
    nodes = []
    for step in range(steps):
        before = f"n{step - 1}" if step else "y"
        nodes += [
            onnx.helper.make_node("MatMul", [before, "v"], [f"p{step}"]),
            onnx.helper.make_node("Sigmoid", [f"p{step}"], [f"s{step}"]),
            onnx.helper.make_node("Mul", [f"s{step}", before], [f"m{step}"]),
            onnx.helper.make_node("Tanh", [f"m{step}"], [f"t{step}"]),
            onnx.helper.make_node("Add", [f"t{step}", before], [f"n{step}"]),
        ]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(numpy_helper.from_array(np.eye(UNITS, dtype=np.float32), "v"))
    model.graph.output[0].name = nodes[-1].output[0]
    return model


def calls_in_package(task):
    """How many functions of the package a task calls, and how many others these call."""
    count = 0

    def watch(frame, event, _):
        nonlocal count
        count += event in ("call", "c_call") and "onnx_rnn_prune" in frame.f_code.co_filename

    sys.setprofile(watch)
    try:
        task()
    finally:
        sys.setprofile(None)
    return count


def study_all(opened):
    """Prepares all layers for the cut."""
    names = [layer.name for layer in opened.layers]
    return trace_model(opened, names, open_data(opened, Inputs()).calibration)


@pytest.mark.parametrize(("look", "least"), [(written_out, 50), (study_all, 25)])
def test_walks_take_steps_in_proportion_to_the_nodes(look, least):
    """Twice as many nodes take twice as many calls more; what grows with the square takes four."""
    counts = []
    for steps in (least, 2 * least, 4 * least):
        opened = follow(chain(steps), "model")
        counts.append(calls_in_package(partial(look, opened)))
    assert counts[2] - counts[1] < 2.2 * (counts[1] - counts[0])


def unrolled_cell(steps):
    return rolling.unrolled(rolling.lstm(np.random.default_rng(0)), steps)


def dense_layers(count):
    """No recurrence at all, but as many weights as products."""
    g, x, rng = rolling.Graph(), "x", np.random.default_rng(0)
    for number in range(4 * count):
        weight = g.constant(rolling.drawn(rng, UNITS, UNITS), f"weight_{number}")
        x = g("Add", g("Tanh", g("MatMul", x, weight)), 0.5)
    return g.model({"x": ["batch", UNITS]}, {x: 2})


@pytest.mark.parametrize("make", [unrolled_cell, dense_layers])
def test_recognition_takes_steps_in_proportion_to_the_nodes(make):
    counts = []
    for steps in (20, 40, 80):
        document = Document.read(make(steps))
        feeds = rolling.feeds(document.source, steps)
        recognise = partial(roll, document, feeds)
        look = partial(find_decomposed, document.graph)
        counts.append(calls_in_package(recognise) + calls_in_package(look))
    assert counts[2] - counts[1] < 2.2 * (counts[1] - counts[0])


def wide_gru(units, outputs=2):
    """A GRU of many units, which lead to two outputs, or more."""
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[time, batch, {WIDTH}] x) => (float[time, 1, batch, {outputs}] z) {{
            y = GRU <hidden_size = {units}> (x, W, R)
            z = MatMul (y, V)
        }}
    """)
    rng = np.random.default_rng(0)
    shapes = {"W": (1, 3 * units, WIDTH), "R": (1, 3 * units, units), "V": (units, outputs)}
    for name, shape in shapes.items():
        value = rng.normal(size=shape).astype(np.float32) / units
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    return follow(model, "model")


def influence_peak(opened, feeds):
    """That of following influence through a model with one layer of units, on some feeds."""
    data = open_data(opened, Inputs(data=feeds))
    traced = trace_model(opened, [opened.layers[0].name], data.calibration)
    evidence = data.evidence(traced)
    return peak_of(lambda: influence_of(traced, traced.readers, evidence, data.calibration))


@pytest.fixture(scope="module")
def wide():
    opened = wide_gru(1000)
    data = open_data(opened, Inputs())
    traced = trace_model(opened, [opened.layers[0].name], data.calibration)
    return ScoringContext(traced, data, 0, silent)


@pytest.mark.parametrize("name", ["l1", "l2", "density", "weight-max", "weight-min"])
def test_weights_are_looked_at_without_copies_of_them(name, wide):
    peak = peak_of(lambda: CRITERIA[name].score(wide))
    assert peak < 3 * 1000 * 1000 * 8  # of copies in float64, there were several


def test_influence_on_many_feeds_holds_weights_once():
    units = 400
    opened = wide_gru(units)
    feeds = [{"x": np.full((4, 1, WIDTH), number, np.float32)} for number in range(30)]
    assert influence_peak(opened, feeds) < 8 * 3 * units * units * 4


def dense(outputs):
    """Two dense layers, of which the second has many outputs."""
    g = rolling.Graph()
    rng = np.random.default_rng(0)
    hidden = g("Relu", g("MatMul", "x", rolling.drawn(rng, WIDTH, UNITS)))
    out = g("MatMul", hidden, rolling.drawn(rng, UNITS, outputs))
    return follow(g.model({"x": ["time", 1, WIDTH]}, {out: 3}), "model", ["all"])


@pytest.mark.parametrize("make", [partial(wide_gru, 8), dense])
def test_influence_through_a_vocabulary_is_followed_a_few_steps_at_a_time(make):
    steps, words = 1000, 20000
    opened = make(words)
    feeds = [{"x": np.random.default_rng(0).normal(size=(steps, 1, WIDTH)).astype(np.float32)}]
    assert influence_peak(opened, feeds) < steps * words * 8 / 3


def test_samples_are_added_up_in_parts():
    rng, store = np.random.default_rng(0), MomentStore()
    signal = rng.normal(size=(40_000, 200)).astype(np.float32)
    cut, weights = signal[:, :100].copy(), rng.uniform(size=len(signal))
    peak = peak_of(lambda: (store.gather("z", signal, cut, weights), store.pairs("z")))
    assert peak < signal.nbytes  # in double precision, they take twice as much


def test_derivatives_of_many_sequences_are_computed_a_few_at_a_time():
    units, batch, steps = 64, 256, 200
    opened = wide_gru(units)
    feed = {"x": np.random.default_rng(0).normal(size=(steps, batch, WIDTH)).astype(np.float32)}
    traced = trace_model(opened, [opened.layers[0].name], [feed])
    reader = next(reader for reader in traced.readers if isinstance(reader, GateReader))
    tapped = Tapped(traced.document, [reader], {})
    seen = tapped(feed)
    peak = peak_of(lambda: tapped.importance(reader, seen, tapped.emphasis(reader, seen)))
    assert peak < 4 * steps * batch * units * 4


def test_shapes_are_read_before_tensors_are_freed(tmp_path):
    """Tracing asks for the shapes of all tensors that units reach."""
    channels, size, maps = 8, 512, 40
    lines = [f"m{number + 1} = Relu (m{number})" for number in range(maps)]
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1, 1, {size}, {size}] x) => (float[1, 1, 1, 1] y) {{
            m0 = Conv (x, first)
            {" ".join(lines)}
            pooled = GlobalAveragePool (m{maps})
            y = Conv (pooled, last)
        }}
    """)
    for name, shape in (("first", (channels, 1, 1, 1)), ("last", (1, channels, 1, 1))):
        value = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    onnx.save(model, tmp_path / "model.onnx")
    output = ["-o", tmp_path / "small.onnx", "--keep", "50%", "--layers", "all"]
    code, peak, errors = limited("prune", tmp_path / "model.onnx", *output)
    assert code in (0, 3), errors
    assert peak < 300  # all of them take 320 MB


def test_a_fit_reads_its_moments_a_few_rows_at_a_time():
    rng = np.random.default_rng(0)
    size = 1600
    store = MomentStore.of({"z": Moments.of(rng.normal(size=(200, size)))})
    stays = np.arange(size) < 400

    def fit():
        weight, pairs = np.ones((20, size), np.float32), store.teacher_pairs("z", stays)
        least_squares._fit(lambda rows: weight[rows], np.ones(20, bool), stays, pairs, 0.1)

    assert peak_of(fit) < 0.8 * size * size * 8


def test_rolling_makes_no_copies_of_large_signals_that_are_no_states():
    model, entries, maps = unrolled_cell(4), 600_000, 20
    graph, name = model.graph, "picture"
    graph.input.append(onnx.helper.make_tensor_value_info(name, 1, [1, entries]))
    for number in range(maps):
        graph.node.append(onnx.helper.make_node("Relu", [name], [f"map_{number}"]))
        name = f"map_{number}"
    graph.output.append(onnx.helper.make_tensor_value_info(name, 1, [1, entries]))
    document, feeds = Document.read(model), rolling.feeds(model, 4)
    found = []
    peak = peak_of(lambda: found.append(roll(document, feeds)))
    assert found[0].rolled
    assert peak < maps * entries * 8 / 2


def test_what_was_run_before_is_read_from_its_file_when_it_is_looked_at():
    feed = NamedFeed({}, "one")
    given = {"large": np.arange(9000, dtype=np.float32).reshape(90, 100), "small": np.ones(3)}
    runs = Runs()
    first = runs(feed, given, lambda _: dict(given))
    second = runs(feed, given, lambda _: pytest.fail("it was run before"))
    assert not isinstance(second["large"], np.ndarray)
    for name, value in given.items():
        assert np.array_equal(first[name], value) and np.array_equal(second[name], value)


def test_a_stream_keeps_its_states_and_nothing_else():
    state = np.zeros(2)
    streaming = Streaming(lambda feed: {"y": np.ones(3), "state_out": state}, {"state_out"})
    output = weakref.ref(streaming({})["y"])
    assert output() is None
    follows = NamedFeed({"state": np.ones(2)}, "next", follows={"state": "state_out"})
    assert streaming.given(follows)["state"] is state
