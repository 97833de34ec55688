"""Short layer names for tables: exporters write whole paths, of which few parts matter.

JSON has the full names, which options take.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TypeVar

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.text import Text

from onnx_rnn_prune.record import mapped
from onnx_rnn_prune.report.schema import InspectReport, PruneReport, SensitivityReport

# Names up to this length stay whole; shortened ones are filled up to it.
_WHOLE = 30
# The end of an operator's name is filled up to this length.
_END = 18
# Parts of names up to this length stay whole.
_PART = 12
_SPACED = re.compile(r"\s*\S+")
_GAP = "\N{HORIZONTAL ELLIPSIS}"
# A dot before a digit numbers what precedes it.
_BREAK = r"(?:[/:]|\.(?!\d))"
_PIECE = re.compile(rf"{_BREAK}*(?:(?!{_BREAK}).)+(?:{_BREAK}+$)?|{_BREAK}+")
_WORD = re.compile(r"_*[^_]+_*$|_*[^_]+|_+")
# Fields of reports that mention layers, besides their rows.
_OF_CURVES = ("layers", "warnings")
_OF_LAYERS = ("warnings",)
_OF_PRUNES = ("lossless", "states", "search", "sensitivity", "warnings")
R = TypeVar("R", PruneReport, InspectReport, SensitivityReport)


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Short names of layers by full name, all different.

    A long name keeps its end, and the parts that distinguish it from others.
    """
    every = list(dict.fromkeys(names))
    long = [name for name in every if len(name) > _WHOLE]
    split = {name: _parts(name) for name in long}
    kept = _telling(list(split.values()))
    found = {
        name: _joined(parts, _filled(parts, kept), split.values()) for name, parts in split.items()
    }
    found = {name: found.get(name, name) for name in every}
    shown = list(found.values())
    return {name: short if shown.count(short) == 1 else name for name, short in found.items()}


@dataclass(frozen=True)
class Cell:
    """Text in a cell, in which names wrap between their parts."""

    text: str

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        pieces = [piece for word in self.text.split() for piece in _pieces(word)]
        widest = max(map(cell_len, pieces), default=0)
        longest = max(map(cell_len, self.text.split("\n")))
        return Measurement(min(widest, options.max_width), longest)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        lines = [part for line in self.text.split("\n") for part in _wrap(line, options.max_width)]
        yield Text("\n".join(lines), overflow="fold")


def _wrap(line: str, width: int) -> list[str]:
    """A line wrapped to a width, as far as words and parts of names allow."""
    lines = [""]
    for word in _SPACED.findall(line):
        name, pieces = word.strip(), [word]
        if cell_len(name) > width:
            pieces = [
                part
                for piece in _pieces(name)
                for part in ([piece] if cell_len(piece) <= width else _WORD.findall(piece))
            ]
            pieces[0] = word[: len(word) - len(name)] + pieces[0]
        for piece in pieces:
            if lines[-1] and cell_len(lines[-1] + piece) > width:
                lines.append("")
            lines[-1] += piece if lines[-1] else piece.strip()
    return lines


def _pieces(name: str) -> list[str]:
    """The pieces between which a name may wrap; an ellipsis stays with what follows."""
    first, *others = _parts(name) or [""]
    return [first + others[0], *others[1:]] if first == _GAP and others else [first, *others]


def brief(report: R) -> tuple[R, bool]:
    """A report with short names of layers, and whether any was shortened."""
    if isinstance(report, SensitivityReport):
        names, spoken = [name for each in report.layers for name in each.layers], _OF_CURVES
    else:
        names = [row.name for row in report.layers]
        spoken = _OF_PRUNES if isinstance(report, PruneReport) else _OF_LAYERS
    short = short_names(names)
    known = {full: name for full, name in short.items() if full != name}
    longest = sorted(known, key=len, reverse=True)

    def said(text: str) -> str:
        for full in longest:
            text = text.replace(full, known[full])
        return text

    found: R = replace(report, **{key: mapped(getattr(report, key), said) for key in spoken})
    if isinstance(report, SensitivityReport):
        return found, bool(known)
    rows = [
        replace(
            mapped(row, said),
            name=short[row.name],
            outlets=[mapped(mapped(outlet, said), _ends) for outlet in row.outlets],
        )
        for row in report.layers
    ]
    return replace(found, layers=rows), bool(known)


def _parts(name: str) -> list[str]:
    """The parts of a name, each with the separator before it."""
    found = _PIECE.findall(name)
    return found if len(found) > 1 else _WORD.findall(name)


def _telling(names: Sequence[Sequence[str]]) -> set[int]:
    """The positions, from the end, of parts that distinguish names; 0 always counts."""
    kept: set[int] = {0}
    for at in range(1, max(map(len, names), default=0)):
        seen: dict[tuple[str, ...], set[str]] = {}
        for parts in names:
            key = tuple(_at(parts, other) for other in sorted(kept))
            seen.setdefault(key, set()).add(_at(parts, at))
        if any(len(parts) > 1 for parts in seen.values()):
            kept.add(at)
    return kept


def _at(parts: Sequence[str], at: int) -> str:
    return parts[-1 - at] if at < len(parts) else ""


def _filled(parts: Sequence[str], kept: set[int], width: int = _WHOLE) -> set[int]:
    """The positions that a name keeps: distinguishing ones, and others from the end that fit."""
    stay = {at for at in kept if at < len(parts)}
    for at in range(len(parts)):
        if sum(len(_at(parts, other)) for other in stay | {at}) > width:
            break
        stay.add(at)
    return stay


def _joined(parts: Sequence[str], stay: set[int], names: Iterable[Sequence[str]]) -> str:
    text = ""
    for at in reversed(range(len(parts))):
        if at in stay:
            others = {_at(other, at) for other in names} - {""}
            text += parts[-1 - at] if at == 0 else _trimmed(parts[-1 - at], others)
        elif not text.endswith(_GAP):
            text += _GAP
    return text


def _trimmed(part: str, others: Iterable[str]) -> str:
    """A long part, up to where it differs from the same part of other names."""
    if len(part) <= _PART:
        return part
    start = _common(others)
    end = len(part) - min(_common([other[::-1] for other in others]), len(part) - start)
    word = part.find("_", end)
    return f"{part[:word]}{_GAP}" if 0 < word < len(part) - 1 else part


def _common(texts: Iterable[str]) -> int:
    """The length of the common prefix."""
    return len(list(takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))))


def _ends(text: str) -> str:
    """A text with operators' names reduced to their ends."""
    return " ".join(map(_end, text.split(" ")))


def _end(word: str) -> str:
    """The end of a word that is a long name."""
    parts = _PIECE.findall(word)
    if len(word) <= _WHOLE or len(parts) < 2:
        return word
    opened = "(" * word.startswith("(")
    return opened + _joined(parts, _filled(parts, {0}, _END), [parts])
