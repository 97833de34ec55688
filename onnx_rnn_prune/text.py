"""Text from files, made safe to show.

Names of nodes, inputs and files may hold anything: terminal control sequences, marks that reverse
the direction of text, markup, line breaks that fake a new line of output. Everything printed,
logged or written for people goes through here; JSON holds names as they are.
"""

from __future__ import annotations

import re
from typing import TypeVar

from onnx_rnn_prune.record import mapped

T = TypeVar("T")

# Characters with a special meaning in Markdown, its tables, or HTML.
_MEANING = re.compile(r"([\\`*_\[\]<>|~$&@#])")
# What GitHub turns into links or pictures: addresses, people, issues, commits, emoji.
_LINKED = re.compile(
    r"://|www\.|\S@|@\w|#\d|\bgh-\d|\b[0-9a-f]{7,40}\b|:[\w+-]+:|mailto:|xmpp:", re.IGNORECASE
)


def visible(text: str) -> str:
    """A text as one line; control characters, line breaks and the like are escaped as in Python."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def presentable(value: T) -> T:
    """A value with all texts in it made visible, see `mapped`."""
    shown: T = mapped(value, visible)
    return shown


def markdown(text: object) -> str:
    """Text escaped for Markdown; line breaks stay.

    Words that GitHub links however they are escaped become code.
    """
    return "<br>".join(
        " ".join(_word(word) for word in line.split(" ")) for line in str(text).splitlines()
    )


def _word(word: str) -> str:
    if not _LINKED.search(word):
        return _MEANING.sub(r"\\\1", word)
    fence = "`" * (1 + max(map(len, re.findall("`+", word)), default=0))
    space = " " if "`" in word else ""
    # In a table, a bar ends the cell even in code.
    return f"{fence}{space}{word}{space}{fence}".replace("|", "\\|")
