"""How a cut is shared between layers, what it is paid in, and in how many steps it is made."""

import numpy as np
import pytest

import onnx_rnn_prune
from onnx_rnn_prune.calibration import open_data
from onnx_rnn_prune.cost.stopwatch import Stopwatch
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import Runner
from onnx_rnn_prune.opened_model import open_model
from onnx_rnn_prune.operators.recurrent import find_layers
from onnx_rnn_prune.options import Inputs
from onnx_rnn_prune.passes import Pipeline
from onnx_rnn_prune.recovery.schedules import Fading, Schedule
from onnx_rnn_prune.selection.strategies import Curve
from onnx_rnn_prune.traced_model import trace_model
from stacked import HIDDEN, WIDTH, stacked, widths


@pytest.fixture
def feeds():
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(size=(15, 2, WIDTH)).astype(np.float32)} for _ in range(16)]


@pytest.mark.parametrize("idle", ["first", "second"])
@pytest.mark.parametrize("per", ["units", "params", "flops"])
def test_joint_takes_units_where_they_do_nothing(idle, per, feeds):
    result = onnx_rnn_prune.prune(
        stacked(idle), keep=0.5, data=feeds, allocate="joint", per=per, min_units=2
    )
    other = {"first": "second", "second": "first"}[idle]
    found = widths(result)
    assert found[idle] < 4 < found[other], found


def test_joint_is_never_worse_on_what_it_measures(feeds):
    errors = {}
    for allocate in ("uniform", "global", "joint"):
        result = onnx_rnn_prune.prune(stacked(None), keep=0.5, data=feeds, allocate=allocate)
        errors[allocate] = result.report["drift"]["logits"]["nrmse"]
    # What chooses is least squares with one ridge, without rounds; what is reported has both.
    assert errors["joint"] <= 1.1 * min(errors.values()), errors


def test_joint_needs_data():
    with pytest.raises(PruneError, match=r"^allocate=: joint .* there is no data"):
        onnx_rnn_prune.plan(stacked(None), allocate="joint")


def test_one_share_for_every_layer_is_not_paid_for():
    with pytest.raises(PruneError, match=r"^per=: "):
        onnx_rnn_prune.plan(stacked(None), per="params")


@pytest.mark.parametrize("per", ["units", "params", "flops"])
def test_what_is_shared_out_costs_no_more_than_equal_shares(per, feeds):
    equal = onnx_rnn_prune.prune(stacked(None), keep=0.5, recover="none")
    shared = onnx_rnn_prune.prune(
        stacked(None), keep=0.5, recover="none", allocate="global", per=per
    )
    if per == "units":
        assert sum(widths(shared).values()) == sum(widths(equal).values())
    else:
        totals = [r.report["totals"]["rnn_params_after"] for r in (shared, equal)]
        assert totals[0] <= totals[1] * 1.001


def test_slopes_are_those_of_the_lower_hull():
    error = np.sqrt([4.0, 4.0, 0.0])  # squared: flat, then all at once
    slopes = Curve(("a",), np.array([2.0, 3.0, 4.0]), error).slopes()
    assert slopes == pytest.approx([1.0, 1.0, 1.0, 1.0, 0.0])


def test_a_wider_operator_takes_no_less_time():
    layers = find_layers(Document.read(stacked(None)).graph)
    watch = Stopwatch(layers)
    times = [watch("first", units, WIDTH) for units in range(1, HIDDEN + 1)]
    assert times == sorted(times) and times[0] > 0
    assert watch("second", 4, 2) < watch("second", 4, 8)


def test_more_steps_keep_as_many_units(feeds):
    for steps in (1, 2, 5, 50):
        result = onnx_rnn_prune.prune(stacked(None), keep=3, data=feeds, steps=steps)
        assert set(widths(result).values()) == {3} and result.report["oracle"]["passed"]


def test_units_are_merged_after_several_steps_without_data():
    result = onnx_rnn_prune.prune(stacked(None), keep=3, recover="merge", steps=3)
    assert set(widths(result).values()) == {3} and result.report["oracle"]["passed"]
    assert result.report["recovery"]["used"] == "merge"


def test_units_that_went_do_not_come_back(feeds, monkeypatch):
    """A criterion that turns round after the first step can only choose among what is left."""
    import sys
    import types

    calls = []

    def fickle(lane):
        calls.append(lane)
        rank = np.arange(lane.R.shape[1])
        return rank if len(calls) <= 2 else -rank

    module = types.ModuleType("fickle")
    module.score = fickle
    monkeypatch.setitem(sys.modules, "fickle", module)
    plan = onnx_rnn_prune.plan(stacked(None), keep=2, data=feeds, steps=2, criterion="fickle:score")
    assert len(calls) == 4
    # Eight units become five, the last; then the first two of those stay.
    assert plan.layers["first"].keep == plan.layers["second"].keep == ((3, 4),)


@pytest.mark.parametrize("schedule", ["soft", "mixed"])
def test_one_step_of_any_schedule_is_the_hard_one(schedule, feeds):
    hard, other = (
        onnx_rnn_prune.prune(stacked(None), keep=0.5, data=feeds, schedule=kind)
        for kind in ("hard", schedule)
    )
    assert other.model == hard.model


@pytest.mark.parametrize("schedule", ["soft", "mixed"])
def test_units_that_fade_are_gone_in_the_end(schedule, feeds):
    result = onnx_rnn_prune.prune(stacked(None), keep=0.5, data=feeds, schedule=schedule, steps=4)
    assert set(widths(result).values()) == {4} and result.report["oracle"]["passed"]
    plain = onnx_rnn_prune.prune(stacked(None), keep=0.5, data=feeds, recover="none")
    name = "logits"
    assert result.report["drift"][name]["nrmse"] < plain.report["drift"][name]["nrmse"]


def test_the_way_to_the_cut_model_starts_at_the_original(feeds):
    """What is half faded lies between the two; the clear losers of a mixed one are gone before."""
    model = stacked(None)
    opened = open_model(model)
    data = open_data(opened, Inputs(feeds))
    traced = trace_model(opened, ["first", "second"], data.calibration)
    keep = np.ones(traced.trace.units.count, dtype=bool)
    keep[[1, 3, 5, 9, 11]] = False
    moments = data.evidence(traced).moments
    nothing = Pipeline(())
    original = opened.run()(feeds[0])["logits"]
    errors = []
    for share in (1e-6, 0.25, 0.5, 0.75):
        document = Fading.of(traced, keep, moments, Schedule("soft", 4))(nothing, share)
        errors.append(np.abs(Runner(document)(feeds[0])["logits"] - original).max())
    assert errors[0] < 1e-3 and errors == sorted(errors)
    mixed = Fading.of(traced, keep, moments, Schedule("mixed", 4))(nothing, 1e-6)
    weights = mixed.graph.nodes[0].inputs[2].values[0]
    gone = [not weights[:, unit].any() for unit in range(HIDDEN)]
    assert 0 < sum(gone) < 5 and not any(gone[unit] for unit in (0, 2, 4, 6, 7))


@pytest.mark.parametrize("recover", ["none", "bias", "merge"])
def test_fading_takes_a_recovery_that_learns(recover, feeds):
    with pytest.raises(PruneError, match=r"^schedule=: "):
        onnx_rnn_prune.prune(stacked(None), data=feeds, schedule="soft", recover=recover)


def test_fading_takes_data():
    with pytest.raises(PruneError, match=r"^schedule=: gradual removal refits on data"):
        onnx_rnn_prune.prune(stacked(None), schedule="soft", steps=3)
