"""Labels, lanes and atoms on arrays small enough to see."""

import numpy as np
import pytest

from onnx_rnn_prune.operators.labels import (
    can_vanish,
    compress,
    kept,
    repeated,
    same_order,
    squeeze_to,
    tied_lanes,
    uniform,
    unit_axis,
    varying_axes,
)
from onnx_rnn_prune.trace.units import Partition, Units, make_groups, uneven_lanes

# Two lanes of three units each: 0 1 2 and 3 4 5.
LANES = np.array([0, 0, 0, 1, 1, 1])


def labels(*rows):
    return np.array(rows, dtype=np.int64)


def test_axes_along_which_labels_change():
    grid = labels([0, 1, 2], [0, 1, 2])
    assert uniform(grid, 0) and not uniform(grid, 1)
    assert varying_axes(grid) == [1]
    assert squeeze_to(grid, (1,)).tolist() == [[0, 1, 2]]
    assert squeeze_to(grid, (0,)) is None
    assert uniform(np.zeros((0, 3), dtype=np.int64), 0)


def test_labels_that_are_the_same_for_each_step_take_the_memory_of_one():
    grid = np.tile(labels([0, 1, 2], [3, 4, 5]), (500, 1, 1))
    held = repeated(grid)
    assert np.array_equal(held, grid) and held.shape == grid.shape
    assert held.base.nbytes == grid[0].nbytes
    assert [uniform(held, axis) for axis in range(3)] == [True, False, False]


@pytest.mark.parametrize(
    ("grid", "axis"),
    [
        (labels([0, 1, 2], [0, 1, 2]), 1),
        (labels([0, 1, 2], [3, 4, 5]), 1),
        (labels([0, 3], [1, 4], [2, 5]), 0),
        (labels([0, 1, 2, -1], [3, 4, 5, -1]), 1),
        (labels([0, 1, 2], [-1, -1, -1]), None),
        (labels([0, 1], [2, 3], [4, 5]), None),
        (labels([0, 1, 2], [3, 4, 4]), None),
        (labels([0, 1, 2, 0, 1, 2], [3, 4, 5, 3, 4, 5]), 1),
        (labels([0, 1, 2, 0, 1, 2], [3, 4, 5, -1, -1, -1]), None),
    ],
)
def test_the_axis_that_gets_shorter_evenly(grid, axis):
    assert unit_axis(grid, LANES) == axis


def test_pieces_of_lanes_can_vanish():
    assert can_vanish(labels([0, 1]), 1, LANES)
    assert can_vanish(labels([0, 1, 4]), 1, LANES)
    assert not can_vanish(labels([2, 0, 1]), 1, LANES)
    assert not can_vanish(labels([0, -1]), 1, LANES)


def test_a_reshape_may_not_lace_directions_into_one_another():
    laced = labels([0, 3], [1, 4], [2, 5])
    assert not same_order(laced, 0, laced.reshape(6), 0)
    assert not same_order(laced.reshape(6), 0, laced, 0)
    assert same_order(laced.reshape(1, 3, 2), 1, laced, 0)
    beside = labels([0, 1, 2], [3, 4, 5])
    assert same_order(beside, 1, beside.reshape(6), 0)
    assert same_order(beside.reshape(6), 0, beside, 1)


def test_masks_follow_labels():
    keep = np.array([True, False, True])
    assert kept(labels([0, 1], [-1, 2]), keep).tolist() == [[True, False], [True, True]]
    values = np.arange(6).reshape(2, 3)
    assert compress(values, keep, 1).tolist() == [[0, 2], [3, 5]]
    ragged = np.array([[True, False, True], [False, True, True]])
    assert compress(values, ragged, 1).tolist() == [[0, 2], [4, 5]]
    assert compress(values.T, keep[:, None], 0).tolist() == [[0, 3], [2, 5]]


def test_units_are_numbered_lane_by_lane():
    units = Units.number({"a": (2, 3), "b": (1, 2)})
    assert units.lanes["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert units.lanes["b"].tolist() == [[6, 7]]
    assert units.lane_of.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert units.count == 8
    assert Units.number({}).count == 0


def test_joining_ignores_nobody():
    atoms = Partition(5)
    atoms.join(labels([0, -1, 2]), labels([3, 4, -1]))
    assert [sorted(found.tolist()) for found in atoms.classes()] in (
        [[1], [2], [0, 3], [4]],
        [[0, 3], [1], [2], [4]],
    )


def groups_of(sizes, *meetings):
    units = Units.number(sizes)
    atoms = Partition(units.count)
    for left, right in meetings:
        atoms.join(np.array(left), np.array(right))
    return units, atoms.classes()


def test_directions_are_tied_and_other_layers_are_not():
    units, atoms = groups_of({"a": (2, 3), "b": (1, 2)})
    a, b = make_groups(units, atoms, ())
    assert (a.layers, a.size, len(a.atoms)) == (("a",), 3, 2)
    assert (b.layers, b.size, b.atoms[0].tolist()) == (("b",), 2, [[6], [7]])
    assert not uneven_lanes(units, atoms)


def test_layers_that_meet_live_and_die_together():
    units, atoms = groups_of({"a": (1, 2), "b": (1, 2)}, ([0, 1], [3, 2]))
    (group,) = make_groups(units, atoms, ())
    assert group.layers == ("a", "b")
    assert sorted(group.atoms[0].tolist()) == [[0, 3], [1, 2]]
    assert not uneven_lanes(units, atoms)


def test_layers_that_are_tied_keep_equally_many():
    units, atoms = groups_of({"a": (1, 2), "b": (2, 3), "c": (1, 2)})
    other, one = make_groups(units, atoms, [np.array([0, 3]), np.array([], dtype=np.int64)])
    assert (one.layers, one.size, len(one.atoms)) == (("a", "c"), 2, 2)
    assert other.layers == ("b",)


@pytest.mark.parametrize(
    ("grid", "tied"),
    [
        (labels([0, 1, 2], [0, 1, 2]), []),
        (labels([0, 1, 2], [3, 4, 5]), [0, 1]),
        (labels([0, 1, 2, 3, 4, 5], [3, 4, 5, 0, 1, 2]), []),
        (labels([0, 1, 2, -1], [3, 4, 5, -1], [0, 1, 2, -1]), [0, 1]),
    ],
)
def test_lanes_whose_lines_must_stay_equally_long(grid, tied):
    assert tied_lanes(grid, 1, LANES).tolist() == tied


def test_lanes_of_different_sizes_cannot_be_tied():
    lanes = np.repeat([0, 1, 2, 3], [6, 2, 4, 4])
    grid = np.arange(16).reshape(2, 8)
    assert unit_axis(grid, lanes) is None
    assert unit_axis(grid, np.repeat([0, 1, 2, 3], 4)) == 1


@pytest.mark.parametrize(
    ("sizes", "left", "right"),
    [
        ({"a": (1, 3)}, [0], [2]),
        ({"a": (1, 2), "b": (1, 3)}, [0, 1], [2, 3]),
        ({"a": (1, 2), "b": (1, 2)}, [0, 0], [2, 3]),
    ],
)
def test_uneven_meetings(sizes, left, right):
    units, atoms = groups_of(sizes, (left, right))
    assert uneven_lanes(units, atoms) == set(range(len(sizes)))


def test_lanes_whose_units_go_in_pairs():
    """They are even, and tied to such as do the same only."""
    units, atoms = groups_of({"a": (1, 4), "b": (1, 4)}, ([0, 1], [2, 3]))
    assert not uneven_lanes(units, atoms)
    assert uneven_lanes(units, atoms, [np.array([0, 1])]) == {0, 1}
