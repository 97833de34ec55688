"""How much each layer keeps, as users write it: `40%`, and `encoder*=30%` for some of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from onnx_rnn_prune.cost.budget import Keep, parse_keep
from onnx_rnn_prune.errors import PruneError

_ALL = Keep(share=1.0)


@dataclass(frozen=True)
class Keeps:
    """How much layers keep.

    Attributes:
        default: layers that nothing is said of.
        named: globs of layer names, each with how much those layers keep; the first that matches
            counts.
    """

    default: Keep
    named: tuple[tuple[str, Keep], ...] = ()

    def __str__(self) -> str:
        parts = [f"{glob}={keep}" for glob, keep in self.named]
        return ", ".join([*parts, str(self.default)])

    def of(self, names: Sequence[str]) -> Keep:
        """How much layers keep that must keep equally many units.

        Raises:
            PruneError: they are to keep different amounts.
        """
        found = {name: self._of_one(name) for name in names}
        if len(set(found.values())) > 1:
            parts = ", ".join(f"{name} {keep}" for name, keep in found.items())
            raise PruneError(
                f"layers that must keep equally many units are to keep different amounts: {parts}",
                where="--keep",
                remedy="give them the same amount",
            )
        return found[names[0]]

    def check(self, names: Sequence[str]) -> None:
        """Refuses globs that match none of the layers.

        Raises:
            PruneError: one does not.
        """
        for glob, _ in self.named:
            if not any(fnmatchcase(name, glob) for name in names):
                raise PruneError(
                    f"no layer to prune matches '{glob}'",
                    where="--keep",
                    remedy=f"the layers are {', '.join(names)}",
                )

    def _of_one(self, name: str) -> Keep:
        for glob, keep in self.named:
            if fnmatchcase(name, glob):
                return keep
        return self.default


def parse_keeps(value: object) -> Keeps:
    """Reads `--keep`: an amount, `LAYER=AMOUNT`, several of them, or a mapping of layers.

    Where only some layers are named, the others keep all.

    Raises:
        PruneError: an amount means nothing, or is given twice.
    """
    default: Keep | None = None
    named: list[tuple[str, Keep]] = []
    for glob, amount in _entries(value):
        if glob:
            named.append((glob, parse_keep(amount)))
            continue
        if default is not None:
            raise PruneError(
                "two amounts are given for all layers",
                where="--keep",
                remedy="give one, or LAYER=AMOUNT for some layers",
            )
        default = parse_keep(amount)
    if default is None and not named:
        raise PruneError("no amount is given", where="--keep", remedy="give one, such as 40%")
    return Keeps(default or _ALL, tuple(named))


def _entries(value: object) -> Iterable[tuple[str, str | float]]:
    """Each amount with the layers that it is for; an empty glob for all."""
    if isinstance(value, Mapping):
        return [(str(glob), amount) for glob, amount in value.items()]
    parts: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
    found: list[tuple[str, str | float]] = []
    for part in parts:
        if not isinstance(part, str):
            found.append(("", part))
            continue
        glob, equals, amount = part.rpartition("=")
        if equals and not glob:
            raise PruneError(f"'{part}' names no layer", where="--keep", remedy="give LAYER=AMOUNT")
        found.append((glob, amount))
    return found
