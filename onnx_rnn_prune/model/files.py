"""Model files in and out: nothing half-written, nothing overwritten by accident."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from onnx_rnn_prune.errors import PruneError


def load_model(source: str | Path | onnx.ModelProto) -> onnx.ModelProto:
    """Reads a model file, weights in external files included.

    Raises:
        PruneError: the file cannot be read or holds no ONNX model.
    """
    if isinstance(source, onnx.ModelProto):
        return source
    if not isinstance(source, str | Path):
        raise PruneError(
            f"{type(source).__name__} is no model",
            where="model",
            remedy="give a path or an onnx.ModelProto",
        )
    path = Path(source)
    if not path.is_file():
        reason = "is not a model file" if path.exists() else "there is no such file"
        reason = "is a folder, not a model file" if path.is_dir() else reason
        raise PruneError(reason, where=str(path), remedy="give the path of an .onnx file")
    try:
        model = onnx.load(path, format="protobuf")
    except (DecodeError, ValueError, UnicodeDecodeError) as error:
        raise _not_a_model(path) from error
    except (OSError, onnx.checker.ValidationError) as error:
        raise PruneError(
            f"cannot be read ({error})",
            where=str(path),
            remedy="check the file, and those beside it that hold its weights",
        ) from error
    if not model.graph.node or not model.opset_import:
        raise _not_a_model(path)
    return model


def weight_files(path: str | Path) -> list[Path]:
    """The files beside a model that hold its weights; none where it cannot be read."""
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except (DecodeError, ValueError, OSError):
        return []
    places = {
        entry.value
        for tensor in _tensors(model.graph)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return [Path(path).parent / place for place in sorted(places)]


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """All constants of a graph, those in nodes and their bodies included."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield attribute.t
            yield from _tensors(attribute.g)


def save_model(model: onnx.ModelProto, path: str | Path) -> None:
    """Writes a model file whole or not at all."""
    write_atomically(path, model.SerializeToString())


def check_output(path: str | Path, inputs: Iterable[Path]) -> None:
    """Refuses a place that cannot be written, or must not be, before there is anything to write.

    Args:
        path: where a file is to be written.
        inputs: files that are read, and folders of such.

    Raises:
        PruneError: it is no place for a file, or holds an input.
    """
    target = _target(path)
    if os.path.exists(target) and any(_is_part(target, given) for given in inputs):
        raise PruneError(
            "an input would be overwritten", where=str(path), remedy="name another file"
        )
    with _temporary(target):
        pass


def write_atomically(path: str | Path, content: bytes) -> None:
    """Writes a file beside its place and moves it there when it is complete.

    Raises:
        PruneError: the place cannot be written.
    """
    target = _target(path)
    with _temporary(target) as temporary:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)


def _target(path: str | Path) -> Path:
    """Where a file ends up that is written to a path, links followed."""
    if not isinstance(path, str | Path):
        raise PruneError(f"{type(path).__name__} is no path", remedy="name a file")
    target = Path(path).resolve()
    if os.path.exists(target) and not target.is_file():
        kind = "a folder" if target.is_dir() else "no regular file"
        raise PruneError(f"it is {kind}", where=str(path), remedy="name a file")
    if not target.parent.is_dir():
        raise PruneError("its folder does not exist", where=str(path), remedy="make it first")
    return target


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[str]:
    """A new file beside a place; whatever happens, it is gone in the end."""
    name = ""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        os.close(handle)
        yield name
    except OSError as error:
        raise PruneError(
            f"cannot be written ({error.strerror or error})",
            where=str(target),
            remedy="name a file in a folder that can be written",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)


def _is_part(target: Path, given: Path) -> bool:
    """Whether an existing file is an input, or lies in a folder of inputs."""
    if not given.is_dir():
        return given.exists() and target.samefile(given)
    return any(folder.samefile(given) for folder in target.parents)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _not_a_model(path: Path) -> PruneError:
    return PruneError("is not an ONNX model", where=str(path), remedy="give an exported .onnx file")
