"""What a file that comes from anyone cannot do: read other files, send anything, or take a turn."""

import contextlib
import ctypes
import json
import os
import re
import shutil
import sqlite3
import struct
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_rnn_prune import prune
from onnx_rnn_prune.cli import run
from onnx_rnn_prune.cost.timetable import Timetable
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model import checks, runner
from onnx_rnn_prune.model.checks import find_weights
from onnx_rnn_prune.model.external import is_apart
from onnx_rnn_prune.model.runner import Runner
from onnx_rnn_prune.model.walk import messages
from onnx_rnn_prune.search.study import Study
from onnx_rnn_prune.trace.plan import fingerprint

SECRET = "secret.bin"


class Opened:
    """Tells which files of a folder were opened, by whatever means."""

    def __init__(self, folder):
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK)
        assert libc.inotify_add_watch(self._descriptor, os.fsencode(folder), 0x20) >= 0

    def names(self):
        found = []
        try:
            content = os.read(self._descriptor, 1 << 16)
        except BlockingIOError:
            return found
        while content:
            *_, length = struct.unpack_from("iIII", content)
            found.append(content[16 : 16 + length].rstrip(b"\0").decode())
            content = content[16 + length :]
        return found


@pytest.fixture
def outside(tmp_path_factory):
    """A folder with a file that no model may read, and who looks at it."""
    if sys.platform != "linux":
        pytest.skip("only Linux tells which files were opened")
    folder = tmp_path_factory.mktemp("outside")
    (folder / SECRET).write_bytes(bytes(range(256)) * 64)
    watch = Opened(folder)
    (folder / SECRET).read_bytes()
    if watch.names() != [SECRET]:
        pytest.skip("this system does not tell which files were opened")
    yield folder / SECRET
    assert watch.names() == []


def reference(location, name="leak", dims=(16, 16), kind=TensorProto.FLOAT):
    tensor = TensorProto(name=name, data_type=kind, dims=dims, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def graph(location):
    constant = helper.make_node("Constant", [], ["c"], value=reference(location))
    return helper.make_graph([constant], "body", [], [])


def sparse(location, indices=False):
    tensors = [numpy_helper.from_array(np.zeros(16, np.float32), "leak")]
    tensors.append(numpy_helper.from_array(np.arange(16)))
    kind = (TensorProto.FLOAT, TensorProto.INT64)[indices]
    tensors[indices].CopyFrom(reference(location, "leak", (16,), kind))
    return helper.make_sparse_tensor(*tensors, [16, 16])


def attribute(location):
    return helper.make_attribute("value", reference(location))


# How a model names a file, wherever ONNX has a tensor.
PLACES = {
    "initializer": lambda m, at: m.graph.initializer.append(reference(at)),
    "sparse initializer": lambda m, at: m.graph.sparse_initializer.append(sparse(at)),
    "its indices": lambda m, at: m.graph.sparse_initializer.append(sparse(at, indices=True)),
    "attribute": lambda m, at: m.graph.node.add(op_type="Constant").attribute.append(attribute(at)),
    "several": lambda m, at: m.graph.node[0].attribute.add(name="a").tensors.append(reference(at)),
    "sparse": lambda m, at: m.graph.node.append(
        helper.make_node("Constant", [], ["leak"], sparse_value=sparse(at))
    ),
    "indices": lambda m, at: (
        m.graph.node[0].attribute.add(name="a").sparse_tensors.append(sparse(at, indices=True))
    ),
    "body": lambda m, at: m.graph.node[0].attribute.append(helper.make_attribute("a", graph(at))),
    "body of a body": lambda m, at: m.graph.node[0].attribute.append(
        helper.make_attribute(
            "a",
            helper.make_graph(
                [helper.make_node("If", ["c"], [], then_branch=graph(at), else_branch=graph(at))],
                "b",
                [],
                [],
            ),
        )
    ),
    "function": lambda m, at: m.functions.add(name="f").node.extend(graph(at).node),
    "default of a function": lambda m, at: m.functions.add(name="f").attribute_proto.append(
        attribute(at)
    ),
    "training": lambda m, at: m.training_info.add().algorithm.CopyFrom(graph(at)),
    "start of training": lambda m, at: m.training_info.add().initialization.CopyFrom(graph(at)),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("way", ["above", "absolute", "link"])
def test_no_tensor_is_read_from_another_folder(place, way, model, outside, capsys):
    link = model.parent / "link.bin"
    link.symlink_to(outside)
    above = os.path.relpath(outside, model.parent)
    location = {"above": above, "absolute": str(outside), "link": link.name}[way]
    proto = onnx.load(model)
    PLACES[place](proto, location)
    model.write_bytes(proto.SerializeToString())
    assert run(["inspect", str(model)]) == 1
    assert f"'{location}', which is outside the folder of the model" in capsys.readouterr().err


@pytest.mark.parametrize("place", PLACES)
def test_all_tensors_are_taken_from_the_folder(place, model):
    proto = onnx.load(model)
    (model.parent / "w.bin").write_bytes(bytes(range(256)) * 64)
    PLACES[place](proto, "w.bin")
    find_weights(proto, model)
    left = [t for t in messages(proto, TensorProto) if t.data_location == TensorProto.EXTERNAL]
    assert [t.name for t in left] == (["leak"] if place == "initializer" else [])


@pytest.mark.parametrize("folder", ["loop", "loop/inner", "a\0b", "no\udcffn", "n" * 300])
def test_names_that_lead_nowhere(folder, model, capsys):
    (model.parent / "loop").symlink_to("loop")
    proto = onnx.load(model)
    proto.graph.initializer.append(
        reference(folder.encode(errors="surrogateescape").decode("latin"))
    )
    model.write_bytes(proto.SerializeToString())
    assert run(["inspect", str(model)]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "defect" not in err and "model" in err


def test_a_model_that_is_a_link_has_its_weights_beside_the_file(model, tmp_path):
    """As caches of downloads hold them: each file a link to one with another name."""
    proto = onnx.load(model)
    store, shown = tmp_path / "store", tmp_path / "shown"
    store.mkdir()
    shown.mkdir()
    onnx.save(proto, store / "model", save_as_external_data=True, location="w", size_threshold=0)
    (store / "w").rename(store / "0123")
    (shown / "model.onnx").symlink_to(store / "model")
    (shown / "w").symlink_to(store / "0123")
    assert run(["inspect", str(shown / "model.onnx")]) == 0


@pytest.mark.parametrize("size", ["small", "large", "apart"])
def test_a_session_reads_no_other_folder_either(size, model, outside, monkeypatch):
    """Should a reference ever slip through the check, onnxruntime refuses it."""
    monkeypatch.chdir(outside.parent)
    proto = onnx.load(model)
    if size == "apart":
        onnx.save(proto, model, save_as_external_data=True, location="w", size_threshold=0)
        proto = onnx.load(model, load_external_data=False)
        monkeypatch.setattr(checks, "LEAST", 0)
        find_weights(proto, model)
        assert is_apart(proto)
    if size == "large":
        monkeypatch.setattr(runner, "LARGE", 0)
    above = os.path.relpath(outside, model.parent)
    for location in (SECRET, above, str(outside), str(outside)[1:]):
        leaking = onnx.ModelProto()
        leaking.CopyFrom(proto)
        PLACES["sparse"](leaking, location)
        leaking.graph.output.add(name="leak")
        with pytest.raises(PruneError, match="xternal"):
            Runner(leaking)


def test_locations_that_are_no_text_are_refused(model, tmp_path, capsys):
    proto = onnx.load(model)
    for name in ("kept.bin", "location"):
        tensor = reference(name, name, dims=(1,))
        proto.graph.initializer.append(tensor)
    content = proto.SerializeToString().replace(b"\x12\x08location", b"\x12\x08locati\xff\xfe")
    assert content != proto.SerializeToString()
    model.write_bytes(content)
    assert run(["prune", str(model), "-o", str(tmp_path / "out.onnx")]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "defect" not in err


def test_feeds_are_read_from_their_folder(model, outside, tmp_path, capsys):
    folder = tmp_path / "sets"
    folder.mkdir()
    tensor = reference(os.path.relpath(outside, folder), "x", (4, 2, 4))
    (folder / "input_0.pb").write_bytes(tensor.SerializeToString())
    assert run(["inspect", str(model), "--data", str(folder)]) == 1
    assert "outside the folder" in capsys.readouterr().err


COMMANDS = """
import sys
from onnx_rnn_prune import prune
from onnx_rnn_prune.cli import cli, run
model, clips, out, written_out = sys.argv[1:]
cut = ["--data", clips, "-o"]
commands = [
    ["inspect", model, "--layers", "all"],
    ["roll", written_out, "-o", out + "/rolled.onnx"],
    ["plan", model, *cut, out + "/plan.json"],
    ["apply", model, out + "/plan.json", *cut, out + "/applied.onnx"],
    ["prune", model, *cut, out + "/pruned.onnx", "--keep", "50%", "--budget", "bytes=100%"],
    ["apply", model, out + "/plan.json", *cut, out + "/shown.onnx", "--html", out + "/page.html"],
    ["search", model, *cut, out + "/found.onnx", "--params", "90%", "--trials", "2", "--jobs", "2"],
    ["sensitivity", model, "--data", clips],
    ["compare", model, out + "/pruned.onnx"],
    ["bench", model, out + "/pruned.onnx"],
]
assert {command[0] for command in commands} == set(cli.commands)
for command in commands:
    assert run(command) in ((0, 3) if command[0] == "apply" else (0,)), command  # 3: it is slower
"""


WRITTEN_OUT = Path(__file__).with_name("fixtures") / "keras_gru.onnx"
PLANTED = "open(__file__ + '.ran', 'w')"


def test_nothing_is_sent_nor_run(model, clips, tmp_path):
    """No command opens a connection, asks for an address, or touches onnxruntime's queue.

    Nor does one import what lies in the working folder.
    """
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    cache, out, trace = tmp_path / "cache", tmp_path / "out", tmp_path / "trace"
    cache.mkdir()
    out.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    environment.update(XDG_CACHE_HOME=str(cache), OMP_NUM_THREADS="1")
    watch = [strace, "-f", "--seccomp-bpf", "-qq", "-e", "trace=network,open,openat", "-o", trace]
    (tmp_path / "commands.py").write_text(COMMANDS)
    for module in ("joblib", "multiprocessing", "numpy", "onnxruntime", "torch", "queue"):
        (out / f"{module}.py").write_text(PLANTED)
    command = [*watch, sys.executable, tmp_path / "commands.py", model, clips, out, WRITTEN_OUT]
    done = subprocess.run(command, env=environment, cwd=out, capture_output=True, text=True)
    if "strace: " in done.stderr and not out.joinpath("plan.json").exists():
        pytest.skip(f"strace cannot look at processes here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    seen = trace.read_text(errors="replace").splitlines()
    assert any("model.onnx" in line for line in seen), "strace saw nothing"
    words = ("AF_INET", "resolv.conf", "/etc/hosts", "nscd", "DeveloperTools", "deviceid")
    assert [line for line in seen if any(word in line for word in words)] == []
    assert [path.name for path in cache.iterdir()] == ["onnx_rnn_prune"]
    if sys.version_info >= (3, 11):
        assert list(out.glob("*.ran")) == []


IN_A_CLUSTER = """
import sys
import distributed
from onnx_rnn_prune.cli import run
if __name__ == "__main__":
    model, clips, out = sys.argv[1:]
    local = {"host": "127.0.0.1", "dashboard_address": None}
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, **local) as cluster:
        options = ["--params", "90%", "--trials", "2", "--cluster", cluster.scheduler_address]
        code = run(["search", model, "--data", clips, "-o", out, *options])
    sys.exit(code % 3)  # which cut is worth its time is not what is looked at
"""


def test_a_cluster_talks_to_itself_only(model, clips, tmp_path):
    """Scheduler, worker and client connect to each other, and ask no one for an address."""
    pytest.importorskip("distributed", reason="Dask is not installed")
    strace, trace = shutil.which("strace"), tmp_path / "trace"
    if strace is None:
        pytest.skip("strace is not installed")
    script, out = tmp_path / "cluster.py", tmp_path / "out.onnx"
    script.write_text(IN_A_CLUSTER)
    watch = [strace, "-f", "--seccomp-bpf", "-qq", "-e", "trace=network,open,openat", "-o", trace]
    command = [*watch, sys.executable, script, model, clips, out]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    if "strace: " in done.stderr and not out.exists():
        pytest.skip(f"strace cannot look at processes here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    seen = trace.read_text(errors="replace").splitlines()
    reached = [line for line in seen if re.search(r"(connect|sendto|sendmsg)\(.*AF_INET", line)]
    assert reached, "strace saw nothing"
    assert [line for line in reached if '"127.0.0.1"' not in line] == []
    words = ("resolv.conf", "/etc/hosts", "nscd", "DeveloperTools", "deviceid")
    assert [line for line in seen if any(word in line for word in words)] == []


NASTY = "l\x1b[2J\x9b1A\r\nSelf-check: \u202e[red] `|` https://x.example @some GH-12 <script> \x7f"


@pytest.fixture
def nasty(model):
    """A model with names that mean something to terminals, Markdown and HTML."""
    proto = onnx.load(model)
    for name, *fields in (
        ("layer", (proto.graph.node[0], "name")),
        ("in", (proto.graph.input[0], "name")),
        ("out", (proto.graph.output[0], "name")),
    ):
        setattr(*fields[0], f"{NASTY}{name}")
    proto.graph.node[0].input[0] = proto.graph.input[0].name
    proto.graph.node[2].output[0] = proto.graph.output[0].name
    model.write_bytes(proto.SerializeToString())
    return model


@pytest.mark.parametrize(
    "command",
    [
        ["inspect"],
        ["inspect", "--json"],
        ["inspect", "--freeze", "x=1"],
        ["inspect", "--data", "\x1b[31m\udcff"],
        ["inspect", "--\x1b[31m\udcff"],
        ["plan", "-o", "plan.json"],
        ["prune", "-o", "o\x1b.onnx", "--html", "o.html", "--summary", "o.md", "--json", "o.json"],
        ["prune", "-o", "o.onnx", "--only", "\x1b[31m"],
        ["compare", "model.onnx", "--summary", "o.md"],
        ["bench", "model.onnx"],
    ],
)
def test_names_take_no_turn(command, nasty, tmp_path, monkeypatch, capsys):
    """Nothing that people read has anything in it that acts on a terminal, a page or a forge."""
    monkeypatch.chdir(tmp_path)
    assert run([command[0], "model.onnx", *command[1:]]) in (0, 1, 2)
    captured = capsys.readouterr()
    for text in captured:
        assert [line for line in text.split("\n") if not line.isprintable()] == []
    assert captured.out or captured.err
    if "--json" in command:
        text = captured.out if command[0] == "inspect" else (tmp_path / "o.json").read_text()
        assert json.loads(text)["layers"][0]["name"] == f"{NASTY}layer"
    for page in tmp_path.glob("o.[hm]*"):
        text = page.read_text()
        assert "\\x1b" in text and not set("\x1b\x9b\r\u202e\x7f") & set(text)
        assert "<script>" not in re.sub("`+.*?`+", "", text)
    for page in tmp_path.glob("o.md"):
        plain = re.sub(r"(`+) ?.*?[^`]\1(?!`)", "", page.read_text())
        assert "\\u202e" in plain
        assert not re.search("://|@some|GH-12", plain)
        assert len({line.count(" | ") for line in plain.splitlines() if "\\x1b" in line}) == 1


def test_output_in_a_narrow_encoding(model, tmp_path):
    """Names that the encoding of standard output has no letters for are written with escapes."""
    proto = onnx.load(model)
    proto.graph.node[0].name = "größe"
    model.write_bytes(proto.SerializeToString())
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    for options in ([], ["--json"]):
        command = [sys.executable, "-m", "onnx_rnn_prune", "inspect", model, *options]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        name = json.loads(done.stdout)["layers"][0]["name"] if options else done.stdout
        assert ("größe" if options else r"gr\xf6\xdfe") in name


def rename(model, before, after):
    """Gives a tensor or node another name, in bytes that are no text."""
    model.write_bytes(model.read_bytes().replace(before, after))


def test_names_in_another_encoding(model, tmp_path):
    proto = onnx.load(model)
    proto.graph.node[0].name = "name_Q"
    proto.graph.node[0].output[0] = proto.graph.node[1].input[0] = "made_Q"
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "time_Q"
    model.write_bytes(proto.SerializeToString())
    rename(model, b"_Q", b"_\xa4")
    out = tmp_path / "out.onnx"
    assert run(["prune", str(model), "-o", str(out)]) == 0
    assert onnx.load(out).graph.node[0].name == r"name_\xa4"


def test_a_port_in_another_encoding(model, capsys):
    proto = onnx.load(model)
    proto.graph.input[0].name = proto.graph.node[0].input[0] = "port_Q"
    model.write_bytes(proto.SerializeToString())
    rename(model, b"_Q", b"_\xa4")
    assert run(["inspect", str(model)]) == 1
    assert "its name is not UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize("dims", [["t", "b", 3], [5, 6, 7], ["n"], []])
def test_value_info_that_repeats_ports(dims, model, tmp_path):
    """The checker and onnxruntime go by what the port declares, and so does the written model."""
    proto = onnx.load(model)
    for name in ("x", "logits"):
        proto.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, dims))
    onnx.checker.check_model(proto)
    model.write_bytes(proto.SerializeToString())
    out = tmp_path / "out.onnx"
    assert run(["prune", str(model), "-o", str(out)]) == 0
    written = onnx.load(out).graph
    assert (written.input, written.output) == (proto.graph.input, proto.graph.output)


def cut_short(proto):
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-1]


def said_huge(proto):
    proto.graph.initializer[0].dims[:] = [2**40, 2**20]


def said_negative(proto):
    proto.graph.initializer[0].dims[0] = -1


def of_unknown_type(proto):
    proto.graph.initializer[0].data_type = 99


def of_no_type(proto):
    proto.graph.initializer[0].data_type = 0


def too_few(proto):
    proto.graph.initializer.append(helper.make_tensor("few", TensorProto.FLOAT, [2], [1, 2]))
    proto.graph.initializer[-1].float_data.pop()


def in_pieces(proto):
    proto.graph.initializer[0].segment.begin = 1


def port_of_unknown_type(proto):
    proto.graph.input[0].type.tensor_type.elem_type = 99


def in_a_circle(proto):
    proto.graph.node[0].input[0] = "logits"


def with_bytes_as_text(proto):
    proto.graph.node[0].attribute.append(helper.make_attribute("direction", b"\xff"))


def named_twice(proto):
    proto.graph.node[1].output[0] = "logits"


def with_an_empty_body(proto):
    """A Loop whose body has neither a counter nor a condition."""
    proto.graph.node[-1].output[0] = "before"
    body = helper.make_graph([], "body", [], [])
    proto.graph.node.append(helper.make_node("Loop", ["", "", "before"], ["logits"], body=body))


def with_an_imaginary_shape(proto):
    """A shape of complex numbers."""
    shape = onnx.numpy_helper.from_array(np.array([2 + 3j], np.complex64), "shape")
    proto.graph.initializer.append(shape)
    proto.graph.node.insert(0, helper.make_node("ConstantOfShape", ["shape"], ["zeros"]))


def without_an_end(trips, proto):
    """A Loop that goes on as long as its trip count says, or for ever where it says nothing."""
    body = onnx.parser.parse_graph("""
        body (int64 i, bool go, float[N, 1] v) => (bool on, float[N, 1] v2, float[N, 1] out) {
            on = Identity (go)  v2 = Identity (v)  out = Identity (v)
        }""")
    proto.graph.node[-1].output[0] = "before"
    for name, value in (("trips", np.array(2**40)), ("go", np.array(True))):
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    inputs, outputs = [trips, "go", "before"], ["logits", "all"]
    proto.graph.node.append(helper.make_node("Loop", inputs, outputs, body=body))


def with_a_body_that_is_missing(proto):
    without_an_end("trips", proto)
    proto.graph.node[-1].attribute[0].ClearField("g")


def with_an_attribute_of_no_function(proto):
    proto.graph.node[0].attribute.append(helper.make_attribute("direction", "forward"))
    proto.graph.node[0].attribute[-1].ref_attr_name = "elsewhere"


def with_another_number_of_parts(proto):
    proto.graph.node[-1].output[0] = "before"
    node = helper.make_node("Split", ["before"], ["logits", "rest"], axis=0, num_outputs=1)
    proto.graph.node.append(node)


def with_one_factor(proto):
    del next(node for node in proto.graph.node if node.op_type == "MatMul").input[1:]


def below_zero(makes, proto):
    """A size that only an operator behind the last layer makes, and a slice of it."""
    sizes = {"k": [-7], "parts": [-7, 10], "pads": [0] * 5 + [-9], "scales": [1.0, 1.0, -2.0]}
    sizes |= {"start": [0], "end": [1], "last": [2]}
    for name, value in sizes.items():
        kind = np.float32 if name == "scales" else np.int64
        proto.graph.initializer.append(numpy_helper.from_array(np.array(value, kind), name))
    proto.graph.node[-1].output[0] = "z"
    body = f"{makes}  logits = Slice (few, start, end, last)"
    proto.graph.node.extend(
        onnx.parser.parse_graph(f"g (float[n] z) => (float[n] logits) {{ {body} }}").node
    )


MAKE_FEW = [
    "few = AveragePool <kernel_shape = [9]> (z)",
    "few = Pad (z, pads)",
    "few = Resize (z, , scales)",
    "few, places = TopK (z, k)",
    "few, others = Split <axis = 2> (z, parts)",
]


def with_a_node(text, proto):
    """One that ends the process once onnxruntime runs it."""
    proto.graph.node.append(onnx.parser.parse_node(text))
    if text.startswith("s = Sum"):
        proto.graph.node[-1].input[1] = ""


def with_a_body_as_layout(proto):
    attribute = helper.make_attribute("layout", helper.make_graph([], "body", [], []))
    proto.graph.node[0].attribute.append(attribute)


def with_functions(*calls, inputs="a"):
    """The functions F0, F1, ..., each of a call or two of others; the model calls the first."""

    def change(proto):
        for number, called in enumerate(calls):
            function = proto.functions.add(name=f"F{number}", domain="own")
            function.input.append("a")
            function.output.append("b")
            function.opset_import.add(domain="own", version=1)
            names = zip("a" + "c" * (len(called) - 1), "c" * (len(called) - 1) + "b", strict=True)
            nodes = zip(called, names, strict=True)
            function.node.extend(
                helper.make_node(op, [one], [two], domain="own") for op, (one, two) in nodes
            )
        proto.opset_import.add(domain="own", version=1)
        given = ["x"] * len(inputs)
        proto.graph.node.append(helper.make_node("F0", given, ["called"], domain="own"))

    return change


def with_a_layer_in_a_function(version, times, proto):
    """Of another version of the operators than the model, or one of two functions of one name."""
    layer = proto.graph.node[0]
    for _ in range(times):
        function = proto.functions.add(name="F", domain="own", input=layer.input, output=["Y"])
        function.opset_import.add(domain="", version=version)
        function.node.append(layer)
    proto.opset_import.add(domain="own", version=1)
    layer.op_type, layer.domain = "F", "own"
    layer.ClearField("attribute")


BROKEN = {
    partial(with_a_layer_in_a_function, 1, 1): "its functions cannot be inlined (Model has",
    partial(with_a_layer_in_a_function, 17, 2): "its functions cannot be inlined (Model con",
    with_functions(["F1"], ["F0"]): "it calls itself",
    with_functions(["F0"]): "function 'F0': it calls itself",
    with_functions(["F1"], inputs="ab"): "node 'F0': it has more inputs than the function",
    with_functions(*([f"F{n}"] * 2 for n in range(1, 40))): "once its functions are inlined",
    cut_short: "weight 'W': its shape needs 288 bytes, but it has 287",
    said_huge: "its shape needs",
    said_negative: "weight 'W': its shape is [-1, ",
    of_unknown_type: "weight 'W': its type is not an ONNX type (99)",
    of_no_type: "weight 'W': its type is not an ONNX type (0)",
    too_few: "weight 'few': its shape needs 2 values, but it has 1",
    in_pieces: "weight 'W': it is a segment of another tensor",
    port_of_unknown_type: "tensor 'x': its type is not an ONNX type",
    in_a_circle: "its nodes form a cycle",
    with_bytes_as_text: "cannot be read as a graph",
    named_twice: "onnxruntime cannot load it",
    with_an_empty_body: "node 'Loop': its body lacks a counter or a condition",
    with_a_body_that_is_missing: "node 'Loop': its 'body' is missing",
    partial(without_an_end, "trips"): "Loop logits: it never ends",
    partial(without_an_end, ""): "Loop logits: it never ends",
    with_another_number_of_parts: "node 'Split': it has 2 outputs but declares 1",
    with_one_factor: "node 'MatMul': it has fewer than 2 inputs",
    with_a_body_as_layout: "its 'layout' does not have the type",
    with_an_attribute_of_no_function: "attribute 'direction': it refers to a function's",
    with_an_imaginary_shape: "onnxruntime cannot load it",
    partial(with_a_node, "s = ConcatFromSequence (x)"): "node 'ConcatFromSequence': its 'axis' is",
    partial(with_a_node, "s = Concat (x)"): "node 'Concat': its 'axis' is missing",
    partial(with_a_node, "s = Cast (x)"): "node 'Cast': its 'to' is missing",
    partial(with_a_node, "s = Sum (x, x, x)"): "node 'Sum': one of its inputs has no name",
    partial(with_a_node, "r = RandomNormal <shape = [2], scale = 0.0> ()"): "scale is not positive",
    partial(with_a_node, "r = RandomUniformLike <high = -1.0> (x)"): "between invalid bounds",
    **{partial(below_zero, makes): "tensor 'few': its shape would be [" for makes in MAKE_FEW},
}


@pytest.mark.parametrize("command", ["inspect", "prune"])
@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_no_model_is_said(broken, command, model, tmp_path, capsys):
    proto = onnx.load(model)
    broken(proto)
    model.write_bytes(proto.SerializeToString())
    out = ["-o", str(tmp_path / "out.onnx")] if command == "prune" else []
    code = run([command, str(model), *out])
    out, err = capsys.readouterr()
    assert BROKEN[broken] in err + " ".join(out.split())
    assert "defect" not in err and "Traceback" not in err
    assert code == 1 or (command == "inspect" and "cannot load" in BROKEN[broken])
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("value", ["", "{}", '0 {"ms": 1}', 7, None, b"\xff", "swapped"])
def test_a_study_that_was_damaged(value, tmp_path):
    path = tmp_path / "study.db"
    memory = Study(path, "search")
    memory.keep("times", {"ms": 1.5})
    memory.keep("other", {"ms": 9.5})
    assert Study(path, "search")["times"] == {"ms": 1.5}
    with contextlib.closing(sqlite3.connect(path)) as base, base:
        if value == "swapped":
            ((value,),) = base.execute("SELECT value FROM record WHERE key = 'search other'")
        with contextlib.suppress(sqlite3.IntegrityError):
            base.execute("DROP TABLE record")
            base.execute("CREATE TABLE record (key TEXT, value)")
            base.execute("INSERT INTO record VALUES ('search times', ?)", (value,))
    with pytest.raises(PruneError, match="changed or damaged; choose another file with study="):
        Study(path, "search")
    Study(path, "another search")


@pytest.mark.parametrize("change", ["1.5", '"a"', "{", "[]", '"times"', '"sha256"', "null"])
def test_timings_that_were_damaged_count_as_none(change, tmp_path):
    path = tmp_path / "timings.json"
    timetable = Timetable(path)
    assert timetable(["a"], lambda names: [1.5]) == [1.5]
    assert timetable(["a"], lambda names: pytest.fail("it is known")) == [1.5]
    before = path.read_text()
    path.write_text(before.replace(change, "null" if change in before else "") or "null")
    if path.read_text() != before:
        assert Timetable(path)(["a"], lambda names: [2.5]) == [2.5]
    path.write_text(change)
    assert Timetable(path)(["a"], lambda names: [3.5]) == [3.5]
    path.write_text("[" * 100_000)
    assert Timetable(path)(["a"], lambda names: [4.5]) == [4.5]


def test_an_empty_list_of_axes(model, tmp_path):
    """It has a type in the file, and none in Python."""
    proto = onnx.load(model)
    proto.opset_import[0].version = 11
    del proto.graph.node[1].input[1:]
    proto.graph.node[1].attribute.add(name="axes", type=onnx.AttributeProto.INTS)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    model.write_bytes(proto.SerializeToString())
    assert run(["prune", str(model), "-o", str(tmp_path / "out.onnx")]) == 0


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_no_output_can_be_computed(model, clips):
    """Behind operators that onnxruntime does not know, nothing tells recoveries apart."""
    proto = onnx.load(model)
    proto.graph.node[2].domain = "elsewhere.example"
    proto.opset_import.add(domain="elsewhere.example", version=1)
    model.write_bytes(proto.SerializeToString())
    assert prune(model, keep=2, data=clips).report["recovery"]["used"] == "none"


def behind_another_operator(state):
    """A layer that reads what onnxruntime cannot compute."""
    proto = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17, "elsewhere.example" : 1]>
        main (float[t, b, 3] x, float[1, b, 40] h) => (float[t, d, b, c] y) {{
          x2 = elsewhere.example.Mystery (x)
          [rnn] r = GRU <hidden_size = 40> (x2, W, R {state})
          y = MatMul (r, V)
        }}""")
    rng = np.random.default_rng(0)
    for name, shape in (("W", (1, 120, 3)), ("R", (1, 120, 40)), ("V", (40, 2))):
        values = rng.normal(size=shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    return proto


@pytest.mark.parametrize("state", ["", ", , , h"])
def test_what_cannot_be_run_is_not_cut(state, tmp_path, capsys):
    """What enters such a layer can be computed, but no run shows what its cut computes."""
    proto = behind_another_operator(state)
    proto.graph.node.insert(0, helper.make_node("Neg", ["x"], ["negative"]))
    proto.graph.node[1].input[0] = "negative"
    onnx.save(proto, tmp_path / "m.onnx")
    wanted = {
        "format": "onnx_rnn_prune.plan/1",
        "model": {"sha256": fingerprint(proto)},
        "layers": {"rnn": {"scope": "", "hidden_size": 40, "keep": [[0, 1]]}},
    }
    (tmp_path / "plan.json").write_text(json.dumps(wanted))
    model, out = str(tmp_path / "m.onnx"), str(tmp_path / "out.onnx")
    for code, given in ((3, ["prune", model]), (1, ["apply", model, str(tmp_path / "plan.json")])):
        assert run([*given, "-o", out]) == code
        told = capsys.readouterr().err
        assert "it depends on an operator that onnxruntime lacks" in told
    assert not Path(out).exists()


def test_nothing_can_be_run():
    with pytest.raises(PruneError, match="all of its outputs depend on operators that onnxrun"):
        prune(behind_another_operator(""))


def test_an_operator_of_others_that_only_a_cut_does_without(model, clips, tmp_path, capsys):
    """A state of zeros is dropped, and with it what onnxruntime cannot run."""
    proto = onnx.load(model)
    proto.graph.node.insert(0, helper.make_node("ConstantOfShape", ["size"], ["zeros"]))
    proto.graph.node.insert(0, helper.make_node("Shape", ["x"], ["size"], domain="B"))
    proto.graph.node[2].input.extend(["", "zeros"])
    proto.graph.node.append(helper.make_node("Neg", ["x"], ["negative"]))
    proto.graph.output.append(helper.make_tensor_value_info("negative", TensorProto.FLOAT, None))
    model.write_bytes(proto.SerializeToString())
    wanted = {
        "format": "onnx_rnn_prune.plan/1",
        "model": {"sha256": fingerprint(proto)},
        "layers": {"rnn": {"scope": "", "hidden_size": 6, "keep": [[0, 1]]}},
    }
    (tmp_path / "plan.json").write_text(json.dumps(wanted))
    given = ["apply", str(model), str(tmp_path / "plan.json"), "-o", str(tmp_path / "o.onnx")]
    for data in ([], ["--data", str(clips)]):
        assert run([*given, *data]) in (0, 1)
        assert "report" not in capsys.readouterr().err


def test_functions_that_cannot_be_written_out_may_stay(model, tmp_path, capsys):
    """They hold no layer, and onnxruntime runs them."""
    proto = onnx.load(model)
    del proto.graph.node[:]
    function = proto.functions.add(name="F", domain="own", input=["a"], output=["b"])
    function.opset_import.add(domain="", version=13)
    function.node.append(helper.make_node("Tanh", ["a"], ["b"]))
    proto.opset_import.add(domain="own", version=1)
    proto.graph.node.append(helper.make_node("F", ["x"], ["logits"], domain="own"))
    model.write_bytes(proto.SerializeToString())
    assert run(["prune", str(model), "-o", str(tmp_path / "o.onnx")]) == 1
    assert "has no LSTM, GRU or RNN node" in capsys.readouterr().err


def test_a_model_without_outputs(model, capsys):
    proto = onnx.load(model)
    del proto.graph.output[:]
    model.write_bytes(proto.SerializeToString())
    assert run(["inspect", str(model)]) == 1
    assert "it has no outputs" in capsys.readouterr().err


def test_a_weight_that_is_an_output(model, tmp_path):
    proto = onnx.load(model)
    name, shape = proto.graph.initializer[2].name, proto.graph.initializer[2].dims
    proto.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    onnx.checker.check_model(proto)
    model.write_bytes(proto.SerializeToString())
    assert run(["prune", str(model), "-o", str(tmp_path / "out.onnx")]) == 0


def test_a_study_whose_tables_have_no_names(tmp_path):
    """What SQLite says of it is no text."""
    path = tmp_path / "study.db"
    Study(path, "search").keep("times", 1)
    path.write_bytes(path.read_bytes().replace(b"CREATE TABLE record", b"CR\x8fATE TABLE record"))
    with pytest.raises(PruneError, match="choose another file with study="):
        Study(path, "search")


@pytest.mark.parametrize("domains", [[], ["elsewhere.example"]])
def test_a_model_says_which_version_of_the_operators_it_uses(domains, model):
    """onnxruntime guesses one where only other domains have a version, and a file says none."""
    proto = onnx.load(model)
    del proto.opset_import[:]
    for domain in domains:
        proto.opset_import.add(domain=domain, version=1)
    with pytest.raises(PruneError, match="does not declare its ONNX opset"):
        prune(proto)
