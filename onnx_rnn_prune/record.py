"""Frozen values that programs read as attributes, as a mapping, or as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, dataclass, fields, replace
from typing import Any


@dataclass(frozen=True, eq=False)
class Record(Mapping[str, Any]):
    """A report, or a part of one: a frozen dataclass that is also a mapping with the JSON's keys.

    `report.drift["y"].nrmse` and `report["drift"]["y"]["nrmse"]` are the same number. One value
    that can be read both ways is simpler than a typed value beside a plain copy. Records are equal
    to each other, and to a dict, if their items are.

    A key is the name of its attribute, unless the field's metadata give another `key`. Fields whose
    default is None have a key only if they have another value.
    """

    def __getitem__(self, key: str) -> Any:
        for field in fields(self):
            if key_of(field) == key and self._has(field):
                return getattr(self, field.name)
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return (key_of(field) for field in fields(self) if self._has(field))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _has(self, field: Field[Any]) -> bool:
        return field.default is not None or getattr(self, field.name) is not None


def key_of(field: Field[Any]) -> str:
    """The key of a record's field."""
    return str(field.metadata.get("key", field.name))


def mapped(value: Any, change: Callable[[str], str]) -> Any:
    """Applies a function to every string in records, lists and mappings, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Record):
        return replace(
            value, **{f.name: mapped(getattr(value, f.name), change) for f in fields(value)}
        )
    if isinstance(value, Mapping):
        return {mapped(key, change): mapped(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [mapped(item, change) for item in value]
    return value


def to_json(report: Mapping[str, Any], encoding: str = "utf-8") -> str:
    """A report as JSON text; infinity and NaN, which JSON lacks, become null.

    Invisible characters, which may control a terminal, and those that `encoding` lacks are escaped.
    """
    text = json.dumps(_plain(report), indent=2, ensure_ascii=False, allow_nan=False)
    return "\n".join(
        line
        if _is_plain(line, encoding)
        else "".join(c if _is_plain(c, encoding) else json.dumps(c)[1:-1] for c in line)
        for line in text.split("\n")
    )


def _is_plain(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return text.isprintable()


def _plain(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
