"""Messages for users: errors with place and remedy, and notes.

A message is written with options as flags, `--min-units` or `--metric=snr`, an unambiguous
spelling. It is shown according to the reader: Python callers see arguments, `min_units=` or
`metric='snr'`, the command line `--min-units` and `--metric snr`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from onnx_rnn_prune.text import visible

_FLAG = re.compile(r"(?<![^\s(])--([a-z]+(?:-[a-z]+)*)(?:=(\S*[^\s,;:.?)]))?(?=[,;:.?)]*(?:\s|$))")


class PruneError(Exception):
    """Something that the user can fix.

    Args:
        what: what is wrong, as a clause without a full stop.
        where: the file, node, input or option concerned.
        remedy: what to do about it, as an imperative clause.
    """

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self._parts = tuple(visible(" ".join(text.split())) for text in (what, where, remedy))
        self.what, self.where, self.remedy = map(as_arguments, self._parts)
        super().__init__(str(self))

    def __reduce__(self) -> tuple[Callable[[str], PruneError], tuple[str]]:
        what, where, remedy = self._parts
        return partial(type(self), where=where, remedy=remedy), (what,)

    def __str__(self) -> str:
        return as_arguments(self.declared)

    @property
    def declared(self) -> str:
        """The message with options as declared, for embedding in another text."""
        what, where, remedy = self._parts
        place = f"{where}: " if where else ""
        advice = f"; {remedy}" if remedy else ""
        return f"{place}{what}{advice}"

    @property
    def for_shell(self) -> str:
        """The message for the command line."""
        return as_flags(self.declared)


class ConstraintError(PruneError):
    """A result breaks a promise: outputs differ, or a budget cannot be met."""


class Note(str):
    """A note to the user, as text for Python callers.

    Attributes:
        for_shell: the same for the command line.
    """

    for_shell: str

    def __new__(cls, text: str) -> Note:
        if isinstance(text, Note):
            return text
        note = super().__new__(cls, as_arguments(text))
        note.for_shell = as_flags(text)
        return note


def as_arguments(text: str) -> str:
    """A text with options spelled as Python arguments."""

    def argument(found: re.Match[str]) -> str:
        name, value = found[1].replace("-", "_"), found[2]
        if value is None:
            return f"{name[3:]}=False" if name.startswith("no_") else f"{name}="
        key, equals, size = value.partition("=")
        return f"{name}={{{key!r}: {size!r}}}" if equals else f"{name}={_literal(value)}"

    return _FLAG.sub(argument, text)


def as_flags(text: str) -> str:
    """A text with options spelled as on the command line."""
    return _FLAG.sub(lambda found: f"--{found[1]} {found[2] or ''}".rstrip(), text)


def _literal(value: str) -> str:
    return value if value.isdecimal() else repr(value)
