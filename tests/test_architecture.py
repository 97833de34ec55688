"""The conventions of the package, read from its source."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "onnx_rnn_prune"
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text("utf-8")) for path in FILES}
# A room imports from itself and from the rooms above it only.
ROOMS = (
    "record",
    "text",
    "errors",
    "progress",
    "arguments",
    "options",
    "model",
    "operators",
    "data",
    "roll",
    "trace",
    "validate",
    "evidence",
    "passes",
    "opened_model",
    "traced_model",
    "recovery",
    "lossless",
    "calibration",
    "evaluator",
    "recovery_choice",
    "cost",
    "report",
    "selection",
    "compression",
    "pipeline",
    "rolling",
    "search",
    "inspection",
    "api",
    "cli",
)
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): tree
    for path, tree in TREES.items()
}
ENTRANCES = ("__init__", "__main__")
MOST_LINES_OF_FILE = 450
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


def imported_files(tree):
    """The files of the package that a file imports, by the names of their modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in inside]
        else:
            continue
        yield from (name for name in names if name in MODULES)


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


def offences(find):
    """What a rule finds, by file."""
    found = {identify(path): find(path, tree) for path, tree in TREES.items()}
    return {name: what for name, what in found.items() if what}


def test_rooms_are_those_of_the_package():
    assert {room_of(path) for path in FILES} == {*ROOMS, *ENTRANCES}


def test_imports_go_up_only():
    def further_down(path, tree):
        room = room_of(path)
        if room in ENTRANCES:
            return []
        return sorted(set(imported_rooms(tree)) - set(ROOMS[: ROOMS.index(room) + 1]))

    assert offences(further_down) == {}


def test_imports_run_in_no_circle():
    """So that the files of a room have an order, too, in which each can be read after the last."""
    graph = {name: set(imported_files(tree)) - {name} for name, tree in MODULES.items()}
    del graph[PACKAGE.name]  # which only names what is to be had
    TopologicalSorter(graph).prepare()


def test_files_are_short():
    def excess(path, _):
        return max(0, len(path.read_text("utf-8").splitlines()) - MOST_LINES_OF_FILE)

    assert offences(excess) == {}


def test_functions_are_short():
    def long(_, tree):
        lengths = {function.name: body_lines(function) for function in functions(tree)}
        return {name: n for name, n in lengths.items() if n > MOST_LINES_OF_FUNCTION}

    assert offences(long) == {}


def test_parameters_have_names():
    def nameless(_, tree):
        return [function.name for function in functions(tree) if function.args.kwarg]

    assert offences(nameless) == {}


def test_public_definitions_are_documented():
    def undocumented(_, tree):
        found = [] if ast.get_docstring(tree) else ["the file"]
        return found + [n.name for n in public_definitions(tree) if not ast.get_docstring(n)]

    assert offences(undocumented) == {}
