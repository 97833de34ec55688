"""Reading and writing model files: nothing half-written, nothing overwritten by accident."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import onnx
from google.protobuf.message import DecodeError

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model import external
from onnx_rnn_prune.model.checks import checked, find_weights, real_path
from onnx_rnn_prune.model.scratch import owned, remove_left
from onnx_rnn_prune.model.walk import messages

# Seconds to wait for another process that is moving files into place, which takes milliseconds.
_PATIENCE = 5.0
# Characters of a file's name that go into its temporary name.
_SHORT = 150


def load_model(source: str | Path | onnx.ModelProto) -> onnx.ModelProto:
    """Reads a model file; large weights in external files stay there, see `external`.

    Raises:
        PruneError: the file cannot be read, is no ONNX model, or its weights cannot be found.
    """
    if isinstance(source, onnx.ModelProto):
        for tensor in messages(source, onnx.TensorProto):
            if external.is_reference(tensor):
                raise PruneError(
                    "it refers to a file in an unknown folder",
                    where=f"weight '{tensor.name}'",
                    remedy="give the path of the model, or load it with its weights",
                )
        return checked(source)
    if not isinstance(source, str | Path):
        raise PruneError(
            f"{type(source).__name__} is not a model",
            where="model",
            remedy="give a path or an onnx.ModelProto",
        )
    path = Path(source)
    if not os.path.isfile(path):  # accepts names of any length
        reason = "is not a model file" if os.path.exists(path) else "there is no such file"
        reason = "is a folder, not a model file" if os.path.isdir(path) else reason
        raise PruneError(reason, where=str(path), remedy="give the path of an .onnx file")
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
        if not model.graph.node or not model.opset_import:
            raise _not_a_model(path)
        model = checked(model)
        find_weights(model, path)
    except (DecodeError, ValueError, UnicodeDecodeError) as error:
        raise _not_a_model(path) from error
    except OSError as error:
        raise PruneError(
            f"cannot be read ({error})",
            where=str(path),
            remedy="check the file, and the files next to it that contain its weights",
        ) from error
    return model


def require_plain(path: Path) -> None:
    """Refuses files that may block a reader forever; reading a folder fails anyway.

    Raises:
        PruneError: it is a pipe, a device or a socket.
    """
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        what = "is a pipe or device, not a regular file"
        raise PruneError(what, where=str(path), remedy="give a regular file")


def save_model(
    model: onnx.ModelProto, path: str | Path, inputs: Iterable[Path] = ()
) -> tuple[Path, ...]:
    """Writes a model file atomically; returns its path.

    Args:
        inputs: files that must stay, even if they are weights of the model being replaced.

    Raises:
        PruneError: the place cannot be written.
    """
    target = _target(path)
    with _temporary(target) as temporary:
        with _written(temporary, target) as file:
            file.write(model.SerializeToString())
        _put(target, temporary, None, inputs)
    return (Path(path),)


def save_apart(
    model: onnx.ModelProto, path: str | Path, inputs: Iterable[Path] = ()
) -> tuple[Path, ...]:
    """Writes a model file and its weights file atomically; returns their paths.

    The weights file is named after its content, so a graph never meets another's weights: the
    previous model stays whole until the new graph replaces it, and only then are its weights
    removed. Arguments as in `save_model`.

    Raises:
        PruneError: the place cannot be written.
    """
    if all(external.raw_length(tensor) < external.LEAST for tensor in model.graph.initializer):
        return save_model(model, path, inputs)
    target, digest = _target(path), hashlib.sha256()
    with _temporary(target) as temporary, _temporary(target) as temporary_weights:
        with _written(temporary_weights, target) as file:

            def put(start: int, tensor: onnx.TensorProto) -> None:
                file.seek(start)
                digest.update(b"%d " % start)
                for chunk in external.raw_chunks(tensor):
                    digest.update(chunk)
                    file.write(chunk)

            light = external.with_weights(model, external.WeightsFile(target.name, put).take)
        aside = target.with_name(external.weights_name(target.name, digest.hexdigest()))
        for tensor in light.graph.initializer:
            if external.is_reference(tensor):
                tensor.CopyFrom(external.referring(tensor, aside.name))
        with _written(temporary, target) as file:
            file.write(light.SerializeToString())
        _put(target, temporary, (aside, temporary_weights), inputs)
    return Path(path), Path(path).with_name(aside.name)


@dataclass(frozen=True, eq=False)
class WrittenModel:
    """A model made from another one.

    Attributes:
        written: the model; unchanged weights may still be in the original's files.
        apart: whether weights are saved in a separate file, like the original's.
        inputs: files and folders that were read.
    """

    written: onnx.ModelProto
    apart: bool = field(default=False, kw_only=True)
    inputs: tuple[Path, ...] = field(default=(), kw_only=True)

    @property
    def model(self) -> onnx.ModelProto:
        """The model with all its weights.

        Raises:
            PruneError: it is too large for one message.
        """
        return external.whole_model(self.written)

    def save(self, path: str | Path) -> tuple[Path, ...]:
        """Writes the model atomically, and never over an input.

        Returns:
            The path, and that of `<path>.<digest of weights>.data` if weights are separate.
        """
        check_output(path, self.inputs)
        save = save_apart if self.apart else save_model
        return save(self.written, path, self.inputs)


def _put(
    target: Path, temporary: str, weights: tuple[Path, str] | None, inputs: Iterable[Path]
) -> None:
    """Moves weights and then the graph into place, and removes the previous model's weights."""
    with _alone(target.parent):
        aside = None if weights is None else weights[0]
        fresh = aside is not None and not aside.exists()
        try:
            if weights is not None:
                os.replace(weights[1], weights[0])
            os.replace(temporary, target)
        except BaseException:
            if aside is not None and fresh:
                aside.unlink(missing_ok=True)
            raise
        kept = tuple(inputs)
        name = re.compile(
            re.escape(external.weights_name(target.name, "?")).replace(r"\?", "[0-9a-f]+")
        )
        for other in target.parent.iterdir():
            if other == aside or not name.fullmatch(other.name):
                continue
            with contextlib.suppress(OSError):
                if not any(_is_part(other, given) for given in kept):
                    other.unlink()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Locks a folder against other processes of ours that put files there, where locks exist."""
    handle = None
    with contextlib.suppress(OSError, ImportError):
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.01)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def check_output(path: str | Path, inputs: Iterable[Path]) -> None:
    """Refuses a path that cannot or must not be written, before any work is done.

    Args:
        inputs: files that are read, and folders of them.

    Raises:
        PruneError: no file can be written there, or it is an input.
    """
    target = _target(path)
    if os.path.exists(target) and any(_is_part(target, given) for given in inputs):
        raise PruneError(
            "this would overwrite an input", where=str(path), remedy="choose another file"
        )
    with _temporary(target):
        pass


def write_atomically(path: str | Path, content: bytes) -> None:
    """Writes a file under a temporary name and moves it into place when complete.

    Raises:
        PruneError: the place cannot be written.
    """
    target = _target(path)
    with _temporary(target) as temporary:
        with _written(temporary, target) as file:
            file.write(content)
        os.replace(temporary, target)


def write_text(path: str | Path, text: str) -> None:
    """Writes a UTF-8 text atomically; file names in it need not be valid UTF-8."""
    write_atomically(path, text.encode(errors="replace"))


@contextlib.contextmanager
def _written(temporary: str, target: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file for writing, and flushes it to disk in the end.

    A file that replaces another takes over its permissions.
    """
    with open(temporary, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    exists = target.exists()
    os.chmod(temporary, target.stat().st_mode & 0o777 if exists else 0o666 & ~_umask())


def _target(path: str | Path) -> Path:
    """The file that writing to a path affects, links resolved."""
    if not isinstance(path, str | Path):
        raise PruneError(f"{type(path).__name__} is not a path", remedy="give a file name")
    target = real_path(path)
    if os.path.exists(target) and not target.is_file():
        kind = "a folder" if target.is_dir() else "not a regular file"
        raise PruneError(f"it is {kind}", where=str(path), remedy="give a file name")
    if not target.parent.is_dir():
        raise PruneError("the folder does not exist", where=str(path), remedy="create it first")
    return target


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[str]:
    """A new temporary file in the target's folder, removed in the end in any case.

    If the process is killed, the next one that writes there removes it.
    """
    name, prefix = "", f".{target.name[:_SHORT]}."
    try:
        with contextlib.suppress(FileNotFoundError):
            os.lstat(target)  # the name may be too long
        remove_left(target.parent, prefix)
        handle, name = tempfile.mkstemp(prefix=owned(prefix), dir=target.parent)
        os.close(handle)
        yield name
    except OSError as error:
        raise PruneError(
            f"cannot be written ({error.strerror or error})",
            where=str(target),
            remedy="choose a file in a writable folder",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)


def _is_part(target: Path, given: Path) -> bool:
    """Whether an existing file is an input, or is inside an input folder."""
    if not os.path.isdir(given):
        return os.path.exists(given) and target.samefile(given)
    return any(folder.samefile(given) for folder in target.parents)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _not_a_model(path: Path) -> PruneError:
    return PruneError("is not an ONNX model", where=str(path), remedy="give an exported .onnx file")
