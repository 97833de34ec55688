"""Text from files, as people are shown it.

Names of nodes, inputs and files may hold anything: sequences that a terminal obeys, marks that turn
the direction of what follows, markup, line breaks behind which a line of its own seems to begin.
Whatever is printed, logged or written for people goes through here; JSON holds names as they are.
"""

from __future__ import annotations

import re
from typing import TypeVar

from onnx_rnn_prune.record import mapped

T = TypeVar("T")

# What means something to Markdown, to its tables, or to HTML within a line.
_MEANING = re.compile(r"([\\`*_\[\]<>|~$&@#])")
# What GitHub makes links or pictures of, wherever it stands: addresses, people, issues, commits.
_LINKED = re.compile(
    r"://|www\.|\S@|@\w|#\d|\bgh-\d|\b[0-9a-f]{7,40}\b|:[\w+-]+:|mailto:|xmpp:", re.IGNORECASE
)


def visible(text: str) -> str:
    """A text as one line that shows all it holds.

    Control characters, marks of direction, line breaks and halves of characters become escapes as
    Python writes them.
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def presentable(value: T) -> T:
    """The same value with all texts in it made visible, see `mapped`."""
    shown: T = mapped(value, visible)
    return shown


def markdown(text: object) -> str:
    """Text in Markdown in which nothing has a meaning of its own; line breaks stay.

    Words that GitHub links in whatever way they are escaped stand in code.
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
