"""Options of the command line, made from their declarations, and its arguments."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import Parameter, signature
from typing import Any

import click
from click.shell_completion import CompletionItem

from onnx_rnn_prune import arguments
from onnx_rnn_prune.arguments import Option, flag_of
from onnx_rnn_prune.data.sources import is_function_name
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.options import OPTIONS
from onnx_rnn_prune.recovery.distill.configuration import read_loss
from onnx_rnn_prune.selection.criteria import CRITERIA
from onnx_rnn_prune.selection.criterion import parse_criterion
from onnx_rnn_prune.validate.quality import QUALITIES

# By option, its known names, and the parser that refuses others before any work is done.
_KNOWN = {"criterion": tuple(CRITERIA), "metric": tuple(quality.name for quality in QUALITIES)}
_READERS: Mapping[str, Callable[[str], object]] = {"criterion": parse_criterion, "loss": read_loss}
# Options whose flag is not made from their name.
_FLAGS = {"output": ("-o", "--output"), "as_json": ("--json",)}


class FileName(click.types.StringParamType):
    """The name of a file or of data; an empty one is refused as a script's mistake."""

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
        """Leaves completion to the shell, which knows its files."""
        return [CompletionItem(incomplete, type="file")]


name = FileName()


def options_for(function: Callable[..., Any], writes: Sequence[str]) -> list[click.Parameter]:
    """The options of a command: those that its function takes, and files to write.

    Args:
        function: of `onnx_rnn_prune.api`.
        writes: names of further options, of which `output` is required.
    """
    taken = {
        parameter.name: parameter.default is Parameter.empty
        for parameter in signature(function).parameters.values()
        if parameter.kind is Parameter.KEYWORD_ONLY and parameter.name in OPTIONS
    }
    first = {"output": True} if "output" in writes else {}
    needed = {**first, **taken, **{word: word == "output" for word in writes}}
    return [_made(word, OPTIONS[word], required) for word, required in needed.items()]


def _made(word: str, declared: Option, required: bool) -> click.Option:
    kind, default = declared.kind, declared.default
    switch = isinstance(kind, arguments.Switch)
    shown = not switch and not declared.many and default is not None
    without = "" if required or not declared.without else f" {declared.without}"
    flag = flag_of(word)
    if switch and default is not False:  # default True, or unset
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    # click treats an explicit default differently from its own, even if they are equal.
    settings: dict[str, Any] = {"default": default} if shown or switch else {}
    settings |= {"is_flag": True} if switch else {"type": _type(kind)}
    return click.Option(
        [word, *_FLAGS.get(word, (flag,))],
        required=required,
        multiple=declared.many,
        metavar=declared.metavar or None,
        show_default=shown,
        callback=_callback(kind),
        help=declared.help.format(known=", ".join(_KNOWN.get(word, ()))) + without,
        **settings,
    )


def _type(kind: arguments.Kind) -> click.ParamType[Any]:
    if isinstance(kind, arguments.File):
        return name
    if isinstance(kind, arguments.Choice):
        return click.Choice(kind.names)
    if isinstance(kind, arguments.Whole):
        return click.IntRange(min=kind.least)
    if isinstance(kind, arguments.Number):
        return click.FloatRange(min=0, min_open=kind.above)
    return click.STRING


def _callback(kind: arguments.Kind) -> Callable[[click.Context, click.Parameter, Any], Any] | None:
    if isinstance(kind, arguments.Values | arguments.Sizes):
        return _name_values
    if isinstance(kind, arguments.Named | arguments.Source):
        return _named
    return None


def _named(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Refuses unknown names; a user's functions are loaded later.

    `module:function` may name a module in the working folder, as with `python -m`.
    """
    if value is not None and not is_function_name(value) and parameter.name in _READERS:
        try:
            _READERS[parameter.name](value)
        except PruneError as error:
            raise click.BadParameter(f"{error.what}; {error.remedy}") from error
    if value is not None and is_function_name(value) and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return value


def _name_values(
    context: click.Context, parameter: click.Parameter, values: Iterable[str]
) -> dict[str, str]:
    parts = [value.partition("=") for value in values]
    if not all(name and given for name, given, _ in parts):
        raise click.BadParameter("give NAME=VALUE")
    return {name: text for name, _, text in parts}
