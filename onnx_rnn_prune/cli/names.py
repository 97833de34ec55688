"""Names of files, of data and of machines on the command line."""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import CompletionItem


class FileName(click.types.StringParamType):
    """The name of a file or of data; an empty one is the slip of a script."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(super().convert(value, param, ctx))
        if not text:
            self.fail("the name is empty", param, ctx)
        if "\0" in text:
            self.fail("a name cannot contain a null character", param, ctx)
        return text

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Leaves it to the shell, which knows its files."""
        return [CompletionItem(incomplete, type="file")]


class Address(click.types.StringParamType):
    """Another machine, which is sent models and data, and whose answers are run."""
