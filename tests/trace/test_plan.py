"""Plan files are taken by the letter, since they are edited by hand."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest

import onnx_rnn_prune
from onnx_rnn_prune.cli import run
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.trace.plan import FORMAT, LayerPlan, Plan


def edited(model, changes):
    document = json.loads(onnx_rnn_prune.plan(str(model), keep=3).to_json())
    document["layers"]["rnn"].update(changes)
    return json.dumps(document)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": [[0, 1.5, 2]]}, "keep[0][1] is 1.5, which is not a unit from 0 to 5"),
        ({"keep": [[0, 1.0, 2]]}, "keep[0][1] is 1.0, which is not a unit"),
        ({"keep": [[0, "1", 2]]}, "keep[0][1] is '1', which is not a unit"),
        ({"keep": [[0, True]]}, "keep[0][1] is True, which is not a unit"),
        ({"keep": [[0, None]]}, "keep[0][1] is None, which is not a unit"),
        ({"keep": [[0, [1]]]}, "keep[0][1] is [1], which is not a unit"),
        ({"keep": [[-1, 1]]}, "keep[0][0] is -1, which is not a unit from 0 to 5"),
        ({"keep": [[6, 1]]}, "keep[0][0] is 6, which is not a unit from 0 to 5"),
        ({"keep": [[4, 1, 4]]}, "keep[0][2] is 4, which is listed twice"),
        ({"keep": ["012"]}, "keep[0][0] is '0', which is not a unit"),
        ({"keep": [[]]}, "keep must list equally many units for each direction, at least one"),
        ({"keep": []}, "keep must list equally many units for each direction, at least one"),
        ({"keep": [[1], [1, 2]]}, "keep must list equally many units for each direction"),
        ({"keep": [[1], [2]]}, "the plan is for 2 x 6 units, the layer has 1 x 6"),
        ({"keep": 3}, "it needs hidden_size, and a list per direction in keep"),
        ({"keep": [1, 2]}, "it needs hidden_size, and a list per direction in keep"),
        ({"hidden_size": 6.0}, "hidden_size is 6.0, which is not a number of units"),
        ({"hidden_size": "6"}, "hidden_size is '6', which is not a number of units"),
        ({"hidden_size": 7}, "the plan is for 1 x 7 units, the layer has 1 x 6"),
        ({"scope": "If_0.then_branch"}, "scope is 'If_0.then_branch', but the layer's is ''"),
        ({"scope": None}, "scope is None"),
    ],
)
def test_an_entry_that_cannot_be_meant_is_refused(changes, message, model, tmp_path, capsys):
    path = tmp_path / "plan.json"
    path.write_text(edited(model, changes))
    assert run(["apply", str(model), str(path), "-o", str(tmp_path / "o.onnx")]) == 1
    err = capsys.readouterr().err
    assert "plan for rnn: " in err and message in err and err.count("\n") == 1


def test_many_layers_and_units_are_read(tmp_path):
    """100,000 of each, where comparing each with all others would take minutes."""
    layers = {f"{n}": {"hidden_size": 1, "keep": [[0]]} for n in range(100_000)}
    layers["large"] = {"hidden_size": 100_000, "keep": [list(range(100_000))]}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"format": FORMAT, "model": {"sha256": ""}, "layers": layers}))
    assert len(Plan.load(path).layers) == 100_001


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
@pytest.mark.parametrize(
    "option", ["plan", "--config", "--masks", "--data", "--eval-data", "--study"]
)
def test_pipes_are_refused_instead_of_waited_for(option, model, tmp_path, capsys):
    """A pipe that nobody writes to would keep its reader for ever."""
    pipe, given = tmp_path / "pipe.npz", ["--params", "50%"]
    os.mkfifo(pipe)
    arguments = {
        "plan": ["apply", str(model), str(pipe)],
        "--config": ["--config", str(pipe), "prune", str(model)],
        "--study": ["search", str(model), "--study", str(pipe), *given, "--data", str(tmp_path)],
    }
    command = arguments.get(option, ["prune", str(model), option, str(pipe)])
    if option == "--eval-data":
        command += ["--keep", "50%"]
    if option == "--study":
        np.savez(tmp_path / "feed.npz", x=np.zeros((3, 2, 3), np.float32))
    assert run([*command, "-o", str(tmp_path / "o.onnx")]) == 1
    err = capsys.readouterr().err
    assert "is a pipe or device, not a regular file" in err and err.count("\n") == 1


def test_entries_of_one_name_are_refused(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text('{"layers": {"a": {}, "a": {}}}')
    with pytest.raises(PruneError, match="is not a plan file \\(it has two entries 'a'\\)"):
        Plan.load(path)


def test_order_does_not_matter(model):
    assert Plan.from_json(edited(model, {"keep": [[5, 0, 2]]})).layers["rnn"].keep == ((0, 2, 5),)


@pytest.mark.parametrize("keep", [((0, 0, 1),), ((0, 1.5),), ((0, 6),)])
def test_a_plan_made_in_python_is_checked_too(keep, model):
    plan = onnx_rnn_prune.plan(str(model), keep=3)
    with pytest.raises(PruneError, match="plan for rnn: keep"):
        onnx_rnn_prune.apply(str(model), replace(plan, layers={"rnn": LayerPlan(6, keep)}))


def test_numbers_of_numpy_are_numbers(model):
    plan = onnx_rnn_prune.plan(str(model), keep=3)
    layer = LayerPlan(6, (tuple(np.arange(3)),))
    result = onnx_rnn_prune.apply(str(model), replace(plan, layers={"rnn": layer}))
    assert Plan.from_json(result.plan.to_json()).layers["rnn"].keep == ((0, 1, 2),)
