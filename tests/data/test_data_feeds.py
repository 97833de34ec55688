"""Every form in which data come gives the same feeds, read lazily and again and again."""

import io
import itertools
import os
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_rnn_prune.data import open_feeds
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.signature import Port

PORTS = (
    Port("x", np.dtype(np.float32), ("t", 2)),
    Port("h", np.dtype(np.float32), (1, 3)),
)
STATES = frozenset({"h"})


def feed(number):
    return {"x": np.full((number + 1, 2), number, np.float32)}


def numbers(feeds):
    return [int(one["x"][0, 0]) for one in feeds]


def opened(source):
    return open_feeds(source, PORTS, STATES)


@pytest.fixture
def folder(tmp_path):
    """Three .npz files whose order by text is not that of their numbers."""
    for number, name in enumerate(["clip1", "clip2", "clip10"]):
        np.savez(tmp_path / f"{name}.npz", **feed(number))
    (tmp_path / "README.txt").write_text("not data")
    (tmp_path / ".hidden.npz").write_text("not data")
    return tmp_path


@pytest.fixture
def test_sets(tmp_path):
    for number in range(3):
        place = tmp_path / f"test_data_set_{number}"
        place.mkdir()
        tensor = onnx.numpy_helper.from_array(feed(number)["x"])
        (place / "input_0.pb").write_bytes(tensor.SerializeToString())
        (place / "output_0.pb").write_bytes(tensor.SerializeToString())
    return tmp_path


class Reader:
    """A calibration reader as onnxruntime's users write them."""

    def __init__(self):
        self.rest = iter([feed(i) for i in range(3)])

    def get_next(self):
        return next(self.rest, None)


class Rewinding(Reader):
    def rewind(self):
        self.__init__()


def generate():
    yield from (feed(i) for i in range(3))


class Collection:
    def __iter__(self):
        return generate()


@pytest.mark.parametrize(
    "source",
    [
        [feed(0), feed(1), feed(2)],
        tuple(feed(i) for i in range(3)),
        generate,
        Collection(),
        Reader,
        lambda: [feed(0), feed(1), feed(2)],
    ],
)
def test_python_forms(source):
    feeds = opened(source)
    assert len(feeds) == 3
    assert numbers(feeds) == numbers(feeds) == [0, 1, 2]
    assert next(iter(feeds))["h"].shape == (1, 3)
    assert numbers(opened(feeds)) == [0, 1, 2]
    assert not feeds.random


@pytest.mark.parametrize("make", [generate, Reader, Rewinding])
def test_forms_that_run_only_once_can_be_read_again(make):
    feeds = opened(make())
    assert numbers(itertools.islice(feeds, 2)) == [0, 1]
    assert numbers(feeds) == numbers(feeds) == [0, 1, 2]


def test_a_real_calibration_reader():
    quantization = pytest.importorskip("onnxruntime.quantization")

    class Real(quantization.CalibrationDataReader):
        def __init__(self):
            self.reader = Reader()

        def get_next(self):
            return self.reader.get_next()

    assert numbers(opened(Real())) == [0, 1, 2]


def test_a_single_dict_is_one_feed():
    assert numbers(opened(feed(5))) == [5]
    assert numbers(opened(lambda: feed(5))) == [5]


def test_a_folder_of_archives_in_natural_order(folder):
    feeds = opened(folder)
    assert numbers(feeds) == [0, 1, 2]
    assert feeds.source == str(folder)
    assert numbers(opened(str(folder / "clip10.npz"))) == [2]


def test_folders_of_tensors(test_sets):
    feeds = opened(str(test_sets))
    assert numbers(feeds) == [0, 1, 2]
    assert numbers(opened(test_sets / "test_data_set_1")) == [1]


def test_tensors_that_say_which_input_they_are_for(tmp_path):
    for number, (name, shape) in enumerate([("h", (1, 3)), ("x", (4, 2))]):
        tensor = onnx.numpy_helper.from_array(np.ones(shape, np.float32), name)
        (tmp_path / f"input_{number}.pb").write_bytes(tensor.SerializeToString())
    assert next(iter(opened(tmp_path)))["x"].shape == (4, 2)


def test_a_function_by_name(tmp_path, monkeypatch):
    (tmp_path / "feeds_by_name.py").write_text(
        "import numpy as np\n"
        "def make():\n"
        "    for i in range(3):\n"
        "        yield {'x': np.full((i + 1, 2), i)}\n"
        "class Data:\n"
        "    make = staticmethod(make)\n"
        "broken = lambda: [][1]\n"
        "number = lambda: 3\n"
        "leave = lambda: exit()\n"
        "constant = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    feeds = opened("feeds_by_name:make")
    assert numbers(feeds) == numbers(feeds) == [0, 1, 2]
    assert feeds.source == "feeds_by_name:make"
    assert numbers(opened("feeds_by_name:Data.make")) == [0, 1, 2]
    for name, message in {
        "feeds_by_name:absent": "has no absent",
        "feeds_by_name:constant": "constant is not a function",
        "feeds_by_name:broken": "failed with IndexError: list index out of range",
        "feeds_by_name:leave": "generating feeds failed with SystemExit",
        "feeds_by_name:number": "returned int instead of feeds",
        "no_such_module_anywhere:make": "ModuleNotFoundError",
    }.items():
        with pytest.raises(PruneError, match=message):
            opened(name)


def test_files_are_loaded_when_it_is_their_turn(folder):
    (folder / "clip2.npz").write_text("broken")
    feeds = iter(opened(folder))
    assert next(feeds)["x"][0, 0] == 0
    with pytest.raises(PruneError, match=r"clip2\.npz: cannot be read as a \.npz file"):
        next(feeds)


def test_a_fault_names_the_feed(folder):
    np.savez(folder / "clip2.npz", y=np.ones(3))
    with pytest.raises(PruneError, match=r"clip2\.npz: the model has no input 'y'"):
        list(opened(folder))
    with pytest.raises(PruneError, match="Python data: feed 1: the model has no input 'y'"):
        list(opened([feed(0), {"y": 1}]))


def test_paths_that_hold_no_data(tmp_path):
    with pytest.raises(PruneError, match="there is no such file or folder; give a .npz file"):
        opened(tmp_path / "absent.npz")
    with pytest.raises(PruneError, match="neither .npz files nor folders"):
        opened(tmp_path)
    (tmp_path / "a.npy").write_text("")
    with pytest.raises(PruneError, match="unknown data format"):
        opened(tmp_path / "a.npy")


def test_a_folder_of_both_kinds_is_ambiguous(folder):
    (folder / "test_data_set_0").mkdir()
    (folder / "test_data_set_0" / "input_0.pb").write_bytes(b"")
    with pytest.raises(PruneError, match="not clear which to read"):
        opened(folder)


def test_an_array_file_with_the_wrong_ending(tmp_path):
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(PruneError, match="a single array without a name"):
        list(opened(tmp_path))


def test_objects_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{}], object))
    with pytest.raises(PruneError, match="cannot be read as a .npz file"):
        list(opened(tmp_path))


@pytest.mark.parametrize("content", [b"not protobuf", b""])
def test_a_broken_tensor(test_sets, content):
    (test_sets / "test_data_set_1" / "input_0.pb").write_bytes(content)
    with pytest.raises(PruneError, match=r"input_0\.pb: cannot be read as an ONNX TensorProto"):
        list(opened(test_sets))


def test_more_tensors_than_inputs(test_sets):
    place = test_sets / "test_data_set_0"
    (place / "input_2.pb").write_bytes((place / "input_0.pb").read_bytes())
    with pytest.raises(PruneError, match="the model has 2 inputs, so there is no input 2"):
        list(opened(test_sets))


@pytest.mark.parametrize("source", [[], lambda: [], lambda: iter(())])
def test_no_feeds(source):
    with pytest.raises(PruneError, match="it contains no feeds"):
        opened(source)


@pytest.mark.parametrize("source", [3, b"bytes", None])
def test_values_that_are_no_data(source):
    with pytest.raises(PruneError, match="unsupported data type"):
        opened(source)


def test_a_failing_iteration_is_one_line():
    def fail():
        yield feed(0)
        raise ValueError("line one\nline two")

    with pytest.raises(PruneError, match="fail: generating feeds failed with ValueError: line one"):
        opened(fail)


def test_leaving_is_no_way_to_end(tmp_path, monkeypatch):
    (tmp_path / "leaving_at_import.py").write_text("import sys\nsys.exit()")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PruneError, match="importing leaving_at_import failed with SystemExit"):
        opened("leaving_at_import:make")

    def leave():
        yield feed(0)
        raise SystemExit

    with pytest.raises(PruneError, match="leave: generating feeds failed with SystemExit"):
        opened(leave)

    class Leaving:
        def __array__(self, dtype=None, copy=None):
            raise SystemExit

    with pytest.raises(PruneError, match="input 'x': cannot be converted to an array"):
        list(opened({"x": Leaving()}))


def test_an_iteration_that_never_ends():
    with pytest.raises(PruneError, match="may never end; give fewer feeds"):
        opened(lambda: itertools.repeat(feed(0)))


def test_an_iteration_that_changes_is_noticed():
    runs = []

    def shrinking():
        runs.append(None)
        return [feed(0)] * (4 - len(runs))

    with pytest.raises(PruneError, match="yielded 2 feeds, but 3 before"):
        list(opened(shrinking))


@pytest.mark.parametrize("count", range(2, 14))
@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.99])
def test_a_split_is_disjoint_complete_and_repeatable(count, share):
    feeds = opened([feed(i) for i in range(count)])
    fit, held = feeds.split(share)
    assert sorted(numbers(fit) + numbers(held)) == list(range(count))
    assert len(held) == min(max(1, round(count * share)), count - 1)
    assert numbers(feeds.split(share)[1]) == numbers(held)
    assert not fit.shared and not held.shared


def test_parts_can_be_split_and_taken_from_again():
    feeds = opened([feed(i) for i in range(10)])
    part = feeds.take([7, 3, 5])
    assert numbers(part) == [3, 5, 7]
    assert numbers(part.take([1])) == [5]
    one, other = part.split(0.3)
    assert sorted(numbers(one) + numbers(other)) == [3, 5, 7]
    single = part.take([2])
    assert numbers(single.split()[0]) == numbers(single.split()[1]) == [7]


def test_a_single_feed_serves_for_both_and_says_so():
    fit, held = opened(feed(4)).split()
    assert numbers(fit) == numbers(held) == [4]
    assert fit.shared and held.shared


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0])
def test_a_split_needs_two_parts(share):
    with pytest.raises(ValueError, match="between 0 and 1"):
        opened([feed(0), feed(1)]).split(share)


def test_only_wanted_files_are_loaded(folder):
    feeds = opened(folder)
    (folder / "clip2.npz").unlink()
    assert numbers(feeds.take([0, 2])) == [0, 2]


def test_streams_keep_one_feed_at_a_time():
    alive = []

    def stream():
        for number in range(50):
            array = np.full((1, 2), number, np.float32)
            alive.append(__import__("weakref").ref(array))
            yield {"x": array}
            del array

    feeds = opened(stream)
    alive.clear()
    for _ in feeds:
        assert sum(reference() is not None for reference in alive) <= 2


def test_an_archive_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path):
    path = tmp_path / "zeros.npz"
    np.savez_compressed(path, x=np.zeros((20_000_000, 2), np.float32))
    assert path.stat().st_size < 1_000_000
    tracemalloc.start()
    with pytest.raises(PruneError, match=r"MB would unpack to 160 MB; .*save it with numpy.savez"):
        list(opened(path))
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("inside", ["", "part"])
def test_a_folder_that_cannot_be_read(inside, tmp_path, nobody):
    closed = tmp_path / "clips" / inside
    closed.mkdir(parents=True)
    closed.chmod(0)
    with nobody(), pytest.raises(PruneError, match=r"^clips: cannot be read \(Permission denied\)"):
        opened(Path("clips"))
    closed.chmod(0o755)


def test_a_header_that_claims_more_than_the_file_holds_is_an_error(tmp_path):
    """Entries of 4 bytes, of which there would be so many that no memory holds them."""
    head = {"descr": "<f4", "fortran_order": False, "shape": (1 << 44, 2)}
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, head)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", member.getvalue() + bytes(8))
    with pytest.raises(PruneError, match=r"x.npz: cannot be read as a .npz file"):
        list(opened(tmp_path / "x.npz"))


@pytest.mark.parametrize(
    "text",
    ["{'descr': '<f4', (", "(" * 3000, "{'shape': (1 if 1 else 2,)}", "\0", "{1: 2}", "\xff"],
)
def test_a_header_of_anything_is_an_error(tmp_path, text):
    """NumPy parses it as Python, which fails in as many ways as Python does."""
    member = b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text.encode("latin1")
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", member + bytes(8))
    with pytest.raises(PruneError, match=r"x.npz: cannot be read as a .npz file"):
        list(opened(tmp_path / "x.npz"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
@pytest.mark.parametrize("name", ["a.npz", "test_data_set_0/input_0.pb"])
def test_pipes_are_refused_instead_of_waited_for(name, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    for source in (path if path.suffix == ".npz" else tmp_path, tmp_path):
        with pytest.raises(PruneError, match="is a pipe or device, not a regular file"):
            list(opened(source))
