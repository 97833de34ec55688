"""Recurrences that were written out become the operators that they are, and nothing else does."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_rnn_prune import PruneError, prune
from onnx_rnn_prune import roll as roll_file
from onnx_rnn_prune.cli import run as command
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.roll.rolling import SHORT, roll
from rolling import (
    STEPS,
    UNITS,
    Graph,
    attributes,
    drawn,
    feeds,
    gru,
    lstm,
    operator,
    operators,
    random_model,
    repeated,
    rnn,
    rolled,
    run,
    started_at_zero,
    unrolled,
)

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
sys.path.append(str(ROOT / "tools"))

from model_feeds import feeds_for  # noqa: E402

# Of fixtures with written-out steps: operator, steps that are one operator, and how many of those.
WRITTEN = {
    "dynamo_lstm_cell": ("LSTM", 7, 1),  # states of 0 are folded out of the first step
    "dynamo_rnn_relu_bi": ("RNN", 7, 2),
    "dynamo_rnn_tanh": ("RNN", 7, 1),
    "keras_torch_gru": ("GRU", 1, 1),
    "keras_torch_lstm": ("LSTM", 1, 1),
    "dynamo_gru_scan": ("GRU", 1, 1),
    "flax_gru": ("GRU", 1, 1),
    "haiku_gru": ("GRU", 1, 1),
    "jax_gru": ("GRU", 1, 1),
    "jax_lstm": ("LSTM", 1, 1),
    "keras_rnn_bi": ("RNN", 1, 2),
    "tf_while_gru": ("GRU", 1, 1),
    "tf_while_lstm": ("LSTM", 1, 1),
    "torchscript_lstm_loop": ("LSTM", 1, 1),
    "keras_gru": ("GRU", 1, 1),
    "tf2onnx_gru_reset_before": ("GRU", 1, 1),
    "tf2onnx_lstm_masked": ("LSTM", 1, 1),
    "tf2onnx_rnn": ("RNN", 1, 1),
    "torchscript_gru_cell": ("GRU", 7, 1),
    "torchscript_lstm_cell": ("LSTM", 7, 1),
}
CELLS = {
    "lstm": lstm,
    "lstm of one product": lambda rng: lstm(rng, form="joint"),
    "peepholes": lambda rng: lstm(rng, form="peepholes"),
    "input gate is 1 - forget gate": lambda rng: lstm(rng, form="coupled"),
    "forget gate is 1 - input gate": lambda rng: lstm(rng, form="coupled_input"),
    "sigmoid by tanh": lambda rng: lstm(rng, form="tanh_gates"),
    "sigmoid by exp": lambda rng: lstm(rng, form="exp_gates"),
    "hard sigmoid by clip": lambda rng: lstm(rng, form="clip_gates"),
    "hard sigmoid": lambda rng: lstm(rng, "HardSigmoid"),
    "gru": gru,
    "gru, reset before": lambda rng: gru(rng, after=False),
    "gru, z turned": lambda rng: gru(rng, turned=True),
    "gru, difference": lambda rng: gru(rng, form="difference"),
    "gru, difference turned": lambda rng: gru(rng, turned=True, form="difference"),
    "minimal gated unit": lambda rng: gru(rng, after=False, minimal=True),
    "rnn": rnn,
    "rnn, relu": lambda rng: rnn(rng, "Relu"),
    "rnn, elu": lambda rng: rnn(rng, "Elu"),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_fixtures_roll(name):
    op, steps, count = WRITTEN[name]
    path = FIXTURES / f"{name}.onnx"
    model, found = rolled(onnx.load(path), feeds_for(path), fewest=1)
    both = name.endswith("_bi")  # and become one in the end
    assert [node.op_type for node in operators(model)] == [op] * (count - both)
    kinds = ("turned", "both directions")
    assert [item.kind for item in found.rolled if item.kind in kinds] == {
        "dynamo_rnn_relu_bi": ["both directions"],
        "keras_rnn_bi": ["turned", "both directions"],
    }.get(name, [])
    written = [item for item in found.rolled if item.kind not in kinds]
    assert [(item.op, item.steps, item.units) for item in written] == [(op, steps, 8)] * count


@pytest.mark.parametrize("name", CELLS)
def test_cells_roll(name):
    backwards = ends = list(CELLS).index(name) % 2 == 1
    step = CELLS[name](np.random.default_rng(3))
    model, found = rolled(unrolled(step, backwards=backwards, ends=ends))
    (node,) = operators(model)
    assert attributes(node)["hidden_size"] == UNITS
    assert attributes(node).get("direction", b"forward") == (
        b"reverse" if backwards else b"forward"
    )
    assert not {item.op_type for item in model.graph.node} & {"MatMul", "Sigmoid", "Tanh", "Exp"}
    assert not found.left


@pytest.mark.parametrize("name", [name for name in CELLS if name != "lstm of one product"])
def test_first_steps_out_of_which_states_of_zero_were_folded_roll(name):
    step = CELLS[name](np.random.default_rng(3))
    _, found = rolled(started_at_zero(unrolled(step)))
    assert [item.steps for item in found.rolled] == [STEPS]


LENGTHS = (5, 1, 24)
KINDS = {"lstm": lstm, "gru": gru, "rnn": rnn}


def long_and_short(model):
    return [feed for steps in LENGTHS for feed in feeds(model, steps)]


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("op", ["Loop", "Scan"])
@pytest.mark.parametrize("kind", KINDS)
def test_bodies_roll(kind, op, backwards):
    step = KINDS[kind](np.random.default_rng(3))
    proto = repeated(step, op, backwards, ends=True)
    model, found = rolled(proto, long_and_short(proto))
    (node,) = operators(model)
    assert attributes(node).get("direction", b"forward") == (
        b"reverse" if backwards else b"forward"
    )
    assert not {item.op_type for item in model.graph.node} & {"Loop", "Scan"}
    assert [(item.kind, item.at) for item in found.rolled] == [(op.lower(), op.lower())]


@pytest.mark.parametrize("start", ["first", "turns", "last"])
def test_loops_that_read_a_part_of_their_input_roll(start):
    """Fewer turns than steps: from the first on, back to it, or from the last one back."""
    mask = None if start == "last" else "where"
    proto = repeated(lstm(np.random.default_rng(3)), "Loop", start != "first", mask, ends=True)
    shape = next(node for node in proto.graph.node if node.op_type == "Shape")
    if start == "last":
        loop = next(node for node in proto.graph.node if node.op_type == "Loop")
        index = next(node for node in loop.attribute[0].g.node if "steps" in node.input)
        index.input[0] = "length"
        made = onnx.helper.make_node
        zero = onnx.numpy_helper.from_array(np.array(0), "front")
        proto.graph.initializer.append(zero)
        proto.graph.node.insert(0, made("Gather", ["all_sizes", "front"], ["length"]))
        proto.graph.node.insert(0, made("Shape", ["x"], ["all_sizes"]))
    shape.input[0] = "shorter"
    port = onnx.helper.make_tensor_value_info("shorter", 1, ["other"])
    proto.graph.input.append(port)
    given = long_and_short(proto)
    for feed in given:
        feed["shorter"] = np.zeros(len(feed["x"]) * 2 // 3 + 1, np.float32)
    model, found = rolled(proto, given)
    assert len(operators(model)) == 1 and not found.left


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize(("op", "how"), [("Loop", "blend"), ("Scan", "where")])
@pytest.mark.parametrize("kind", KINDS)
def test_masked_bodies_roll(kind, op, how, zero):
    """Masks are drawn: all steps count, none do, and any others in between."""
    step = KINDS[kind](np.random.default_rng(3))
    for backwards in (False, True):
        proto = repeated(step, op, backwards, how, zero, ends=True)
        model, _ = rolled(proto, long_and_short(proto))
        assert len(operators(model)) == 1
        assert not {item.op_type for item in model.graph.node} & {"Loop", "Scan"}


@pytest.mark.parametrize("out", ["held", "zero", "own", "ends"])
@pytest.mark.parametrize("kind", KINDS)
def test_masked_steps_roll(kind, out):
    for backwards, how in ((False, "where"), (True, "blend")):
        step = KINDS[kind](np.random.default_rng(3))
        ends = out == "ends"
        proto = unrolled(
            step, backwards=backwards, ends=ends, mask=how, out=out if not ends else "held"
        )
        model, found = rolled(proto)
        assert len(operators(model)) == 1, found.left
        assert not {item.op_type for item in model.graph.node} & {"MatMul", "Sigmoid", "Tanh"}


def turned(graph):
    """Of nodes that may come next, the one comes that came last."""
    rest, made = list(graph.node), {name for node in graph.node for name in node.output}
    del graph.node[:]
    while rest:
        node = next(node for node in rest[::-1] if made.isdisjoint(node.input))
        rest.remove(node)
        made.difference_update(node.output)
        graph.node.append(node)


@pytest.mark.parametrize("mask", [None, "where", "blend"])
@pytest.mark.parametrize("op", ["Loop", "Scan", None])
def test_nodes_may_stand_in_any_order(op, mask):
    """Also those that read c, or say whether it counts, before the one of h."""
    step = lstm(np.random.default_rng(3))
    proto = unrolled(step, mask=mask) if op is None else repeated(step, op, mask=mask)
    loop = next((node for node in proto.graph.node if node.op_type == op), None)
    turned(proto.graph if loop is None else next(a.g for a in loop.attribute if a.name == "body"))
    model, found = rolled(proto)
    assert len(operators(model)) == 1, found.left


@pytest.mark.parametrize(("mask", "turn"), [(None, "Slice"), ("where", "ReverseSequence")])
@pytest.mark.parametrize("joined", ["ys", "h_last", "place"])
@pytest.mark.parametrize("kind", KINDS)
def test_loops_that_read_from_both_ends_become_one_operator(kind, joined, mask, turn):
    """Whether their outputs are joined, of which one is turned back, or their last states.

    These are states, or the last place of the outputs.
    """
    make, rng = onnx.helper.make_node, np.random.default_rng(0)
    zero = mask is not None and joined == "ys"
    model, back = (repeated(KINDS[kind](rng), mask=mask, zero=zero, ends=True) for _ in range(2))
    graph, other = model.graph, onnx.compose.add_prefix(back, "r_").graph
    given = ["x", *(["flags"] if mask else [])]
    if mask:  # and what does not count is 0, as behind the Masking of Keras
        next(port for port in graph.input if port.name == "x").name = "data"
        compared = next(node for node in graph.node if node.op_type == "Greater")
        graph.node.remove(compared)
        counted = make("Cast", ["flags"], ["counted"], to=1)
        for node in (make("Mul", ["data", "counted"], ["x"]), counted, compared):
            graph.node.insert(0, node)
    for name, value in (("m1", -1), ("least", -(1 << 62)), ("time", 0), ("one", 1), ("two", 2)):
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([value]), name))
    graph.node.append(make("Shape", ["x"], ["sizes"]))
    for name, bounds in (("many", "one two"), ("steps_in_all", "time one")):
        graph.node.append(make("Slice", ["sizes", *bounds.split()], [name]))
    graph.node.append(make("Expand", ["steps_in_all", "many"], ["all"]))

    def turned(name, result):
        if turn == "Slice":
            return make(turn, [name, "m1", "least", "time", "m1"], [result])
        return make(turn, [name, "all"], [result], batch_axis=1, time_axis=0)

    graph.node.extend(turned(name, f"r_{name}") for name in given)
    graph.node.extend(node for node in other.node if node.op_type != "Greater")
    graph.initializer.extend(other.initializer)
    graph.input.extend(port for port in other.input if port.name not in ("r_x", "r_mask"))
    ends = [joined, f"r_{joined}"]
    if joined == "ys":
        graph.node.append(turned("r_ys", "turned"))
        ends[1] = "turned"
    elif joined == "place":
        for end, name in zip(ends, ("ys", "r_ys"), strict=True):
            graph.node.append(make("Gather", [name, "m1"], [f"{end}_there"], axis=0))
            graph.node.append(make("Squeeze", [f"{end}_there", "time"], [end]))
    graph.node.append(make("Concat", ends, ["both"], axis=-1))
    del graph.output[:]
    rank = 3 if joined == "ys" else 2
    graph.output.append(onnx.helper.make_tensor_value_info("both", 1, [None] * rank))
    written, found = rolled(model, long_and_short(model))
    kinds = [item.kind for item in found.rolled if item.kind != "turned"]
    assert kinds == ["loop", "loop", "both directions"]
    assert len(operators(written)) == 1
    assert "ReverseSequence" not in {node.op_type for node in written.graph.node}


def test_a_masked_loop_that_reads_what_another_one_gives_rolls():
    rng = np.random.default_rng(0)
    model = repeated(gru(rng), mask="where", zero=True)
    other = repeated(rnn(rng, width=UNITS), mask="where")
    second = onnx.compose.add_prefix(other, "r_").graph
    model.graph.node.append(onnx.helper.make_node("Identity", ["ys"], ["r_x"]))
    model.graph.node.append(onnx.helper.make_node("Identity", ["mask"], ["r_mask"]))
    model.graph.node.extend(second.node)
    weights = [value for value in other.graph.initializer if value.name.endswith("_6")]
    model.graph.initializer.extend([*second.initializer, *weights])  # of its body
    model.graph.input.extend(port for port in second.input if port.name == "r_h0")
    model.graph.output[0].name = "r_ys"
    written, _ = rolled(model, long_and_short(model))
    assert [node.op_type for node in operators(written)] == ["GRU", "RNN"]


@pytest.mark.parametrize("op", ["Identity", "Where"])
def test_steps_of_which_a_truth_value_holds_c_otherwise_stay(op):
    """Not at all, or where another one says so."""
    proto = unrolled(lstm(np.random.default_rng(3)), mask="where")
    nodes = list(proto.graph.node)
    proto.graph.input.append(onnx.helper.make_tensor_value_info("also", 9, ["batch", 1]))
    put = {node.input[1]: node for node in nodes if node.op_type == "Where"}
    for new in [node for node in nodes if node.op_type == "Tanh" and node.input[0] in put]:
        hold = put[new.input[0]]
        hold.op_type = op
        hold.input[:] = [hold.input[1]] if op == "Identity" else ["also", *hold.input[1:]]
    given = feeds(proto)
    for feed in given:
        feed["also"] = feed["also"] > 0
    model, found = rolled(proto, given)
    assert not operators(model) and found.left


@pytest.mark.parametrize("zero", [False, True])
def test_masks_that_compare_with_a_length_become_lengths(zero):
    """No step is moved to the front, where steps that count come first for sure."""
    proto = repeated(lstm(np.random.default_rng(3)), mask="where", zero=zero, ends=True)
    flags = next(node for node in proto.graph.node if node.name == "flags")
    at = list(proto.graph.node).index(flags)
    g = Graph(prefix="prefix_")
    count = g("Gather", g("Shape", "x"), np.int64(0), axis=0)
    numbers = g("Unsqueeze", g("Range", np.int64(0), count, np.int64(1)), np.array([1]))
    shorter = g("Less", numbers, "lengths")
    g.nodes.append(onnx.helper.make_node("Unsqueeze", [shorter, g.constant([2])], ["flags"]))
    proto.graph.node.remove(flags)
    for node in reversed(g.nodes):
        proto.graph.node.insert(at, node)
    for name, value in g.weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    port = next(port for port in proto.graph.input if port.name == "mask")
    port.CopyFrom(onnx.helper.make_tensor_value_info("lengths", 7, ["batch"]))
    given = long_and_short(proto)
    for feed in given:
        feed["lengths"] = np.arange(feed["x"].shape[1]) * len(feed["x"]) // 2
    model, _ = rolled(proto, given)
    assert len(operators(model)) == 1
    assert not {item.op_type for item in model.graph.node} & {"Loop", "TopK"}


@pytest.mark.parametrize(("mask", "axis"), [(None, 0), ("where", 1), (None, -1)])
def test_sequences_that_a_loop_fills_roll(mask, axis):
    proto = repeated(gru(np.random.default_rng(3)), mask=mask, joined=axis)
    model, _ = rolled(proto, long_and_short(proto))
    assert len(operators(model)) == 1
    assert not {item.op_type for item in model.graph.node} & {"Loop", "ConcatFromSequence"}


@pytest.mark.parametrize("how", ["ScatterND", "ScatterElements"])
@pytest.mark.parametrize(("mask", "backwards"), [(None, True), ("where", False), (None, False)])
def test_tensors_that_a_loop_fills_roll(how, mask, backwards):
    step = lstm(np.random.default_rng(3))
    proto = repeated(step, "Loop", backwards, mask, joined=how, ends=True)
    model, _ = rolled(proto, long_and_short(proto))
    assert len(operators(model)) == 1
    assert not {item.op_type for item in model.graph.node} & {"Loop", how}


@pytest.mark.parametrize("way", ["Loop", "Scan", "masked Loop"])
@pytest.mark.parametrize("op", ["LSTM", "GRU", "GRU linear_before_reset", "RNN", "RNN Relu"])
def test_operators_of_one_step_leave_a_body(op, way):
    op, _, more = op.partition(" ")
    choices = {"activations": [more]} if op == "RNN" and more else {more: 1} if more else {}
    step = operator(np.random.default_rng(3), op, **choices)
    mask = "where" if "masked" in way else None
    proto = repeated(step, way.split()[-1], mask=mask, ends=True)
    model, found = rolled(proto, long_and_short(proto))
    assert [node.op_type for node in operators(model)] == [op], found.left
    assert not {item.op_type for item in model.graph.node} & {"Loop", "Scan"}


def test_prune_takes_operators_out_of_a_loop_first():
    report = prune(repeated(operator(np.random.default_rng(3), "LSTM")), keep=0.5).report
    assert [(row.op, row.kind) for row in report["rolled"]] == [("LSTM", "loop")]
    assert [layer["name"] for layer in report["layers"]] == ["loop/LSTM"]


def test_two_cells_in_one_body_become_two_operators():
    rng = np.random.default_rng(3)
    proto = repeated(lstm(rng), two=rnn(rng, width=UNITS), ends=True)
    model, _ = rolled(proto, long_and_short(proto))
    assert [node.op_type for node in operators(model)] == ["LSTM", "RNN"]


def test_nothing_recognised_is_nothing_changed():
    document = Document.read(onnx.load(FIXTURES / "written_17_rnn.onnx"))
    path = FIXTURES / "written_17_rnn.onnx"
    assert roll(document, feeds_for(path)).document is document


def test_a_step_with_other_weights_ends_the_chain():
    """One number differs in step 5 of 8: there are two operators around it."""
    cell = lstm(np.random.default_rng(3))
    count = iter(range(8))

    def step(g, x, h, c):
        before = len(g.nodes)
        result = cell(g, x, h, c)
        if next(count) == 5:
            odd = g.constant(g.weights["R"] + np.eye(UNITS, 4 * UNITS, dtype=np.float32), "odd")
            for node in g.nodes[before:]:
                node.input[:] = [odd if name == "R" else name for name in node.input]
        return result

    model = unrolled(step, steps=8)
    _, found = rolled(model, feeds(model, 8))
    assert [item.steps for item in found.rolled] == [5, 2]


def test_outputs_that_are_inputs_of_the_next_step_are_refused():
    weight = np.eye(UNITS, 5, dtype=np.float32)

    def change(g, number, x, h, outputs):
        return (g("Add", x, g("MatMul", h, weight)) if outputs else x), h

    def through_softmax(g, number, x, h, outputs):
        return (g("Softmax", g("MatMul", outputs[-1], weight)) if outputs else x), h

    model = unrolled(lstm(np.random.default_rng(3)), change=through_softmax)
    _, found = rolled(model)
    assert not found.rolled
    assert list(found.left.values()) == ["what a step reads depends on the states of earlier steps"]
    _, found = rolled(unrolled(lstm(np.random.default_rng(3)), change=change))
    assert [item.steps for item in found.rolled] in ([], [4])  # x enters R by way of h


@pytest.mark.parametrize("how", ["condition", "count"])
def test_an_early_exit_that_depends_on_data_is_refused(how):
    """It stops once the state is large, or takes as many turns as an input says."""
    model = repeated(gru(np.random.default_rng(3)))
    loop = next(node for node in model.graph.node if node.op_type == "Loop")
    given = long_and_short(model)
    if how == "count":
        loop.input[0] = "wanted"
        model.graph.input.append(onnx.helper.make_tensor_value_info("wanted", 7, []))
        given = [{**feed, "wanted": np.array(len(feed["x"]))} for feed in given]
    else:
        body = loop.attribute[0].g
        most = onnx.numpy_helper.from_array(np.array(0.9, np.float32), "most")
        model.graph.initializer.append(most)
        made = onnx.helper.make_node
        largest = made("ReduceMax", [body.output[1].name], ["largest"], keepdims=0)
        body.node.extend([largest, made("Less", ["largest", "most"], ["not_yet"])])
        body.output[0].name = "not_yet"
    _, found = rolled(model, given)
    assert not found.rolled
    assert "its number of iterations depends on the data" in found.left.values()


def test_a_norm_on_one_gate_is_refused():
    cell = lstm(np.random.default_rng(3))

    def step(g, x, h, c):
        before = len(g.nodes)
        result = cell(g, x, h, c)
        at = next(n for n, node in enumerate(g.nodes) if n >= before and node.op_type == "Sigmoid")
        gate = g.nodes[at]
        rest, g.nodes = g.nodes[at:], g.nodes[:at]
        normed = g("LayerNormalization", gate.input[0], np.ones(UNITS), np.zeros(UNITS))
        gate.input[0] = normed
        g.nodes += rest
        return result

    assert not rolled(unrolled(step))[1].rolled


def test_command_writes_a_rolled_file_and_says_what_it_gained(tmp_path, capsys):
    out, report = tmp_path / "rolled.onnx", tmp_path / "rolled.json"
    path = FIXTURES / "tf2onnx_lstm_masked.onnx"
    arguments = ["roll", str(path), "-o", str(out), "--json", str(report), "--size", "x=1x20x5"]
    assert command(arguments) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Rolled: an LSTM of 8 units that was decomposed in the Loop model/lstm" in shown
    assert "Proof: outputs agree to" in shown and "on x [1, 20, 5]" in shown
    found = json.loads(report.read_text("utf-8"))
    assert [(row["op"], row["kind"]) for row in found["rolled"]] == [("LSTM", "loop")]
    assert found["left"] == [] and found["max_abs_diff"] < 1e-5
    assert found["latency"]["speedup"] > 0
    assert len(operators(onnx.load(out))) == 1
    assert command(["roll", str(path), "-o", str(path)]) == 1  # never over the input


def test_a_file_in_which_nothing_is_rolled_is_copied_to_the_byte(tmp_path, capsys):
    path, out = FIXTURES / "keras_torch_gru.onnx", tmp_path / "same.onnx"
    assert command(["roll", str(path), "-o", str(out)]) == 0
    assert out.read_bytes() == path.read_bytes()
    assert "Nothing was rolled" in capsys.readouterr().out


def test_a_single_step_stays_and_the_report_says_why():
    report = roll_file(FIXTURES / "keras_torch_gru.onnx").report
    assert not report.rolled
    assert [row.reason.partition(";")[0] for row in report.left] == [SHORT]


def test_a_file_without_hidden_sizes_is_read_as_it_runs():
    assert not roll_file(FIXTURES / "written_9_lstm.onnx").report.rolled


def test_a_negative_size_is_an_open_one():
    """Some exporters declare open axes so, and onnxruntime ends the process where one is sliced."""
    model = unrolled(gru(np.random.default_rng(0)), 7)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    report = roll_file(model, size={"x": (7, 2, 5), "batch": 2}).report
    assert [row.op for row in report.rolled] == ["GRU"]


def mingru(g, x, h, c):
    """h' = (1 - z) h + z n, where neither z nor n knows h."""
    rng = np.random.default_rng(0)
    z, n = (g("MatMul", x, g.constant(drawn(rng, 5, UNITS), name)) for name in ("Z", "N"))
    z = g("Sigmoid", z)
    return g("Add", g("Mul", g("Sub", 1.0, z), h), g("Mul", z, n)), c


def clipped(g, x, h, c):
    """An RNN whose state is kept within bounds, as cells of TensorFlow can."""
    rng = np.random.default_rng(0)
    w, r = (drawn(rng, size, UNITS) for size in (5, UNITS))
    both = g("Add", g("MatMul", x, g.constant(w, "W")), g("MatMul", h, g.constant(r, "R")))
    return g("Clip", g("Tanh", both), np.float32(-0.5), np.float32(0.5)), c


@pytest.mark.parametrize("how", [unrolled, repeated])
@pytest.mark.parametrize("step", [mingru, clipped])
def test_what_stays_written_out_has_a_reason(step, how):
    report = roll_file(how(step)).report
    assert not report.rolled
    if step is clipped or how is repeated:  # without a product, nothing shows an unrolled one
        assert len(report.left) == 1


def test_models_roll_from_python():
    result = roll_file(onnx.load(FIXTURES / "keras_gru.onnx"))
    assert [row.op for row in result.report.rolled] == ["GRU"]
    assert len(operators(result.model)) == 1
    with pytest.raises(PruneError, match="size=: the model has no input"):
        roll_file(FIXTURES / "keras_gru.onnx", size={"y": 3})


BRANCHES = """
<ir_version: 8, opset_import: ["" : 17]>
cells (float[1] which, float[b, 4] x, float[2, b, 4] state) => (float[2, b, 4] new) {
    zero = Constant <value = float[1] {0}> ()
    up = Greater (which, zero)
    flag = Squeeze (up)
    new = If (flag) <
        then_branch = one () => (float[2, b, 4] s1) {
            f1 = Relu (x) t0 = Constant <value = int64 {0}> () t1 = Constant <value = int64 {1}> ()
            h1 = Gather <axis = 0> (state, t0) c1 = Gather <axis = 0> (state, t1)
            a1 = Gemm (f1, W) r1 = Gemm (h1, R) g1 = Add (a1, r1)
            gi1, gf1, gc1, go1 = Split <axis = 1> (g1)
            i1 = Sigmoid (gi1) k1 = Sigmoid (gf1) n1 = Tanh (gc1) o1 = Sigmoid (go1)
            ck1 = Mul (k1, c1) in1 = Mul (i1, n1) cn1 = Add (ck1, in1) tn1 = Tanh (cn1)
            hn1 = Mul (o1, tn1) axis1 = Constant <value = int64[1] {0}> ()
            hu1 = Unsqueeze (hn1, axis1) cu1 = Unsqueeze (cn1, axis1)
            s1 = Concat <axis = 0> (hu1, cu1)
        },
        else_branch = two () => (float[2, b, 4] s2) { s2 = Identity (state) }
    >
}"""


def test_a_cell_in_a_branch_becomes_an_operator_of_one_step():
    proto = onnx.parser.parse_model(BRANCHES)
    rng = np.random.default_rng(0)
    for name in ("W", "R"):
        value = rng.standard_normal((4, 16)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    feeds = [
        {
            "which": np.array([sign], np.float32),
            "x": rng.standard_normal((3, 4)).astype(np.float32),
            "state": rng.standard_normal((2, 3, 4)).astype(np.float32),
        }
        for sign in (-1, 1)
    ]
    model, found = rolled(proto, feeds, fewest=1)
    assert [(item.op, item.kind) for item in found.rolled] == [("LSTM", "single step")]
    branch = next(node for node in model.graph.node if node.op_type == "If").attribute[0].g
    assert [node.op_type for node in branch.node].count("LSTM") == 1
    assert not rolled(proto, feeds, fewest=2)[1].rolled  # alone, it would gain nothing


def test_inputs_that_are_masked_before_the_loop_do_not_hide_the_cell():
    """As Keras writes Masking: x where a step counts, and 0 times its negation added to it."""
    step = gru(np.random.default_rng(3))
    proto = repeated(step, mask="blend", ends=True)
    body = next(node for node in proto.graph.node if node.op_type == "Loop").attribute[0].g
    gather = next(node for node in body.node if node.input[:1] == ["x"])
    gather.input[0] = "x_masked"
    shown = onnx.helper.make_node
    at = next(n for n, node in enumerate(proto.graph.node) if node.name == "flags") + 1
    nodes = [
        shown("Cast", ["flags"], ["kept"], to=1),
        shown("Mul", ["kept", "x"], ["x_kept"]),
        shown("Not", ["flags"], ["lost"]),
        shown("Cast", ["lost"], ["lost_number"], to=1),
        shown("Mul", ["nothing", "lost_number"], ["added"]),
        shown("Add", ["x_kept", "added"], ["x_masked"]),
    ]
    for node in reversed(nodes):
        proto.graph.node.insert(at, node)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((), "f"), "nothing"))
    model, _ = rolled(proto, long_and_short(proto))
    assert [node.op_type for node in operators(model)] == ["GRU"]


MORE = [pytest.param(seed, marks=pytest.mark.draws) for seed in range(12, 312)]


@pytest.mark.parametrize("seed", [*range(12), *MORE])
def test_random_cells_roll_however_they_are_written(seed):
    proto, steps = random_model(np.random.default_rng(seed))
    model, found = rolled(proto, feeds(proto, steps))
    assert len(operators(model)) == 1, found.left
    kept = {item.op_type for item in model.graph.node}
    assert not kept & {"Loop", "Scan", "MatMul", "Sigmoid", "Tanh"}


def test_an_output_that_declares_another_shape_hides_no_step():
    """Its type is not inferred, so that nothing is seen of what stands beside it either."""
    path = FIXTURES / "torchscript_gru_cell.onnx"
    model, given = onnx.load(path), feeds_for(path)
    model.graph.output[0].name = "/recurrent_4/Split_output_0"  # 8 wide, where 3 are declared
    found = roll(Document.read(model), given, 1)
    for feed in given:
        for one, other in zip(run(model, feed), run(found.document.write(), feed), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_a_body_that_declares_other_shapes_is_left_as_it_is():
    """Onnxruntime takes them for what they are, where it is asked."""
    path = FIXTURES / "tf_while_gru.onnx"
    model, given = onnx.load(path), feeds_for(path)
    (loop,) = (node for node in model.graph.node if node.op_type == "Loop")
    (body,) = (attribute.g for attribute in loop.attribute if attribute.name == "body")
    body.input[3].type.tensor_type.ClearField("shape")
    for size in (24, 24):
        body.input[6].type.tensor_type.shape.dim.add(dim_value=size)
    found = roll(Document.read(model), given, 1)
    np.testing.assert_allclose(
        run(model, given[0])[0], run(found.document.write(), given[0])[0], rtol=0, atol=1e-5
    )


def test_inputs_whose_axes_were_joined_are_read_where_they_are_joined():
    """As of pictures: columns are steps, and channels and rows together are features."""
    model = unrolled(rnn(np.random.default_rng(3), width=6))
    (port,) = [port for port in model.graph.input if port.name == "x"]
    shape = onnx.helper.make_tensor_value_info("picture", 1, ["batch", 2, 3, "time"])
    model.graph.input.remove(port)
    model.graph.input.append(shape)
    model.graph.node.insert(0, onnx.helper.make_node("Reshape", ["turned", "sizes"], ["x"], "join"))
    turn = onnx.helper.make_node("Transpose", ["picture"], ["turned"], "turn", perm=[3, 0, 1, 2])
    model.graph.node.insert(0, turn)
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(np.array([0, 0, 6], np.int64), "sizes")
    )
    assert len(operators(rolled(model)[0])) == 1


BOTH = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[b, t, 5] x, int64[b] given, float[1, b, 6] h0) => (float[b, t, 12] y, float[b, 12] last) {
    xt = Transpose <perm = [1, 0, 2]> (x)
    shape = Shape (x) zero = Constant <value = int64[1] {0}> ()
    one = Constant <value = int64[1] {1}> () two = Constant <value = int64[1] {2}> ()
    batch = Slice (shape, zero, one) time = Slice (shape, one, two)
    all = Expand (time, batch)
    SHORTER
    Y1, H1 = GRU <hidden_size = 6> (xt, W, R, B, LENGTHS)
    turned = ReverseSequence <batch_axis = 0, time_axis = 1> (x, TURNED)
    xr = Transpose <perm = [1, 0, 2]> (turned)
    Y2, H2 = GRU <hidden_size = UNITS> (xr, W2, R2, , LENGTHS, h0)
    y1 = Squeeze (Y1, one) y1t = Transpose <perm = [1, 0, 2]> (y1)
    y2 = Squeeze (Y2, one) y2t = Transpose <perm = [1, 0, 2]> (y2)
    back = ReverseSequence <batch_axis = 0, time_axis = 1> (y2t, TURNED)
    y = Concat <axis = 2> (ORDER)
    h1 = Squeeze (H1, zero) h2 = Squeeze (H2, zero)
    last = Concat <axis = -1> (h1, h2)
}"""


def both_ways(lengths="", turned="all", order="y1t, back", units=6):
    """Two GRUs, one of which reads what was turned around, as tf2onnx writes them."""
    text = BOTH.replace("TURNED", turned).replace("LENGTHS", lengths).replace("ORDER", order)
    text = text.replace("SHORTER", "short = Cast <to = 6> (given)" if lengths else "")
    text = text.replace("UNITS", str(units)).replace("float[1, b, 6]", f"float[1, b, {units}]")
    text = text.replace(
        "int64[b] given, ", "int64[b] given, " if "given" in (lengths, turned) else ""
    )
    text = text.replace("t, 12]", f"t, {6 + units}]").replace("[b, 12]", f"[b, {6 + units}]")
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    shapes = {"W": (1, 18, 5), "R": (1, 18, 6), "B": (1, 36)}
    shapes |= {"W2": (1, 3 * units, 5), "R2": (1, 3 * units, units)}
    for name, shape in shapes.items():
        value = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    given = []
    for time, batch in ((7, 3), (4, 2), (1, 1)):
        feed = {"x": rng.standard_normal((batch, time, 5)).astype(np.float32)}
        feed["h0"] = rng.standard_normal((1, batch, units)).astype(np.float32)
        if turned == "given":
            feed["given"] = rng.integers(1, time + 1, batch)
        given.append(feed)
    return model, given


@pytest.mark.parametrize(
    "choices",
    [{}, {"order": "back, y1t"}, {"lengths": "short", "turned": "given"}],
    ids=["whole", "reverse first", "lengths"],
)
def test_two_operators_that_read_from_both_ends_become_one(choices):
    model, found = rolled(*both_ways(**choices))
    (node,) = operators(model)
    assert attributes(node)["direction"] == b"bidirectional"
    assert "ReverseSequence" not in {node.op_type for node in model.graph.node}
    assert [row.kind for row in found.rolled] == ["turned", "both directions"]


@pytest.mark.parametrize("between", ["Identity (f0)", "Tanh (f0)", "MatMul (f0, V)"])
def test_two_directions_whose_last_states_are_read_become_one(between):
    """Unless weights stand between them and where they meet."""
    text = f"""
    <ir_version: 8, opset_import: ["": 17]>
    g (float[t, b, 5] x) => (float[t, b, 12] y, float[1, b, 6] last) {{
        f, fh = GRU <hidden_size = 6> (x, W, R)
        r, last = GRU <hidden_size = 6, direction = "reverse"> (x, W2, R2)
        f0 = Squeeze (f, one) f1 = {between} r1 = Squeeze (r, one) y = Concat <axis = 2> (f1, r1)
    }}"""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in {
        "W": (1, 18, 5),
        "R": (1, 18, 6),
        "W2": (1, 18, 5),
        "R2": (1, 18, 6),
        "V": (6, 6),
    }.items():
        value = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "one"))
    given = [{"x": rng.standard_normal((4, 2, 5)).astype(np.float32)}]
    made, _ = rolled(model, given)
    directions = [attributes(node).get("direction") for node in operators(made)]
    assert directions == ([None, b"reverse"] if "V" in between else [b"bidirectional"])


def test_operators_of_unequal_size_stay_two():
    model, _ = rolled(*both_ways(units=4))
    assert len(operators(model)) == 2
    assert "ReverseSequence" not in {node.op_type for node in model.graph.node}


def test_a_part_that_is_turned_around_is_not_the_whole():
    """The operator goes on behind the part, in another order than from the back."""
    _, found = rolled(*both_ways(turned="given"))
    assert not found.rolled


@pytest.mark.parametrize("kind", KINDS)
def test_chains_in_both_directions_become_one_operator(kind):
    rng = np.random.default_rng(3)
    model = unrolled(KINDS[kind](rng))
    other = unrolled(KINDS[kind](rng), backwards=True)
    other = onnx.compose.add_prefix(other, "back_")
    same = {f"back_{name}": name for name in ("x", "h0", "c0")}
    for node in other.graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]
    model.graph.node.extend(other.graph.node)
    model.graph.initializer.extend(other.graph.initializer)
    names = [model.graph.output[0].name, other.graph.output[0].name]
    model.graph.node.append(onnx.helper.make_node("Concat", names, ["both"], "join", axis=2))
    model.graph.output[0].name = "both"
    model, _ = rolled(model)
    assert [attributes(node)["direction"] for node in operators(model)] == [b"bidirectional"]
