"""The study: a search's measurements, in a file that survives crashes.

Two searches with the same key make the same trials.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

from onnx_rnn_prune.calibration import Calibration
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.files import require_plain
from onnx_rnn_prune.model.runner import Feed
from onnx_rnn_prune.opened_model import OpenedModel
from onnx_rnn_prune.selection.request import Request
from onnx_rnn_prune.trace.plan import fingerprint
from onnx_rnn_prune.validate.quality import Quality

_TABLE = "CREATE TABLE IF NOT EXISTS record (key TEXT PRIMARY KEY, value TEXT NOT NULL)"

# SQLite's own tables have reserved names.
_OTHERS = "SELECT name FROM sqlite_master WHERE name != 'record' AND name NOT LIKE 'sqlite%'"


class Study:
    """Values by key, each written atomically.

    Args:
        path: an SQLite file, created if missing; None to keep values only as long as this object
            lives.
        key: the key of the search, which separates it from others in the file.

    Attributes:
        found: the keys that were in the file when this was opened.

    Raises:
        PruneError: it is another file, or cannot be written.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self.key = key
        self._path, self._prefix = path, f"{key} "
        self._known: dict[str, Any] = {}
        if path is not None:
            require_plain(path)
            for key, value in self._run("SELECT key, value FROM record"):
                if str(key).startswith(self._prefix):
                    self._known[key.removeprefix(self._prefix)] = self._value(key, value)
        self.found = frozenset(self._known)

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Any:
        return self._known[key]

    def keep(self, key: str, value: Any) -> None:
        """Stores a JSON value."""
        self._known[key] = json.loads(json.dumps(value))
        if self._path is not None:
            self._run(
                "INSERT OR REPLACE INTO record VALUES (?, ?)",
                (self._prefix + key, _sealed(self._prefix + key, json.dumps(value))),
            )

    def recall(self, key: str, make: Callable[[], Any]) -> Any:
        """The value of a key, made and stored if missing."""
        if key not in self._known:
            self.keep(key, make())
        return self._known[key]

    def _value(self, key: str, sealed: object) -> Any:
        text = str(sealed).partition(" ")[2]
        if sealed != _sealed(key, text):
            raise PruneError(
                "its contents were changed or damaged",
                where=str(self._path),
                remedy="choose another file with --study",
            )
        return json.loads(text)

    def _run(self, statement: str, values: tuple[str, ...] = ()) -> list[tuple[str, str]]:
        try:
            with closing(sqlite3.connect(str(self._path), timeout=60.0)) as base, base:
                others = base.execute(_OTHERS).fetchone()
                if others is not None:
                    raise sqlite3.Error(f"it is not a study: it has a table '{others[0]}'")
                base.execute(_TABLE)
                return list(base.execute(statement, values))
        except (sqlite3.Error, OSError, UnicodeError) as error:
            raise PruneError(
                f"cannot be used as a study ({error})",
                where=str(self._path),
                remedy="choose another file with --study",
            ) from error


def _sealed(key: str, text: str) -> str:
    """A text with a checksum over it and its key."""
    return f"{hashlib.sha256(f'{key} {text}'.encode(errors='replace')).hexdigest()} {text}"


# Version of the meaning of trials; change it when that changes.
_FORMAT = "3"


def key_of(opened: OpenedModel, data: Calibration, quality: Quality, request: Request) -> str:
    """The key of measurements of this model with these feeds and settings."""
    found = hashlib.sha256()
    for part in (_FORMAT, version("onnx_rnn_prune"), fingerprint(opened.model)):
        found.update(part.encode())
    found.update(repr((quality.name, quality.higher, quality.source)).encode())
    chosen = (request.criterion_for(data).name, request.only, request.skip, request.bounds)
    found.update(repr((*chosen, request.seed, request.layers)).encode())
    if data.loss is not None:
        found.update(f"loss {data.loss.name}".encode())
    for feeds in (data.calibration, data.validation):
        found.update(repr(sorted(feeds.states.items())).encode())
        _digest(found.update, feeds)
    return found.hexdigest()[:16]


def _digest(add: Callable[[bytes], object], feeds: Iterable[Feed]) -> None:
    for feed in feeds:
        labels = getattr(feed, "labels", None)
        if getattr(feed, "follows", None):
            add(b"follows ")
        for name, value in [*sorted(feed.items()), ("labels", labels)]:
            if value is not None:
                add(f"{name} {value.dtype} {value.shape} ".encode())
                add(repr(value.tolist()).encode() if value.dtype.hasobject else value.tobytes())
