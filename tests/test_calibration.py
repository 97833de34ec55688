"""What calibration sums up, and on how much of the data."""

import math
from dataclasses import replace

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest

from onnx_rnn_prune import evaluator as evaluator_module
from onnx_rnn_prune import pipeline, prune, recovery_choice
from onnx_rnn_prune.calibration import open_data, open_three, validation_share
from onnx_rnn_prune.data import open_feeds
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.evaluator import Evaluator
from onnx_rnn_prune.evidence import evidence
from onnx_rnn_prune.evidence import gates as gates_module
from onnx_rnn_prune.evidence.evidence import Tapped
from onnx_rnn_prune.evidence.steps import ACTIVATIONS
from onnx_rnn_prune.model import signature
from onnx_rnn_prune.model.runner import Runner
from onnx_rnn_prune.opened_model import open_model
from onnx_rnn_prune.options import Inputs
from onnx_rnn_prune.recovery.distill.configuration import TrainingConfig
from onnx_rnn_prune.traced_model import trace_model
from oracle.recovered import recovered
from stacked import WIDTH, stacked

INPUTS, HIDDEN, BATCH = 3, 5, 40
GATES = {"RNN": "i", "GRU": "zrh", "LSTM": "iofc"}


@pytest.fixture(scope="module")
def feeds():
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(size=(15, 2, WIDTH)).astype(np.float32)} for _ in range(12)]


def test_a_quarter_validates_but_of_many_feeds_only_as_many_as_tell_candidates_apart():
    assert [validation_share(count) for count in (1, 12, 80_000)] == [0.25] * 3
    assert validation_share(400_000) == 0.05


def one_step(op, **attributes):
    """A layer that runs from states of its own, and reads them."""
    rng, gates = np.random.default_rng(3), len(GATES[op])
    more = "".join(f", {name} = {value}" for name, value in attributes.items())
    cell = "c" if op == "LSTM" else ""
    proto = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[time, batch, {INPUTS}] x) => (float[time, batch, {HIDDEN}] y) {{
            Y = {op} <hidden_size = {HIDDEN}{more}> (x, W, R, B, , h{", c" * bool(cell)})
            y = Squeeze (Y, one)
        }}
    """)
    shapes = {
        "W": (1, gates * HIDDEN, INPUTS),
        "R": (1, gates * HIDDEN, HIDDEN),
        "B": (1, 2 * gates * HIDDEN),
        "h": (1, BATCH, HIDDEN),
        "c": (1, BATCH, HIDDEN),
    }
    values = {name: rng.normal(size=shapes[name]).astype(np.float32) for name in "WRBh" + cell}
    values["one"] = np.array([1])
    for name, value in values.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return proto


def shifted(model, entry, step):
    result = onnx.ModelProto.FromString(model.SerializeToString())
    (bias,) = (tensor for tensor in result.graph.initializer if tensor.name == "B")
    value = onnx.numpy_helper.to_array(bias).copy()
    value[0, entry] += step
    bias.CopyFrom(onnx.numpy_helper.from_array(value, "B"))
    return Runner(result)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_slope_follows_from_the_value(name):
    function, x = ACTIVATIONS[name], np.linspace(-4.03, 4.07, 1001)
    measured = (function(x + 1e-6) - function(x - 1e-6)) / 2e-6
    np.testing.assert_allclose(function.slope(function(x)), measured, atol=1e-5)


@pytest.mark.parametrize(
    ("op", "attributes"),
    [("RNN", {}), ("GRU", {}), ("GRU", {"linear_before_reset": 1}), ("LSTM", {})],
)
def test_emphasis_is_the_mean_square_of_how_the_next_state_answers(op, attributes):
    model = one_step(op, **attributes)
    feed = {"x": np.random.default_rng(4).normal(size=(1, BATCH, INPUTS)).astype(np.float32)}
    (layer,) = open_model(model).layers
    traced = trace_model(open_model(model), [layer.name], [feed])
    readers = traced.readers
    tapped = Tapped(traced.document, readers, {})
    seen = tapped(feed)
    block = len(GATES[op]) * HIDDEN  # of Wb, before Rb
    for reader in readers:
        if not hasattr(reader, "gates"):
            continue
        found = tapped.emphasis(reader, seen)
        # In relation to what is usual for each output, a usual sample counts as one.
        importance = tapped.importance(reader, seen, found)
        assert len(importance) == BATCH and importance.mean() == pytest.approx(1.03)
        rows = [GATES[op].index(gate) * HIDDEN + n for gate in reader.gates for n in range(HIDDEN)]
        for row, value in zip(rows, found, strict=True):
            if op == "GRU" and not attributes and row // HIDDEN == 1:
                continue  # this reset gate acts on the states of all units, of which one is shown
            entry = row + block if reader.sources == ("H",) else row
            ends = [shifted(model, entry, step)(feed)["y"] for step in (0.01, -0.01)]
            slope = (ends[0] - ends[1])[0, :, row % HIDDEN] / 0.02
            assert value == pytest.approx(np.mean(slope**2), rel=1e-2)


def test_emphasis_counts_what_becomes_of_an_error_in_later_steps():
    """In a GRU that keeps a fixed share of its state, and whose units do not read each other."""
    model = one_step("GRU")
    for tensor in model.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor).copy()
        if tensor.name in "WR":
            value[:, : HIDDEN if tensor.name == "W" else None] = 0.0
        tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    weight = next(t for t in model.graph.initializer if t.name == "W")
    candidate = onnx.numpy_helper.to_array(weight)[0, 2 * HIDDEN :]
    run = Runner(model)
    feed = {"x": np.random.default_rng(4).normal(size=(6, BATCH, INPUTS)).astype(np.float32)}
    (layer,) = open_model(model).layers
    traced = trace_model(open_model(model), [layer.name], [feed])
    reader = next(r for r in traced.readers if getattr(r, "gates", "") == "h")
    tapped = Tapped(traced.document, [reader], {})
    found = tapped.emphasis(reader, tapped(feed))
    for unit, row in enumerate(candidate):
        effects = []
        for time in range(6):
            ends = []
            for step in (0.01, -0.01):
                x = feed["x"].copy()
                x[time] += step * row / (row @ row)
                ends.append(run({"x": x})["y"][..., unit])
            effects.append(np.square((ends[0] - ends[1]) / 0.02).sum(axis=0))
        assert found[unit] == pytest.approx(np.mean(effects), rel=1e-2)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_parts_of_a_batch_are_weighed_like_the_whole(op, direction, monkeypatch):
    """Each sequence has its own length, and its own states to begin from."""
    rng, gates, batch = np.random.default_rng(5), len(GATES[op]), 7
    states = ["h", "c"] if op == "LSTM" else ["h"]
    given, shape = ", ".join(states), f"float[1, batch, {HIDDEN}]"
    inputs = [
        f"float[time, batch, {INPUTS}] x",
        "int32[batch] n",
        *(f"{shape} {s}" for s in states),
    ]
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g ({", ".join(inputs)}) => (float[time, batch, {HIDDEN}] y) {{
            Y = {op} <hidden_size = {HIDDEN}, direction = "{direction}"> (x, W, R, , n, {given})
            y = Squeeze (Y, one)
        }}
    """)
    for name, width in (("W", INPUTS), ("R", HIDDEN)):
        value = rng.normal(0, 0.5, (1, gates * HIDDEN, width)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "one"))
    feed = {name: rng.normal(size=(1, batch, HIDDEN)).astype(np.float32) for name in states}
    feed |= {"x": rng.normal(size=(6, batch, INPUTS)).astype(np.float32)}
    feed |= {"n": np.array([6, 2, 5, 1, 6, 3, 4], np.int32)}
    opened = open_model(model)
    traced = trace_model(opened, [opened.layers[0].name], [feed])
    readers = [reader for reader in traced.readers if hasattr(reader, "gates")]
    tapped = Tapped(traced.document, readers, {})
    seen, found = tapped(feed), []
    for states_at_a_time in (1 << 19, 2 * 6 * HIDDEN, 1):
        monkeypatch.setattr(gates_module, "_STATES", states_at_a_time)
        emphasis = [tapped.emphasis(reader, seen) for reader in readers]
        pairs = zip(readers, emphasis, strict=True)
        found.append([*emphasis, *(tapped.importance(r, seen, e) for r, e in pairs)])
    for whole, *parts in zip(*found, strict=True):
        for part in parts:
            np.testing.assert_allclose(part, whole, rtol=1e-5, atol=1e-7)
    assert {len(each) for each in found[0][len(readers) :]} == {27}


def test_emphasis_is_known_after_some_samples(feeds, monkeypatch):
    weighed = []
    emphasis = Tapped.emphasis
    monkeypatch.setattr(
        Tapped, "emphasis", lambda own, *what: weighed.append(what) or emphasis(own, *what)
    )

    def calibrated():
        weighed.clear()
        opened = open_model(stacked(None))
        data = open_data(opened, Inputs(feeds))
        traced = trace_model(opened, ["first", "second"], data.calibration)
        shown = data.evidence(traced)
        return shown, len(weighed) / len(traced.readers), len(data.calibration)

    whole, each, count = calibrated()
    assert each == count
    monkeypatch.setattr(evidence, "_ENOUGH", 31)  # samples, of which a feed has 30
    part, each, _ = calibrated()
    assert each == 2
    for name, value in whole.emphasis.items():
        assert part.emphasis[name].mean() == pytest.approx(value.mean(), rel=0.5)
        assert part.moments[name].count == whole.moments[name].count


def test_rounds_of_refits_take_turns_with_feeds_where_there_are_many(feeds, monkeypatch):
    opened = open_model(stacked(None))
    data = open_data(opened, Inputs(feeds))
    traced = trace_model(opened, ["first", "second"], data.calibration)
    keep = np.ones(traced.trace.units.count, dtype=bool)
    cut = Evaluator.of(traced, data).candidate(keep)
    everything = set(range(data.calibration.streams))
    assert set(cut.sampling(1).streams) == everything
    widest = max(len(reader.labels) for reader in traced.readers)
    monkeypatch.setattr(evaluator_module, "_SAMPLES", 4 * 30 / widest)
    turns = [cut.sampling(turn) for turn in range(3)]
    assert [len(turn.streams) for turn in turns] == [4, 4, 4]
    assert set().union(*(turn.streams for turn in turns)) == everything
    for reader in traced.readers:  # which are as content with fewer samples as they have entries
        assert turns[0].shares[reader.pool] == pytest.approx(len(reader.labels) / widest)


@pytest.mark.parametrize(("streams", "run"), [(20, 20), (33, 33), (50, 44), (200, 44)])
def test_no_more_is_run_than_the_units_take(streams, run, monkeypatch):
    """So many samples for each entry that is read, however much data there are."""
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(size=(15, 2, WIDTH)).astype(np.float32)} for _ in range(streams)]
    opened = open_model(stacked(None))
    every = open_feeds(feeds, signature.inputs(opened.model), frozenset())
    data = replace(open_data(opened, Inputs(feeds)), calibration=every)
    traced, other = (trace_model(opened, ["first", "second"], every) for _ in range(2))
    widest = max(len(reader.labels) for reader in traced.readers)
    monkeypatch.setattr(evidence, "_ENOUGH", 31)
    monkeypatch.setattr(evidence, "SAMPLES", 44 * 30 / widest)
    found = data.evidence(traced)
    assert len(found.sampling.streams) == run
    for reader in traced.readers:
        share = 1.0 if streams <= 32 else min(1.0, 44 * len(reader.labels) / widest / run)
        assert found.moments[reader.pool].count == math.ceil(30 * share) * run
    again = data.evidence(other)
    for reader in traced.readers:
        same = found.moments[reader.pool].comoment == again.moments[reader.pool].comoment
        assert same.all()


@pytest.mark.parametrize("asked", ["bias", "lstsq", "distill"])
@pytest.mark.parametrize("apart", [True, False])
def test_what_is_written_was_fitted_on_validation_feeds_where_others_are_reported_on(
    asked, apart, feeds, monkeypatch
):
    if asked == "distill":  # which finds nothing better here
        pytest.importorskip("torch")
        monkeypatch.setattr(
            pipeline, "TrainingConfig", lambda *asked: TrainingConfig(*asked, steps=1, rate=10.0)
        )
    monkeypatch.setattr(recovery_choice, "_ROUNDS", 0)
    model, others = stacked(None), feeds[9:] if apart else None
    result = prune(model, data=feeds[:9], eval_data=others, recover=asked, criterion="l2")
    assert asked != "distill" or result.report["recovery"]["learning"]["taken"] == 0
    opened = open_model(model)
    data = open_data(opened, Inputs(feeds[:9], eval_data=others))
    traced = trace_model(opened, ["first", "second"], data.calibration)
    keep, found = result.plan.mask(traced.trace), result.report["recovery"]
    ridge = math.inf if found["lambda"] is None else found["lambda"]
    seen = [*data.calibration, *(data.validation if apart else [])]
    document = recovered(traced, keep, seen, ridge)
    wanted = Runner(traced.cut(result.plan, "shrink", document))(feeds[0])
    for name, value in Runner(result.model)(feeds[0]).items():
        np.testing.assert_allclose(value, wanted[name], atol=1e-5)
    assert found["reason"].endswith("then refitted on these as well") == apart


def test_validation_feeds_stay_out_of_fits_where_they_are_reported_on(feeds):
    opened = open_model(stacked(None))
    assert not open_data(opened, Inputs(feeds)).tested
    assert open_data(opened, Inputs(feeds[:9], eval_data=feeds[9:])).tested
    assert open_three(opened, Inputs(feeds)).tested
    for few in (1, 2):
        assert not open_three(opened, Inputs(feeds[:few])).tested


def test_the_weight_of_a_layer_with_a_computed_bias_is_cut_but_not_fitted():
    """Units are cut from its W, but there is no constant that could take what a fit adds."""
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[time, batch, {INPUTS}] x) => (float[time, one, batch, 2] y) {{
            Y = GRU <hidden_size = {HIDDEN}> (x, W, R)
            states = Squeeze (Y, first)
            mean = ReduceMean <keepdims = 0> (x)
            zero = Sub (mean, mean)
            b = Add (B2, zero)
            y = LSTM <hidden_size = 2> (states, W2, R2, b)
        }}
    """)
    rng = np.random.default_rng(0)
    shapes = {"W": (15, INPUTS), "R": (15, HIDDEN), "W2": (8, HIDDEN), "R2": (8, 2), "B2": (16,)}
    for name, shape in shapes.items():
        value = rng.normal(size=(1, *shape)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "first"))
    data = [{"x": rng.normal(size=(20, 2, INPUTS)).astype(np.float32)} for _ in range(4)]
    result = prune(model, keep=2, data=data, recover="lstsq")
    assert result.report["oracle"]["passed"]
    assert result.report["layers"][0]["hidden_after"] == 2


def test_data_on_which_only_the_layers_run_are_refused():
    """What stands behind them does not: its weight takes the states of five sequences."""
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        m (float[t, b, 3] x) => (float[t, 2] y) {
            Y = RNN <hidden_size = 4> (x, W, R)
            flat = Flatten <axis = 1> (Y)
            y = MatMul (flat, V)
        }""")
    for name, shape in {"W": (1, 4, 3), "R": (1, 4, 4), "V": (20, 2)}.items():
        value = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    feeds = {size: [{"x": np.ones((6, size, 3), np.float32)}] for size in (2, 5)}
    opened = open_model(proto)
    traced = trace_model(opened, ["Y"], open_data(opened, Inputs(feeds[5])).calibration)
    seen = Tapped(traced.document, traced.readers, {})
    for reader in traced.readers:
        assert seen.signal(reader, seen(feeds[5][0])).size
    with pytest.raises(PruneError, match="gets 8 values, but its weight takes 20"):
        for reader in traced.readers:
            seen.signal(reader, seen(feeds[2][0]))
