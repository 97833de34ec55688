"""The command line: what it accepts, where it writes, how it ends."""

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_rnn_prune import api
from onnx_rnn_prune.cli import run
from onnx_rnn_prune.errors import ConstraintError, PruneError
from onnx_rnn_prune.trace.plan import LayerPlan, Plan, fingerprint
from reports import compared

COMMANDS = ("inspect", "prune", "plan", "apply", "compare", "bench")


def call(*arguments):
    return run([str(argument) for argument in arguments])


def one_line(capsys):
    """The error that was printed; nothing may stand on standard output."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Error: ") and err.count("\n") == 1, err
    return err


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command, capsys):
    assert call(command, "--help") == 0
    assert "Usage: onnx-rnn-prune" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["absent-command"],
        ["inspect"],
        ["inspect", "a.onnx", "--absent"],
        ["prune", "a.onnx"],
        ["prune", "a.onnx", "-o", "b.onnx", "--criterion", "best"],
        ["prune", "a.onnx", "-o", "b.onnx", "--allocate", "best"],
        ["prune", "a.onnx", "-o", "b.onnx", "--recover", "best"],
        ["prune", "a.onnx", "-o", "b.onnx", "--mode", "best"],
        ["prune", "a.onnx", "-o", "b.onnx", "--align", "0"],
        ["prune", "a.onnx", "-o", "b.onnx", "--min-units", "0"],
        ["prune", "a.onnx", "-o", "b.onnx", "--seed", "-1"],
        ["prune", "a.onnx", "-o", "b.onnx", "--seed", "x"],
        ["plan", "a.onnx"],
        ["apply", "a.onnx", "-o", "b.onnx"],
        ["compare", "a.onnx"],
        ["compare", "a.onnx", "b.onnx", "--max-nrmse", "-1"],
        ["bench"],
        ["bench", "a.onnx", "--threads", "0"],
        ["sensitivity", "a.onnx"],
    ],
)
def test_wrong_usage_is_2(arguments, capsys):
    assert call(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Usage:" in err


@pytest.mark.parametrize("command", ["prune", "plan"])
@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("model.onnx", "this would overwrite an input"),
        ("./clips/../model.onnx", "this would overwrite an input"),
        ("link.onnx", "this would overwrite an input"),
        ("clips/0.npz", "this would overwrite an input"),
        ("absent/out.onnx", "the folder does not exist"),
        ("clips", "it is a folder"),
        ("x" * 300, "cannot be written"),
        ("my_feeds.py", "this would overwrite an input"),
    ],
)
def test_outputs_are_checked_before_the_work(
    command, out, message, model, clips, capsys, monkeypatch
):
    monkeypatch.setattr(api, command, lambda *_, **__: pytest.fail("the work was begun"))
    (model.parent / "link.onnx").symlink_to(model)
    module = model.parent / "my_feeds.py"
    module.write_text("")
    monkeypatch.chdir(model.parent)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = model.read_bytes()
    data = "my_feeds:make" if out == module.name else clips / "0.npz"
    assert call(command, model, "-o", model.parent / out, "--keep", "50%", "--data", data) == 1
    assert message in one_line(capsys)
    assert model.read_bytes() == before


@pytest.mark.parametrize("option", ["--json", "--save-plan"])
@pytest.mark.parametrize("place", ["x" * 300, "absent/place", "dangling", "/proc/place"])
def test_all_places_are_tried_before_the_work(option, place, model, capsys, monkeypatch):
    monkeypatch.setattr(api, "prune", lambda *_, **__: pytest.fail("the work was begun"))
    (model.parent / "dangling").symlink_to(model.parent / "absent" / "place")
    assert call("prune", model, "-o", model.parent / "o.onnx", option, model.parent / place) == 1
    assert place in one_line(capsys)
    assert sorted(p.name for p in model.parent.iterdir()) == ["dangling", "model.onnx"]


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["inspect", ""], "'MODEL'"),
        (["prune", "a.onnx", "-o", ""], "'-o' / '--output'"),
        (["prune", "a.onnx", "-o", "b.onnx", "--json", ""], "'--json'"),
        (["prune", "a.onnx", "-o", "b.onnx", "--save-plan", ""], "'--save-plan'"),
        (["plan", "a.onnx", "-o", "b.onnx", "--data", ""], "'--data'"),
        (["apply", "a.onnx", "", "-o", "b.onnx"], "'PLAN'"),
        (["bench", "a.onnx", ""], "'A [B ...]'"),
    ],
)
def test_an_empty_name_is_wrong_usage(arguments, option, capsys):
    assert call(*arguments) == 2
    assert f"Invalid value for {option}: the name is empty" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["-o", "--json", "--save-plan"])
def test_a_folder_that_cannot_be_written(option, model, clips, nobody, capsys):
    (model.parent / "out").mkdir()
    (model.parent / "out").chmod(0o777)
    clips.chmod(0o555)
    before = sorted(model.parent.rglob("*"))
    with nobody():
        assert call("prune", model.name, "-o", "out/o.onnx", option, "clips/o") == 1
    assert "clips/o: cannot be written (Permission denied)" in one_line(capsys)
    assert sorted(model.parent.rglob("*")) == before


def test_two_outputs_of_one_name(model, capsys):
    out = model.parent / "out.onnx"
    assert call("prune", model, "-o", out, "--keep", "50%", "--json", out) == 1
    assert "two outputs have this name" in one_line(capsys)


def test_apply_does_not_overwrite_its_plan(model, capsys):
    plan = model.parent / "plan.json"
    plan.write_text("{}")
    assert call("apply", model, plan, "-o", plan) == 1
    assert "this would overwrite an input" in one_line(capsys)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (PruneError("odd", where="here", remedy="fix it"), 1, "Error: here: odd; fix it"),
        (ConstraintError("too large"), 3, "Error: too large"),
        (MemoryError(), 1, "Error: out of memory"),
        (OSError(28, "No space left on device", "out.onnx"), 1, "Error: out.onnx: No space left"),
        (ValueError("line\nline"), 1, "Error: unexpected ValueError: line line; this is a bug"),
        (RecursionError("deep"), 1, "Error: unexpected RecursionError"),
    ],
)
def test_every_error_is_one_line(error, code, message, capsys, monkeypatch):
    def fail(_, **__):
        raise error

    monkeypatch.setattr(api, "inspect", fail)
    assert call("inspect", "a.onnx") == code
    assert one_line(capsys).startswith(message)


def test_interrupting_is_quiet(capsys, monkeypatch):
    def interrupt(_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "inspect", interrupt)
    assert call("inspect", "a.onnx") == 130
    out, err = capsys.readouterr()
    assert (out + err).strip() == ""


ENTRANCES = {
    "the module": ["-m", "onnx_rnn_prune"],
    "the script": [
        "-c",
        "from importlib.metadata import entry_points\n"
        "(script,) = entry_points(group='console_scripts', name='onnx-rnn-prune')\n"
        "script.load()()",
    ],
}


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize("imported", ["click", "onnx", "onnxruntime"])
def test_interrupting_imports_is_quiet(entrance, imported, tmp_path):
    ctrl_c = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    (tmp_path / f"{imported}.py").write_text(ctrl_c)
    done = subprocess.run(
        [sys.executable, *ENTRANCES[entrance], "inspect", "a.onnx"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job may ignore it
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_what_the_package_offers():
    """The folder `plan` does not get in the way of the function, whatever is imported first."""
    code = (
        "import onnx_rnn_prune, sys; assert 'onnx' not in sys.modules\n"
        "from onnx_rnn_prune.trace.plan import Plan\n"
        "from onnx_rnn_prune import *\n"
        "assert all(getattr(onnx_rnn_prune, name) is globals()[name] for name in "
        "onnx_rnn_prune.__all__)\n"
        "assert plan.__module__ == 'onnx_rnn_prune.api'\n"
        "assert set(onnx_rnn_prune.__all__) <= set(dir(onnx_rnn_prune))\n"
        "assert not hasattr(onnx_rnn_prune, 'absent')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_module_is_found_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(api, "compare", lambda *_, **__: compared())
    assert call("compare", "a.onnx", "b.onnx", "--data", "clips.npz") == 0
    assert str(tmp_path) not in sys.path
    assert call("compare", "a.onnx", "b.onnx", "--data", "my_feeds:make") == 0
    assert sys.path[0] == str(tmp_path)


def test_inspect(model, capsys):
    assert call("inspect", model, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [(layer["op"], layer["hidden"]) for layer in found["layers"]] == [("GRU", 6)]
    assert call("inspect", model) == 0
    assert "GRU" in capsys.readouterr().out


@pytest.mark.parametrize("keep", ["50%", "0.5", "3"])
def test_prune_writes_all_it_was_asked_for(keep, model, clips, capsys):
    out, plan, report = (model.parent / name for name in ("o.onnx", "plan.json", "report.json"))
    code = call(
        *("prune", model, "-o", out, "--keep", keep, "--data", clips),
        *("--save-plan", plan, "--json", report),
    )
    text, err = capsys.readouterr()
    assert code == 0, err
    assert "6 -> 3" in text and "Self-check" in text and "passed" in text
    onnx.checker.check_model(str(out))
    saved = json.loads(report.read_text())
    assert [layer["hidden_after"] for layer in saved["layers"]] == [3]
    assert saved["oracle"]["passed"] is True
    assert [len(lane) for lane in json.loads(plan.read_text())["layers"]["rnn"]["keep"]] == [3]


def test_a_plan_is_applied(model, clips, capsys):
    plan, out = model.parent / "plan.json", model.parent / "o.onnx"
    assert call("plan", model, "-o", plan, "--keep", "2", "--data", clips) == 0
    assert "6 -> 2" in capsys.readouterr().out
    assert call("apply", model, plan, "-o", out, "--data", clips) == 0
    assert "6 -> 2" in capsys.readouterr().out
    assert out.exists()


def test_compare_says_whether_the_limit_is_kept(model, clips, capsys):
    out = model.parent / "o.onnx"
    assert call("compare", model, model, "--data", clips, "--max-nrmse", 0) == 0
    assert "the same as the first's" in capsys.readouterr().out
    assert call("prune", model, "-o", out, "--keep", "1", "--data", clips) == 0
    capsys.readouterr()
    assert call("compare", model, out, "--data", clips) == 0
    capsys.readouterr()
    assert call("compare", model, out, "--data", clips, "--max-nrmse", 1e-6, "--json") == 3
    text, err = capsys.readouterr()
    assert json.loads(text)["passed"] is False
    assert err == "Error: an output deviates by more than 1e-06\n"


def test_bench(model, clips, capsys):
    assert call("bench", model, model, "--data", clips, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["rows"]) == 2 and found["threads"] == 1


@pytest.mark.parametrize("keep", ["0%", "101%", "-3", "much", "0"])
def test_an_amount_that_is_none(keep, model, capsys):
    assert call("prune", model, "-o", model.parent / "o.onnx", "--keep", keep) == 1
    assert one_line(capsys).startswith("Error: --keep: ")
    assert not (model.parent / "o.onnx").exists()


def test_an_error_names_flags_to_a_shell_and_arguments_to_python(model, capsys):
    out = model.parent / "o.onnx"
    calls = [
        ((), {"align": 0}, "align=: 0 is not", "--align: 0 is not"),
        (
            ("--quantize", "int8"),
            {"quantize": "int8"},
            "quantize='int8': no",
            "--quantize int8: no",
        ),
        (
            ("--state-metadata", "k"),
            {"state_metadata": "k"},
            "add shrink_states=",
            "add --shrink-states",
        ),
        (("--only", "a"), {"only": "a"}, "only= and skip=: ", "--only and --skip: "),
    ]
    for flags, arguments, python, shell in calls:
        with pytest.raises(PruneError, match=python) as caught:
            api.prune(model, **arguments)
        assert shell in caught.value.for_shell
        if flags:
            assert call("prune", model, "-o", out, *flags) == 1
            assert shell in one_line(capsys)


def test_notes_name_flags_to_a_shell_and_arguments_to_python(model, capsys):
    (note,) = (text for text in api.compare(model, model)["warnings"] if "random" in text)
    assert note == "the inputs are random; give typical ones with data="
    assert call("compare", model, model, "--json") == 0
    assert (
        "the inputs are random; give typical ones with --data"
        in json.loads(capsys.readouterr().out)["warnings"]
    )
    assert call("prune", model, "-o", model.parent / "o.onnx", "--budget", "bytes=100%") == 0
    assert "with typical inputs (--data), units" in " ".join(capsys.readouterr().out.split())
    assert pickle.loads(pickle.dumps(note)).for_shell == note.for_shell


@pytest.mark.parametrize(
    ("text", "python", "shell"),
    [
        ("add --size=x=1x100", "add size={'x': '1x100'}", "add --size x=1x100"),
        ("--metric=a.b:c", "metric='a.b:c'", "--metric a.b:c"),
        ("--align=16 and --only", "align=16 and only=", "--align 16 and --only"),
        ("a--b, '--c', x/--d, --e.npz, --", "a--b, '--c', x/--d, --e.npz, --", None),
    ],
)
def test_options_in_messages(text, python, shell):
    error = pickle.loads(pickle.dumps(PruneError(text, where=text, remedy=text)))
    shell = shell or text
    assert (error.what, error.where, error.remedy) == (python,) * 3
    assert str(error) == f"{python}: {python}; {python}"
    assert error.for_shell == f"{shell}: {shell}; {shell}"


def test_a_missing_model_is_an_error_of_one_line(tmp_path, capsys):
    assert call("inspect", tmp_path / "absent.onnx") == 1
    assert "there is no such file" in one_line(capsys)


def test_a_budget_that_cannot_be_met_is_3(model, clips, capsys):
    arguments = ("-o", model.parent / "o.onnx", "--budget", "params=10", "--data", clips)
    assert call("prune", model, *arguments) == 3
    one_line(capsys)


def test_data_that_do_not_fit_are_an_error_of_one_line(model, tmp_path, capsys):
    np.savez(tmp_path / "bad.npz", X=np.ones((3, 1, 4)))
    out = model.parent / "o.onnx"
    assert call("prune", model, "-o", out, "--keep", "50%", "--data", tmp_path / "bad.npz") == 1
    assert "bad.npz: the model has no input 'X'; did you mean 'x'?" in one_line(capsys)


def test_the_module_is_the_command(model):
    command = [sys.executable, "-m", "onnx_rnn_prune", "inspect", str(model), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["layers"]
    assert done.stderr == ""


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_closed_stream_is_no_error(stream, model, monkeypatch):
    monkeypatch.setattr(sys, stream, None)
    assert call("prune", model, "-o", model.parent / "o.onnx") == 0
    assert call("inspect", model, "--json") == 0
    assert call("inspect", model.parent / "absent.onnx") == 1


def test_what_is_no_file_is_no_model(capsys):
    assert call("inspect", os.devnull) == 1
    assert "is not a model file" in one_line(capsys)


def test_weights_beside_a_model_are_not_overwritten(model, capsys):
    apart = model.parent / "apart.onnx"
    weights = model.parent / "apart.data"
    onnx.save_model(
        onnx.load(model), apart, save_as_external_data=True, location=weights.name, size_threshold=0
    )
    before = weights.read_bytes()
    assert call("prune", apart, "-o", weights, "--keep", "50%") == 1
    assert "this would overwrite an input" in one_line(capsys)
    assert weights.read_bytes() == before


def test_a_plan_is_followed_where_the_result_is_larger_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
    m (float[t, b, 2] x) => (float[t, d, b, 4] y) { [l] y = GRU <hidden_size = 4> (x, W, R) }""")
    for name, width in (("W", 2), ("R", 4)):
        value = np.random.default_rng(0).normal(size=(1, 12, width)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    onnx.save(proto, "m.onnx")
    plan = Plan(fingerprint(proto), {"l": LayerPlan(4, ((0, 1, 2),))})
    plan.save("p.json")
    assert run(["apply", "m.onnx", "p.json", "-o", "o.onnx"]) == 3
    assert Path("o.onnx").stat().st_size > Path("m.onnx").stat().st_size
    said = " ".join(capsys.readouterr().out.split())
    assert "Warning: the file is larger than the original (" in said
    assert "it was written anyway, since the plan asks for it" in said
    assert run(["prune", "m.onnx", "-o", "n.onnx"]) == 3 and not Path("n.onnx").exists()
    assert "no layer can be pruned (l: restoring its states" in capsys.readouterr().err
    assert run(["prune", "m.onnx", "-o", "n.onnx", "--keep", "100%"]) == 0
