"""Declaration of options: their kinds, and how values are read.

A kind's `read` takes a value and the flag that names the option in messages. Values specific to one
part of the package, such as amounts and criteria, are a `Text` and are parsed there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Protocol, TypeVar

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.progress import Progress


class Kind(Protocol):
    """A kind of value."""

    def read(self, value: object, flag: str) -> object:
        """The value, checked and converted.

        Raises:
            PruneError: it is not of this kind.
        """
        ...


@dataclass(frozen=True)
class Text:
    """A value that is read where it is used; text on the command line."""

    def read(self, value: object, flag: str) -> object:
        return value


@dataclass(frozen=True)
class Named(Text):
    """A known name, a function, or `module:function`."""


@dataclass(frozen=True)
class File(Text):
    """The path of a file."""

    def read(self, value: object, flag: str) -> object:
        if value is not None and (not isinstance(value, str | Path) or not str(value)):
            raise PruneError(f"{value!r} is not a path", where=flag, remedy="give a file name")
        return value


@dataclass(frozen=True)
class Source(File):
    """Inputs: a path, `module:function`, or Python values, see `data.open_feeds`."""

    def read(self, value: object, flag: str) -> object:
        return value


@dataclass(frozen=True)
class Address:
    """The address of a machine that receives models and data, and whose answers are executed."""

    def read(self, value: object, flag: str) -> str:
        if not isinstance(value, str) or not value:
            raise PruneError(
                f"{value!r} is not an address", where=flag, remedy="give tcp://host:port"
            )
        return value


@dataclass(frozen=True)
class Switch:
    """True or False."""

    def read(self, value: object, flag: str) -> bool:
        if not isinstance(value, bool):
            raise PruneError(
                f"{value!r} is neither True nor False", where=flag, remedy="give True or False"
            )
        return value


@dataclass(frozen=True)
class Choice:
    """One of some names."""

    names: tuple[str, ...]

    def read(self, value: object, flag: str) -> str:
        if not isinstance(value, str) or value not in self.names:
            shown = f"'{value}'" if isinstance(value, str) else repr(value)
            raise PruneError(
                f"unknown value {shown}",
                where=flag,
                remedy=f"choose one of {', '.join(self.names)}",
            )
        return value


@dataclass(frozen=True)
class Whole:
    """A whole number, also one of NumPy's.

    Attributes:
        most: the largest; anything above is taken for a typing error.
        where: what `most` depends on, for the message.
    """

    least: int = 1
    most: int | None = None
    where: str = ""

    def read(self, value: object, flag: str) -> int:
        if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < self.least:
            raise PruneError(
                f"{value!r} is not a whole number of {self.least} or more",
                where=flag,
                remedy=f"give {self.least} or more",
            )
        if self.most is not None and int(value) > self.most:
            raise PruneError(
                f"{value} {flag.strip('-')} are too many{self.where}",
                where=flag,
                remedy=f"give at most {self.most}",
            )
        return int(value)


@dataclass(frozen=True)
class Number:
    """A number that is 0 or more or, if `above`, finite and more than 0."""

    above: bool = False

    def read(self, value: object, flag: str) -> float:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else -1.0
        if 0 < number < math.inf if self.above else number >= 0:
            return number
        what, remedy = ("above 0", "more than 0") if self.above else ("of 0 or more", "0 or more")
        raise PruneError(f"{value!r} is not a number {what}", where=flag, remedy=f"give {remedy}")


@dataclass(frozen=True)
class Names:
    """One or more names; in names of layers, * stands for any text."""

    def read(self, value: object, flag: str) -> tuple[str, ...]:
        given = (value,) if isinstance(value, str) else value
        found: list[str] = []
        for item in given if isinstance(given, Iterable) else [value]:
            if not isinstance(item, str):
                raise PruneError(
                    f"{item!r} is not a name",
                    where=flag,
                    remedy="give layer names, with or without *",
                )
            found.append(item)
        return tuple(found)


@dataclass(frozen=True)
class Values:
    """Values of inputs to fix, as text, by name."""

    def read(self, value: object, flag: str) -> dict[str, str]:
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            raise PruneError(
                f"{value!r} does not map inputs to values",
                where=flag,
                remedy="give name=value, or a dict from Python",
            )
        return {name: str(item) for name, item in value.items()}


@dataclass(frozen=True)
class Sizes:
    """Sizes of inputs, as sequences or as text such as 1x512, or of dimensions, by name."""

    def read(self, value: object, flag: str) -> dict[str, tuple[int, ...]]:
        remedy = "give input=1x512 or dimension=4; from Python {'input': (1, 512), 'dimension': 4}"
        if not isinstance(value, Mapping):
            raise PruneError(f"{value!r} does not map inputs to sizes", where=flag, remedy=remedy)
        found = {}
        for name, sizes in value.items():
            read = _whole_numbers(sizes)
            if read is None:
                raise PruneError(f"{name}={sizes} is not a size", where=flag, remedy=remedy)
            found[str(name)] = read
        return found


def _whole_numbers(value: object) -> tuple[int, ...] | None:
    """Whole numbers of 1 or more; None if they are anything else."""
    given: object = value.split("x") if isinstance(value, str) else value
    found = []
    for item in given if isinstance(given, Sequence) else [given]:
        text = item.strip() if isinstance(item, str) else item
        whole = int(text) if isinstance(text, str) and text.isdecimal() else text
        if isinstance(whole, bool) or not isinstance(whole, Integral) or whole < 1:
            return None
        found.append(int(whole))
    return tuple(found)


@dataclass(frozen=True)
class Option:
    """The declaration of an option.

    Attributes:
        help: a line or two; {known} stands for the names that a `Named` accepts.
        metavar: what the help calls a value.
        many: whether the flag may be repeated.
        without: what happens if the option is left out, for the help.
    """

    help: str
    kind: Kind
    default: object
    metavar: str
    many: bool
    without: str

    def read(self, value: object, name: str) -> object:
        """The value, checked and converted.

        Raises:
            PruneError: it is not of the option's kind.
        """
        left_out = value is None and self.default is None
        return None if left_out else self.kind.read(value, flag_of(name))


def option(
    text: str,
    kind: Kind,
    default: object = None,
    *,
    metavar: str = "",
    many: bool = False,
    without: str = "",
) -> Any:
    """A field of a group."""
    declared = Option(text, kind, default, metavar, many, without)
    return field(default=default, metadata={"option": declared})


def flag_of(name: str) -> str:
    """The flag of an option."""
    return f"--{name.replace('_', '-')}"


Own = TypeVar("Own", bound="Group")


@dataclass(frozen=True)
class Group:
    """Options that belong together; those that a function does not take keep their defaults."""

    @classmethod
    def of(cls: type[Own], given: Mapping[str, object]) -> Own:
        """This group's options among some arguments, read and checked.

        Raises:
            PruneError: a value is wrong, or two contradict each other.
        """
        options = {name: option for name, option in options_of(cls).items() if name in given}
        group = cls(**{name: option.read(given[name], name) for name, option in options.items()})
        group.check()
        return group

    def check(self) -> None:
        """Refuses options that contradict each other."""


def options_of(group: type[Group]) -> dict[str, Option]:
    """The declarations of a group's options, by name."""
    declared: tuple[Field[Any], ...] = fields(group)
    return {own.name: own.metadata["option"] for own in declared}


def check_progress(value: Progress) -> None:
    """Raises a PruneError if `progress` cannot be called."""
    if not callable(value):
        raise PruneError(
            f"{value!r} is not a function",
            where="progress",
            remedy="give a function, or leave it out",
        )
