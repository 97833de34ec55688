"""Who says which cut is tried next.

The built-in strategy, greedy, takes sensitivities, bisects ways to share, then moves units:

1. What a group loses as it is cut follows the scores of its units, which with data are what readers
   lose in closed form. So much as measured is lost: each group alone is cut to several widths, or
   of many groups those that save most time to one.
2. Ways to share a cut (equal shares, one ranking over all groups, slopes of these curves by what
   they save) make a row of cuts each, from slow to fast. Where the goal is a quality, the fastest
   cut of each row that keeps it is found by bisection; else each row's first that fits is tried.
   What a recovery in full makes up for is seen in the best, and allowed for in another bisection.
3. From the best, units are taken from one group, or moved from one to another, while that helps;
   where the best within a cost is looked for, in the end with a recovery in full.
4. The best are recovered in full, which keeps more of the quality; what that leaves to spare is
   used to cut further.

Optuna's tree of Parzen estimators draws cuts where earlier ones did well (Bergstra et al. 2011,
"Algorithms for hyper-parameter optimization"). What Optuna would keep in a storage of its own is in
the study: it is told of the same trials in the same order again, and with the same seed it draws
the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_rnn_prune.cost.price import Price
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.evidence.moments import Matrix
from onnx_rnn_prune.selection.allocation import ALLOCATORS, Urgency
from onnx_rnn_prune.selection.space import FULL, QUICK, Aim, Ask, Counts, Space, Strategy, Trial
from onnx_rnn_prune.trace.units import Group

Row = Callable[[float], Counts]
Steps = Generator[Sequence[Ask], Sequence[Trial], Trial]

# Widths at which one group is cut alone, as shares; of many groups the middle one does, and so many
# cuts at most are made for all.
SHARES = (0.125, 0.25, 0.375, 0.5, 0.75)
_ALONE = 40
# The least share that the closed form may say is lost by a cut.
_LEAST = 1e-6
# Rounds of bisection, to within 1 % of the range of times; and of allowing for a recovery in full.
_HALVINGS, _ALLOWANCES = 7, 2
# Moves are of these parts of a group, one after the other; so many groups give or take, and so many
# moves are tried at a time.
_PARTS = (8, 16, 32)
_BATCH, _PARTNERS = 8, 12
_MOVES = 8
# Where the best is looked for that costs no more than asked, what a recovery in full makes of moves
# decides in the end.
_FULL_PARTS, _FULL_BATCH, _FULL_MOVES = (4, 8), 4, 3
_LAST_HALVINGS = 4


@dataclass(frozen=True, eq=False)
class Curve:
    """The error of the outputs as one group is cut.

    Attributes:
        layers: the group's layers.
        kept: numbers of units, rising; the last is all of them, [n].
        error: NRMSE on validation feeds, with least squares as recovery; 0 for all units, [n].
    """

    layers: tuple[str, ...]
    kept: Matrix
    error: Matrix

    def slopes(self) -> Matrix:
        """What each further unit takes off the squared error: those of the lower convex hull, [H].

        A step that takes nothing off may have to be made on the way to one that does.
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
    """The most urgent group is the one whose next unit takes most off the error."""
    slopes = [curve.slopes() for curve in curves]
    return lambda number, kept: float(slopes[number][kept])


def greedy(space: Space, aim: Aim) -> Strategy:
    """Asks for trials; the best of them is what is looked for."""
    curves = yield from _curves(space)
    best = yield from shared(space, aim, curves)
    if aim.most is None and best.counts != space.full:
        best = (yield [Ask(best.counts, FULL)])[0]
        best = yield from _moved(space, aim, curves, best, _FULL_PARTS)
    yield from finals(space, aim, best)


def sharing(space: Space) -> Steps:
    """The cut with the least error among those that fit, by quick trials alone."""
    return (yield from shared(space, Aim(None, space.fits), (yield from _curves(space))))


def shared(space: Space, aim: Aim, curves: Sequence[Curve]) -> Steps:
    """The best way to share a cut between groups, as quick trials tell."""
    rows = [
        _row(space, allocator(space.trace, space.scores), None) for allocator in ALLOCATORS.values()
    ]
    rows.append(_row(space, by_slopes(curves), space.ms))
    if aim.most is None:
        asks = list(dict.fromkeys(Ask(row(math.inf)) for row in rows))
        best = min((yield asks), key=aim.rank)
        return (yield from _moved(space, aim, curves, best))
    quick, best = aim, (yield from _bisected(space, aim, rows))
    for _ in range(_ALLOWANCES):
        full = (yield [Ask(best.counts, FULL)])[0]
        quick = aim.for_quick(best, full)
        best = yield from _bisected(space, quick, rows)
    return (yield from _moved(space, quick, curves, best))


def equal(space: Space, aim: Aim) -> Strategy:
    """The same share of each group: bisection, each cut recovered in full."""
    row = _row(space, ALLOCATORS["uniform"](space.trace, space.scores), None)
    if aim.most is None:
        yield [Ask(row(math.inf), FULL)]
    else:
        yield from _bisected(space, aim, [row], FULL)


def _row(space: Space, urgency: Callable[[int, int], float], price: Price | None) -> Row:
    return lambda ms: space.within(ms, urgency, price)


def curve_asks(space: Space, shares: Sequence[float] = SHARES) -> dict[int, list[Ask]]:
    """Cuts of each group alone, by its number."""
    found = {}
    for number, group in enumerate(space.groups):
        cuts = [
            space.aligned([share * g.size if g is group else g.size for g in space.groups])
            for share in shares
        ]
        found[number] = [Ask(cut) for cut in sorted(set(cuts)) if cut != space.full]
    return found


def _curves(space: Space) -> Generator[Sequence[Ask], Sequence[Trial], list[Curve]]:
    """What each group loses: the closed form, scaled to what was measured."""
    many = len(SHARES) * len(space.groups) > _ALONE
    asks = curve_asks(space, SHARES[2:3] if many else SHARES)
    cuttable = [number for number, own in asks.items() if own]
    dearest = sorted(cuttable, key=lambda n: min(space.ms(ask.counts) for ask in asks[n]))
    measured = sorted(dearest[:_ALONE])
    asked = [ask for number in measured for ask in asks[number]]
    trials = iter((yield asked) if asked else ())
    lost = [_lost(group, space.scores) for group in space.groups]
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


def _lost(group: Group, scores: Matrix) -> Matrix:
    """The share of what units score that is gone when so many of the best stay, [H + 1]."""
    values = np.sort(np.sum([scores[atoms].sum(axis=1) for atoms in group.atoms], axis=0))
    values = values - min(float(values[0]), 0.0)
    gone: Matrix = np.concatenate([[0.0], np.cumsum(values)])[::-1]
    return gone / gone[0] if gone[0] > 0.0 else np.linspace(1.0, 0.0, len(gone))


def _bisected(space: Space, aim: Aim, rows: Sequence[Row], recovery: str = QUICK) -> Steps:
    """The best of the fastest cuts of each row that are good enough; all rows go side by side."""
    least, most = space.ms(space.floor), space.ms(space.full)
    ranges = [[least, most] for _ in rows]
    best = (yield [Ask(row(most)) for row in rows[:1]])[0]
    for _ in range(_HALVINGS):
        middles = [(low + high) / 2 for low, high in ranges]
        asks = [Ask(row(ms), recovery) for row, ms in zip(rows, middles, strict=True)]
        for trial, ms, ends in zip((yield asks), middles, ranges, strict=True):
            ends[1 if aim.meets(trial) else 0] = ms
            best = min(best, trial, key=aim.rank)
    return best


def _moved(
    space: Space, aim: Aim, curves: Sequence[Curve], best: Trial, parts: Sequence[int] = _PARTS
) -> Steps:
    """Units leave one group, or go from one to another, while that helps, recovered as the best."""
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
    """The moves for which the curves foretell least error, or least for the time that they gain."""
    before = _foretold(curves, best.counts)

    def promise(counts: Counts) -> float:
        worse = _foretold(curves, counts) - before
        if aim.most is None:
            return worse
        return worse / max(best.ms - space.ms(counts), 1e-12)

    moves = [m for m in _moves(space, curves, best.counts, part) if space.fits(list(m))]
    if aim.most is not None:
        moves = [move for move in moves if space.ms(move) < best.ms]
    return sorted(dict.fromkeys(moves), key=promise)


def _moves(space: Space, curves: Sequence[Curve], counts: Counts, part: int) -> Iterator[Counts]:
    """Fewer units in one group, and a few more of another in exchange; the likeliest of many."""
    before, ms = _foretold(curves, counts), space.ms(counts)

    def ratio(changed: Counts) -> float:
        """What a change costs for the time that it saves, or gains for what it takes."""
        return (_foretold(curves, changed) - before) / max(abs(ms - space.ms(changed)), 1e-12)

    def changed(by: float) -> list[tuple[int, float]]:
        """Groups of which a part goes, or is added, the likeliest first."""
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
    """The sum of the squared errors of each group's cut alone."""
    pairs = zip(curves, counts, strict=True)
    return sum(float(np.interp(count, curve.kept, curve.error**2)) for curve, count in pairs)


def finals(space: Space, aim: Aim, best: Trial) -> Strategy:
    """Recovers the best in full, and cuts further, or less, with the same proportions."""
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


# Cuts that are drawn at a time, whatever number of workers tries them.
_DRAWN = 4
# Cuts in all, and how many that do not fit are drawn for one that does.
_DRAWS = 100
_MISFITS = 20


def optuna(space: Space, aim: Aim, seed: int) -> Strategy:
    """Draws, and recovers the best in full as `greedy` does.

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
    full = space.ms(space.full)

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
    """What is to be made small: time where a cut is good enough, beyond that the loss."""
    if aim.most is None:
        return min(trial.loss, 1e6)
    if aim.meets(trial):
        return trial.ms
    return full * (1.0 + min(trial.loss + trial.spread - aim.most, 1e6))


# By name; the seed is for those that draw.
STRATEGIES: Mapping[str, Callable[[Space, Aim, int], Strategy]] = {
    "greedy": lambda space, aim, seed: greedy(space, aim),
    "uniform": lambda space, aim, seed: equal(space, aim),
    "optuna": optuna,
}
