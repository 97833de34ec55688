"""Each criterion finds what it looks for; users may sum them or bring their own."""

import sys
import types

import numpy as np
import onnx
import pytest

import onnx_rnn_prune
from onnx_rnn_prune.calibration import Calibration
from onnx_rnn_prune.data import open_feeds
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.evidence.readers import Lookup
from onnx_rnn_prune.evidence.steps import Steps
from onnx_rnn_prune.model import signature
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.opened_model import open_model
from onnx_rnn_prune.operators.recurrent import find_layers
from onnx_rnn_prune.passes.cut import Zero
from onnx_rnn_prune.progress import silent
from onnx_rnn_prune.selection.context import ScoringContext, order_of_leaving
from onnx_rnn_prune.selection.criteria import CRITERIA
from onnx_rnn_prune.selection.criteria.ablation import MaskedModel
from onnx_rnn_prune.selection.criteria.reconstruction import Demand, greedy_gains
from onnx_rnn_prune.selection.criterion import parse_criterion
from onnx_rnn_prune.selection.influence import adjoints, influence_of
from onnx_rnn_prune.traced_model import trace_model
from oracle.check import draw_case, runner
from oracle.draw import draw_model
from oracle.widen import BATCH, add_unit, draw_weights, widened_model

LAYERS = [(op, d) for op in ("LSTM", "GRU", "RNN") for d in (1, 2)]


def feeds():
    rng = np.random.default_rng(5)
    return [{"x": rng.normal(0, 1, (20, BATCH, 3)).astype(np.float32)} for _ in range(3)]


def context_of(model, given):
    source = open_feeds(given, signature.inputs(model), frozenset())
    traced = trace_model(open_model(model), ["layer"], source)
    return ScoringContext(traced, Calibration(source, source, source, given=True), 0, silent)


def planted(op, directions, *kinds):
    """Scores may be asked of a layer of five units with planted ones behind them."""
    weights = draw_weights(op, directions, 5, seed=3)
    rng = np.random.default_rng(4)
    for kind in kinds:
        weights = add_unit(weights, kind, rng)
    return context_of(widened_model(weights), feeds())


def lanes_of(context, scores):
    return scores[context.traced.trace.units.lanes["layer"]]


NEEDING_TORCH = ("fisher", "taylor")
NAMES = [
    pytest.param(name, marks=pytest.mark.torch) if name in NEEDING_TORCH else name
    for name in CRITERIA
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("op", "directions"), LAYERS)
def test_every_criterion_gives_each_unit_a_finite_score(name, op, directions):
    context = planted(op, directions, "dead", "duplicate")
    scores = CRITERIA[name].score(context)
    assert scores.shape == (context.traced.trace.units.count,) and np.isfinite(scores).all()
    assert np.array_equal(scores, CRITERIA[name].score(context)), "the same again"


@pytest.mark.parametrize(("op", "directions"), LAYERS)
def test_a_dead_unit_costs_nothing(op, directions):
    context = planted(op, directions, "dead")
    for lane in lanes_of(context, CRITERIA["ablation"].score(context)):
        assert lane[5] < 1e-9 * lane[:5].min()


@pytest.mark.parametrize("name", ["correlation", "reconstruction"])
@pytest.mark.parametrize(("op", "directions"), LAYERS)
def test_of_two_units_that_do_the_same_one_goes_first(name, op, directions):
    context = planted(op, directions, "duplicate")
    for lane in lanes_of(context, CRITERIA[name].score(context)):
        assert lane.argmin() in (0, 5)


@pytest.mark.parametrize(("op", "directions"), LAYERS)
def test_of_two_units_with_equal_rows_one_goes_first(op, directions):
    weights = draw_weights(op, directions, 6, seed=3)
    for array, axis in ((weights.w, 2), (weights.r, 2), (weights.b, 3)):
        lines = np.moveaxis(array, axis, 0)
        lines[4] = lines[1]
    context = context_of(widened_model(weights), feeds())
    for lane in lanes_of(context, CRITERIA["cosine"].score(context)):
        assert lane.argmin() in (1, 4)
        assert lane[1] < 1e-6 or lane[4] < 1e-6


def test_pooled_weights_are_those_of_the_formula():
    context = planted("LSTM", 1)
    weights = draw_weights("LSTM", 1, 5, seed=3)
    for unit in range(5):
        own = [weights.w[0, :, unit], weights.r[0, :, unit], weights.r[0, :, :, unit]]
        all_of = np.abs(np.concatenate([part.ravel() for part in (*own, weights.v[0, unit])]))
        for name, value in {
            "l1": all_of.sum(),
            "l2": np.sqrt((all_of**2).sum()),
            "weight-mean": all_of.mean(),
            "weight-max": all_of.max(),
            "weight-min": all_of.min(),
        }.items():
            assert CRITERIA[name].score(context)[unit] == pytest.approx(value, rel=1e-5), name


def test_density_counts_zeros():
    weights = draw_weights("GRU", 1, 5, seed=3)
    weights.w[0, :, 2], weights.r[0, :, 2] = 0.0, 0.0
    context = context_of(widened_model(weights), feeds())
    scores = CRITERIA["density"].score(context)
    assert scores.argmin() == 2 and (np.delete(scores, 2) > 0.7).all()


def scaled(op, shape):
    """A layer of two directions whose Y meets a constant for each unit, before it is read."""
    model = widened_model(draw_weights("GRU", 2, 5, seed=3))
    scale = np.broadcast_to(np.array([0.5, 1, 2, 3, 4], np.float32), shape)
    model.graph.initializer.append(onnx.numpy_helper.from_array(scale, "scale"))
    names = ["Y", "scale", "Y"] if op == "Where" else ["Y", "scale"]
    if op == "Where":
        names[0] = "which"
        which = np.broadcast_to(np.array([True, False, True, True, True]), shape)
        model.graph.initializer.append(onnx.numpy_helper.from_array(which, "which"))
    model.graph.node.insert(1, onnx.helper.make_node(op, names, ["scaled"]))
    model.graph.node[2].input[0] = "scaled"
    return model


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("op", ["Mul", "Where"])
def test_how_a_constant_that_units_meet_is_written_does_not_matter(op, name):
    """Repeated along the directions or not: it is no weight, and what is computed is the same."""
    score = CRITERIA[name].score
    wanted = score(context_of(scaled(op, (2, 1, 5)), feeds()))
    for shape in ((5,), (1, 1, 5), (1, 1, 1, 5)):
        assert score(context_of(scaled(op, shape), feeds())) == pytest.approx(wanted), shape


@pytest.mark.parametrize("options", [{}, {"sparsify": "50%"}, {"criterion": "l1"}])
def test_directions_that_meet_one_constant_are_cut_without_data(options):
    result = onnx_rnn_prune.prune(scaled("Mul", (1, 1, 5)), keep=3, **options)
    assert result.report["layers"][0]["hidden_after"] == 3 and result.report["oracle"]["passed"]


@pytest.mark.parametrize("seed", range(40))
def test_masks_as_an_input_do_what_zero_does(seed):
    case = draw_case(draw_model(seed), seed)
    if any(layer.cell.scales for layer in find_layers(case.traced.document.graph)):
        pytest.skip("layers in 8 bits cannot be masked")
    trace, keep = case.traced.trace, case.plan.mask(case.traced.trace)
    zeroed = case.traced.document.copy()
    Zero(trace, keep)(zeroed)
    masked, zeros = MaskedModel(case.traced), runner(zeroed.write(), False)
    for feed in case.feeds:
        for name, value in masked(feed, keep).items():
            assert np.allclose(value, zeros(feed)[name], atol=1e-5), name


def test_the_most_alike_pair_is_parted_first():
    likeness = np.array([[1, 0.9, 0.1], [0.9, 1, 0.2], [0.1, 0.2, 1]])
    scores = order_of_leaving(likeness, np.array([1.0, 2.0, 3.0]))
    assert scores == pytest.approx([0.1, 0.8, 1.0])


def test_a_sum_of_criteria_is_one_of_ranks():
    context = planted("GRU", 2)
    ranks = [
        CRITERIA[name].score(context)[context.traced.trace.units.lanes["layer"]].argsort().argsort()
        / 4
        for name in ("l2", "activation")
    ]
    found = lanes_of(context, parse_criterion("2*l2 + 0.5*activation").score(context))
    assert found == pytest.approx(2 * ranks[0] + 0.5 * ranks[1])
    assert parse_criterion("2*l2+activation").needs == "evidence"
    assert parse_criterion("l2+l1").needs == "weights"


@pytest.mark.parametrize(
    "text", ["", "best", "l2+", "l2+best", "x*l2", "nan*l2", "l2*2", "inf*l2", "2**l2"]
)
def test_what_is_no_criterion_is_refused(text):
    with pytest.raises(PruneError, match=r"^criterion=: "):
        parse_criterion(text)


@pytest.fixture
def mine(monkeypatch):
    module = types.ModuleType("my_criteria")
    monkeypatch.setitem(sys.modules, "my_criteria", module)
    return module


def test_a_function_of_the_users_ranks_units(mine, model, clips):
    seen = []

    def last(lane):
        seen.append(lane)
        return np.arange(lane.R.shape[1])

    mine.last = last
    plan = onnx_rnn_prune.plan(str(model), keep=2, criterion="my_criteria:last", data=str(clips))
    assert plan.layers["rnn"].keep == ((4, 5),)
    (lane,) = seen
    assert (lane.layer, lane.op, lane.direction) == ("rnn", "GRU", 0)
    assert lane.W.shape == (18, 4) and lane.B.shape == (36,) and lane.activity.shape == (6,)
    onnx_rnn_prune.plan(str(model), keep=2, criterion="my_criteria:last")
    assert seen[-1].activity is None


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.ones(3), r"returned shape \[3\]"), (np.full(6, np.nan), "not 6 finite"), (1 / 3, r"\[\]")],
)
def test_a_function_that_returns_something_else_is_named(mine, value, message, model):
    mine.wrong = lambda lane: value
    with pytest.raises(PruneError, match=message) as caught:
        onnx_rnn_prune.plan(str(model), keep=2, criterion="my_criteria:wrong")
    assert str(caught.value).startswith("my_criteria:wrong: ")


def test_a_function_that_fails_is_named(mine, model):
    mine.fails = lambda lane: lane.missing
    with pytest.raises(PruneError, match="it failed on rnn with AttributeError"):
        onnx_rnn_prune.plan(str(model), keep=2, criterion="my_criteria:fails")


@pytest.mark.parametrize(
    "name", [n for n, c in CRITERIA.items() if c.needs in ("feeds", "evidence")]
)
def test_criteria_that_look_at_activations_need_data(name, model):
    with pytest.raises(PruneError, match=f"{name} needs data"):
        onnx_rnn_prune.plan(str(model), keep=2, criterion=name)


def one_by_one(demands):
    """The order of picking as the definition has it: each pick deflates every E at once."""
    left = [demand.covariance.copy() for demand in demands]
    order = []
    while len(order) < len(left[0]):
        gains = np.zeros(len(left[0]))
        for demand, residual in zip(demands, left, strict=True):
            spread, floor = np.diag(residual), 1e-9 * np.diag(demand.covariance)
            missed = np.einsum("ij,ik,kj->j", residual, demand.gram, residual, optimize=True)
            gains += np.where(spread > floor, missed / np.where(spread > floor, spread, 1.0), 0.0)
        gains[order] = -1.0
        unit = int(gains.argmax())
        order.append(unit)
        for residual in left:
            if residual[unit, unit] > 0:
                residual -= np.outer(residual[unit], residual[unit]) / residual[unit, unit]
    return order


@pytest.mark.parametrize(("units", "readers"), [(1, 1), (40, 1), (130, 2), (200, 3)])
def test_picks_in_blocks_are_those_of_one_at_a_time(units, readers):
    """Blocks end before, at and behind the last pick."""
    rng = np.random.default_rng(units)
    demands = []
    for _ in range(readers):
        signal = np.tanh(rng.normal(size=(2 * units + 5, 9)) @ rng.normal(size=(9, units)))
        signal += 0.3 * rng.normal(size=signal.shape)
        weight = rng.normal(size=(3, units))
        demands.append(Demand(signal.T @ signal / len(signal), weight.T @ weight))
    wanted = one_by_one(demands)
    gains = greedy_gains(demands)
    assert (
        np.argsort(-gains, kind="stable").tolist()[: len(wanted) // 2 + 1]
        == (wanted[: len(wanted) // 2 + 1])
    )
    assert np.all(gains >= 0.0)


def test_units_count_by_what_the_last_layer_makes_of_them():
    """Half of the first layer drives units of the second that the output hardly reads."""
    weights = {
        "W1": 0.5 * np.eye(8)[None],
        "W2": np.diag([0.3] * 4 + [0.6] * 4)[None],
        "R": 0.2 * np.eye(8)[None],
        "head": np.diag([1.0] * 4 + [0.01] * 4),
    }
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        stacked (float[T, 1, 8] x) => (float[T, 1, 8] out) {
            [first] y1 = RNN <hidden_size = 8> (x, W1, R)
            x2 = Squeeze (y1, axis)
            [second] y2 = RNN <hidden_size = 8> (x2, W2, R)
            y = Squeeze (y2, axis)
            out = MatMul (y, head)
        }""")
    weights = {name: value.astype(np.float32) for name, value in weights.items()}
    weights["axis"] = np.array([1])
    for name, value in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    rng = np.random.default_rng(0)
    given = [{"x": rng.normal(0, 1, (40, 1, 8)).astype(np.float32)} for _ in range(3)]
    plan = onnx_rnn_prune.plan(model, keep=0.5, data=given)
    assert {name: layer.keep for name, layer in plan.layers.items()} == {
        "first": ((0, 1, 2, 3),),
        "second": ((0, 1, 2, 3),),
    }


def test_mean_squares_of_derivatives_are_those_of_what_is_drawn():
    context = planted("GRU", 2)
    readers, lookup = context.readers, Lookup.of(context.traced.document)
    found = influence_of(context.traced, readers, context.seen, context.data.calibration)
    assert found.drawn and len(found.drawn) < len(readers)  # both kinds are there
    for reader in readers:
        places, rng = np.arange(len(reader.labels)), np.random.default_rng(0)
        drawn = np.square(found.draw(reader, lookup, places, 20000, rng)).mean(axis=0)
        exact = found.squares(reader, lookup, places)
        np.testing.assert_allclose(drawn, exact, rtol=0.2, atol=0.01 * exact.max())


@pytest.mark.parametrize("linear", [0, 1])
def test_influence_is_the_derivative_of_what_gates_sum(linear):
    """Beside finite differences of the equations of the specification, in double."""
    rng = np.random.default_rng(0)
    steps, width, hidden = 3, 2, 3
    w, r, bias = (rng.normal(size=s) for s in ((9, width), (9, hidden), 18))

    def run(errors):
        h, states = np.zeros((1, hidden)), []
        for x, error in zip(inputs, errors, strict=True):
            z, reset = (
                1 / (1 + np.exp(-(x @ w[k].T + h @ r[k].T + bias[k] + bias[9:][k] + error[:, k])))
                for k in (slice(0, 3), slice(3, 6))
            )
            k = slice(6, 9)
            back = (
                reset * (h @ r[k].T + bias[9:][k]) if linear else (reset * h) @ r[k].T + bias[9:][k]
            )
            h = (1 - z) * np.tanh(x @ w[k].T + bias[k] + back + error[:, k]) + z * h
            states.append(h)
        return np.array(states)

    inputs, weights = rng.normal(size=(steps, 1, width)), rng.normal(size=(steps, 1, hidden))
    nothing = np.zeros((steps, 1, 9))
    wanted = np.zeros_like(nothing)
    for place in np.ndindex(nothing.shape):
        error = np.zeros_like(nothing)
        error[place] = 1e-6
        wanted[place] = ((run(error) - run(-error)) * weights).sum() / 2e-6
    helper = onnx.helper
    node = helper.make_node(
        "GRU", ["x", "W", "R", "B"], ["Y"], "gru", hidden_size=hidden, linear_before_reset=linear
    )
    ports = [helper.make_tensor_value_info(n, onnx.TensorProto.DOUBLE, None) for n in ("x", "Y")]
    held = [onnx.numpy_helper.from_array(v[None], n) for n, v in (("W", w), ("R", r), ("B", bias))]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (layer,) = find_layers(Document.read(model).graph)
    states = run(nothing)
    found = adjoints(layer, Steps(layer, 0, {"x": inputs, "Y": states[:, None]}), weights)
    for letter, part in zip("zrh", np.split(wanted, 3, axis=-1), strict=True):
        np.testing.assert_allclose(found[letter], part, atol=1e-8)


def test_lengths_of_more_steps_than_are_looked_at_are_cut_with_them():
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    g (float[100, 64, 3] x) => (float[100, 64, 2] y) <int64[1] one = {1}> {
        Y = GRU <hidden_size = 8, direction = "reverse"> (x, W, R, , lengths)
        s = Squeeze (Y, one)  y = MatMul (s, V)
    }"""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in (("W", (1, 24, 3)), ("R", (1, 24, 8)), ("V", (8, 2))):
        value = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    lengths = onnx.numpy_helper.from_array(np.full(64, 100, np.int32), "lengths")
    model.graph.initializer.append(lengths)
    data = [{"x": rng.standard_normal((100, 64, 3)).astype(np.float32)} for _ in range(2)]
    result = onnx_rnn_prune.prune(model, keep=0.5, data=data)
    assert result.report.layers[0].hidden_after == 4
