"""Streams: consecutive calls, each starting from the states that the last one returned."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_rnn_prune.data.feeds import Feeds
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.constants import is_float
from onnx_rnn_prune.model.runner import Array, Feed, NamedFeed
from onnx_rnn_prune.model.signature import Port
from onnx_rnn_prune.record import Record

# A state input, and the output that becomes its value in the next call.
Pair = tuple[str, str]
Run = Callable[[Feed], Mapping[str, Array]]

# Maximum deviation of a state from the output that it came from, relative to its largest entry:
# other machines and runtimes round differently.
_ROUNDING, _HALF_ROUNDING = 1e-3, 1e-2


@dataclass(frozen=True, eq=False)
class Streams(Record):
    """How states carried from call to call were treated.

    Attributes:
        states: the inputs, each with its output.
        count: streams in all sets; 0 if each call was judged by itself.
        calls: calls in all sets.
        asked: the user's `stream` option.
    """

    states: Mapping[str, str]
    count: int
    calls: int
    asked: bool | None


def as_streams(
    feeds: Feeds, pairs: Sequence[Pair], known: Mapping[str, str], run: Run, asked: bool | None
) -> Feeds:
    """The feeds as streams.

    Args:
        pairs: candidates for states, see `possible_pairs`.
        known: inputs that are certainly states, each with its output.
        asked: True if each folder or iterable is a stream, False if there are no streams, None if
            the states in the feeds tell.

    Returns:
        Feeds; without `states` if none continues another.

    Raises:
        PruneError: streams are asked for, but the model has no states, or it is not clear which
            output belongs to one of them.
    """
    if asked and not pairs:
        raise _stateless(feeds)
    if asked is False or not pairs:
        return feeds.joined({}, ())
    looks = list(_looks(feeds, pairs, run))
    shown = _shown(looks, pairs, known)
    if not asked:
        going_on = {n for n, look in enumerate(looks) if shown and look.goes_on(shown)}
        starts = set(range(len(feeds))) - going_on
        return feeds.joined(shown, starts) if going_on else feeds
    open_ = [i for i in dict(pairs) if i not in shown and all(i in look.zeros for look in looks)]
    states = {**shown, **known, **_in_order(feeds, open_, {**shown, **known}, pairs, run)}
    if not states:
        raise _stateless(feeds)
    return feeds.joined(states, feeds.laid_out)


def possible_pairs(inputs: Iterable[Port], outputs: Iterable[Port]) -> list[Pair]:
    """Pairs of float inputs and outputs whose types and sizes allow them to be one state."""
    given = list(outputs)
    return [
        (port.name, other.name)
        for port in inputs
        for other in given
        if port.dtype is not None and port.dtype == other.dtype and is_float(port.dtype)
        if port.dims is None or other.dims is None or _alike(port.dims, other.dims)
    ]


def _alike(one: Sequence[object], other: Sequence[object]) -> bool:
    return len(one) == len(other) and all(
        a == b or not (isinstance(a, int) and isinstance(b, int))
        for a, b in zip(one, other, strict=True)
    )


@dataclass(frozen=True)
class _Look:
    """How a feed relates to the previous one.

    Attributes:
        same: pairs whose input equals the output of the previous call.
        telling: those that cannot be equal by chance: neither zero nor unchanged.
        zeros: inputs that are zero.
    """

    same: frozenset[Pair]
    telling: frozenset[Pair]
    zeros: frozenset[str]

    def goes_on(self, states: Mapping[str, str]) -> bool:
        return self.same.issuperset(states.items()) and not self.telling.isdisjoint(states.items())


def _looks(feeds: Iterable[NamedFeed], pairs: Sequence[Pair], run: Run) -> Iterator[_Look]:
    """A look at each feed; the previous one is not run if states are zero or unchanged."""
    last: NamedFeed | None = None
    for feed in feeds:
        zeros = frozenset(name for name in dict(pairs) if not np.any(feed[name]))
        changed = {
            name
            for name in dict(pairs)
            if name not in zeros and last is not None and not np.array_equal(feed[name], last[name])
        }
        same: frozenset[Pair] = frozenset()
        if last is not None and changed:
            left = run(last)
            same = frozenset(pair for pair in pairs if _equal(feed[pair[0]], left.get(pair[1])))
        yield _Look(same, frozenset(pair for pair in same if pair[0] in changed), zeros)
        last = feed


def _equal(value: Array, before: object) -> bool:
    if not isinstance(before, np.ndarray) or value.shape != before.shape:
        return False
    share = _HALF_ROUNDING if value.dtype.itemsize < 4 else _ROUNDING
    one, other = value.astype(np.float64), before.astype(np.float64)
    most = share * np.abs(other).max(initial=0.0)
    return bool(np.all(np.abs(one - other) <= most))


def _shown(
    looks: Iterable[_Look], pairs: Sequence[Pair], known: Mapping[str, str]
) -> dict[str, str]:
    """The states that the feeds reveal, each with the output that equals it most often."""
    counts = Counter(pair for look in looks for pair in look.telling)
    order = sorted(pairs, key=lambda pair: (-counts[pair], known.get(pair[0]) != pair[1]))
    found: dict[str, str] = {}
    for source, result in order:
        if counts[source, result] and source not in found and result not in found.values():
            found[source] = result
    return found


def _in_order(
    feeds: Feeds, sources: Sequence[str], taken: Mapping[str, str], pairs: Sequence[Pair], run: Run
) -> dict[str, str]:
    """Inputs missing from feeds, each with an output of its shape, matched in order."""
    first = next(iter(feeds))
    left = run(first)
    wanted: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name in sources:
        if name not in taken:
            wanted[first[name].shape].append(name)
    found: dict[str, str] = {}
    for shape, names in wanted.items():
        ends = dict.fromkeys(result for source, result in pairs if source in names)
        fit = [e for e in ends if e not in taken.values() and np.shape(left[e]) == shape]
        if fit and len(fit) != len(names):
            raise PruneError(
                f"it is ambiguous which output becomes input '{names[0]}' of the next call:"
                f" {len(fit)} outputs have its shape, {list(shape)}",
                where="--stream",
                remedy="include the states that the model returned in the feeds",
            )
        found.update(zip(names, fit, strict=False))
    return found


def _stateless(feeds: Feeds) -> PruneError:
    return PruneError(
        "the model has no state that is passed from one call to the next",
        where=f"--stream, {feeds.source}",
        remedy="leave it out, since feeds are independent",
    )
