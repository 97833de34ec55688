"""Reports as files, and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnx_rnn_prune.model.files import write_atomically


def to_json(report: Mapping[str, Any], encoding: str = "utf-8") -> str:
    """A report as JSON text, in the order of its keys.

    JSON has no infinity and nothing for what is not a number: both become null. Characters that
    cannot be seen, which a terminal may obey, and that an encoding lacks are escaped.

    Args:
        report: the report.
        encoding: in which the text will be written.
    """
    text = json.dumps(_plain(report), indent=2, ensure_ascii=False, allow_nan=False)
    return "\n".join(
        line if _is_plain(line, encoding) else "".join(_letter(c, encoding) for c in line)
        for line in text.split("\n")
    )


def write_json(report: Mapping[str, Any], path: str | Path) -> None:
    """Writes a report whole or not at all.

    Raises:
        PruneError: the place cannot be written.
    """
    write_text(to_json(report) + "\n", path)


def write_text(text: str, path: str | Path) -> None:
    """Writes a text as UTF-8, whole or not at all; names of files may be what UTF-8 cannot hold.

    Raises:
        PruneError: the place cannot be written.
    """
    write_atomically(path, text.encode(errors="replace"))


def _is_plain(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return text.isprintable()


def _letter(letter: str, encoding: str) -> str:
    return letter if _is_plain(letter, encoding) else json.dumps(letter)[1:-1]


def _plain(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
