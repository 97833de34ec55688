"""Writes measured tables into pages of tools/results, between two markers."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, first column left-aligned, the others right-aligned."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def replace_section(text: str, name: str, body: str) -> str:
    """`text` with `body` between `<!-- name:begin -->` and `<!-- name:end -->`.

    Raises:
        ValueError: a marker does not occur exactly once, or they are in the wrong order.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(end) < text.index(begin):
        raise ValueError(f"{begin} and {end} are needed, once each and in this order")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{body.strip()}\n{end}{rest.split(end)[1]}"


def write_section(name: str, body: str) -> None:
    """Puts `body` into the page `tools/results/NAME.md`, with the commit that measured it.

    Raises:
        ValueError: the page is missing or lacks the markers.
    """
    path = RESULTS / f"{name}.md"
    if not path.exists():
        raise ValueError(f"{path} is missing")
    try:
        text = replace_section(path.read_text("utf-8"), name, body)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    stamp = f", at commit {_commit()}."
    path.write_text(re.sub(r"(?m)^(Written by `[^`]+`).*$", rf"\g<1>{stamp}", text), "utf-8")


def _commit() -> str:
    """The checked-out commit, and whether files have changed since."""
    command = ["git", "-C", str(RESULTS), "describe", "--always", "--dirty", "--exclude=*"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "no commit"
