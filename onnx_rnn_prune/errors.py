"""The one error a user sees: what is wrong, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from onnx_rnn_prune.text import visible


class PruneError(Exception):
    """Something the user can mend.

    Args:
        what: what is wrong, as a clause without a full stop.
        where: the file, node, input or option that it concerns.
        remedy: what to do about it, as an imperative clause.
    """

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what, self.where, self.remedy = (
            visible(" ".join(text.split())) for text in (what, where, remedy)
        )
        super().__init__(str(self))

    def __reduce__(self) -> tuple[Callable[[str], PruneError], tuple[str]]:
        return partial(type(self), where=self.where, remedy=self.remedy), (self.what,)

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f"; {self.remedy}" if self.remedy else ""
        return f"{place}{self.what}{advice}"


class Unmet(PruneError):
    """A promise that a result does not keep: outputs differ, or a budget cannot be met."""
