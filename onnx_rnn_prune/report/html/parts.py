"""Pieces of HTML: what is no markup yet is escaped, so that nothing can be forgotten."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# What no document may hold, escaped or not: control characters and halves of characters.
_UNWRITABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_EMPTY: Mapping[str, object] = {}


class Markup(str):
    """Text that is HTML or SVG, and stands as it is."""

    __slots__ = ()


def joined(*parts: str) -> Markup:
    """Parts one after the other; those that are plain text are escaped."""
    return Markup("".join(part if isinstance(part, Markup) else _escaped(part) for part in parts))


def element(name: str, *content: str, attributes: Mapping[str, object] = _EMPTY) -> Markup:
    """An element with its content; attributes without a value are left out."""
    given = "".join(
        f' {key}="{_escaped(str(value))}"' for key, value in attributes.items() if value is not None
    )
    return Markup(f"<{name}{given}>{joined(*content)}</{name}>")


def section(title: str, *content: str, note: str = "") -> Markup:
    """A part of the page with a heading, and below that a line that says what it shows."""
    said = element("p", note, attributes={"class": "note"}) if note else ""
    return element("section", element("h2", title), said, *content)


def figure(picture: Markup, *caption: str, style: str | None = None) -> Markup:
    """A plot and what it shows; `wide` for one that stands alone."""
    content = picture, element("figcaption", *caption)
    return element("figure", *content, attributes={"class": style})


def side_by_side(*content: str) -> Markup:
    """What stands in one row where there is room."""
    return element("div", *content, attributes={"class": "pair"})


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: its heading.
        kind: `number` for what ends flush right, `name` for what may be long and break anywhere,
            `words` for some words, `long` for sentences.
    """

    title: str
    kind: str = "words"


def numbers(*titles: str) -> tuple[Column, ...]:
    """Columns of numbers."""
    return tuple(Column(title, "number") for title in titles)


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> Markup:
    """A table that scrolls in a box of its own where it is too wide for the page."""
    head = [
        element("th", column.title, attributes={"class": column.kind, "scope": "col"})
        for column in columns
    ]
    body = [
        element(
            "tr",
            *(
                element("td", element("div", cell), attributes={"class": column.kind})
                for column, cell in zip(columns, row, strict=True)
            ),
        )
        for row in rows
    ]
    content = element("table", element("thead", element("tr", *head)), element("tbody", *body))
    # What scrolls must be reachable by the keyboard, too.
    return element("div", content, attributes={"class": "scroll", "tabindex": "0"})


def definitions(rows: Sequence[tuple[str, str]], style: str | None = None) -> Markup:
    """Subjects, and what there is to say about each; `short` keeps them in one line on phones."""
    pairs = [joined(element("dt", label), element("dd", text)) for label, text in rows]
    return element("dl", *pairs, attributes={"class": style})


def _escaped(text: str) -> str:
    return html.escape(_UNWRITABLE.sub("\N{REPLACEMENT CHARACTER}", text))
