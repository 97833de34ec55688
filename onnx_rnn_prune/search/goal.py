"""The goal of a search: how good the result must be, and what it may cost."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

from onnx_rnn_prune.arguments import Number
from onnx_rnn_prune.cost.budget import Budget, parse_budget
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.options import Target
from onnx_rnn_prune.validate.quality import NRMSE, Quality, read_quality

_TIME = re.compile(r"\s*([0-9]+\.?[0-9]*)\s*(us|ms|s)\s*")
_MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


@dataclass(frozen=True)
class Drop:
    """The largest loss of quality allowed.

    Attributes:
        amount: in the quality's own units, or a share of the original's value.
        relative: whether it is a share.
    """

    amount: float
    relative: bool = False

    def of(self, original: float) -> float:
        """The loss allowed, in the quality's own units."""
        return self.amount * abs(original) if self.relative else self.amount

    def __str__(self) -> str:
        return f"{self.amount:.6g}" if not self.relative else f"{100 * self.amount:.6g}%"


@dataclass(frozen=True)
class Speed:
    """The longest time allowed for a run: a share of the original's, or milliseconds."""

    share: float | None = None
    ms: float | None = None

    def of(self, original: float) -> float:
        """The time allowed, in milliseconds."""
        if self.ms is not None:
            return self.ms
        assert self.share is not None
        return original * self.share

    def __str__(self) -> str:
        return f"latency={self.ms:.6g}ms" if self.share is None else f"speedup={1 / self.share:.6g}"


@dataclass(frozen=True)
class Goal:
    """The goal: the fastest model that is good enough, or the best that is small enough.

    Attributes:
        quality: measure of a model's quality.
        drop: how much of it may be lost; None if cost is limited instead.
        speed: limit on the time of a run, or None.
        budgets: further limits on cost.
    """

    quality: Quality
    drop: Drop | None
    speed: Speed | None
    budgets: tuple[Budget, ...]

    @staticmethod
    def of(target: Target) -> Goal:
        """The goal for the given options.

        Raises:
            PruneError: an option is invalid, or none sets a goal.
        """
        asked = {"params": target.params, "bytes": target.bytes}
        goal = Goal(
            read_quality(target.metric, target.better),
            _read_drop(target),
            _read_speed(target),
            tuple(
                parse_budget(f"{kind}={limit}", f"--{kind}")
                for kind, limit in asked.items()
                if limit is not None
            ),
        )
        if goal.drop is None and goal.speed is None and not goal.budgets:
            raise PruneError(
                "no goal was given",
                where="search",
                remedy="give --max-nrmse, --metric with --max-drop, --speedup, --latency, --params"
                " or --bytes",
            )
        return goal

    @property
    def pays(self) -> tuple[str, ...]:
        """What a cut must save to pay off; if only size is limited, it may cost time."""
        return ("bytes", "ms") if self.speed or not self.budgets else ("bytes",)

    def __str__(self) -> str:
        named = (
            "deviation (nrmse) at most"
            if self.quality == NRMSE
            else f"{self.quality.name} worse by at most"
        )
        quality = [] if self.drop is None else [f"{named} {self.drop}"]
        speed = [] if self.speed is None else [str(self.speed)]
        return ", ".join([*quality, *speed, *map(str, self.budgets)])


def _read_drop(target: Target) -> Drop | None:
    value = target.max_drop
    if value is None:
        return None if target.max_nrmse is None else Drop(target.max_nrmse)
    text = str(value).strip()
    try:
        relative = isinstance(value, str) and text.endswith("%")
        amount = float(text.removesuffix("%")) / (100.0 if relative else 1.0)
    except ValueError:
        amount = math.nan
    if isinstance(value, bool) or not 0 <= amount < math.inf:
        raise PruneError(
            f"{value!r} is not an amount",
            where="--max-drop",
            remedy="give a number in units of the metric, or a percentage of the original (1%)",
        )
    return Drop(amount, relative)


def _read_speed(target: Target) -> Speed | None:
    if target.speedup is not None:
        return Speed(share=1.0 / _read_factor(target.speedup))
    return None if target.latency is None else Speed(ms=_read_time(target.latency))


def _read_factor(value: object) -> float:
    if isinstance(value, str):
        return _number(value.strip().removesuffix("x"), value, "--speedup", "give a factor: 2x")
    return Number(above=True).read(value, "--speedup")


def _read_time(value: object) -> float:
    if isinstance(value, Real) and not isinstance(value, bool):
        return Number(above=True).read(value, "--latency")
    found = _TIME.fullmatch(str(value))
    remedy = "give a time: 5ms"
    if found is None:
        raise PruneError(f"{value!r} is not a duration", where="--latency", remedy=remedy)
    return _number(found[1], value, "--latency", remedy) * _MILLISECONDS[found[2]]


def _number(text: str, value: object, option: str, remedy: str) -> float:
    convert: Callable[[str], float] = float
    try:
        number = convert(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise PruneError(f"{value!r} is not a number above 0", where=option, remedy=remedy)
    return number
