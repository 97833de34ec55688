"""Values of a report as they are shown, each marked with where in the report it stands.

An element's `data-key` is the way through the report, its parts set apart by dots (a dot within a
part has a backslash before it); `data-value` is the value as JSON, and `data-format` says which of
FORMATS made the text of it. Of two values that are compared, `data-from` names the first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from onnx_rnn_prune.report.html.parts import Markup, element
from onnx_rnn_prune.report.names import brief
from onnx_rnn_prune.report.numbers import amount, duration, faster, fewer, percent, size, times

UNKNOWN = "\N{EN DASH}"
Part = str | int


def _three(value: float) -> str:
    """Three significant digits; what is very small or large with an exponent."""
    return f"{value:.3g}"


def _share(before: float, after: float) -> str:
    return percent(after / before) if before else UNKNOWN


FORMATS: Mapping[str, Callable[[Any], str]] = {
    "text": str,
    "count": lambda value: f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}"),
    "amount": amount,
    "size": size,
    "duration": duration,
    "percent": percent,
    "faster": faster,
    "times": times,
    "number": _three,
    "cosine": lambda value: f"{value:.4f}",
    "check": lambda value: "passed" if value else "FAILED",
    "yes": lambda value: "yes" if value else "no",
}
CHANGES: Mapping[str, Callable[[Any, Any], str]] = {
    "fewer": fewer,
    "share": _share,
    "faster_than": lambda quartiles, ratio: faster(ratio, quartiles),
    "times_within": lambda quartiles, ratio: times(ratio, quartiles),
}


@dataclass(frozen=True)
class Facts:
    """A report, to take values from.

    Attributes:
        report: plain values.
    """

    report: Mapping[str, Any]

    @cached_property
    def brief(self) -> Mapping[str, Any]:
        """The report with the short names of layers."""
        return brief(self.report)

    def get(self, *way: Part) -> Any:
        """What stands at the end of a way through the report; None where nothing does."""
        value: Any = self.report
        for part in way:
            if isinstance(value, Mapping):
                value = value.get(part)
            elif isinstance(value, list | tuple) and isinstance(part, int) and part < len(value):
                value = value[part]
            else:
                return None
        finite = not isinstance(value, float) or math.isfinite(value)
        return value if finite else None

    def known(self, *way: Part) -> bool:
        """Whether there is a value at the end of a way."""
        return self.get(*way) is not None

    def all(self, *way: Part) -> list[Any]:
        """The values of a list; none where one is not known."""
        values = self.get(*way) or ()
        found = [self.get(*way, number) for number in range(len(values))]
        return [] if None in found else found

    def show(self, form: str, *way: Part) -> Markup:
        """A value as text, or a dash where it is not known."""
        value = self.get(*way)
        shown = UNKNOWN if value is None else FORMATS[form](value)
        marks = {**self.mark(*way), "data-format": form}
        return element("span", shown, attributes=marks)

    def change(self, form: str, before: tuple[Part, ...], after: tuple[Part, ...]) -> Markup:
        """What two values mean for each other, or a dash where one is not known."""
        values = [self.get(*before), self.get(*after)]
        shown = UNKNOWN if None in values else CHANGES[form](*values)
        marks = {**self.mark(*after), "data-from": key(before), "data-format": form}
        return element("span", shown, attributes=marks)

    def speed(self, form: str, *way: Part) -> Markup:
        """A speedup in one of two forms, with the quartiles of it where they are known.

        Args:
            form: faster or times.
            way: to the row that holds it.
        """
        quartiles = (*way, "speedup_quartiles")
        if len(self.all(*quartiles)) != 2:
            return self.show(form, *way, "speedup")
        within = {"faster": "faster_than", "times": "times_within"}[form]
        return self.change(within, quartiles, (*way, "speedup"))

    def mark(self, *way: Part) -> dict[str, object]:
        """The attributes of an element that stands for a value without showing it."""
        value = json.dumps(self.get(*way), ensure_ascii=False)
        return {"data-key": key(way), "data-value": value}


def key(way: tuple[Part, ...]) -> str:
    """A way through a report as one text."""
    return ".".join(str(part).replace("\\", "\\\\").replace(".", "\\.") for part in way)
