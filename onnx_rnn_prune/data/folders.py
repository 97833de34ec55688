"""Feeds in .npz archives and ONNX test_data_set folders; and which files a call reads."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from importlib.machinery import PathFinder
from itertools import accumulate
from pathlib import Path

import numpy as np
from onnx import TensorProto

from onnx_rnn_prune.data.sources import Listed, RawFeed, Source, is_function_name
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.checks import anchor, real_path, weight_files
from onnx_rnn_prune.model.external import is_reference, tensor_values
from onnx_rnn_prune.model.files import require_plain
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.model.signature import Port

# Maximum compression ratio of an archive, unless it is small: recordings compress a few times; much
# higher ratios are meant to exhaust memory.
_MOST_UNPACKED, _SMALL = 100, 1 << 26

_FORMS = (
    "give a .npz file, a folder of .npz files, a folder of test_data_set_* folders, "
    "or module:function"
)


def open_path(path: Path, ports: Sequence[Port]) -> Source:
    """The feeds at a path, loaded when they are read.

    Args:
        path: a .npz file, a folder of them, a folder of test_data_set_* folders, or one of these;
            or a folder of such folders.
        ports: the model's inputs, whose order gives input_0.pb, input_1.pb, ... their names.

    Raises:
        PruneError: the path does not exist or holds no feeds.
    """
    if os.path.isdir(path):
        try:
            return _open_folder(path, ports)
        except OSError as error:
            raise PruneError(
                f"cannot be read ({error.strerror})", where=str(path), remedy=_FORMS
            ) from error
    if not os.path.exists(path):  # accepts names of any length
        raise PruneError("there is no such file or folder", where=str(path), remedy=_FORMS)
    if path.suffix.lower() != ".npz":
        raise PruneError("unknown data format", where=str(path), remedy=_FORMS)
    return Listed(str(path), [str(path)], lambda _: read_archive(path))


def _open_folder(folder: Path, ports: Sequence[Port]) -> Source:
    parts = [_feeds_in(folder, ports)]
    if not parts[0]:
        inner = sorted(
            (p for p in folder.iterdir() if p.is_dir() and p.name[0] != "."), key=_natural
        )
        parts = [part for path in inner if (part := _feeds_in(path, ports))]
    found = [feed for part in parts for feed in part]
    starts = accumulate((len(part) for part in parts[:-1]), initial=0)
    if not found:
        raise PruneError(
            "the folder contains neither .npz files nor folders with input_*.pb files",
            where=str(folder),
            remedy=_FORMS,
        )
    labels = [str(path) for path, _ in found]
    return Listed(str(folder), labels, lambda number: found[number][1](), starts)


def _feeds_in(folder: Path, ports: Sequence[Port]) -> list[tuple[Path, Callable[[], RawFeed]]]:
    """A loader for each feed of a folder, by path; empty if it holds no feeds itself."""
    visible = [item for item in folder.iterdir() if not item.name.startswith(".")]
    archives = sorted((p for p in visible if p.suffix.lower() == ".npz"), key=_natural)
    sets = sorted((p for p in visible if p.is_dir() and _tensor_files(p)), key=_natural)
    if _tensor_files(folder):
        sets = [folder]
    if archives and sets:
        raise PruneError(
            "it contains both .npz and input_*.pb files, so it is not clear which to read",
            where=str(folder),
            remedy="keep only one kind in the folder",
        )
    read: list[tuple[Path, Callable[[], RawFeed]]] = [
        (path, partial(read_archive, path)) for path in archives
    ]
    return [*read, *((path, partial(_read_set, path, ports)) for path in sets)]


def read_archive(path: Path) -> dict[str, Array]:
    """The arrays of a .npz file by name.

    Raises:
        PruneError: it cannot be read, or would expand to far more than its size.
    """
    require_plain(path)
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it contains a single array without a name")
        with archive:
            assert archive.zip is not None
            _check_unpacked(sum(entry.file_size for entry in archive.zip.infolist()), path)
            return {name: archive[name] for name in archive.files}
    except PruneError:
        raise
    except Exception as error:  # NumPy raises various errors for a broken header
        raise PruneError(
            f"cannot be read as a .npz file: {error}",
            where=str(path),
            remedy="save it with numpy.savez(path, input_name=array, ...), without object arrays",
        ) from error


def _check_unpacked(claimed: int, path: Path) -> None:
    size = path.stat().st_size
    if claimed > max(_SMALL, _MOST_UNPACKED * size):
        raise PruneError(
            f"its {size / 1e6:.3g} MB would unpack to {claimed / 1e6:.6g} MB",
            where=str(path),
            remedy="if that is intended, save it with numpy.savez, which does not compress",
        )


def _read_set(folder: Path, ports: Sequence[Port]) -> RawFeed:
    tensors = [(number, path, _read_tensor(path)) for number, path in _tensor_files(folder)]
    names = [tensor.name for _, _, tensor in tensors]
    known = {port.name for port in ports}
    # Files are numbered like graph inputs; older sets count those with defaults, too. Tensor names
    # are more reliable if all are input names.
    if len(set(names)) == len(names) and known.issuperset(names):
        return {tensor.name: _array(path, tensor) for _, path, tensor in tensors}
    feed: dict[str, object] = {}
    for number, path, tensor in tensors:
        if number >= len(ports):
            raise PruneError(
                f"the model has {len(ports)} inputs, so there is no input {number}",
                where=str(path),
                remedy="remove the file, or check that the data is for this model",
            )
        feed[ports[number].name] = _array(path, tensor)
    return feed


def _read_tensor(path: Path) -> TensorProto:
    require_plain(path)
    tensor = TensorProto()
    try:
        tensor.ParseFromString(path.read_bytes())
    except Exception as error:  # its type depends on the protobuf backend
        raise _unreadable(path, error) from error
    return tensor


def _array(path: Path, tensor: TensorProto) -> object:
    if is_reference(tensor):
        anchor(tensor, path)
    try:
        return tensor_values(tensor)
    except Exception as error:  # broken tensors raise many unrelated types
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> PruneError:
    return PruneError(
        f"cannot be read as an ONNX TensorProto: {error}",
        where=str(path),
        remedy="save it with onnx.numpy_helper.from_array(...).SerializeToString()",
    )


def _tensor_files(folder: Path) -> list[tuple[int, Path]]:
    """The input_N.pb files of a folder, by N."""
    found = ((re.fullmatch(r"input_([0-9]+)\.pb", p.name), p) for p in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in found if match)


def _natural(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Natural order (clip2 before clip10), independent of the file system."""
    parts = re.split(r"([0-9]+)", path.name)
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in parts], path.name


def input_paths(*sources: object) -> tuple[Path, ...]:
    """The files and folders that models, data and plans are read from.

    Args:
        sources: as given by users; only paths and `module:function` count.
    """
    found: list[Path] = []
    for source in sources:
        if not isinstance(source, str | Path):
            continue
        path = real_path(source)
        if isinstance(source, str) and is_function_name(source) and not os.path.exists(path):
            found += _module_files(source.partition(":")[0])
            continue
        found.append(path)
        if os.path.isfile(path) and path.suffix.lower() != ".npz":
            found += weight_files(path)
    return tuple(found)


def absolute(source: object) -> object:
    """The same source, valid for a process in another working folder."""
    if not isinstance(source, str | Path):
        return source
    path = Path(source).absolute()
    return path if os.path.exists(path) else source


def _module_files(name: str) -> list[Path]:
    """The file of a module and those of its parent packages; nothing is imported."""
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
