"""Writing: whole or not at all, and never over an input."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnx_rnn_prune import prune
from onnx_rnn_prune.cli import run
from onnx_rnn_prune.data import input_paths
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.evidence.moments import Moments, MomentStore
from onnx_rnn_prune.model.checks import weight_files
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.files import check_output, write_atomically
from onnx_rnn_prune.model.runner import Runner
from onnx_rnn_prune.model.scratch import owned
from onnx_rnn_prune.validate.timing import node_times


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(28, "No space left")])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_writing_that_fails_leaves_nothing(error, step, tmp_path, monkeypatch):
    def fail(*_):
        raise error

    (tmp_path / "a").write_text("before")
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(PruneError if isinstance(error, OSError) else error):
        write_atomically(tmp_path / "a", b"after")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "before"


def test_a_place_is_tried_without_a_trace(tmp_path):
    check_output(tmp_path / "a", ())
    assert list(tmp_path.iterdir()) == []


def test_what_modules_are_read_from(tmp_path, monkeypatch):
    package = tmp_path / "my_package"
    package.mkdir()
    files = [package / "__init__.py", package / "feeds.py"]
    for path in files:
        path.write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert input_paths("my_package.feeds:make") == tuple(files)
    assert input_paths("my_package.absent:make") == tuple(files[:1])
    assert input_paths("sys:path", "no_such_module_anywhere:make", None, {}, print) == ()


def test_weights_of_constants_lie_beside_the_model_too(tmp_path, model):
    proto = onnx.load(model)
    tensor = numpy_helper.from_array(numpy_helper.to_array(proto.graph.initializer[0]), "v")
    onnx.external_data_helper.set_external_data(tensor, "constants.data")
    proto.graph.node.append(helper.make_node("Constant", [], ["v"], value=tensor))
    onnx.save(proto, tmp_path / "apart.onnx")
    assert weight_files(tmp_path / "apart.onnx") == [tmp_path / "constants.data"]


@pytest.mark.parametrize("place", ["model.onnx", "link.onnx", "clips/0.npz", "model.data"])
def test_a_result_is_not_saved_over_an_input(place, model, clips, monkeypatch):
    onnx.save(
        onnx.load(model), model, save_as_external_data=True, location="model.data", size_threshold=0
    )
    (model.parent / "link.onnx").symlink_to(model)
    monkeypatch.chdir(model.parent)
    result = prune("model.onnx", keep=3, data="clips")
    before = (model.parent / place).read_bytes()
    monkeypatch.chdir(clips)
    with pytest.raises(PruneError, match="this would overwrite an input; choose another file"):
        result.save(model.parent / place)
    assert (model.parent / place).read_bytes() == before
    for _ in range(2):
        result.save(model.parent / "small.onnx")


KILLED = """
import os, signal, sys
from pathlib import Path
from onnx_rnn_prune.model import files
from onnx_rnn_prune.model.scratch import temporary_folder
with files._temporary(Path(sys.argv[1])), temporary_folder() as folder:
    Path(folder, "weights").write_bytes(b"much")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path, monkeypatch):
    """And nothing else: not what belongs to a process that runs, or to one of another machine."""
    out, scratch = tmp_path / "out" / "a.json", tmp_path / "scratch"
    for folder in (out.parent, scratch):
        folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    command = [sys.executable, "-c", KILLED, str(out)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    left = [*out.parent.iterdir(), *scratch.iterdir()]
    assert len(left) == 2
    stays = []
    for path, prefix in zip(left, (".a.json.", "onnx_rnn_prune."), strict=True):
        machine = path.name.removeprefix(prefix).partition("-")[0]
        stays.append(path.with_name(f"{owned(prefix)}of_this_process"))
        stays.append(path.with_name(path.name.replace(machine, "00000000")))
        stays.append(path.with_name(f"{prefix}no_owner"))
    for path in stays:
        path.mkdir()
    command[2] = command[2].replace("os.kill", "print")
    subprocess.run(command, check=True)
    assert sorted([*out.parent.iterdir(), *scratch.iterdir()]) == sorted(stays)


def test_what_takes_the_place_of_a_file_has_its_permissions(tmp_path):
    path = tmp_path / "a"
    path.write_text("before")
    for mode in (0o600, 0o664):
        path.chmod(mode)
        write_atomically(path, b"after")
        assert path.stat().st_mode & 0o777 == mode


@pytest.fixture
def small_disk(tmp_path):
    """A folder with room for some kilobytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_page_that_does_not_fit_is_told_beside_what_was_written(
    small_disk, tmp_path, model, capsys
):
    out, page = tmp_path / "small.onnx", small_disk / "report.html"
    with open(small_disk / "filling", "wb") as file, contextlib.suppress(OSError):
        file.write(bytes(60_000))
    summary = tmp_path / "summary.md"
    options = ["--html", str(page), "--summary", str(summary), "--keep", "50%"]
    assert run(["prune", str(model), "-o", str(out), *options]) == 1
    shown = capsys.readouterr()
    assert shown.err.strip() == (
        f"Error: {page}: cannot be written (No space left on device); choose a file in a"
        " writable folder"
    )
    assert f"Written:{out},{summary}" in "".join(shown.out.split())  # however it is wrapped
    assert out.exists() and summary.exists()
    assert [path.name for path in small_disk.iterdir()] == ["filling"]


def test_a_full_temporary_folder_is_named(small_disk, tmp_path, monkeypatch):
    """Sessions of larger models, sums of much data, and times of nodes need room in it."""
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    large = np.zeros((1, 1 << 19), np.float32)
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1, 524288] x) => (float[1, 524288] y)'
        "{ y = Add (x, w) }"
    )
    proto.graph.initializer.append(numpy_helper.from_array(large, "w"))
    store = MomentStore()
    small = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1] x) => (float[1] y) { y = Exp (x) }'
    )
    feed = {"x": np.ones(1, np.float32)}
    with open(small_disk / "filling", "wb") as file, contextlib.suppress(OSError):
        file.write(bytes(1 << 20))
    for call in (
        lambda: node_times(Document.read(small), ["y"], [feed], "m"),
        lambda: Runner(proto),
        lambda: store.add("a", Moments(1, np.zeros(400), np.zeros((400, 400)))),
    ):
        with pytest.raises(
            PruneError, match=f"^{small_disk}[^:]*: the temporary folder is not writable"
        ):
            call()
