"""README.md and the pages of tools/docs do what they say: commands and Python run as written."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_rnn_prune.selection.criteria import CRITERIA
from streaming import bare, decoder, episodes, policy, words

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
PAGES = {path.stem: path.read_text("utf-8") for path in sorted((ROOT / "tools/docs").glob("*.md"))}
MANUAL = "\n".join([README, *PAGES.values()])
LINK = re.compile(r"\]\(([^)#:]*)(#[^)]*)?\)")
# README shows what a terminal of this width does.
COLUMNS = "100"
INSTALL = re.compile(r"^pip install \S+ && ", re.MULTILINE)


def section(name, text=README):
    found = re.search(rf"<!-- {name}:begin -->\n(.*?)<!-- {name}:end -->", text, re.DOTALL)
    assert found, f"there are no markers of {name}"
    return found[1]


def blocks(language, text=MANUAL):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of what README's reader has: the sample models, and a model and data of their own."""
    folder = tmp_path_factory.mktemp("reader")
    samples = folder / "sample_models"
    shutil.copytree(ROOT / "sample_models", samples)
    shutil.copy(samples / "digits_gru.onnx", folder / "model.onnx")
    shutil.copytree(samples / "digits_gru" / "calibration", folder / "clips")
    shutil.copytree(samples / "digits_gru" / "heldout", folder / "labelled")
    (folder / "more_clips").mkdir()
    for path in (samples / "digits_gru" / "heldout").glob("*.npz"):
        with np.load(path) as archive:
            np.savez(folder / "more_clips" / path.name, input=archive["input"])
    onnx.save(policy(hidden=128), folder / "streaming.onnx")
    onnx.save(decoder(), folder / "decoder.onnx")
    for name, streams in (("recordings", bare(episodes(4))), ("words", words(decoder(), 6))):
        for number, stream in enumerate(streams):
            (folder / name / f"{number}").mkdir(parents=True)
            for step, feed in enumerate(stream):
                np.savez(folder / name / f"{number}" / f"{step}.npz", **feed)
    return folder


def bash(command, folder):
    """Runs a block of commands; the installed console script is that of this Python."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", INSTALL.sub("", command)],
        cwd=folder,
        env={**os.environ, "PATH": path, "COLUMNS": COLUMNS},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def labels(table):
    """The words of each line up to its first number: those, and widths, differ between machines."""
    lines = (re.split(r"\d", line)[0].strip(" ─").split() for line in table.splitlines())
    return [line for line in lines if line]


def test_two_commands_come_first():
    first, test = blocks("bash")[:2]
    assert first in section("first")
    assert test in section("test")
    assert all(len(command.splitlines()) == 1 for command in (first, test))


def test_first_command_prints_what_is_shown(folder):
    done = bash(blocks("bash", section("first"))[0], folder)
    assert done.returncode == 0, done.stderr
    assert labels(done.stdout) == labels(blocks("text", section("output"))[0])
    assert (folder / "pruned.onnx").stat().st_size > 0


@pytest.mark.parametrize("block", [each for each in blocks("bash")[2:] if "pytest" not in each])
def test_other_commands_run(folder, block):
    # Which cut a search picks depends on what is fast here, and may miss its limit on the few
    # inputs that it is reported on; that is said, and the file is there.
    searches = "prune search" in block
    for command in block.splitlines() if searches else [block]:
        done = bash(command, folder)
        right = (0, 3) if searches else (0,)
        assert done.returncode in right, f"{command}\n{done.stdout}{done.stderr}"
        assert not searches or "Written: small.onnx" in done.stdout


def test_options_in_a_file_are_understood(folder, tmp_path):
    (block,) = blocks("toml")
    (tmp_path / "pyproject.toml").write_text(block)
    shutil.copy(folder / "model.onnx", tmp_path)
    shutil.copytree(folder / "clips", tmp_path / "clips")
    done = bash("onnx-rnn-prune prune model.onnx --keep 50% --skip absent", tmp_path)
    assert "no layer matches 'absent'" in done.stderr
    (tmp_path / "pyproject.toml").write_text(re.sub(r"(?m)^(skip|keep).*", "", block))
    done = bash("onnx-rnn-prune prune model.onnx", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Data: clips, 12 feeds" in done.stdout and (tmp_path / "small.onnx").exists()


def test_python_runs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    found = blocks("python")
    assert found
    for number, block in enumerate(found):
        exec(compile(block, f"README.md, Python block {number}", "exec"), {})
    assert (folder / "small.onnx").stat().st_size < (folder / "model.onnx").stat().st_size


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tools/results").glob("*.md")), ids=lambda p: p.stem
)
def test_results_name_the_script_that_writes_them(path):
    text = path.read_text("utf-8")
    script = re.search(r"^Written by `python (tools/\w+\.py)", text, re.MULTILINE)[1]
    assert f'write_section("{path.stem}"' in (ROOT / script).read_text("utf-8")
    assert "|" in section(path.stem, text)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *(ROOT / "tools").glob("*/*.md")], ids=lambda p: p.name
)
def test_links_lead_somewhere(page):
    for target, heading in LINK.findall(page.read_text("utf-8")):
        path = (page.parent / target) if target else page
        assert path.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)
            assert heading[1:] in {
                re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles
            }


def test_options_are_described():
    """Every option of `prune` that says what is cut, and how, is in the manual."""
    done = bash("onnx-rnn-prune prune --help", ROOT)
    known = set(re.findall(r"--[a-z][a-z-]+", done.stdout)) - {"--help", "--output"}
    assert known == set(re.findall(r"--[a-z][a-z-]+", MANUAL)) & known


@pytest.mark.parametrize("name", CRITERIA)
def test_criteria_are_described(name):
    assert f"`{name}`" in PAGES["criteria"]
