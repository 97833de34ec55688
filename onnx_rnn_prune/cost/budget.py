"""Parses `--keep` and `--budget`: how much to keep, and what the result may cost.

| text | meaning |
| --- | --- |
| `40%`, `0.4` | a share: a number with a percent sign or a decimal point |
| `160` | a number of units: a whole number without either |
| `params=30%` | at most this share of the original's parameters (or `flops`, `bytes`) |
| `params=120k`, `flops=2M`, `bytes=1.5MB` | at most this amount; k is 1000, Ki is 1024, ... |
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal, get_args

from onnx_rnn_prune.errors import PruneError

Kind = Literal["params", "flops", "bytes"]

KINDS: tuple[Kind, ...] = get_args(Kind)

# Longer numbers make no sense here, and some overflow a float.
_NUMBER = r"([0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18})"
_POWERS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}

_KEEP_FORMS = "give a percentage (40%), a fraction (0.4) or a number of units (160)"
_BUDGET_FORMS = "give params, flops or bytes, and how much: params=30%, flops=2M, bytes=1MB"


@dataclass(frozen=True)
class Keep:
    """How much of a lane to keep: either a share or a number of units.

    Attributes:
        share: above 0, at most 1.
        units: at least 1.
    """

    share: float | None = None
    units: int | None = None

    def __str__(self) -> str:
        return f"{self.share:.6g}" if self.share is not None else f"{self.units} units"


@dataclass(frozen=True)
class Budget:
    """A limit on the pruned file: either a share of the original or an amount.

    Attributes:
        kind: what is counted: parameters, floating-point operations per step, bytes of the file.
        share: share of the original's; above 0, at most 1.
        amount: at least 1.
    """

    kind: Kind
    share: float | None = None
    amount: int | None = None

    def __str__(self) -> str:
        limit = f"{self.share:.6g}" if self.share is not None else f"{self.amount}"
        return f"{self.kind}={limit}"


def parse_keep(value: str | float) -> Keep:
    """Reads `--keep`: `40%`, `0.4` and the float 0.4 are shares, `160` and the int 160 are units.

    Raises:
        PruneError: the value is not above 0, or above 100 %, or no number.
    """
    if isinstance(value, Integral) and not isinstance(value, bool):
        value = int(value)  # NumPy's, too
    elif isinstance(value, Real) and not isinstance(value, bool):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise PruneError(f"'{value}' is not an amount", where="--keep", remedy=_KEEP_FORMS)
    text = str(value).strip()
    if isinstance(value, float) and 0 < value < 1:
        return Keep(share=value)  # its text may have an exponent
    if re.fullmatch(r"[0-9]{1,18}", text):
        units = int(text)
        if units == 0:
            raise PruneError("0 units would remove everything", where="--keep", remedy=_KEEP_FORMS)
        return Keep(units=units)
    share = read_share(text, "--keep", "a number of units without a decimal point")
    if share is None:
        raise PruneError(f"'{text}' is not an amount", where="--keep", remedy=_KEEP_FORMS)
    return Keep(share=share)


def parse_budget(text: str, option: str = "--budget") -> Budget:
    """Reads `--budget`: `params=30%`, `params=0.3`, `params=120000`, `flops=2M`, `bytes=1MB`.

    Args:
        text: a kind and a limit.
        option: the option to name in errors.

    Raises:
        PruneError: the text is not of this form, or the amount is not above 0, or above 100 %.
    """
    kind, equals, limit = (part.strip() for part in str(text).partition("="))
    if not equals or kind not in KINDS:
        raise PruneError(f"'{text}' is not a budget", where=option, remedy=_BUDGET_FORMS)
    unit = "b?" if kind == "bytes" else ""
    match = re.fullmatch(rf"{_NUMBER}\s*([kmg]i?|){unit}", limit, re.IGNORECASE)
    # A point without a unit is a share, as in --keep: params=0.3.
    if match and (limit[-1:].isalpha() or limit.isdigit()):
        amount = round(float(match[1]) * _POWERS[match[2].lower()])
        if amount < 1:
            raise PruneError(f"'{text}' leaves nothing", where=option, remedy=_BUDGET_FORMS)
        return Budget(kind, amount=amount)
    share = read_share(limit, option, "an amount such as 120000 or 1.5M")
    if share is None:
        raise PruneError(f"'{text}' is not a budget", where=option, remedy=_BUDGET_FORMS)
    return Budget(kind, share=share)


def read_share(text: str, where: str, otherwise: str) -> float | None:
    """A percentage or a decimal fraction; None where the text is neither.

    Args:
        text: as users write it.
        where: the option.
        otherwise: what else the option takes, as a hint for values above 100 %.

    Raises:
        PruneError: it is not above 0, or above 100 %.
    """
    match = re.fullmatch(rf"(-?){_NUMBER}\s*(%?)", text)
    if match is None or not (match[3] or "." in match[2]):
        return None
    share = float(match[2]) / (100.0 if match[3] else 1.0)
    if match[1] or share == 0:
        raise PruneError(f"'{text}' would keep no units", where=where, remedy="give more")
    if share > 1:
        raise PruneError(
            f"'{text}' is more than all units",
            where=where,
            remedy=f"give at most 100%, or {otherwise}",
        )
    return share
