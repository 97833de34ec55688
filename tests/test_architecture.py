"""The conventions of the package, read from its source."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "onnx_rnn_prune"
FILES = sorted(PACKAGE.rglob("*.py"))
# A room imports from itself and from the rooms above it only.
ROOMS = (
    "errors",
    "progress",
    "model",
    "data",
    "cells",
    "twins",
    "trace",
    "learn",
    "score",
    "plan",
    "passes",
    "validate",
    "report",
    "flow",
    "api",
    "cli",
)
ENTRANCES = ("__init__", "__main__")
MOST_LINES_OF_FILE = 300
MOST_LINES_OF_FUNCTION = 40


def identify(path):
    return str(path.relative_to(PACKAGE.parent))


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(tree):
    """The rooms that a file imports from; `from onnx_rnn_prune import api` names one, too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [node.module or ""]
            if node.module == PACKAGE.name:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == PACKAGE.name:
                yield parts[1]


def functions(tree):
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def body_lines(function):
    """Lines of the statements; signature and docstring say what it does, not how."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def public_definitions(tree):
    """Public functions and classes of a module; a method's meaning may stand at its protocol."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [n for n in tree.body if isinstance(n, kinds) and not n.name.startswith("_")]


@pytest.fixture(params=FILES, ids=identify)
def path(request):
    return request.param


@pytest.fixture
def tree(path):
    return ast.parse(path.read_text("utf-8"))


def test_rooms_are_those_of_the_package():
    assert {room_of(path) for path in FILES} == {*ROOMS, *ENTRANCES}


def test_imports_go_up_only(path, tree):
    room = room_of(path)
    if room not in ENTRANCES:
        allowed = ROOMS[: ROOMS.index(room) + 1]
        assert sorted(set(imported_rooms(tree)) - set(allowed)) == []


def test_files_are_short(path):
    assert len(path.read_text("utf-8").splitlines()) <= MOST_LINES_OF_FILE


def test_functions_are_short(tree):
    lengths = {function.name: body_lines(function) for function in functions(tree)}
    assert {name: n for name, n in lengths.items() if n > MOST_LINES_OF_FUNCTION} == {}


def test_parameters_have_names(tree):
    assert [function.name for function in functions(tree) if function.args.kwarg] == []


def test_public_definitions_are_documented(tree):
    assert ast.get_docstring(tree)
    assert [n.name for n in public_definitions(tree) if not ast.get_docstring(n)] == []
