"""Units, lanes and the two relations between them: same unit, same count."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnx_rnn_prune.operators.labels import Labels

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Units:
    """All units of some layers, numbered from 0.

    Attributes:
        lanes: for each layer's name, its unit ids, shape [D, H].
        lane_of: the lane of each unit, shape [units].
    """

    lanes: Mapping[str, Ids]
    lane_of: Ids

    @staticmethod
    def number(sizes: Mapping[str, tuple[int, int]]) -> Units:
        """Numbers the units of layers given as name -> (D, H)."""
        lanes: dict[str, Ids] = {}
        lane_of: list[Ids] = []
        first, lane = 0, 0
        for name, (directions, hidden) in sizes.items():
            ids = np.arange(first, first + directions * hidden, dtype=np.int64)
            lanes[name] = ids.reshape(directions, hidden)
            lane_of.append(np.repeat(np.arange(lane, lane + directions), hidden))
            first += directions * hidden
            lane += directions
        return Units(lanes, np.concatenate(lane_of) if lane_of else np.zeros(0, dtype=np.int64))

    @property
    def count(self) -> int:
        """Number of units."""
        return len(self.lane_of)


@dataclass(frozen=True)
class Group:
    """Lanes that keep equally many units, decided on together.

    Attributes:
        layers: the layers in it.
        atoms: per set of lanes that meet, an array [H / each, lanes * each]: each row is one atom,
            units that are kept or removed together.
        each: how many units of each lane an atom takes.
    """

    layers: tuple[str, ...]
    atoms: tuple[Ids, ...]
    each: int = 1

    @property
    def size(self) -> int:
        """The number of atoms, H / each, equal in all its lanes."""
        return len(self.atoms[0])


class Partition:
    """Union-find over integers."""

    def __init__(self, count: int) -> None:
        self._parent = np.arange(count, dtype=np.int64)

    def find(self, item: int) -> int:
        """The representative of an item's class."""
        root = item
        while self._parent[root] != root:
            root = int(self._parent[root])
        while self._parent[item] != root:
            self._parent[item], item = root, int(self._parent[item])
        return root

    def join(self, left: Labels, right: Labels) -> None:
        """Joins two arrays of items pairwise; negative items are nobody's and ignored."""
        count = len(self._parent)
        ones, others = np.broadcast_arrays(left, right)
        # Adjacent pixels have the same pair; sorting all pairs would be slow.
        pairs = (ones * count + others)[(ones >= 0) & (others >= 0)]
        for pair in np.unique(pairs[np.diff(pairs, prepend=-1) != 0]).tolist():
            one, other = divmod(pair, count)
            self._parent[self.find(one)] = self.find(other)

    def classes(self) -> list[Ids]:
        """All classes, each sorted."""
        roots = np.array([self.find(item) for item in range(len(self._parent))], dtype=np.int64)
        order = np.argsort(roots, kind="stable")
        cuts = np.flatnonzero(np.diff(roots[order])) + 1
        return np.split(order.astype(np.int64), cuts) if len(order) else []


def uneven_lanes(units: Units, atoms: Sequence[Ids], ties: Iterable[Ids] = ()) -> set[int]:
    """Lanes whose atoms do not all take equally many units of each lane that they meet.

    Such lanes cannot keep equally many units under every choice of atoms; nor can lanes tied to
    others whose atoms take a different number, as those of one layer are.
    """
    lanes = Partition(int(units.lane_of.max(initial=-1)) + 1)
    for atom in filter(_is_shared, atoms):
        lanes.join(units.lane_of[atom[:1]], units.lane_of[atom])
    uneven: set[int] = set()
    classes = lanes.classes()
    taken = np.ones(len(np.concatenate(classes)) if classes else 0, dtype=np.int64)
    for members, inside in zip(classes, _sorted_out(atoms, units.lane_of, classes), strict=True):
        wanted = np.repeat(members, len(inside[0]) // len(members))
        taken[members] = len(inside[0]) // len(members)
        if any(not np.array_equal(np.sort(units.lane_of[atom]), wanted) for atom in inside):
            uneven.update(members.tolist())
    own = (units.lane_of[lanes[:, 0]] for lanes in units.lanes.values())
    for tie in (*ties, *own):
        if len(set(taken[tie].tolist())) > 1:
            uneven.update(tie.tolist())
    return uneven


def make_groups(units: Units, atoms: Sequence[Ids], ties: Iterable[Ids]) -> tuple[Group, ...]:
    """Groups of layers: those joined by an atom, or by a tie.

    Args:
        units: all units.
        atoms: units that are kept or removed together.
        ties: lanes that must keep equally many units; the directions of one node always must.
    """
    names = list(units.lanes)
    layer_of = np.repeat(
        np.arange(len(names)), [lanes.size for lanes in units.lanes.values()]
    ).astype(np.int64)
    layers = Partition(len(names))
    for atom in filter(_is_shared, atoms):
        layers.join(layer_of[atom[:1]], layer_of[atom])
    layer_of_lane = np.repeat(np.arange(len(names)), [len(lanes) for lanes in units.lanes.values()])
    for tie in ties:
        layers.join(layer_of_lane[tie[:1]], layer_of_lane[tie])
    classes = layers.classes()
    return tuple(
        Group(
            tuple(names[item] for item in members),
            _stack(units, inside),
            len(inside[0]) // len(np.unique(units.lane_of[inside[0]])),
        )
        for members, inside in zip(classes, _sorted_out(atoms, layer_of, classes), strict=True)
    )


def _sorted_out(atoms: Sequence[Ids], owner: Ids, classes: Sequence[Ids]) -> list[list[Ids]]:
    """The atoms of each class of owners; `owner` gives the owner of each unit."""
    found: list[list[Ids]] = [[] for _ in classes]
    class_of = {int(item): number for number, items in enumerate(classes) for item in items}
    for atom in atoms:
        found[class_of[int(owner[atom[0]])]].append(atom)
    return found


def _is_shared(atom: Ids) -> bool:
    return len(atom) > 1


def _stack(units: Units, atoms: Iterable[Ids]) -> tuple[Ids, ...]:
    by_lanes: dict[tuple[int, ...], list[Ids]] = {}
    for atom in atoms:
        ordered = atom[np.argsort(units.lane_of[atom], kind="stable")]
        by_lanes.setdefault(tuple(units.lane_of[ordered].tolist()), []).append(ordered)
    return tuple(np.stack(rows) for rows in by_lanes.values())
