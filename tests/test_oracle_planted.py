"""Units that were planted as superfluous can be cut without loss."""

import numpy as np
import pytest

from onnx_rnn_prune.evidence.moments import Moments, MomentStore
from onnx_rnn_prune.model.runner import Runner
from onnx_rnn_prune.opened_model import open_model
from onnx_rnn_prune.recovery.least_squares import estimate_entries
from onnx_rnn_prune.trace.plan import Plan
from onnx_rnn_prune.traced_model import trace_model
from oracle.recovered import recovered
from oracle.widen import BATCH, add_unit, draw_weights, widened_model

LAYERS = [(op, d) for op in ("LSTM", "GRU", "RNN") for d in (1, 2)]


def widen(op, directions, kinds, seed=0):
    weights = draw_weights(op, directions, 5, seed)
    rng = np.random.default_rng(seed)
    for kind in kinds:
        weights = add_unit(weights, kind, rng)
    return widened_model(weights)


def cut_planted(model, feeds, ridge):
    """The model without the units after the fifth."""
    traced = trace_model(open_model(model), ["layer"], feeds)
    trace = traced.trace
    keep = np.ones(trace.units.count, dtype=bool)
    keep[trace.units.lanes["layer"][:, 5:]] = False
    document = traced.document
    if ridge is not None:
        document = recovered(traced, keep, feeds, ridge)
    return traced.cut(Plan.from_mask("", trace, keep), "shrink", document).write()


@pytest.fixture
def feeds():
    rng = np.random.default_rng(5)
    return [{"x": rng.normal(0, 1, (20, BATCH, 3)).astype(np.float32)} for _ in range(6)]


@pytest.mark.parametrize(("op", "directions"), LAYERS)
def test_dead_units_are_cut_without_any_recovery(op, directions, feeds):
    small, wide = widen(op, directions, []), widen(op, directions, ["dead", "dead"])
    found = cut_planted(wide, feeds, None)
    for feed in feeds:
        assert np.allclose(Runner(found)(feed)["y"], Runner(small)(feed)["y"], atol=1e-5)
    assert found.graph.initializer[:4] == small.graph.initializer[:4], "bit for bit the old weights"


@pytest.mark.parametrize("kind", ["duplicate", "constant"])
@pytest.mark.parametrize(("op", "directions"), LAYERS)
def test_recovery_makes_up_for_duplicates_and_constants(op, directions, kind, feeds):
    wide = widen(op, directions, ["dead", kind])
    found = cut_planted(wide, feeds[:3], 1e-9)
    for feed in feeds[3:]:
        before, after = Runner(wide)(feed)["y"], Runner(found)(feed)["y"]
        assert np.allclose(after, before, atol=1e-4), np.abs(after - before).max()


@pytest.mark.parametrize(("op", "directions"), LAYERS)
def test_twins_compute_what_one_did(op, directions, feeds):
    """The planting itself: a model with a duplicate is the model without."""
    small, wide = widen(op, directions, []), widen(op, directions, ["duplicate"])
    assert np.allclose(Runner(wide)(feeds[0])["y"], Runner(small)(feeds[0])["y"], atol=1e-5)


def test_no_large_weights_are_put_on_what_hardly_changes():
    """A kept entry that follows a lost one at a millionth of its size must not stand in for it."""
    rng = np.random.default_rng(0)
    lost, other = rng.normal(size=(2, 500))
    signal = np.stack([lost, 1e-6 * lost, other], axis=1)
    stays = np.array([False, True, True])
    moments = MomentStore.of({"signal": Moments.of(signal)})
    spread, _ = estimate_entries(moments.teacher_pairs("signal", stays), stays, ridge=1e-4)
    assert np.abs(spread).max() < 10, "at a millionth of the size, rounding is a tenth of it"
