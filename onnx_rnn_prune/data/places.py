"""Where inputs are read from: places that no output may take."""

from __future__ import annotations

from importlib.machinery import PathFinder
from pathlib import Path

from onnx_rnn_prune.data.values import is_function_name
from onnx_rnn_prune.model.checks import real_path, weight_files


def places(*sources: object) -> tuple[Path, ...]:
    """The files and folders that models, data and plans are read from.

    Args:
        sources: as users give them; what is neither a path nor `module:function` has no place.
    """
    found: list[Path] = []
    for source in sources:
        if not isinstance(source, str | Path):
            continue
        path = real_path(source)
        if isinstance(source, str) and is_function_name(source) and not path.exists():
            found += _module_files(source.partition(":")[0])
            continue
        found.append(path)
        if path.is_file() and path.suffix.lower() != ".npz":
            found += weight_files(path)
    return tuple(found)


def absolute(source: object) -> object:
    """The same source for a process that runs in another folder."""
    if not isinstance(source, str | Path):
        return source
    path = Path(source).absolute()
    return path if path.exists() else source


def _module_files(name: str) -> list[Path]:
    """The file of a module and those of the packages around it; nothing is imported."""
    found: list[Path] = []
    inner, folders = "", None
    for part in name.split("."):
        inner = f"{inner}.{part}" if inner else part
        spec = PathFinder.find_spec(inner, folders)
        if spec is None:
            break
        if spec.has_location and spec.origin:
            found.append(Path(spec.origin))
        folders = spec.submodule_search_locations
        if folders is None:
            break
    return found
