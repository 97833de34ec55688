"""Feeds in Python: dicts, iterables, functions and calibration readers."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from onnx_rnn_prune.data.sources import FAILURES, Listed, RawFeed, Source, Streamed, flat
from onnx_rnn_prune.errors import PruneError

_FORMS = "give a dict of arrays, an iterable of such dicts, or a function that returns one"


def is_function_name(text: str) -> bool:
    """Whether a text has the form `module:function`."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", text) is not None


def open_function(text: str) -> Source:
    """The feeds that a function named `module:function` makes; it is called at each iteration.

    Raises:
        PruneError: the module cannot be imported or has no such function.
    """
    found = named_function(text, "name a function that yields dicts of arrays")
    return Streamed(text, lambda: _iterate(found(), text))


def named_function(text: str, remedy: str) -> Callable[..., Any]:
    """The function named `module:function`.

    Raises:
        PruneError: the module cannot be imported or has no such function; it says the remedy.
    """
    module_name, _, path = text.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except FAILURES as error:  # importing runs the user's code
        raise PruneError(
            f"importing {module_name} failed with {type(error).__name__}: {error}",
            where=text,
            remedy="check the name, and run from the folder that holds the module",
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise PruneError(
                f"the module {module_name} has no {path}",
                where=text,
                remedy=remedy,
            )
        found = getattr(found, part)
    if not callable(found):
        raise PruneError(
            f"{path} is not a function",
            where=text,
            remedy=remedy,
        )
    return cast(Callable[..., Any], found)


def open_value(value: object) -> Source:
    """The feeds in a Python value.

    A list, tuple or other collection is read in place, and a function is called at each iteration.
    A generator can run only once, so its feeds are kept in memory, as are those of a calibration
    reader without `rewind()`.

    Args:
        value: one dict of arrays, an iterable of them or of such iterables, a function that returns
            one, or an `onnxruntime.quantization.CalibrationDataReader`.

    Raises:
        PruneError: the value is none of these.
    """
    name = "Python data"
    if isinstance(value, Mapping):
        feed = cast(RawFeed, value)
        return Listed(name, [name], lambda _: feed)
    if isinstance(value, list | tuple):
        return _listed(name, list(flat(value)))
    if _is_reader(value):
        return _open_reader(value, name)
    if isinstance(value, Iterator):
        return _kept(name, value)
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        iterable = value
        return Streamed(name, lambda: iterable)
    if callable(value):
        function = cast(Callable[[], object], value)
        name = getattr(value, "__name__", name)
        return Streamed(name, lambda: _iterate(function(), name))
    raise PruneError(f"{type(value).__name__} is not a form of data", where="data", remedy=_FORMS)


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
        remedy="yield dicts that map the names of graph inputs to arrays",
    )


def _kept(name: str, feeds: Iterator[object]) -> Source:
    once = Streamed(name, lambda: feeds)
    return _listed(name, list(once.run()))


def _listed(name: str, feeds: Sequence[tuple[bool, RawFeed]]) -> Source:
    labels = [f"{name}: feed {number}" for number in range(len(feeds))]
    starts = [number for number, (first, _) in enumerate(feeds) if first or number == 0]
    return Listed(name, labels, lambda number: feeds[number][1], starts)


# Readers are recognised by their method: onnxruntime.quantization is slow to import, and many
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
