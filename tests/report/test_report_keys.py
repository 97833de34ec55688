"""Keys of the JSON reports, on which programs of others rely, stay."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_rnn_prune.cli import run

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
# By command line, the ways to all values; `[]` stands for each entry of a list.
KEYS = FIXTURES / "report_keys.json"
WRITTEN = FIXTURES / "dynamo_lstm_cell.onnx"
# With a budget, a file is written also where it takes longer on a busy machine.
SMALL = ("-o", "o.onnx", "--json", "r.json", "--budget", "params=60%")
OUT = SMALL[:4]
COMMANDS = {
    "prune made up": ("prune", "model.onnx", *SMALL),
    "prune": ("prune", "model.onnx", *SMALL, "--data", "clips", "--sparsify", "50%"),
    "prune lossless": ("prune", "model.onnx", *OUT, "--lossless"),
    "prune nothing": ("prune", "model.onnx", *OUT, "--keep", "100%"),
    "prune streams": ("prune", "policy.onnx", *SMALL, "--data", "calls", "--shrink-states"),
    "apply": ("apply", "model.onnx", "plan.json", *OUT, "--data", "clips"),
    "search": ("search", "model.onnx", *OUT, "--data", "clips", "--params", "80%"),
    "sensitivity": ("sensitivity", "model.onnx", "--data", "clips", "--json"),
    "inspect": ("inspect", "model.onnx", "--data", "clips", "--json"),
    "inspect written out": ("inspect", str(WRITTEN), "--no-roll", "--json"),
    "inspect refused": ("inspect", str(FIXTURES / "dynamo_lstm_proj.onnx"), "--json"),
    "compare": ("compare", "model.onnx", "o.onnx", "--json"),
    "compare streams": ("compare", "policy.onnx", "policy.onnx", "--data", "calls", "--json"),
    "bench": ("bench", "model.onnx", "o.onnx", "--json"),
}


@pytest.fixture
def folder(model, clips, monkeypatch):
    """Models, inputs, a plan and a cut file, where the commands are run."""
    monkeypatch.chdir(clips.parent)
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        policy (float[1, 1, 4] x, float[1, 1, 64] h) => (float[1, 1, 1, 2] y, float[1, 1, 64] hn) {
            Y, hn = GRU <hidden_size = 64> (x, W, R, , , h)
            y = MatMul (Y, V)
        }
    """)
    for name, shape in {"W": (1, 192, 4), "R": (1, 192, 64), "V": (64, 2)}.items():
        value = rng.normal(size=shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    onnx.save(proto, "policy.onnx")
    for number in range(4):
        Path(f"calls/{number}").mkdir(parents=True)
        for step in range(3):
            x = rng.normal(size=(1, 1, 4)).astype(np.float32)
            np.savez(f"calls/{number}/{step}.npz", x=x, h=np.zeros((1, 1, 64), np.float32))
    assert run(["prune", "model.onnx", *SMALL[:2], *SMALL[4:], "--save-plan", "plan.json"]) == 0
    return clips.parent


def ways(value, way=""):
    """The ways to all values of a report."""
    if isinstance(value, dict):
        return {way or "."} | {
            each for key, item in value.items() for each in ways(item, f"{way}.{key}")
        }
    if isinstance(value, list):
        return {way} | {each for item in value for each in ways(item, f"{way}[]")}
    return {way}


@pytest.mark.parametrize("name", COMMANDS)
def test_keys_stay(name, folder, capsys):
    capsys.readouterr()
    code = run(list(COMMANDS[name]))
    printed, said = capsys.readouterr()
    assert code == 0, said
    path = folder / "r.json"
    found = ways(json.loads(path.read_text("utf-8") if path.exists() else printed))
    wanted = json.loads(KEYS.read_text("utf-8"))[name].split()
    assert sorted(set(wanted) - found) == []
