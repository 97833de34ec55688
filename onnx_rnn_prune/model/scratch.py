"""Temporary files and folders, and memory.

Names of temporary files and folders identify their process by machine, number and start time. A
killed process leaves its own behind; the next one removes those of processes known to be dead.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import hashlib
import os
import platform
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from onnx_rnn_prune.errors import PruneError

_OWNER = re.compile(r"([0-9a-f]{8})-(\d+)-(\d+)\.")
_FOLDER = "onnx_rnn_prune."
# Errors of a full disk; NumPy gives no error number.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None)


def owned(prefix: str) -> str:
    """The name prefix of this process's temporary files."""
    own = os.getpid()
    return f"{prefix}{_machine()}-{own}-{_began(own)}."


def remove_left(folder: Path, prefix: str) -> None:
    """Removes temporary files of this user's dead processes from a folder."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = _OWNER.match(entry.name.removeprefix(prefix))
            if found is None or not entry.name.startswith(prefix) or not _is_dead(*found.groups()):
                continue
            with contextlib.suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
                    continue
                if stat.S_ISDIR(status.st_mode):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    os.unlink(entry.path)


@lru_cache(maxsize=1)
def _clean(root: str) -> None:
    remove_left(Path(root), _FOLDER)


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder that is removed after use; TMPDIR sets where.

    Raises:
        PruneError: it cannot be made.
    """
    try:
        root = tempfile.gettempdir()
    except OSError as error:
        raise _unfit("TMPDIR", error) from error
    _clean(root)
    with written_in(root):
        return tempfile.TemporaryDirectory(
            prefix=owned(_FOLDER), dir=root, ignore_cleanup_errors=True
        )


@contextlib.contextmanager
def written_in(folder: str | Path) -> Iterator[None]:
    """Raises an error that names the temporary folder if that is full.

    Raises:
        PruneError: it is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise _unfit(folder, error) from error


def _unfit(folder: str | Path, error: OSError) -> PruneError:
    return PruneError(
        f"the temporary folder is not writable ({error.strerror or error})",
        where=str(folder),
        remedy="free some space, or set TMPDIR to another folder",
    )


def _machine() -> str:
    """Identifies the machine, or container, in which process numbers are valid."""
    with contextlib.suppress(OSError):
        numbers = os.stat("/proc/self/ns/pid").st_ino
        return _digest(f"{platform.node()} {numbers}")
    return _digest(platform.node())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:8]


def _began(process: int) -> int:
    """When a process started, in the system's units; 0 if unknown."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        text = Path(f"/proc/{process}/stat").read_text(errors="replace")
        return int(text.rpartition(")")[2].split()[19])
    return 0


def _is_dead(machine: str, process: str, began: str) -> bool:
    if machine != _machine():
        return False
    if _began(os.getpid()):
        return _began(int(process)) != int(began)
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


# A garbage collection takes time proportional to all objects; for smaller models, it would dominate
# and find little. Graphs of many nodes need none, since Python collects by itself after so many new
# objects.
_WORTH, _NODE, _MUCH = 1 << 21, 1 << 14, 1 << 22


def give_back(size: int, nodes: int) -> None:
    """Frees unused graphs, which hold reference cycles, and their weights.

    Args:
        size: bytes that such a graph may hold.
        nodes: number of its nodes.
    """
    if size > min(max(_WORTH, nodes * _NODE), _MUCH):
        gc.collect()
    trim()


def trim() -> None:
    """Returns freed blocks to the system; glibc keeps those below 32 MB otherwise."""
    try:
        returned = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return  # another C library
    returned(0)
