"""Make the small models for testing how exporters work: `python tools/make_fixtures.py`.

Every exporter needs certain package versions, see tests/fixtures/README.md, which cannot all be
installed in one environment. Installed exporters are run, and files of the others left alone; so
run it once in each environment, along with onnxruntime. The same versions give the same bytes,
except for tf2onnx, which keeps one of several equal constants depending on memory layout, so that
names vary.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnx
import onnxruntime as ort

from fixtures.cells import CELLS_EXPORTER
from fixtures.common import Case, Exporter
from fixtures.keras_cases import (
    KERAS_EXPORTER,
    KERAS_TORCH_EXPORTER,
    TF2ONNX_EXPORTER,
    WHILE_EXPORTER,
)
from fixtures.other_cases import (
    FLAX_EXPORTER,
    HAIKU_EXPORTER,
    JAX_EXPORTER,
    MINDSPORE_EXPORTER,
    PADDLE_EXPORTER,
    UNUSABLE,
)
from fixtures.torch_cases import DYNAMO_EXPORTER, TORCHSCRIPT_EXPORTER
from fixtures.written import WRITTEN_EXPORTER

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests" / "fixtures"
EXPORTERS = (
    TORCHSCRIPT_EXPORTER,
    DYNAMO_EXPORTER,
    KERAS_EXPORTER,
    KERAS_TORCH_EXPORTER,
    TF2ONNX_EXPORTER,
    WHILE_EXPORTER,
    PADDLE_EXPORTER,
    MINDSPORE_EXPORTER,
    JAX_EXPORTER,
    FLAX_EXPORTER,
    HAIKU_EXPORTER,
    WRITTEN_EXPORTER,
    CELLS_EXPORTER,
)
RECURRENT = ("LSTM", "GRU", "RNN")
SIZES = {"time": 7, "lengths": 7}
OTHER_SIZE = 2
README = """\
# Models of exporters

Small models with random weights, as exporters write them, for `tests/test_fixtures.py`. Made by
`python tools/make_fixtures.py`, which also wrote this page.

| file | exporter | versions | recurrent nodes | what it shows | onnxruntime {version} |
| --- | --- | --- | --- | --- | --- |
{rows}

What could not be exported:

| exporter | network | why |
| --- | --- | --- |
{refused}
"""


@dataclass(frozen=True)
class Row:
    """A file in the table; `fault` is why onnxruntime does not run it, or empty."""

    case: Case
    exporter: Exporter
    nodes: str
    fault: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The cells of the table."""
        shows = ". ".join(filter(None, (self.case.shows, self.case.outcome)))
        versions = ", ".join(self.exporter.packages)
        runs = "runs" if not self.fault else "does not run"
        return (f"`{self.case.name}.onnx`", self.exporter.name, versions, self.nodes, shows, runs)


def lacking(exporter: Exporter) -> str:
    """The first package not installed in the required version, or an empty string."""
    for package in exporter.packages:
        name, version = package.split("==")
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return package
        if found.split("+")[0] != version:
            return f"{package} ({found} is installed)"
    return ""


def make(key: str) -> None:
    """Writes the models of an exporter; called by `make_apart`.

    Raises:
        ValueError: a model contains a path of the machine it was made on.
    """
    exporter = next(each for each in EXPORTERS if each.key == key)
    places = [str(place).encode() for place in (ROOT, Path.home(), tempfile.gettempdir())]
    for case in exporter.cases:
        data = case.build().SerializeToString(deterministic=True)
        if told := [place for place in places if place + b"/" in data]:
            raise ValueError(f"{case.name}: there is {told[0].decode()} in it")
        (FIXTURES / f"{case.name}.onnx").write_bytes(data)


def make_apart(exporter: Exporter) -> bool:
    """Calls `make` in a fresh process, since exporters number names and iterate over sets."""
    command = [sys.executable, "-c", f"import make_fixtures; make_fixtures.make({exporter.key!r})"]
    environment = {**os.environ, **dict(exporter.environment), "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, cwd=Path(__file__).parent, env=environment, check=False)
    return done.returncode == 0


def recurrent_nodes(graph: onnx.GraphProto) -> Iterator[str]:
    """The types of a graph's recurrent nodes."""
    return (node.op_type for node in graph.node if node.op_type in RECURRENT)


def fault(path: Path) -> str:
    """Why onnxruntime fails to load or run a model, or an empty string."""
    rng = np.random.default_rng(0)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        feed = {}
        for port in session.get_inputs():  # those with initializers are left out
            shape = [n if isinstance(n, int) else SIZES.get(n, OTHER_SIZE) for n in port.shape]
            if port.name == "lengths":
                feed[port.name] = np.full(shape, SIZES["lengths"], port.type[7:-1])
            else:
                feed[port.name] = rng.standard_normal(shape).astype(np.float32)
        session.run(None, feed)
    except Exception as error:  # onnxruntime's exceptions have no base class of their own
        return str(error)
    return ""


def rows() -> Iterator[Row]:
    """The rows of all files.

    Raises:
        ValueError: a file is missing, or fails to run although the table does not say so.
    """
    for exporter in EXPORTERS:
        for case in exporter.cases:
            path = FIXTURES / f"{case.name}.onnx"
            if not path.exists():
                raise ValueError(f"{path.name} is missing: {', '.join(exporter.packages)} make it")
            counts = Counter(recurrent_nodes(onnx.load(path).graph))
            nodes = ", ".join(f"{count} {op}" for op, count in counts.items()) or "none"
            found = fault(path)
            if (found or nodes == "none") and not case.outcome:
                raise ValueError(f"{path.name}: {found or 'it has no recurrent node'}")
            yield Row(case, exporter, nodes, found)


def page(found: Sequence[Row]) -> str:
    """The README of the folder."""
    refused = [
        (exporter.name, network, why) for exporter in EXPORTERS for network, why in exporter.refused
    ]
    lines = [
        [f"| {' | '.join(cells)} |" for cells in table]
        for table in ([row.cells for row in found], [*refused, *UNUSABLE])
    ]
    return README.format(
        version=ort.__version__, rows="\n".join(lines[0]), refused="\n".join(lines[1])
    )


def main() -> int:
    """Makes what the command line asks for; the exit code is 1 if something failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    keys = [exporter.key for exporter in EXPORTERS]
    parser.add_argument("--only", nargs="+", choices=keys, default=keys, help="exporters to use")
    choices = parser.parse_args()
    FIXTURES.mkdir(exist_ok=True)
    for exporter in EXPORTERS:
        if exporter.key not in choices.only:
            continue
        if package := lacking(exporter):
            print(f"{exporter.key}: skipped, needs {package}", file=sys.stderr)
            continue
        print(f"{exporter.key}: {len(exporter.cases)} models", file=sys.stderr)
        if not make_apart(exporter):
            return 1
    try:
        found = list(rows())
    except ValueError as error:
        print(f"make_fixtures: {error}", file=sys.stderr)
        return 1
    (FIXTURES / "README.md").write_text(page(found), "utf-8")
    print(f"{len(found)} models, {sum(not row.fault for row in found)} run", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
