"""Frozen values that programs read as attributes, and as the JSON that they become."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, dataclass, fields, replace
from typing import Any


@dataclass(frozen=True, eq=False)
class Record(Mapping[str, Any]):
    """A report, or a part of one: a frozen dataclass that is also a mapping with the JSON's keys.

    `report.drift["y"].nrmse` and `report["drift"]["y"]["nrmse"]` are the same number. One value
    that can be read both ways is simpler than a typed value beside a plain copy: there is nothing
    to keep in step, and `to_json` takes a report as it takes any mapping. Two records are equal,
    and equal to a dict, where their items are.

    A key is the name of its attribute, or what the field's metadata say under `key`. Of a field
    whose default is None there is a key only where it has another value.
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
    """A value with each text in it changed: those in records, the keys of mappings, in lists."""
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
