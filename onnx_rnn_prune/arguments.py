"""What callers pass, checked before any work is done."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from numbers import Integral, Real

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.progress import Progress

MODES = ("shrink", "zero")
# More than this is a slip, and takes for ever.
_PER_PROCESSOR, _STEPS = 4, 1000


def whole(value: object, option: str, least: int) -> int:
    """A whole number that is not too small; NumPy's, too.

    Raises:
        PruneError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise PruneError(
            f"{value!r} is not a whole number from {least} on",
            where=option,
            remedy=f"give {least} or more",
        )
    return int(value)


def one_of(value: object, known: Iterable[str], option: str) -> str:
    """One of some names.

    Raises:
        PruneError: it is none of them.
    """
    names = tuple(known)
    if not isinstance(value, str) or value not in names:
        shown = f"'{value}'" if isinstance(value, str) else repr(value)
        raise PruneError(
            f"there is no {shown}", where=option, remedy=f"choose one of {', '.join(names)}"
        )
    return value


def globs(value: object, option: str) -> tuple[str, ...]:
    """One glob, or several.

    Raises:
        PruneError: it is neither.
    """
    given = (value,) if isinstance(value, str) else value
    if not isinstance(given, Iterable):
        raise _no_globs(value, option)
    found: list[str] = []
    for item in given:
        if not isinstance(item, str):
            raise _no_globs(item, option)
        found.append(item)
    return tuple(found)


def _no_globs(value: object, option: str) -> PruneError:
    return PruneError(f"{value!r} is no name", where=option, remedy="give names of layers, with *")


def deviation(value: object, option: str) -> float | None:
    """A number from 0 on, or None for no limit.

    Raises:
        PruneError: it is neither.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real) or not float(value) >= 0:
        raise PruneError(
            f"{value!r} is not a number from 0 on", where=option, remedy="give 0 or more"
        )
    return float(value)


def above_zero(value: object, option: str) -> float:
    """A finite number above 0.

    Raises:
        PruneError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise PruneError(
            f"{value!r} is not a number above 0", where=option, remedy="give more than 0"
        )
    return float(value)


def streaming(value: object, has_data: bool) -> bool | None:
    """Whether feeds are streams as they are laid out; None where the feeds tell.

    Raises:
        PruneError: it is neither, or there are no feeds that could be.
    """
    if value is not None and not isinstance(value, bool):
        raise PruneError(
            f"{value!r} is not True, False or None", where="--stream", remedy="give one of them"
        )
    if value and not has_data:
        raise PruneError("made-up inputs are not a stream", where="--stream", remedy="pass --data")
    return value


def for_machine(value: object, option: str) -> int:
    """A number of threads or processes that this machine can do with.

    Raises:
        PruneError: it is no number, or too large.
    """
    count, most = whole(value, option, 1), _PER_PROCESSOR * (os.cpu_count() or 1)
    if count > most:
        what = option.strip("-")
        raise PruneError(
            f"{count} {what} are too many for this machine",
            where=option,
            remedy=f"give at most {most}",
        )
    return count


def step_count(value: object, option: str) -> int:
    """A number of steps that come to an end, since each ranks or fits all units anew.

    Raises:
        PruneError: it is no number, or too large.
    """
    count = whole(value, option, 1)
    if count > _STEPS:
        raise PruneError(
            f"{count} steps are too many", where=option, remedy=f"give at most {_STEPS}"
        )
    return count


def check_progress(value: Progress) -> None:
    """Refuses what cannot be called.

    Raises:
        PruneError: it cannot.
    """
    if not callable(value):
        raise PruneError(
            f"{value!r} is no function", where="progress", remedy="give one, or leave it out"
        )


def frozen(values: object) -> dict[str, str]:
    """Inputs to fix, by name, with their values as text."""
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise PruneError(
            f"{values!r} does not say which input has which value",
            where="--freeze",
            remedy="give name=value, or a dict from Python",
        )
    return {name: str(value) for name, value in values.items()}
