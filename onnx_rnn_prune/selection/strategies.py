"""Search strategies: decide which cut to try next.

The built-in strategy, greedy, begins with cuts that need no measurements, and refines the best:

1. Each way of allocating a cut gives a row of cuts, from cheap to expensive: equal shares, one
   ranking over all groups, the same per price of a unit, and the readers' closed-form loss per
   price saved. If the goal is a quality, bisection finds the cheapest cut of each row that keeps
   it, all rows side by side, ignoring cuts more expensive than the best so far, and giving up the
   worse rows where none keeps it; else the largest cut of each row that fits is tried.
2. Losses are measured: each group alone is cut to several widths; if there are many groups, only
   those that save most, to one width. Slopes of these curves per price saved give one more row. The
   gain of full recovery is measured on the best cut, and allowed for in another bisection.
3. Starting from the best, units are removed from one group, or moved from one to another, while
   that helps; if the goal is the best within a cost, in the end with full recovery.
4. The best are recovered in full, which keeps more of the quality; the margin that this leaves is
   used to cut further.

Optuna's tree of Parzen estimators draws cuts where earlier ones did well (Bergstra et al. 2011,
"Algorithms for hyper-parameter optimization"). The study replaces Optuna's own storage: Optuna is
told the same trials in the same order again, and with the same seed draws the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from onnx_rnn_prune.cost.price import Price
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.evidence.matrices import Matrix
from onnx_rnn_prune.selection.allocation import ALLOCATORS, Urgency
from onnx_rnn_prune.selection.space import FULL, QUICK, Aim, Ask, Counts, Space, Strategy, Trial
from onnx_rnn_prune.trace.units import Group


@dataclass(frozen=True, eq=False)
class Row:
    """A row of cuts, from cheap to expensive, by one way of allocation.

    Attributes:
        within: returns the row's largest cut within a price.
        seen: quick trials of its cuts, by that price.
    """

    within: Callable[[float], Counts]
    seen: dict[float, Trial] = field(default_factory=dict)

    def low(self, aim: Aim) -> float:
        """The highest price tried that was not good enough."""
        return max((most for most, trial in self.seen.items() if not aim.meets(trial)), default=0.0)


Steps = Generator[Sequence[Ask], Sequence[Trial], Trial]

# Widths to which single groups are cut, as shares; a search, which only scales the closed form by
# them, uses few; with many groups, only the middle one, for at most _ALONE cuts in all.
SHARES = (0.125, 0.25, 0.375, 0.5, 0.75)
_FEW = (0.25, 0.5)
_ALONE = 40
# Lower bound of the loss that the closed form predicts for a cut.
_LEAST = 1e-6
# Rounds of bisection, to within 1 % of the range of costs; and of allowing for full recovery.
_HALVINGS, _ALLOWANCES = 7, 3
# The number of rows that are pursued if none is good enough at some price.
_LEADING = 2
# Parts of a group to move, in turn: 1/8, 1/16, 1/32. Moves per batch, groups that give or take,
# and batches per part.
_PARTS = (8, 16, 32)
_BATCH, _PARTNERS = 8, 12
_MOVES = 8
# If the goal is the best within a cost, moves are finally judged by full recovery.
_FULL_PARTS, _FULL_BATCH, _FULL_MOVES = (4, 8), 4, 3
# The number of rows, the best by quick trials, that are compared by full recovery.
_COMPARED = 3
_LAST_HALVINGS = 4


@dataclass(frozen=True, eq=False)
class Curve:
    """The error of the outputs as one group is cut.

    Attributes:
        layers: the group's layers.
        kept: numbers of units, ascending; the last is all of them, [n].
        error: NRMSE on the validation set, recovered by least squares; 0 for all units, [n].
    """

    layers: tuple[str, ...]
    kept: Matrix
    error: Matrix

    def slopes(self) -> Matrix:
        """The reduction of the squared error by each further unit, on the lower convex hull, [H].

        The hull looks past units that reduce nothing to later ones that do.
        """
        size = int(self.kept[-1])
        squared = np.interp(np.arange(size + 1), self.kept, self.error**2)
        slopes = np.zeros(size + 1)
        unit = 0
        while unit < size:
            ahead = (squared[unit] - squared[unit + 1 :]) / np.arange(1, size - unit + 1)
            stretch = int(ahead.argmax()) + 1
            slopes[unit : unit + stretch] = ahead[stretch - 1]
            unit += stretch
        return slopes


def by_slopes(curves: Sequence[Curve]) -> Urgency:
    """Urgency by curves: how much a group's next unit reduces the error."""
    slopes = [curve.slopes() for curve in curves]
    return lambda number, kept: float(slopes[number][kept])


def greedy(space: Space, aim: Aim) -> Strategy:
    """The built-in strategy; the best trial is its result."""
    best, curves = yield from shared(space, aim)
    if aim.most is None and best.counts != space.full:
        best = (yield [Ask(best.counts, FULL)])[0]
        best = yield from _moved(space, aim, curves, best, _FULL_PARTS)
    yield from finals(space, aim, best)


def beginning(space: Space, aim: Aim, seed: int) -> Strategy:
    """Tries only cuts that need no measurements."""
    yield from _best(space, aim, _rows(space))


def sharing(space: Space) -> Steps:
    """The cut with the least error among those that fit, by quick trials alone."""
    return (yield from shared(space, Aim(None, space.fits)))[0]


def shared(
    space: Space, aim: Aim
) -> Generator[Sequence[Ask], Sequence[Trial], tuple[Trial, list[Curve]]]:
    """The best allocation by quick trials, and the error curves of the groups."""
    rows = _rows(space)
    best = yield from _best(space, aim, rows)
    best, quick = yield from _allowed(space, aim, rows, best)
    curves = yield from _curves(space)
    rows.append(_row(space, by_slopes(curves), space.price))
    best = yield from _best(space, quick, rows[-1:], best)
    if aim.most is None:
        best = yield from _compared(space, aim, rows)
    best, quick = yield from _allowed(space, aim, rows, best)
    return (yield from _moved(space, quick, curves, best)), curves


def _allowed(
    space: Space, aim: Aim, rows: Sequence[Row], best: Trial
) -> Generator[Sequence[Ask], Sequence[Trial], tuple[Trial, Aim]]:
    """The best of some rows when allowing for the gain of full recovery, and the relaxed aim."""
    quick = aim
    for _ in range(_ALLOWANCES if aim.most is not None else 0):
        full = (yield [Ask(best.counts, FULL)])[0]
        quick, before = aim.for_quick(best, full), best.counts
        best = yield from _best(space, quick, rows, best)
        if best.counts == before:
            break
    return best, quick


def _best(space: Space, aim: Aim, rows: Sequence[Row], best: Trial | None = None) -> Steps:
    """The best cut of some rows, or the previous best."""
    if aim.most is not None:
        return (yield from _bisected(space, aim, rows, best))
    trials = yield list(dict.fromkeys(Ask(row.within(math.inf)) for row in rows))
    return min([*trials, *([best] if best else [])], key=aim.rank)


def _compared(space: Space, aim: Aim, rows: Sequence[Row]) -> Steps:
    """The quick trial of the row that is best with full recovery, among the first by quick ones."""
    asks = list(dict.fromkeys(Ask(row.within(math.inf)) for row in rows))
    first = sorted((yield asks), key=aim.rank)[:_COMPARED]
    full = yield [Ask(trial.counts, FULL) for trial in first]
    return min(zip(full, first, strict=True), key=lambda pair: aim.rank(pair[0]))[1]


def equal(space: Space, aim: Aim) -> Strategy:
    """Cuts all groups to the same share: bisection, with full recovery of each cut."""
    row = _row(space, ALLOCATORS["uniform"](space.trace, space.scores), None)
    if aim.most is None:
        yield [Ask(row.within(math.inf), FULL)]
    else:
        yield from _bisected(space, aim, [row], recovery=FULL)


def _rows(space: Space) -> list[Row]:
    trace, scores, price = space.trace, space.scores, space.price
    equal, ranking = (allocator(trace, scores) for allocator in ALLOCATORS.values())
    closed = by_slopes([_closed(group, scores) for group in space.groups])
    ways = [(equal, None), (ranking, None), (ranking, price), (closed, price)]
    return [_row(space, *way) for way in ways]


def _row(space: Space, urgency: Urgency, price: Price | None) -> Row:
    order = cache(lambda: space.bounds.order(space.groups, urgency, price))
    return Row(lambda most: space.within(most, order()))


def curve_asks(space: Space, shares: Sequence[float] = SHARES) -> dict[int, list[Ask]]:
    """Cuts of each group alone, by the group's index."""
    found = {}
    for number, group in enumerate(space.groups):
        cuts = [
            space.aligned([share * g.size if g is group else g.size for g in space.groups])
            for share in shares
        ]
        found[number] = [Ask(cut) for cut in sorted(set(cuts)) if cut != space.full]
    return found


def _curves(space: Space) -> Generator[Sequence[Ask], Sequence[Trial], list[Curve]]:
    """The error curves of the groups: the closed form, scaled to measurements."""
    many = len(_FEW) * len(space.groups) > _ALONE
    asks = curve_asks(space, SHARES[2:3] if many else _FEW)
    cuttable = [number for number, own in asks.items() if own]
    dearest = sorted(cuttable, key=lambda n: min(space.price(ask.counts) for ask in asks[n]))
    measured = sorted(dearest[:_ALONE])
    asked = [ask for number in measured for ask in asks[number]]
    trials = iter((yield asked) if asked else ())
    lost = [_closed(group, space.scores).error ** 2 for group in space.groups]
    scales: dict[int, tuple[list[int], Matrix]] = {}
    for number in measured:
        found = [next(trials) for _ in asks[number]]
        kept = [trial.counts[number] for trial in found]
        squares = np.array([min(trial.nrmse, 1e3) ** 2 for trial in found])
        scales[number] = kept, squares / np.maximum(lost[number][kept], _LEAST)
    usual = np.median(np.concatenate([s for _, s in scales.values()] or [np.ones(1)]))
    curves = []
    for number, group in enumerate(space.groups):
        kept, scale = scales.get(number, ([group.size], np.array([usual])))
        every = np.arange(group.size + 1)
        error = np.sqrt(np.maximum(lost[number], _LEAST) * np.interp(every, kept, scale))
        error[-1] = 0.0
        curves.append(Curve(group.layers, every.astype(np.float64), error))
    return curves


def _closed(group: Group, scores: Matrix) -> Curve:
    """The closed-form error curve: the squared error is the removed share of the total score."""
    values = np.sort(np.sum([scores[atoms].sum(axis=1) for atoms in group.atoms], axis=0))
    values = values - min(float(values[0]), 0.0)
    gone = np.concatenate([[0.0], np.cumsum(values)])[::-1]
    share = gone / gone[0] if gone[0] > 0.0 else np.linspace(1.0, 0.0, len(gone))
    return Curve(group.layers, np.arange(len(share), dtype=np.float64), np.sqrt(share))


def _bisected(
    space: Space,
    aim: Aim,
    rows: Sequence[Row],
    best: Trial | None = None,
    recovery: str = QUICK,
) -> Steps:
    """Bisects all rows side by side for their cheapest good-enough cut; returns the best.

    Skips cuts that cost more than the best so far, or less than one of the same row known not to be
    good enough. Where no row is good enough, the worse ones are given up, as in successive halving
    (Jamieson and Talwalkar 2016, "Non-stochastic best arm identification").
    """
    least, most = space.price(space.floor), space.price(space.full)
    if best is None:
        best = (yield [Ask(rows[0].within(most))])[0]
    for _ in range(_HALVINGS):
        high = min(space.price(best.counts), most) if aim.meets(best) else most
        lows = {row: max(row.low(aim), least) for row in _leading(rows, aim)}
        near = (most - least) / 2**_HALVINGS
        middles = {row: (low + high) / 2 for row, low in lows.items() if high - low > near}
        if not middles:
            break
        trials = yield [Ask(row.within(middle), recovery) for row, middle in middles.items()]
        for (row, middle), trial in zip(middles.items(), trials, strict=True):
            row.seen[middle] = trial
            best = min(best, trial, key=aim.rank)
    return best


def _leading(rows: Sequence[Row], aim: Aim) -> list[Row]:
    """The rows that lose least at each price at which none was good enough."""
    left = list(rows)
    for price in sorted({price for row in rows for price in row.seen}):
        tried = [row for row in left if price in row.seen]
        if not any(aim.meets(row.seen[price]) for row in tried):
            behind = sorted(tried, key=lambda row: aim.rank(row.seen[price]))[_LEADING:]
            left = [row for row in left if row not in behind]
    return left


def _moved(
    space: Space, aim: Aim, curves: Sequence[Curve], best: Trial, parts: Sequence[int] = _PARTS
) -> Steps:
    """Takes units from a group, or moves them to another, while that helps, recovered as `best`."""
    batch, most = (_BATCH, _MOVES) if best.recovery == QUICK else (_FULL_BATCH, _FULL_MOVES)
    for part in parts:
        for _ in range(most):
            moves = _promising(space, aim, curves, best, part)[:batch]
            asks = [Ask(move, best.recovery) for move in moves]
            found = min([best, *((yield asks) if asks else [])], key=aim.rank)
            if found is best:
                break
            best = found
    return best


def _promising(
    space: Space, aim: Aim, curves: Sequence[Curve], best: Trial, part: int
) -> list[Counts]:
    """The moves with the least error predicted by the curves, or the least per price saved."""
    before, cost = _foretold(curves, best.counts), space.price(best.counts)

    def promise(counts: Counts) -> float:
        worse = _foretold(curves, counts) - before
        if aim.most is None:
            return worse
        return worse / max(cost - space.price(counts), 1e-12)

    moves = [m for m in _moves(space, curves, best.counts, part) if space.fits(list(m))]
    if aim.most is not None:
        moves = [move for move in moves if space.price(move) < cost]
    return sorted(dict.fromkeys(moves), key=promise)


def _moves(space: Space, curves: Sequence[Curve], counts: Counts, part: int) -> Iterator[Counts]:
    """Fewer units in one group, and maybe some more in another; the most promising of many."""
    before, cost = _foretold(curves, counts), space.price(counts)

    def ratio(changed: Counts) -> float:
        """The predicted loss of a change per price saved, or its gain per price spent."""
        return (_foretold(curves, changed) - before) / max(abs(cost - space.price(changed)), 1e-12)

    def changed(by: float) -> list[tuple[int, float]]:
        """Groups that lose or gain a part, the most promising first."""
        least = math.copysign(1.0, by)
        sizes = [max(abs(group.size * by), 1.0) * least for group in space.groups]
        each = {n: space.aligned(_changed(counts, n, size)) for n, size in enumerate(sizes)}
        found = sorted((n for n in each if each[n] != counts), key=lambda n: ratio(each[n]))
        return [(n, sizes[n]) for n in found[:_PARTNERS]]

    takers = [*changed(0.5 / part), *changed(1.0 / part)]
    for giver, less in changed(-1.0 / part):
        fewer = space.aligned(_changed(counts, giver, less))
        yield fewer
        for taker, by in takers:
            more = space.aligned(_changed(fewer, taker, by))
            if taker != giver and more != fewer:
                yield more


def _changed(counts: Counts, number: int, by: float) -> list[float]:
    return [count + by if n == number else count for n, count in enumerate(counts)]


def _foretold(curves: Sequence[Curve], counts: Counts) -> float:
    """The predicted squared error: the sum over the groups, each cut alone."""
    pairs = zip(curves, counts, strict=True)
    return sum(float(np.interp(count, curve.kept, curve.error**2)) for curve, count in pairs)


def finals(space: Space, aim: Aim, best: Trial) -> Strategy:
    """Recovers the best in full, then cuts more, or less, in the same proportions."""
    if best.counts == space.full:
        return
    trials = yield [Ask(best.counts, FULL)]
    if aim.most is None:
        return
    low, high = 0.5, 1.0
    if not aim.meets(trials[0]):
        low, high = 1.0, 1.5
    for _ in range(_LAST_HALVINGS):
        middle = (low + high) / 2
        counts = space.aligned([count * middle for count in best.counts])
        if aim.meets((yield [Ask(counts, FULL)])[0]):
            high = middle
        else:
            low = middle


# Cuts drawn at a time, regardless of the number of workers.
_DRAWN = 4
# Total number of cuts, and the most misfits drawn for one that fits.
_DRAWS = 100
_MISFITS = 20


def optuna(space: Space, aim: Aim, seed: int) -> Strategy:
    """Draws cuts with Optuna, and recovers the best in full as `greedy` does.

    Raises:
        PruneError: Optuna is not installed.
    """
    try:
        import optuna as library
    except ImportError as error:
        raise PruneError(
            "Optuna is not installed",
            where="--strategy=optuna",
            remedy="pip install 'onnx_rnn_prune[optuna]', or choose greedy",
        ) from error
    library.logging.set_verbosity(library.logging.WARNING)
    study = library.create_study(sampler=library.samplers.TPESampler(seed=seed))
    full = space.price(space.full)

    def counts_of(drawn: object) -> Counts:
        suggest = drawn.suggest_int  # type: ignore[attr-defined]
        found = [
            suggest(f"group {number}", low, group.size)
            for number, (low, group) in enumerate(zip(space.floor, space.groups, strict=True))
        ]
        return space.aligned(found)

    best = (yield [Ask(space.full if space.fits(list(space.full)) else space.floor)])[0]
    for _ in range(_DRAWS // _DRAWN):
        batch = []
        for _ in range(_MISFITS * _DRAWN):
            drawn = study.ask()
            counts = counts_of(drawn)
            if space.fits(list(counts)):
                batch.append((drawn, Ask(counts)))
            else:
                study.tell(drawn, state=library.trial.TrialState.FAIL)
            if len(batch) == _DRAWN:
                break
        trials = yield [ask for _, ask in batch]
        for (drawn, _), trial in zip(batch, trials, strict=True):
            study.tell(drawn, _value(aim, trial, full))
            best = min(best, trial, key=aim.rank)
    yield from finals(space, aim, best)


def _value(aim: Aim, trial: Trial, full: float) -> float:
    """The objective to minimise: time if a cut is good enough, else the loss."""
    if aim.most is None:
        return min(trial.loss, 1e6)
    if aim.meets(trial):
        return trial.ms
    return full * (1.0 + min(trial.loss + trial.spread - aim.most, 1e6))


# Strategies by name; the seed is for those that draw.
STRATEGIES: Mapping[str, Callable[[Space, Aim, int], Strategy]] = {
    "greedy": lambda space, aim, seed: greedy(space, aim),
    "uniform": lambda space, aim, seed: equal(space, aim),
    "optuna": optuna,
}
