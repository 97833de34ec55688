"""The report as a self-contained HTML page.

Elements that show a value of the report are marked: `data-key` is its path, joined by dots (a
backslash escapes dots within a part), `data-value` the value as JSON, `data-format` the formatter
and, where two values are compared, `data-from` the path of the first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from onnx_rnn_prune.report import pictures, wording
from onnx_rnn_prune.report.names import brief
from onnx_rnn_prune.report.plots import Way
from onnx_rnn_prune.report.schema import PruneReport
from onnx_rnn_prune.report.wording import amount, duration, faster, fewer, percent, size, times
from onnx_rnn_prune.text import presentable

UNKNOWN = "\N{EN DASH}"


FORMATS: Mapping[str, Callable[[Any], str]] = {
    "text": str,
    "count": lambda value: f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}"),
    "amount": amount,
    "size": size,
    "duration": duration,
    "percent": percent,
    "number": lambda value: f"{value:.3g}",
    "cosine": lambda value: f"{value:.4f}",
    "check": lambda value: "passed" if value else "FAILED",
    "yes": lambda value: "yes" if value else "no",
}
CHANGES: Mapping[str, Callable[[Any, Any], str]] = {
    "fewer": fewer,
    "share": lambda before, after: percent(after / before) if before else UNKNOWN,
    "faster_than": lambda quartiles, ratio: faster(ratio, quartiles),
    "times_within": lambda quartiles, ratio: times(ratio, quartiles),
}


def to_html(report: PruneReport) -> str:
    """A report as a self-contained HTML document."""
    report = presentable(report)
    short, _ = brief(report)
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(show=show, change=change, at=at, percent=percent)
    templates.tests["known"] = lambda fact: fact.value is not None
    templates.globals.update(wording=wording, pictures=pictures, trend=trend)
    page = templates.get_template("page.html").render(
        report=Fact(report), short=short, title=PurePath(report.model).name
    )
    return page.strip() + "\n"


@dataclass(frozen=True)
class Fact:
    """A value of a report and the path to it; its attributes and items are facts, too.

    Attributes:
        value: None if unknown or not finite.
        way: names, keys and indices.
    """

    value: Any
    way: Way = ()

    def __getattr__(self, name: str) -> Fact:
        return self._of(getattr(self.value, name), name)

    def __getitem__(self, key: str | int) -> Fact:
        return self._of(self.value[key], key)

    def __iter__(self) -> Iterator[Fact]:
        """The items of a list, or of a mapping or record."""
        keys = self.value if isinstance(self.value, Mapping) else range(len(self.value))
        return (self[key] for key in keys)

    def _of(self, value: Any, step: str | int) -> Fact:
        finite = not isinstance(value, float) or math.isfinite(value)
        return Fact(value if finite else None, (*self.way, step))

    @property
    def key(self) -> str:
        """The path as text."""
        parts = (str(part).replace("\\", "\\\\").replace(".", "\\.") for part in self.way)
        return ".".join(parts)

    @property
    def marks(self) -> Markup:
        """The attributes that mark an element with it."""
        value = json.dumps(self.value, ensure_ascii=False)
        return Markup('data-key="{}" data-value="{}"').format(self.key, value)


def show(fact: Fact, form: str) -> Markup:
    """A value as text, or a dash if unknown."""
    text = UNKNOWN if fact.value is None else FORMATS[form](fact.value)
    return Markup('<span {} data-format="{}">{}</span>').format(fact.marks, form, text)


def change(before: Fact, form: str, after: Fact) -> Markup:
    """The change between two values, or a dash if one is unknown."""
    values = before.value, after.value
    text = UNKNOWN if None in values else CHANGES[form](*values)
    marks = Markup('{} data-from="{}" data-format="{}"').format(after.marks, before.key, form)
    return Markup("<span {}>{}</span>").format(marks, text)


def at(report: Fact, way: Way) -> Fact:
    """The fact at a path through the report."""
    for step in way:
        report = report[step]
    return report


def trend(errors: Sequence[float]) -> str:
    """How the error grows: the last quarter relative to the second."""
    quarter = len(errors) // 4
    if quarter == 0:
        return ""
    before, end = (
        math.sqrt(sum(error**2 for error in part) / quarter)
        for part in (errors[quarter : 2 * quarter], errors[-quarter:])
    )
    if before == 0:
        return ""
    return f"In the last quarter it is {end / before:.2f} times that of the second quarter."
