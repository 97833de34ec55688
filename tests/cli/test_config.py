"""Options from pyproject.toml or another file, and what overrides what."""

import datetime
import os
import shutil
import sys

import pytest

from onnx_rnn_prune import api
from onnx_rnn_prune.cli import run


class Asked(Exception):
    """What a command would have done."""


@pytest.fixture(autouse=True)
def modules(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a project in it, and a function that runs a command with some configuration."""
    monkeypatch.chdir(tmp_path)
    asked = {}
    for name in ("prune", "plan", "inspect", "search", "bench", "sensitivity"):

        def note(*given, _name=name, **options):
            asked.update(options, models=given, command=_name)
            raise Asked

        monkeypatch.setattr(api, name, note)

    def ask(text, *arguments, name="pyproject.toml"):
        asked.clear()
        (tmp_path / name).write_text(text)
        code = run([str(argument) for argument in arguments])
        return asked if asked else code

    return ask


def error_of(capsys):
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("Error: ") and err.count("\n") == 1, err
    return err


PRUNE = ("prune", "a.onnx", "-o", "b.onnx")


def test_keys_are_options(project):
    found = project(
        """
        [tool.onnx-rnn-prune]
        keep = 0.4
        data = "clips"
        min-units = 8
        only = ["a*", "b*"]
        skip = "c*"
        shrink_states = true
        distill-minutes = 2
        freeze = {rate = 16000, mode = "fast"}
        quantize = "int8"
        no-roll = true
        """,
        *PRUNE,
    )
    assert found["keep"] == ("0.4",)
    assert found["data"] == "clips"
    assert found["min_units"] == 8
    assert found["only"] == ("a*", "b*") and found["skip"] == ("c*",)
    assert found["shrink_states"] is True
    assert found["distill_minutes"] == 2.0
    assert found["freeze"] == {"rate": "16000", "mode": "fast"}
    assert found["quantize"] == "int8"
    assert found["roll"] is False


TWO = """
[tool.onnx-rnn-prune]
seed = 1
align = 2
keep = ["50%"]
[tool.onnx-rnn-prune.plan]
seed = 3
keep = {"enc*" = "30%", "dec*" = 16}
"""


def test_a_command_has_a_table_of_its_own(project):
    found = project(TWO, "plan", "a.onnx", "-o", "p.json")
    assert (found["seed"], found["align"]) == (3, 2)
    assert found["keep"] == ("enc*=30%", "dec*=16")
    found = project(TWO, *PRUNE)
    assert (found["seed"], found["align"], found["keep"]) == (1, 2, ("50%",))


def test_the_command_line_overrides_all(project):
    found = project(TWO, "plan", "a.onnx", "-o", "p.json", "--seed", 5, "--keep", "10%")
    assert (found["seed"], found["align"], found["keep"]) == (5, 2, ("10%",))


def test_commands_without_an_option_go_without_it(project):
    assert "align" not in project(TWO, "inspect", "a.onnx")


def test_what_is_required_may_come_from_the_file(project):
    assert project('[tool.onnx-rnn-prune]\noutput = "b.onnx"', "prune", "a.onnx")["keep"] is None


@pytest.mark.parametrize("key", ["json", "bytes", "eval-data"])
def test_keys_are_named_as_on_the_command_line(key, project):
    found = project(f'[tool.onnx-rnn-prune.search]\n{key}="1MB"', "search", *PRUNE[1:], "--data", 1)
    assert found["command"] == "search"


def test_underscores_will_do_in_the_section(project):
    assert project("[tool.onnx_rnn_prune]\nseed = 4", *PRUNE)["seed"] == 4


@pytest.mark.parametrize("text", ["", "[project]\nname = 'a'", "[tool.ruff]\nline-length = 9"])
def test_other_projects_say_nothing(text, project):
    assert project(text, *PRUNE)["seed"] == 0


def test_names_of_files_are_from_the_file(project, tmp_path, monkeypatch):
    inner = tmp_path / "inner" / "most"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    text = '[tool.onnx-rnn-prune]\ndata = "clips"\neval-data = "/far/clips"\ncriterion = "l1"'
    found = project(text, *PRUNE)
    assert (found["data"], found["eval_data"]) == ("../../clips", "/far/clips")
    assert found["criterion"] == "l1"


def test_modules_are_from_the_file(project, tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    assert project('[tool.onnx-rnn-prune]\ndata = "f:g"', *PRUNE)["data"] == "f:g"
    assert str(tmp_path) in sys.path


def test_the_nearest_project_counts(project, tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    project("[tool.onnx-rnn-prune]\nseed = 4", *PRUNE)
    monkeypatch.chdir(tmp_path / "inner")
    assert project("[tool.onnx-rnn-prune]\nseed = 4", *PRUNE)["seed"] == 4
    assert project("[project]", *PRUNE, name="inner/pyproject.toml")["seed"] == 0


def test_a_file_is_named(project, tmp_path):
    (tmp_path / "ci").mkdir()
    project("[tool.onnx-rnn-prune]\nalign = 4", "inspect", "a.onnx")
    text = 'seed = 7\ndata = "clips"\n[prune]\nmode = "zero"'
    found = project(text, "--config", "ci/fast.toml", *PRUNE, name="ci/fast.toml")
    assert (found["seed"], found["mode"], found["align"]) == (7, "zero", 1)
    assert found["data"] == "ci/clips"


def test_defaults_stand_in_help(project, capsys):
    assert project("[tool.onnx-rnn-prune]\nseed = 41", "prune", "--help") == 0
    assert "[default: 41; x>=0]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("kep = 3", "tool.onnx-rnn-prune.kep: unknown option; did you mean keep?"),
        ("zzzz = 3", "tool.onnx-rnn-prune.zzzz: unknown option; the options are align, "),
        ("model = 'a'", "tool.onnx-rnn-prune.model: unknown option"),
        ("plan = 3", "tool.onnx-rnn-prune.plan: unknown option"),
        ("help = true", "tool.onnx-rnn-prune.help: unknown option"),
        ("seed = 1.5", "tool.onnx-rnn-prune.seed: '1.5' is not a valid integer"),
        ("seed = -1", "tool.onnx-rnn-prune.seed: -1 is not in the range x>=0; give a value"),
        ("seed = true", "tool.onnx-rnn-prune.seed: True is not a value; give a string or a number"),
        ("seed = [1]", "tool.onnx-rnn-prune.seed: [1] is not a value"),
        ("seed = {a = 1}", "tool.onnx-rnn-prune.seed: {'a': 1} is not a value"),
        ("seed = 1979-05-27", f"seed: {datetime.date(1979, 5, 27)!r} is not a value"),
        (
            "only = [['a']]",
            "tool.onnx-rnn-prune.only: ['a'] is not a value; give strings or numbers",
        ),
        ("only = {a = 1}", "tool.onnx-rnn-prune.only: {'a': 1} is not a value"),
        ("lossless = 'yes'", "tool.onnx-rnn-prune.lossless: 'yes' is not true or false; give true"),
        ("mode = 'best'", "tool.onnx-rnn-prune.mode: 'best' is not one of 'shrink', 'zero'"),
        ("criterion = 'best'", "tool.onnx-rnn-prune.criterion: unknown criterion"),
        ("freeze = 'a'", "tool.onnx-rnn-prune.freeze: give NAME=VALUE"),
        ("data = ''", "tool.onnx-rnn-prune.data: the name is empty"),
        ("json = true", "tool.onnx-rnn-prune.json: True is not a value"),
        ("[tool.onnx-rnn-prune.prune]\nthreads = 1", "prune.threads: unknown option"),
        ("[tool.onnx-rnn-prune.bench]\nkeep = 1", "bench.keep: unknown option"),
        ("seed = ", "pyproject.toml: is not valid TOML: Invalid value"),
        ("seed = 1\nseed = 2", "pyproject.toml: is not valid TOML: Cannot overwrite a value"),
    ],
)
def test_faults_name_the_file_and_the_key(line, message, project, capsys):
    assert project(f"[tool.onnx-rnn-prune]\n{line}", *PRUNE) == 1
    err = error_of(capsys)
    assert "pyproject.toml" in err and message in err


@pytest.mark.parametrize("text", ["tool = 3", "[tool]\nonnx-rnn-prune = 3"])
def test_a_section_that_is_none(text, project, capsys):
    assert project(text, *PRUNE) == 1
    assert "is not a table" in error_of(capsys)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a = " + b"[" * 100_000])
def test_what_is_no_text_is_no_toml(content, project, tmp_path, capsys):
    (tmp_path / "pyproject.toml").write_bytes(content)
    assert run(list(PRUNE)) == 1
    assert "pyproject.toml: is not valid TOML" in error_of(capsys)


UNTRUSTED = """
[tool.onnx-rnn-prune]
seed = 3
data = "clips"
criterion = "evil:score"
[tool.onnx-rnn-prune.search]
cluster = "tcp://evil:8786"
data = "evil:feeds"
eval-data = "/etc"
study = "../trials.db"
html = "inner/../page.html"
output = "link/small.onnx"
"""


def make_untrusted(folder, way):
    """Lets others have written a folder's configuration."""
    (folder / "link").symlink_to(folder.parent)
    if way == "owner":
        if os.geteuid() != 0:
            pytest.skip("only root can give files away")
        os.chown(folder / "pyproject.toml", 4321, -1)
    else:
        os.chmod(folder / way, 0o777)


@pytest.mark.parametrize("way", ["owner", "pyproject.toml", "."])
def test_what_others_may_have_written_names_no_code(way, project, tmp_path, monkeypatch, capsys):
    (tmp_path / "inner").mkdir()
    (tmp_path / "pyproject.toml").touch()
    make_untrusted(tmp_path, way)
    monkeypatch.chdir(tmp_path / "inner")
    before = list(sys.path)
    found = project(UNTRUSTED, "search", "a.onnx", "-o", "b.onnx", "--data", "c")
    assert (found["data"], found["seed"], found["cluster"]) == ("c", 3, None)
    assert (found["eval_data"], found["study"], found["criterion"]) == (None, None, None)
    err = capsys.readouterr().err.splitlines()[0].replace("_", "-")
    names = "criterion, search.cluster, search.data, search.eval-data, search.study, search.output"
    assert (
        err.startswith(f"Warning: ../pyproject.toml: {names} are ignored: ") and "--config" in err
    )
    found = project(UNTRUSTED, "plan", "a.onnx", "-o", "p.json")
    assert (found["data"], found["seed"], found["criterion"]) == ("../clips", 3, None)
    assert project(UNTRUSTED, "bench", "a.onnx")["data"] == "../clips"
    assert sys.path == before
    assert "ignored" in capsys.readouterr().err
    found = project(UNTRUSTED, "--config", "../pyproject.toml", "plan", "a.onnx", "-o", "p.json")
    assert found["criterion"] == "evil:score" and "ignored" not in capsys.readouterr().err


def test_a_project_of_others_runs_nothing(model, tmp_path, monkeypatch, capsys):
    (tmp_path / "evil.py").write_text("raise SystemExit(open('ran', 'w').close())")
    (tmp_path / "pyproject.toml").write_text('[tool.onnx-rnn-prune]\ndata = "evil:feeds"')
    os.chmod(tmp_path, 0o777)
    monkeypatch.chdir(tmp_path)
    assert run(["inspect", "model.onnx"]) == 0
    assert "Warning: pyproject.toml: data is ignored" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists() and "evil" not in sys.modules


@pytest.mark.parametrize("end", ["repository", "home", "owner", "none"])
def test_where_a_project_ends(end, project, tmp_path, monkeypatch):
    inner = tmp_path / "inner" / "most"
    inner.mkdir(parents=True)
    if end == "repository":
        (tmp_path / "inner" / ".git").touch()  # a file in work trees and submodules
    if end == "home":
        monkeypatch.setenv("HOME", str(tmp_path / "inner"))
    if end == "owner":
        if os.geteuid() != 0:
            pytest.skip("only root can give files away")
        for folder in (inner, inner.parent):
            os.chown(folder, 4321, -1)
    monkeypatch.chdir(inner)
    text = "[tool.onnx-rnn-prune]\nseed = 4"
    assert project(text, *PRUNE)["seed"] == (4 if end == "none" else 0)
    if end != "owner":
        (tmp_path / "inner" / "pyproject.toml").write_text("[tool.onnx-rnn-prune]\nseed = 5")
        assert project(text, *PRUNE)["seed"] == 5


@pytest.mark.parametrize(
    "content", [b"seed = ", b"\xff", b"[tool.onnx-rnn-prune]\nkeep = []\nx = 1"]
)
def test_help_needs_no_configuration(content, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_bytes(content)
    assert run(["prune", "--help"]) == 0
    out, err = capsys.readouterr()
    assert "Usage:" in out and err.startswith("Warning: pyproject.toml") and err.count("\n") == 1


def test_links_in_a_circle_are_no_project(project, tmp_path):
    (tmp_path / "pyproject.toml").symlink_to("pyproject.toml")
    assert run(["--help"]) == 0
    assert project("", *PRUNE, name="other")["seed"] == 0


@pytest.mark.parametrize("name", ["absent.toml", "."])
def test_a_named_file_that_cannot_be_read(name, project, capsys):
    assert run(["--config", name, *PRUNE]) == 1
    assert f"{name}: cannot be read" in error_of(capsys)


def test_a_model_is_pruned_as_the_file_says(model, clips, monkeypatch, capsys):
    monkeypatch.chdir(model.parent)
    (model.parent / "pyproject.toml").write_text(
        '[tool.onnx-rnn-prune]\nkeep = 2\ndata = "clips"\noutput = "small.onnx"\n'
    )
    assert run(["prune", "model.onnx"]) == 0
    out = capsys.readouterr().out
    assert "6 -> 2" in out and "Data: clips, 4 feeds" in out
    (model.parent / "deep").mkdir()
    monkeypatch.chdir(model.parent / "deep")
    assert run(["prune", "../model.onnx"]) == 0
    shutil.copy(model, model.parent / "small.onnx")
    (model.parent / "pyproject.toml").write_text('[tool.onnx-rnn-prune]\noutput = "model.onnx"\n')
    assert run(["prune", "../model.onnx"]) == 1
    assert "this would overwrite an input" in capsys.readouterr().err
