"""Allocation of a cut among layers: how many units each group keeps, and which."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from heapq import heapify, heappop, heapreplace
from typing import Any

import numpy as np

from onnx_rnn_prune.cost.budget import Budget, Keep, parse_keep
from onnx_rnn_prune.cost.cost import Cost
from onnx_rnn_prune.cost.price import Price
from onnx_rnn_prune.errors import ConstraintError, PruneError
from onnx_rnn_prune.evidence.matrices import Matrix
from onnx_rnn_prune.operators.labels import Mask
from onnx_rnn_prune.trace.trace import Trace
from onnx_rnn_prune.trace.units import Group

# Lower bound for the price of a unit, in any currency.
_LEAST = 1e-9

# Whether numbers of units per group are within the limits asked for.
Fits = Callable[[list[int]], bool]
# Ranks groups by what they gain from their next unit: (group, units it keeps now) -> urgency.
Urgency = Callable[[int, int], float]


@dataclass(frozen=True)
class Allocation:
    """Bounds on the number of units that a group keeps.

    Attributes:
        align: keep a multiple of this many units if a group has as many.
        min_units: keep at least this many.
    """

    align: int = 1
    min_units: int = 1

    def floor(self, group: Group) -> int:
        """The fewest units that a group may keep."""
        step = self.steps(group)
        atoms = -(-max(self.min_units, 1) // group.each)
        return min(-(-atoms // step) * step, group.size)

    def steps(self, group: Group, least: int = 1) -> int:
        """The step, in atoms of a group, between allowed numbers of units."""
        return math.lcm(self.align, least, group.each) // group.each

    def whole(self, groups: tuple[Group, ...]) -> tuple[Group, ...]:
        """The groups that keep all units because of these bounds."""
        return tuple(group for group in groups if self.floor(group) == group.size)

    def notes(self, groups: tuple[Group, ...]) -> tuple[str, ...]:
        """Notes about these groups."""
        return tuple(
            f"{', '.join(group.layers)} keeps all units: {self} allow no fewer than {group.size}"
            for group in self.whole(groups)
        )

    def __str__(self) -> str:
        return f"--align={self.align} and --min-units={self.min_units}"

    def step(self, group: Group, kept: int) -> int:
        """The next number of units above `kept`."""
        step = self.steps(group)
        return min(kept - kept % step + step, group.size)

    def order(
        self, groups: tuple[Group, ...], urgency: Urgency, price: Price | None = None
    ) -> list[int]:
        """The order in which groups get one more step each, most urgent first, up to full width.

        Args:
            groups: all groups.
            urgency: urgency of each group's next unit.
            price: urgency is divided by the price of the next unit; None if all cost the same.
        """
        counts, found = [self.floor(group) for group in groups], list[int]()
        spent = 0.0 if price is None else price(counts)

        def less(number: int) -> float:
            worth = urgency(number, counts[number])
            if price is None:
                return -worth
            return -worth / max(price(self._after(groups, counts, number)) - spent, _LEAST)

        # Urgency falls as units are added, so most groups need no update.
        heap = [(less(n), n) for n, group in enumerate(groups) if counts[n] < group.size]
        heapify(heap)
        while heap:
            known, number = heap[0]
            now = less(number)
            if now > known:
                heapreplace(heap, (now, number))
                continue
            found.append(number)
            counts = self._after(groups, counts, number)
            spent = 0.0 if price is None else price(counts)
            if counts[number] == groups[number].size:
                heappop(heap)
            else:
                heapreplace(heap, (less(number), number))
        return found

    def share(self, groups: tuple[Group, ...], fits: Fits, order: Sequence[int]) -> list[int]:
        """Adds steps to groups in the given order, as long as the total fits.

        Returns:
            Kept units per group; no group can get another step.
        """
        floor, open_ = [self.floor(group) for group in groups], np.array(order, dtype=int)

        def after(number: int) -> list[int]:
            given = np.bincount(open_[:number], minlength=len(groups))
            whole = zip(groups, floor, given.tolist(), strict=True)
            return [min(least + n * self.steps(g), g.size) for g, least, n in whole]

        first = 0
        while first < len(open_):
            steps = range(first, len(open_))
            first += bisect_left(steps, 1, key=lambda n: not fits(after(n + 1)))
            rest = open_[first:]  # the group of the first misfit gets no more
            open_ = np.concatenate([open_[:first], rest[rest != rest[0]] if len(rest) else rest])
        return after(len(open_))

    def _after(self, groups: tuple[Group, ...], counts: list[int], number: int) -> list[int]:
        after = list(counts)
        after[number] = self.step(groups[number], counts[number])
        return after


def uniform(trace: Trace, scores: Matrix) -> Urgency:
    """Every group keeps the same share of its units."""
    sizes = [group.size for group in trace.groups]
    return lambda number, kept: -kept / sizes[number]


def across(trace: Trace, scores: Matrix) -> Urgency:
    """One ranking over all groups, with scores divided by their lane's mean."""
    curves = [_curve(group, scores) for group in trace.groups]
    return lambda number, kept: float(curves[number][kept])


ALLOCATORS: Mapping[str, Callable[[Trace, Matrix], Urgency]] = {
    "uniform": uniform,
    "global": across,
}


def within_keep(keep: Keeps, trace: Trace, price: Price | None) -> Fits:
    """A test whether counts respect `--keep`: per group, or by the price of all groups together.

    Args:
        keep: the amounts asked for.
        trace: the model's trace.
        price: the price that the groups share; None to apply each group's own amount.
    """
    wanted = [
        _wanted(keep.of(group.layers), group, trace.lanes_of(group)) for group in trace.groups
    ]
    if price is None:
        return lambda counts: all(n <= most for n, most in zip(counts, wanted, strict=True))
    limit = price(wanted)
    return lambda counts: price(counts) <= limit


def within_budget(budget: Budget, limit: int, cost: Cost, least: list[int]) -> Fits:
    """A test whether counts respect a budget.

    Raises:
        ConstraintError: not even the fewest units do.
    """
    lowest = cost(budget.kind, least)
    if lowest > limit:
        raise ConstraintError(
            f"{budget} means at most {limit} {budget.kind}, but the fewest units that may stay and"
            f" what is not recurrent need {lowest}",
            where="--budget",
            remedy="ask for more, or lower --align and --min-units",
        )
    return lambda counts: cost(budget.kind, counts) <= limit


def choose(trace: Trace, scores: Matrix, counts: list[int]) -> Mask:
    """The mask of kept units: in each group, the atoms with the highest scores."""
    keep = np.zeros(trace.units.count, dtype=bool)
    for group, count in zip(trace.groups, counts, strict=True):
        for atoms in group.atoms:
            order = np.argsort(-scores[atoms].sum(axis=1), kind="stable")
            keep[atoms[order[:count]]] = True
    return keep


def _curve(group: Group, scores: Matrix) -> Matrix:
    """The normalised score of a group's next unit, from the best to the worst."""
    curves = []
    for atoms in group.atoms:
        values = np.sort(scores[atoms].sum(axis=1))[::-1]
        mean = np.abs(values).mean()
        curves.append(values / mean if mean > 0 else values)
    result: Matrix = np.mean(curves, axis=0)
    return result


def _wanted(keep: Keep, group: Group, lanes: int) -> int:
    """Units to keep per lane; users give the total of all lanes."""
    if keep.units is not None:
        return min(max(keep.units // lanes, 1), group.size)
    assert keep.share is not None
    return max(1, round(keep.share * group.size))


_ALL = Keep(share=1.0)


@dataclass(frozen=True)
class Keeps:
    """How much each layer keeps.

    Attributes:
        default: the amount for layers that are not named.
        named: globs of layer names, each with an amount; the first match counts.
    """

    default: Keep
    named: tuple[tuple[str, Keep], ...] = ()

    def notes(self, trace: Trace) -> tuple[str, ...]:
        """A note on each group that has fewer units than asked for."""
        asked = [(group, self.of(group.layers).units or 0) for group in trace.groups]
        return tuple(
            f"{', '.join(group.layers)} keeps all units: it has fewer than {units}"
            for group, units in asked
            if units // trace.lanes_of(group) > group.size
        )

    def __str__(self) -> str:
        parts = [f"{glob}={keep}" for glob, keep in self.named]
        return ", ".join([*parts, str(self.default)])

    def of(self, names: Sequence[str]) -> Keep:
        """The amount for layers that must keep equally many units.

        Raises:
            PruneError: different amounts were asked for.
        """
        found = {name: self._of_one(name) for name in names}
        if len(set(found.values())) > 1:
            parts = ", ".join(f"{name} {keep}" for name, keep in found.items())
            raise PruneError(
                f"layers that must keep the same number of units have different amounts: {parts}",
                where="--keep",
                remedy="give them the same amount",
            )
        return found[names[0]]

    def check(self, names: Sequence[str]) -> None:
        """Checks that all globs match a layer.

        Raises:
            PruneError: one does not.
        """
        for glob, _ in self.named:
            if not any(fnmatchcase(name, glob) for name in names):
                raise PruneError(
                    f"no layer to prune matches '{glob}'",
                    where="--keep",
                    remedy=f"the layers are {', '.join(names)}",
                )

    def _of_one(self, name: str) -> Keep:
        for glob, keep in self.named:
            if fnmatchcase(name, glob):
                return keep
        return self.default


def parse_keeps(value: object) -> Keeps:
    """Reads `--keep`: an amount, `LAYER=AMOUNT`, several of them, or a mapping of layers.

    If only some layers are named, the others keep all units.

    Raises:
        PruneError: an amount is invalid, or given twice.
    """
    default: Keep | None = None
    named: list[tuple[str, Keep]] = []
    for glob, amount in _entries(value):
        if glob:
            named.append((glob, parse_keep(amount)))
            continue
        if default is not None:
            raise PruneError(
                "two amounts were given for all layers",
                where="--keep",
                remedy="give one, or LAYER=AMOUNT for some layers",
            )
        default = parse_keep(amount)
    if default is None and not named:
        raise PruneError("no amount was given", where="--keep", remedy="give one, such as 40%")
    return Keeps(default or _ALL, tuple(named))


def _entries(value: object) -> Iterable[tuple[str, str | float]]:
    """Pairs of a glob of layers (empty for all) and an amount."""
    if isinstance(value, Mapping):
        return [(str(glob), amount) for glob, amount in value.items()]
    parts: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
    found: list[tuple[str, str | float]] = []
    for part in parts:
        if not isinstance(part, str):
            found.append(("", part))
            continue
        glob, equals, amount = part.rpartition("=")
        if equals and not glob:
            raise PruneError(f"'{part}' names no layer", where="--keep", remedy="give LAYER=AMOUNT")
        found.append((glob, amount))
    return found
