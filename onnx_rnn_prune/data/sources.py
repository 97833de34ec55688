"""Sources of raw feeds: lists with random access, and iterations that can be restarted."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, cast

from onnx_rnn_prune.errors import PruneError

# As given by users; values are converted and checked later.
RawFeed = Mapping[str, object]

# Exceptions of users' code; its sys.exit() must not end this process successfully.
FAILURES = (Exception, SystemExit)
# A limit far above any real data, for generators that never end.
_MOST_FEEDS = 100_000


def flat(items: Iterable[object]) -> Iterator[tuple[bool, RawFeed]]:
    """The feeds, or those of each part in turn, each with whether it starts a part."""
    for item in items:
        if isinstance(item, Iterable) and not isinstance(item, Mapping | str | bytes):
            for number, feed in enumerate(item):
                yield number == 0, cast(RawFeed, feed)
        else:
            yield False, cast(RawFeed, item)


class Listed:
    """Feeds that can be loaded by index, so that unwanted ones cost nothing.

    Args:
        name: of the source in reports and errors.
        labels: names of the feeds in errors.
        starts: indices of the first feed, and of the first in each part of the source.
    """

    def __init__(
        self,
        name: str,
        labels: list[str],
        load: Callable[[int], RawFeed],
        starts: Iterable[int] = (0,),
    ) -> None:
        self.name = name
        self.starts = frozenset(starts)
        self._labels = labels
        self._load = load

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, wanted: frozenset[int] | None) -> Iterator[tuple[str, RawFeed]]:
        """Loads the wanted feeds (None: all) in order, each with its name in errors."""
        for number, label in enumerate(self._labels):
            if wanted is None or number in wanted:
                yield label, self._load(number)


class Streamed:
    """Feeds of an iteration that can be restarted.

    Nothing is kept: unwanted feeds are generated and dropped, and counting takes a full iteration.

    Args:
        start: starts an iteration over feeds, or over iterables of feeds; must give the same ones
            each time.
    """

    def __init__(self, name: str, start: Callable[[], Iterable[object]]) -> None:
        self.name = name
        self._start = start

    def __len__(self) -> int:
        return len(self._firsts)

    @property
    def starts(self) -> frozenset[int]:
        """The first feed, and the first one of each part."""
        return frozenset(n for n, first in enumerate(self._firsts) if first or not n)

    @cached_property
    def _firsts(self) -> list[bool]:
        return [first for first, _ in self.run()]

    def read(self, wanted: frozenset[int] | None) -> Iterator[tuple[str, RawFeed]]:
        """As `Listed.read`, but iterates up to the last wanted feed."""
        last = None if wanted is None else max(wanted, default=-1)
        for number, (_, feed) in enumerate(self.run()):
            if last is not None and number > last:
                return
            if wanted is None or number in wanted:
                yield f"{self.name}: feed {number}", feed

    def run(self) -> Iterator[tuple[bool, RawFeed]]:
        """Runs the user's code, whose exceptions become PruneErrors."""
        try:
            for number, feed in enumerate(flat(self._start())):
                if number == _MOST_FEEDS:
                    raise PruneError(
                        f"it yielded {_MOST_FEEDS} feeds and may never end",
                        where=self.name,
                        remedy="give fewer feeds",
                    )
                yield feed
        except PruneError:
            raise
        except FAILURES as error:
            raise PruneError(
                f"generating feeds failed with {type(error).__name__}: {error}",
                where=self.name,
                remedy="fix the code that generates them",
            ) from error


# Raw feeds that can be read repeatedly, one at a time.
Source = Listed | Streamed

_FORMS = "give a dict of arrays, an iterable of such dicts, or a function that returns one"


def is_function_name(text: str) -> bool:
    """Whether a text has the form `module:function`."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", text) is not None


def open_function(text: str) -> Source:
    """The feeds of a function named `module:function`, which is called for each iteration.

    Raises:
        PruneError: the module cannot be imported or has no such function.
    """
    found = named_function(text, "give a function that yields dicts of arrays")
    return Streamed(text, lambda: _iterate(found(), text))


def named_function(text: str, remedy: str) -> Callable[..., Any]:
    """The function named `module:function`.

    Raises:
        PruneError: the module cannot be imported or has no such function; with this remedy.
    """
    module_name, _, path = text.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except FAILURES as error:  # importing runs the user's code
        raise PruneError(
            f"importing {module_name} failed with {type(error).__name__}: {error}",
            where=text,
            remedy="check the name, and run from the folder that contains the module",
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise PruneError(f"the module {module_name} has no {path}", where=text, remedy=remedy)
        found = getattr(found, part)
    if not callable(found):
        raise PruneError(f"{path} is not a function", where=text, remedy=remedy)
    return cast(Callable[..., Any], found)


def open_value(value: object) -> Source:
    """The feeds in a Python value.

    Collections are read in place, and functions are called for each iteration. Generators, and
    calibration readers without `rewind()`, run only once, so their feeds are kept in memory.

    Args:
        value: one dict of arrays, an iterable of them or of such iterables, a function that returns
            one, or an `onnxruntime.quantization.CalibrationDataReader`.

    Raises:
        PruneError: the value is none of these.
    """
    name = "Python data"
    if isinstance(value, Mapping):
        return Listed(name, [name], lambda _: value)
    if isinstance(value, list | tuple):
        return _listed(name, list(flat(value)))
    if _is_reader(value):
        return _open_reader(value, name)
    if isinstance(value, Iterator):
        return _kept(name, value)
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return Streamed(name, lambda: value)
    if callable(value):
        function = cast(Callable[[], object], value)
        name = getattr(value, "__name__", name)
        return Streamed(name, lambda: _iterate(function(), name))
    raise PruneError(f"unsupported data type {type(value).__name__}", where="data", remedy=_FORMS)


def _iterate(value: object, name: str) -> Iterable[object]:
    """What a function returned, as feeds."""
    if isinstance(value, Mapping):
        return [value]
    if _is_reader(value):
        return _drain(value)
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return value
    raise PruneError(
        f"the function returned {type(value).__name__} instead of feeds",
        where=name,
        remedy="yield dicts that map graph input names to arrays",
    )


def _kept(name: str, feeds: Iterator[object]) -> Source:
    return _listed(name, list(Streamed(name, lambda: feeds).run()))


def _listed(name: str, feeds: Sequence[tuple[bool, RawFeed]]) -> Source:
    labels = [f"{name}: feed {number}" for number in range(len(feeds))]
    starts = [number for number, (first, _) in enumerate(feeds) if first or number == 0]
    return Listed(name, labels, lambda number: feeds[number][1], starts)


# Readers are recognized by their method: onnxruntime.quantization is slow to import, and many
# readers in use do not inherit from its base class.
def _is_reader(value: object) -> bool:
    return callable(getattr(value, "get_next", None)) and not isinstance(value, type)


def _open_reader(reader: object, name: str) -> Source:
    name = f"{name} ({type(reader).__name__})"
    rewind = getattr(reader, "rewind", None)
    if not callable(rewind):
        return _kept(name, _drain(reader))

    def start() -> Iterator[RawFeed]:
        rewind()
        return _drain(reader)

    return Streamed(name, start)


def _drain(reader: object) -> Iterator[RawFeed]:
    get_next = cast(Callable[[], RawFeed | None], getattr(reader, "get_next"))  # noqa: B009
    while (feed := get_next()) is not None:
        yield feed
