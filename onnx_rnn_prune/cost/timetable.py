"""A cache file for times measured on this machine."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnxruntime

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.files import write_atomically


def cache_folder() -> Path:
    """The folder for measurements of this machine; XDG_CACHE_HOME moves it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onnx_rnn_prune"


# Version of the timing method: times of an older version are measured anew.
_WAY = 3


class Timetable:
    """Cached times, by machine, version of onnxruntime and name.

    Args:
        path: a JSON file. If invalid or tampered with, it counts as empty; if not writable, nothing
            is kept.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or cache_folder() / "timings.json"
        runtime = f"onnxruntime {onnxruntime.__version__}"
        self._machine = " ".join((platform.node(), platform.machine(), runtime, f"timing {_WAY}"))

    def __call__(
        self, names: Sequence[str], measure: Callable[[Sequence[str]], Sequence[Any]]
    ) -> list[Any]:
        """The value of each name, from the cache; missing ones are measured, all at once.

        Args:
            names: names of what is timed.
            measure: returns a JSON value for each of the given names.
        """
        known = self._read().get(self._machine, {})
        missing = [name for name in dict.fromkeys(names) if name not in known]
        if missing:
            found = dict(zip(missing, measure(missing), strict=True))
            known = {**known, **found}
            self._keep(found)
        return [known[name] for name in names]

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self._path.is_file():  # reading a pipe would never end
            return {}
        try:
            found = json.loads(self._path.read_text("utf-8"))
            known: dict[str, dict[str, Any]] = found["times"]
            return known if found["sha256"] == _digest(known) else {}
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return {}

    def _keep(self, found: dict[str, Any]) -> None:
        times = self._read()  # another process may have written meanwhile
        times[self._machine] = {**times.get(self._machine, {}), **found}
        with contextlib.suppress(OSError, PruneError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            content = {"sha256": _digest(times), "times": times}
            write_atomically(self._path, json.dumps(content, indent=1, sort_keys=True).encode())


def _digest(times: object) -> str:
    """A checksum that detects damaged times."""
    return hashlib.sha256(json.dumps(times, sort_keys=True).encode()).hexdigest()
