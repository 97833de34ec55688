"""How differences are spread and how they develop is the same however the feeds are cut."""

import numpy as np
import onnx
import pytest
from test_validate import SAME, run, scaled

from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.validate import drift, drift_in_detail, time_axes
from onnx_rnn_prune.validate.drift import Course, Spread


def spread(values):
    result = Spread()
    for value in values:
        result.add(np.asarray(value, np.float64))
    return result.histogram()


def course(values):
    result = Course()
    for value in values:
        result.add(np.asarray(value, np.float64))
    return result.over_time()


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e9])
def test_a_histogram_counts_what_numpy_counts(scale):
    values = np.random.default_rng(0).normal(size=20_000) * scale
    found = spread([values])
    assert len(found.edges) == len(found.counts) + 1 <= 61
    assert np.allclose(np.diff(found.edges), found.edges[-1] - found.edges[-2])
    assert found.edges[0] == -found.edges[-1]
    counts, _ = np.histogram(values, found.edges)
    assert np.abs(counts - found.counts).sum() <= 2  # rounding on an edge
    assert sum(found.counts) + found.outside == values.size
    assert 0 < found.outside <= 0.005 * values.size
    assert np.count_nonzero(found.counts) > 15


def test_a_histogram_is_that_of_all_feeds_in_any_order():
    rng = np.random.default_rng(1)
    parts = [rng.normal(size=50) * scale for scale in (0.0, 1e-6, 1.0, 30.0, 0.2)]
    whole = spread([np.concatenate(parts)])
    assert spread(parts) == spread(parts[::-1]) == whole
    values = rng.uniform(-1, 1, 5000)
    growing = np.array_split(values[np.argsort(np.abs(values))], 100)
    assert spread(growing) == spread([values])


def test_few_far_outliers_leave_the_picture_to_the_rest():
    values = np.concatenate([np.random.default_rng(2).normal(size=10_000), [1e3, -2e3]])
    found = spread([values])
    assert found.edges[-1] < 100 and found.outside >= 2


def test_a_histogram_of_nothing():
    assert spread([]) is None
    assert spread([np.zeros(9)]) is None
    assert spread([np.full(3, np.nan)]) is None
    assert sum(spread([[5e-324, 0.0]]).counts) == 2
    one = spread([[0.0, 0.5, np.nan]])
    assert sum(one.counts) == 2 and one.counts[20] == 1


def test_error_over_time_is_that_of_each_step():
    rng = np.random.default_rng(3)
    values = [rng.normal(size=(steps, 4)) for steps in (7, 20, 1)]
    found = course(values)
    assert found.steps == list(range(20))
    for step, rmse in zip(found.steps, found.rmse, strict=True):
        rows = np.concatenate([each[step] for each in values if len(each) > step])
        assert rmse == pytest.approx(np.sqrt(np.mean(rows**2)))


def test_long_sequences_take_no_more_room():
    values = [np.full((steps, 2), 1.0) for steps in (3, 500, 61)]
    values[1][256:] = 3.0
    found = course(values)
    assert course(values[::-1]) == found
    assert len(found.steps) <= 60 and found.steps[1] == 16 and found.steps[-1] == 496
    assert found.rmse == pytest.approx([1.0] * 16 + [3.0] * 16)
    rng = np.random.default_rng(4)
    values = [rng.normal(size=(steps, 3)) for steps in (40, 90, 130)]
    squares = np.sum([np.pad(each, ((0, 160 - len(each)), (0, 0))) ** 2 for each in values], 0)
    counts = [3 * sum(len(each) > step for each in values) for step in range(160)]
    sums = [np.reshape(each, (40, -1)).sum(1)[:33] for each in (squares, counts)]
    assert course(values).rmse == pytest.approx(np.sqrt(sums[0] / sums[1]))


def test_steps_without_numbers_are_left_out():
    assert course([]) is None
    assert course([np.zeros((0, 3))]) is None
    assert course([np.full((2, 2), np.nan)]) is None
    found = course([[[1.0, np.nan], [np.nan, np.nan], [2.0, 2.0]]])
    assert (found.steps, found.rmse) == ([0, 2], [1.0, 2.0])


def test_drift_is_the_same_in_detail():
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(3, 2, (n, 5)).astype(np.float32)} for n in (4, 9, 1)]
    other = scaled(0.9, plus=0.1)
    found, details = drift_in_detail(run(SAME), other, feeds, {"y": 0})
    assert found == drift(run(SAME), other, feeds)
    squares = np.square(details["y"].over_time.rmse) * [15, 10, 10, 10, 5, 5, 5, 5, 5]
    assert np.sqrt(squares.sum() / 70) == pytest.approx(found["y"].rmse)
    assert sum(details["y"].histogram.counts) + details["y"].histogram.outside == 70
    _, details = drift_in_detail(run(SAME), other, feeds, {})
    assert details["y"].over_time is None


def test_differences_are_the_others_less_the_originals():
    feeds = [{"x": np.zeros((2, 2), np.float32)}]
    _, details = drift_in_detail(run(SAME), scaled(1, plus=1), feeds, {})
    counts = details["y"].histogram.counts
    assert sum(counts[:21]) == 0 and sum(counts[21:]) == 4


def test_what_is_no_number_has_no_detail():
    body, signature = "y = Greater(x, zero) zero2 = Identity(zero)", "(float[n] x) => (bool[n] y)"
    body = f"zero = Constant <value_float = 0.0> () {body}"
    feeds = [{"x": np.array([1, -1], np.float32)}]
    _, details = drift_in_detail(run(body, signature), run(body, signature), feeds, {"y": 0})
    assert details["y"].histogram is None and details["y"].over_time is None


def test_infinities_are_left_out():
    feeds = [{"x": np.array([[1, np.inf], [2, 4]], np.float32)}]
    _, details = drift_in_detail(run(SAME), scaled(2), feeds, {"y": 0})
    assert sum(details["y"].histogram.counts) == 3
    assert details["y"].over_time.rmse == pytest.approx([1.0, np.sqrt(10)])


def recurrent(inputs, outputs, body):
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g ({inputs}) => ({outputs}) {{ {body} }}
    """)
    for name, shape in (("W", (1, 12, 3)), ("R", (1, 12, 4)), ("axis", ())):
        array = np.ones(shape, np.float32) if shape else np.array([1])
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return Document.read(model)


GRU = "Y, Y_h = GRU <hidden_size = 4> (x, W, R)"


@pytest.mark.parametrize(
    ("inputs", "outputs", "body", "expected"),
    [
        ("float[t, b, 3] x", "float[a, 1, c, 4] Y, float[1, d, 4] Y_h", GRU, {"Y": 0}),
        ("float[b, t, 3] i", "float[b, t, 4] y, float[1, b, 4] Y_h",
         f"x = Transpose <perm = [1, 0, 2]> (i) {GRU} s = Squeeze (Y, axis) "
         "y = Transpose <perm = [1, 0, 2]> (s)", {"y": 1}),
        ("float[7, b, 3] x", "float[7, 1, b, 4] Y, float[1, b, 4] Y_h", GRU, {}),
        ("float[?, ?, 3] x", "float[?, 1, ?, 4] Y", GRU, {"Y": 0}),
        ("float[t, t, 3] x", "float[t, 1, t, 4] Y, float[1, t, 4] Y_h", GRU, {}),
    ],
)  # fmt: skip
def test_the_axis_of_steps(inputs, outputs, body, expected):
    assert time_axes(recurrent(inputs, outputs, body)) == expected
