"""Copies of a layer, one for each step, become one layer on all steps."""

import numpy as np
import pytest

from onnx_rnn_prune import prune, roll
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.roll.rolling import roll as roll_document
from rolling import Graph, drawn, rolled, run

STEPS, WIDTH, UNITS = 6, 5, 4
AXIS = {"keras": 0, "torch": 1, "split": 1, "columns": 2}


def taken(g, sequence, way, step):
    """One step of a sequence [B, T, n], or [T, B, n] for Keras, as [B, n]."""
    if way == "torch":
        return g("Gather", sequence, np.array(step), axis=1)
    if way == "split":
        return g("Squeeze", sequence[step], np.array([1]))
    bounds = [np.array([number]) for number in (step, step + 1, AXIS[way])]
    return g("Squeeze", g("Slice", sequence, *bounds), np.array([AXIS[way]]))


def dense(g, x, way, weight, bias, change=0.0):
    """A dense layer as each exporter writes it."""
    weight, bias = g.constant(weight + change, f"W{change}"), g.constant(bias, "b")
    if way == "torch":
        turned = g.constant(np.ascontiguousarray(g.weights[weight].T), f"turned {weight}")
        return g("Gemm", x, turned, bias, transB=1)
    return g("Add", g("MatMul", x, weight), bias)


def distributed(way="keras", layer=None, order=range(STEPS), units=UNITS, end=None):
    """A model whose layer is copied for each step of its input."""
    rng = np.random.default_rng(0)
    g, weight, bias = Graph(), drawn(rng, WIDTH, units), drawn(rng, units)
    sequence = "x"
    if way == "keras":
        sequence = g("Transpose", "x", perm=[1, 0, 2])
    elif way == "columns":
        sequence = g("Transpose", "x", perm=[0, 2, 1])
    elif way == "split":
        sequence = g("Split", "x", outputs=STEPS, axis=1)
    steps = []
    for number in order:
        x = taken(g, sequence, way, number)
        y = layer(g, x, number) if layer else g("Relu", dense(g, x, way, weight, bias))
        steps.append(g("Unsqueeze", y, np.array([min(AXIS[way], 1)])))
    stacked = g("Concat", *steps, axis=min(AXIS[way], 1))
    g("Identity", end(g, stacked, steps) if end else stacked)
    g.nodes[-1].output[0] = "y"
    return g.model({"x": ["B", STEPS, WIDTH]}, {"y": 3})


def feeds(_):
    rng = np.random.default_rng(1)
    return [{"x": drawn(rng, batch, STEPS, WIDTH)} for batch in (3, 1, 2)]


def products(model):
    return [node.op_type for node in model.graph.node if node.op_type in ("MatMul", "Gemm")]


@pytest.mark.parametrize("order", ([*range(STEPS)], [*range(STEPS)][::-1], [0, 3, 1]), ids=str)
@pytest.mark.parametrize("way", AXIS)
def test_copies_become_one_layer(way, order):
    model = distributed(way, order=order)
    written, found = rolled(model, feeds(model))
    assert products(written) == ["MatMul"]
    assert [(row.kind, row.steps, row.units) for row in found.rolled] == [
        ("copies", len(order), UNITS)
    ]
    assert "copied for" in str(found.rolled[0])


def two_layers(middle, activation):
    rng = np.random.default_rng(2)
    first, second = drawn(rng, WIDTH, middle), drawn(rng, middle, 7)

    def layer(g, x, number):
        inner = g("MatMul", x, g.constant(first, "first"))
        inner = g(activation, inner) if activation else inner
        return g("MatMul", inner, g.constant(second, "second"))

    return layer


def gate(g, x, number):
    """A gated linear unit: one product times the sigmoid of another."""
    rng = np.random.default_rng(3)
    one, two = (g.constant(drawn(rng, WIDTH, UNITS), name) for name in ("one", "two"))
    return g("Mul", g("MatMul", x, one), g("Sigmoid", g("MatMul", x, two)))


def context(g, x, number):
    """An additive score, of a step and of what all steps read."""
    rng = np.random.default_rng(4)
    own, other = (g.constant(drawn(rng, WIDTH, UNITS), name) for name in ("own", "other"))
    if number == 0:
        context.mean = g("ReduceMean", "x", axes=[1], keepdims=0)
    return g("Tanh", g("Add", g("MatMul", x, own), g("MatMul", context.mean, other)))


@pytest.mark.parametrize(
    ("layer", "count"),
    ((two_layers(3, "Relu"), 2), (two_layers(9, "Tanh"), 2), (gate, 2), (context, 2)),
    ids=("narrow", "wide", "gated", "context"),
)
def test_layers_of_several_products_become_one_of_each(layer, count):
    written, _ = rolled(distributed(layer=layer), feeds(None))
    assert products(written) == ["MatMul"] * count


def test_products_that_would_be_larger_when_multiplied_out_stay():
    """5 x 1 and 1 x 7 are 12 weights, their product is 35."""
    model = distributed(layer=two_layers(1, None))
    document = Document.read(model)
    assert roll_document(document, feeds(model)).document is document


def other_weight(g, x, number):
    rng = np.random.default_rng(5)
    return dense(g, x, "keras", drawn(rng, WIDTH, UNITS), drawn(rng, UNITS), float(number == 2))


def sum_of_steps(g, x, number):
    """Steps that are not entries of one tensor."""
    rng = np.random.default_rng(6)
    moved = g("Mul", x, float(number + 1))
    return dense(g, moved, "keras", drawn(rng, WIDTH, UNITS), drawn(rng, UNITS))


@pytest.mark.parametrize("layer", (other_weight, sum_of_steps))
def test_unlike_copies_stay(layer):
    model = distributed(layer=layer)
    document = Document.read(model)
    assert roll_document(document, feeds(model)).document is document


def test_a_step_that_is_read_elsewhere_keeps_all_as_they_are():
    model = distributed(end=lambda g, stacked, steps: g("Add", stacked, steps[2]))
    document = Document.read(model)
    found = roll_document(document, feeds(model))
    assert found.document is document
    assert list(found.left.values()) == ["the output of a single step is read, too"]


def test_half_precision_stays():
    """onnxruntime 1.32 crashes where it fuses a Transpose into a MatMul of half precision."""
    model = distributed()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = 10
    for tensor in model.graph.initializer:
        if tensor.data_type == 1:
            half = np.frombuffer(tensor.raw_data, np.float32).astype(np.float16)
            tensor.data_type, tensor.raw_data = 10, half.tobytes()
    document = Document.read(model)
    found = roll_document(document, [{"x": f["x"].astype(np.float16)} for f in feeds(model)])
    assert found.document is document
    assert ["float16" in reason for reason in found.left.values()] == [True]


def recurrent():
    """An LSTM of 8 units, then a dense layer that is copied for each step."""
    rng = np.random.default_rng(7)
    g = Graph()
    parts = [drawn(rng, *shape) for shape in ((1, 32, WIDTH), (1, 32, 8), (1, 64))]
    weights = [g.constant(part, name) for part, name in zip(parts, "WRB", strict=True)]
    x = g("Transpose", "x", perm=[1, 0, 2])
    states, _, _ = g("LSTM", x, *weights, outputs=3, hidden_size=8)
    states = g("Squeeze", states, np.array([1]))
    weight, bias = drawn(rng, 8, UNITS), drawn(rng, UNITS)
    steps = []
    for number in range(STEPS):
        y = dense(g, taken(g, states, "keras", number), "keras", weight, bias)
        steps.append(g("Unsqueeze", y, np.array([0])))
    g("Concat", *steps, axis=0)
    g.nodes[-1].output[0] = "y"
    return g.model({"x": ["B", STEPS, WIDTH]}, {"y": 3})


def test_a_layer_that_was_copied_is_cut_like_any_other():
    model = recurrent()
    result = prune(model, keep=0.5, data=feeds(model) * 4)
    assert result.report.oracle.passed
    assert [row.kind for row in result.report.rolled] == ["copies"]
    assert products(result.model) == ["MatMul"]
    assert "single" not in str(result.report)


def test_no_roll_leaves_the_copies():
    model = recurrent()
    result = prune(model, keep=0.5, data=feeds(model) * 4, roll=False)
    assert products(result.model) == ["MatMul"] * STEPS


def test_roll_says_what_was_copied():
    result = roll(distributed("torch"))
    assert [str(row) for row in result.report.rolled] == [
        f"a MatMul of {UNITS} units that was copied for {STEPS} steps"
    ]


def scaled(g, x, number):
    """A layer whose sum is shifted by a number that is computed, of no axes."""
    rng = np.random.default_rng(9)
    if number == 0:
        scaled.shift = g("ReduceMean", "x", keepdims=0)
    return g(
        "Relu", g("Add", dense(g, x, "keras", drawn(rng, WIDTH, 4), drawn(rng, 4)), scaled.shift)
    )


def of_constants(g, x, number):
    """A layer to which a product of constants is added."""
    rng = np.random.default_rng(9)
    names = [g.constant(drawn(rng, *shape), n) for n, shape in (("k", (1, 3)), ("V", (3, 4)))]
    return g("Add", dense(g, x, "keras", drawn(rng, WIDTH, 4), drawn(rng, 4)), g("MatMul", *names))


@pytest.mark.parametrize("layer", (scaled, of_constants))
def test_odd_addends_are_computed_as_before(layer):
    model = distributed(layer=layer)
    _, found = rolled(model, feeds(model))
    assert not any("report this" in reason for reason in found.left.values())


def test_a_computed_bound_of_a_clip_hides_nothing():
    def end(g, stacked, steps):
        return g("Clip", stacked, 0.0, g("ReduceMax", "x", keepdims=0))

    model = distributed(end=end)
    written, _ = rolled(model, feeds(model))
    assert products(written) == ["MatMul"]


@pytest.mark.parametrize("doubled", (False, True))
def test_steps_that_two_stacks_need_stay(doubled):
    """They would be computed twice."""

    def end(g, stacked, steps):
        other = g("Concat", *steps[::-1], axis=0)
        return g("Add", stacked, other)

    model = distributed(order=[0, 1, 2, 3], end=None if doubled else end)
    if doubled:
        stack = next(node for node in model.graph.node if node.op_type == "Concat")
        stack.input.extend(list(stack.input))
    document = Document.read(model)
    assert roll_document(document, feeds(model)).document is document


def test_a_window_from_the_end_is_not_one_from_the_front():
    """In sequences of up to 40 steps both are the same, so longer ones are tried."""
    rng, g = np.random.default_rng(0), Graph()
    weight = drawn(rng, WIDTH, UNITS)
    bounds = [np.array([number]) for number in (-40, 1 << 62, 1)]
    window = g("Slice", "x", *bounds)
    steps = []
    for number in range(3):
        y = g("Relu", g("MatMul", taken(g, window, "torch", number), g.constant(weight, "W")))
        steps.append(g("Unsqueeze", y, np.array([1])))
    g("Concat", *steps, axis=1)
    g.nodes[-1].output[0] = "y"
    model = g.model({"x": ["B", "T", WIDTH]}, {"y": 3})
    found = roll(model)
    feed = {"x": drawn(rng, 2, 60, WIDTH)}
    np.testing.assert_allclose(run(model, feed)[0], run(found.model, feed)[0], rtol=0, atol=1e-5)


def test_copies_in_a_branch_stay():
    """Few feeds may take a branch, so that positions could be right for their lengths only."""
    rng, g, inner = np.random.default_rng(0), Graph(), Graph(prefix="then_")
    weight = g.constant(drawn(rng, WIDTH, UNITS), "W")
    steps = []
    for number in range(-3, 0):
        y = inner("MatMul", inner("Gather", "x", np.array(number), axis=1), weight)
        steps.append(inner("Unsqueeze", inner("Relu", y), np.array([1])))
    last = inner("Concat", *steps, axis=1)
    other = Graph(prefix="else_")
    bounds = [np.array([number]) for number in (0, 3, 1)]
    first = other("MatMul", other("Slice", "x", *bounds), weight)
    high = g("Greater", g("ReduceMean", "x", keepdims=0), 0.1)
    branches = {"then_branch": inner.body(last), "else_branch": other.body(first)}
    g("If", high, **branches)
    g.nodes[-1].output[0] = "y"
    model = g.model({"x": ["B", "T", WIDTH]}, {"y": 3})
    given = [{"x": drawn(rng, 2, size, WIDTH) + 1} for size in (20, 40)]
    made = prune(model, keep=1.0, layers="all", data=given * 2).model
    for feed in given:
        np.testing.assert_allclose(run(model, feed)[0], run(made, feed)[0], rtol=0, atol=1e-5)
