"""Options from a file: [tool.onnx-rnn-prune] of pyproject.toml, or a TOML file of their own.

Keys are names of options, for all commands that have them; a table with the name of a command is
for that one and goes before. Names of files are relative to the folder of the file they stand in.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from onnx_rnn_prune.cli.names import FileName
from onnx_rnn_prune.data.values import is_function_name
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.files import require_plain

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = "pyproject.toml"
SECTION = "onnx-rnn-prune"

Table = Mapping[str, Any]
Options = Mapping[str, click.Option]


@dataclass(frozen=True)
class Config:
    """What a file says of options.

    Attributes:
        path: of the file.
        section: the tables around it, with a dot behind each.
        table: keys with underscores, and what is given for them.
    """

    path: Path
    section: str
    table: Table

    def place(self, *keys: str) -> str:
        """How errors call a key."""
        return f"{self.path}, {self.section}{'.'.join(keys)}"


def read_config(name: str | None) -> Config | None:
    """Reads a file that is named, or the nearest pyproject.toml from the working folder up.

    Raises:
        PruneError: it cannot be read or is not TOML.
    """
    path = _nearest() if name is None else Path(name)
    if path is None:
        return None
    require_plain(path)
    try:
        table: Any = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise PruneError(
            f"cannot be read ({error.strerror or error})", where=str(path), remedy="check --config"
        ) from error
    except (ValueError, RecursionError) as error:
        raise PruneError(f"is not TOML: {error}", where=str(path), remedy="mend it") from error
    if path.name != PROJECT:
        return Config(path, "", _underscored(table))
    for key in ("tool", SECTION):
        table = table.get(key, table.get(key.replace("-", "_"), {}))
        if not isinstance(table, dict):
            raise PruneError("is no table", where=f"{path}, {key}", remedy="make it one")
    return Config(path, f"tool.{SECTION}.", _underscored(table))


def defaults(config: Config, group: click.Group, name: str) -> dict[str, Any]:
    """What a file says for one command, by the names of its parameters.

    Raises:
        PruneError: a key is no option of any command, also of others than this, or a value is none
            that the option takes.
    """
    options = {command: _options(group.commands[command]) for command in group.commands}
    every = {key: option for own in options.values() for key, option in own.items()}
    found: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for key, value in config.table.items():
        if key in options and isinstance(value, dict):
            for inner, given in _underscored(value).items():
                option = _known(options[key], inner, config.place(key, inner))
                if key == name:
                    own[str(option.name)] = _value(config, (key, inner), option, given)
        else:
            _known(every, key, config.place(key))
            if key in options[name]:
                option = options[name][key]
                found[str(option.name)] = _value(config, (key,), option, value)
    return {**found, **own}


def _nearest() -> Path | None:
    here = Path.cwd()
    folders = (folder for folder in (here, *here.parents) if (folder / PROJECT).is_file())
    found = next(folders, None)
    return None if found is None else Path(os.path.relpath(found / PROJECT))


def _underscored(table: Table) -> dict[str, Any]:
    return {key.replace("-", "_"): value for key, value in table.items()}


def _options(command: click.Command) -> Options:
    """By the long names on the command line."""
    return {
        flag.removeprefix("--").replace("-", "_"): parameter
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for flag in parameter.opts
        if flag.startswith("--")
    }


def _known(options: Options, key: str, place: str) -> click.Option:
    if key in options:
        return options[key]
    near = get_close_matches(key, options, 1)
    remedy = f"did you mean {near[0]}?" if near else f"the options are {', '.join(sorted(options))}"
    raise PruneError("there is no such option", where=place, remedy=remedy)


def _value(config: Config, keys: tuple[str, ...], option: click.Option, given: object) -> Any:
    """What the option takes as its default: what is given, as text of the command line."""
    place = config.place(*keys)
    value: bool | str | list[str]
    if option.is_flag:
        if not isinstance(given, bool):
            raise PruneError(f"{given!r} is neither", where=place, remedy="give true or false")
        value = given
    else:
        texts = [_located(config, option, text) for text in _texts(option, given, place)]
        value = texts if option.multiple else texts[0]
    try:
        option.process_value(click.Context(click.Command(keys[0])), value)
    except click.BadParameter as error:
        remedy = f"give what {option.opts[-1]} takes"
        raise PruneError(error.message.rstrip("."), where=place, remedy=remedy) from error
    return value


def _texts(option: click.Option, given: object, place: str) -> Iterator[str]:
    """One text, or several where the option may be repeated; NAME=VALUE also as a table."""
    several: object = given
    if isinstance(given, dict) and "=" in (option.metavar or ""):
        several = [f"{name}={value}" for name, value in given.items()]
    items = several if option.multiple and isinstance(several, list) else [several]
    for item in items:
        if isinstance(item, bool) or not isinstance(item, str | int | float):
            kinds = "texts or numbers" if option.multiple else "a text or a number"
            raise PruneError(f"{item!r} is no value", where=place, remedy=f"give {kinds}")
        yield str(item)


def _located(config: Config, option: click.Option, text: str) -> str:
    """A name from the file's folder, where users see their files beside it."""
    folder = config.path.parent
    if is_function_name(text) and not (folder / text).exists():
        if str(folder.resolve()) not in sys.path:
            sys.path.insert(0, str(folder.resolve()))
        return text
    return str(folder / text) if text and isinstance(option.type, FileName) else text
