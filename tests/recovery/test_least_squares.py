"""Fits in closed form are the formula's, however their moments are held and read."""

import numpy as np
import pytest

from onnx_rnn_prune.evidence.moments import Moments, MomentStore
from onnx_rnn_prune.recovery import least_squares
from onnx_rnn_prune.recovery.least_squares import estimate_entries, most_alike

FLOOR = 1e-5


def signals(width):
    """Samples of a signal, [N, n], which entries stay, and what becomes of those, [N, k]."""
    rng = np.random.default_rng(width)
    signal = rng.normal(size=(3 * width, width)) @ rng.normal(size=(width, width)) + 2.0
    stays = rng.random(width) < 0.5
    own = signal[:, stays]
    return signal, stays, own + 0.3 * rng.normal(size=own.shape)


def expected(signal, stays, student, ridge):
    """E + A and a, as the formula says them."""
    missing, centred = signal.copy(), student - student.mean(0)
    missing[:, stays] -= student
    own = centred.T @ centred
    scale = np.diag(own)
    damped = own + np.diag(ridge * scale + FLOOR * scale.mean())
    spread = (missing - missing.mean(0)).T @ centred @ np.linalg.inv(damped)
    offset = missing.mean(0) - spread @ student.mean(0)
    spread[np.flatnonzero(stays), np.arange(student.shape[1])] += 1.0
    return spread, offset


WIDTHS = pytest.mark.parametrize("width", [7, 600])  # in memory, in a file


@WIDTHS
@pytest.mark.parametrize("ridge", [1e-2, 10.0])
def test_kept_entries_stand_in_for_the_others(width, ridge):
    signal, stays, _ = signals(width)
    store = MomentStore.of({"z": Moments.of(signal)})
    found = estimate_entries(store.teacher_pairs("z", stays), stays, ridge)
    for one, other in zip(found, expected(signal, stays, signal[:, stays], ridge), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6 * np.abs(other).max())


@WIDTHS
def test_signals_of_the_pruned_model_draw_it_back(width):
    """Gathered in two halves, which are put together only where they are read."""
    signal, stays, student = signals(width)
    stores = MomentStore(), MomentStore()
    for store, half in zip(stores, (slice(0, width), slice(width, None)), strict=True):
        store.gather("z", signal[half], student[half])
    pairs = stores[0].pairs("z").merge(stores[1].pairs("z"))
    assert pairs.size == width and pairs.count == len(signal)
    found = estimate_entries(pairs, stays, 0.1)
    for one, other in zip(found, expected(signal, stays, student, 0.1), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6 * np.abs(other).max())


def test_an_infinite_ridge_corrects_biases_only():
    signal, stays, student = signals(7)
    store = MomentStore()
    store.gather("z", signal, student)
    spread, offset = estimate_entries(store.pairs("z"), stays, np.inf)
    assert np.array_equal(spread, np.eye(7)[:, stays])
    np.testing.assert_allclose(offset, signal.mean(0) - spread @ student.mean(0), atol=1e-12)


def test_weights_of_many_outputs_are_fitted_in_parts(monkeypatch):
    signal, stays, _ = signals(40)
    store = MomentStore.of({"z": Moments.of(signal)})
    whole = estimate_entries(store.teacher_pairs("z", stays), stays, 0.1)
    monkeypatch.setattr(least_squares, "_ENTRIES", 3 * 40)
    parts = estimate_entries(store.teacher_pairs("z", stays), stays, 0.1)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


@WIDTHS
def test_what_stays_is_most_like_itself_and_others_like_their_twins(width):
    signal, stays, _ = signals(width)
    kept, lost = np.flatnonzero(stays), np.flatnonzero(~stays)
    signal[:, lost[0]] = signal[:, kept[-1]]
    store = MomentStore.of({"z": Moments.of(signal)})
    chosen = most_alike(store.teacher_pairs("z", stays), stays)
    assert np.array_equal(chosen[kept], np.arange(len(kept)))
    assert chosen[lost[0]] == len(kept) - 1


@pytest.mark.parametrize("size", (1, 15, 16, 17, 201))
def test_rows_are_divided_by_a_matrix_block_by_block(monkeypatch, size):
    monkeypatch.setattr(least_squares, "_BLOCK", 16)
    rng = np.random.default_rng(0)
    factor, rows = rng.normal(size=(size, size)), rng.normal(size=(7, size))
    matrix = factor @ factor.T + 0.1 * np.eye(size)
    wanted = np.linalg.solve(matrix, rows.T).T
    least_squares._factor(matrix)
    least_squares._divide(rows, matrix)
    np.testing.assert_allclose(rows, wanted, rtol=0, atol=1e-9 * np.abs(wanted).max())
