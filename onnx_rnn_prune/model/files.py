"""Model files in and out: nothing half-written, nothing overwritten by accident."""

from __future__ import annotations

import contextlib
import os
import tempfile
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
    path = Path(source)
    if not path.is_file():
        reason = "is a folder, not a model file" if path.is_dir() else "there is no such file"
        raise PruneError(reason, where=str(path), remedy="give the path of an .onnx file")
    try:
        model = onnx.load(path, format="protobuf")
    except (DecodeError, ValueError, UnicodeDecodeError) as error:
        raise _not_a_model(path) from error
    except (OSError, onnx.checker.ValidationError) as error:
        raise PruneError(f"cannot be read ({error})", where=str(path)) from error
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
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return [Path(path).parent / place for place in sorted(places)]


def save_model(model: onnx.ModelProto, path: str | Path) -> None:
    """Writes a model file whole or not at all."""
    write_atomically(path, model.SerializeToString())


def write_atomically(path: str | Path, content: bytes) -> None:
    """Writes a file beside its place and moves it there when it is complete.

    Raises:
        PruneError: the place cannot be written.
    """
    target = Path(path).resolve()
    if target.exists() and not target.is_file():
        raise PruneError("it is no regular file", where=str(path), remedy="name another file")
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise PruneError(
            f"cannot be written ({error.strerror or error})",
            where=str(target),
            remedy="name a file in a folder that exists and can be written",
        ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _not_a_model(path: Path) -> PruneError:
    return PruneError("is not an ONNX model", where=str(path), remedy="give an exported .onnx file")
