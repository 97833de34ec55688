"""Options from a file: [tool.onnx-rnn-prune] in pyproject.toml, or a TOML file of its own.

Keys are option names, valid for all commands that have the option; a table named after a command
takes precedence for it. Paths are relative to the file's folder.

A file given with --config may set anything. One that was found automatically may name code, files
outside its folder and other machines only if nobody but the user can have written it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from onnx_rnn_prune.arguments import Address, File, flag_of
from onnx_rnn_prune.data.sources import is_function_name
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.checks import real_path
from onnx_rnn_prune.model.files import require_plain
from onnx_rnn_prune.options import OPTIONS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = "pyproject.toml"
SECTION = "onnx-rnn-prune"

Table = Mapping[str, Any]
ClickOptions = Mapping[str, click.Option]


@dataclass(frozen=True)
class Config:
    """The options in a file.

    Attributes:
        section: the enclosing tables, each followed by a dot.
        table: the values, by keys with underscores.
        trusted: whether it may name code, files outside its folder and other machines.
    """

    path: Path
    section: str
    table: Table
    trusted: bool

    def place(self, *keys: str) -> str:
        """The name of a key in errors."""
        return f"{self.path}, {self.section}{'.'.join(keys)}"


def read_config(name: str | None) -> Config | None:
    """Reads the file of this name, or the nearest pyproject.toml of the current project.

    Raises:
        PruneError: it cannot be read or is not TOML.
    """
    path = _nearest() if name is None else Path(name)
    if path is None:
        return None
    require_plain(path)
    trusted = name is not None or _is_own(path)
    try:
        table: Any = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise PruneError(
            f"cannot be read ({error.strerror or error})", where=str(path), remedy="check --config"
        ) from error
    except (ValueError, RecursionError) as error:
        raise PruneError(f"is not valid TOML: {error}", where=str(path), remedy="fix it") from error
    if path.name != PROJECT:
        return Config(path, "", _underscored(table), trusted)
    for key in ("tool", SECTION):
        table = table.get(key, table.get(key.replace("-", "_"), {}))
        if not isinstance(table, dict):
            raise PruneError("is not a table", where=f"{path}, {key}", remedy="make it one")
    return Config(path, f"tool.{SECTION}.", _underscored(table), trusted)


def defaults(config: Config, group: click.Group, name: str) -> tuple[dict[str, Any], str]:
    """The options that a file sets for one command.

    Returns:
        Values by the names of its parameters; and a warning about keys that such a file may not
        set, or ''.

    Raises:
        PruneError: a key is no option of any command, or a value does not fit its option.
    """
    options = {command: _options(group.commands[command]) for command in group.commands}
    every = {key: option for own in options.values() for key, option in own.items()}
    shared: dict[tuple[str, ...], Any] = {}
    own: dict[tuple[str, ...], Any] = {}
    for key, value in config.table.items():
        if key in options and isinstance(value, dict):
            for inner, given in _underscored(value).items():
                _known(options[key], inner, config.place(key, inner))
                if key == name:
                    own[key, inner] = given
        else:
            _known(every, key, config.place(key))
            if key in options[name]:
                shared[key,] = value
    found, ignored = {}, []
    for keys, given in {**shared, **own}.items():
        option = options[name][keys[-1]]
        if config.trusted or _is_plain(config, option, given):
            found[str(option.name)] = _value(config, keys, option, given)
        else:
            ignored.append(".".join(keys))
    return found, _ignored(config, ignored) if ignored else ""


def _ignored(config: Config, keys: Sequence[str]) -> str:
    verb = "is" if len(keys) == 1 else "are"
    return (
        f"{config.path}: {', '.join(keys)} {verb} ignored: a file that others can write may not"
        " name code, other machines or files outside its folder; pass it with --config, or make it"
        " and its folder writable by you only (chown, chmod go-w)"
    )


def _is_plain(config: Config, option: click.Option, given: object) -> bool:
    """Whether a value names neither code, nor another machine, nor a file outside the folder."""
    kind = OPTIONS[str(option.name)].kind
    for text in _several(option, given):
        if not isinstance(text, str):
            continue
        if is_function_name(text) or isinstance(kind, Address):
            return False
        if isinstance(kind, File):
            home = real_path(config.path.parent)
            if not real_path(home / text).is_relative_to(home):
                return False
    return True


def _nearest() -> Path | None:
    """The pyproject.toml of the project that the working folder is in.

    A project ends at the root of its repository, at the home folder, and where a folder belongs to
    someone else.
    """
    try:
        here = Path.cwd()
        owner = here.stat().st_uid
        for folder in (here, *here.parents):
            if folder.stat().st_uid != owner:
                return None
            if (folder / PROJECT).is_file():
                return Path(os.path.relpath(folder / PROJECT))
            if (folder / ".git").exists() or folder == Path.home():
                return None
    except (OSError, RuntimeError):  # a deleted or inaccessible folder; no home
        return None
    return None


def _is_own(path: Path) -> bool:
    """Whether only the user and root can have written or placed a file."""
    if not hasattr(os, "geteuid"):
        return False  # file modes do not tell who may write
    states = [place.stat() for place in (path, path.parent, real_path(path).parent)]
    owners = {state.st_uid for state in states}
    return owners <= {0, os.geteuid()} and not any(state.st_mode & 0o022 for state in states)


def _underscored(table: Table) -> dict[str, Any]:
    return {key.replace("-", "_"): value for key, value in table.items()}


def _options(command: click.Command) -> ClickOptions:
    """The options of a command by their long flags."""
    return {
        flag.removeprefix("--").replace("-", "_"): parameter
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for flag in (*parameter.opts, *parameter.secondary_opts)
        if flag.startswith("--")
    }


def _known(options: ClickOptions, key: str, place: str) -> click.Option:
    if key in options:
        return options[key]
    near = get_close_matches(key, options, 1)
    remedy = f"did you mean {near[0]}?" if near else f"the options are {', '.join(sorted(options))}"
    raise PruneError("unknown option", where=place, remedy=remedy)


def _value(config: Config, keys: tuple[str, ...], option: click.Option, given: object) -> Any:
    """The default for an option, as text of the command line."""
    place = config.place(*keys)
    value: bool | str | list[str]
    if option.is_flag:
        if not isinstance(given, bool):
            raise PruneError(
                f"{given!r} is not true or false", where=place, remedy="give true or false"
            )
        denied = flag_of(keys[-1]) in option.secondary_opts  # such as --no-roll
        value = given != denied
    else:
        texts = [_located(config, option, text) for text in _texts(option, given, place)]
        value = texts if option.multiple else texts[0]
    try:
        option.process_value(click.Context(click.Command(keys[0])), value)
    except click.BadParameter as error:
        remedy = f"give a value that {option.opts[-1]} accepts"
        raise PruneError(error.message.rstrip("."), where=place, remedy=remedy) from error
    return value


def _texts(option: click.Option, given: object, place: str) -> Iterator[str]:
    """One text, or several if the option may be repeated; NAME=VALUE also as a table."""
    for item in _several(option, given):
        if isinstance(item, bool) or not isinstance(item, str | int | float):
            kinds = "strings or numbers" if option.multiple else "a string or a number"
            raise PruneError(f"{item!r} is not a value", where=place, remedy=f"give {kinds}")
        yield str(item)


def _several(option: click.Option, given: object) -> list[Any]:
    several: Any = given
    if isinstance(given, dict) and "=" in (option.metavar or ""):
        several = [f"{name}={value}" for name, value in given.items()]
    return several if option.multiple and isinstance(several, list) else [several]


def _located(config: Config, option: click.Option, text: str) -> str:
    """A path relative to the file's folder, or a function of a module there."""
    folder = config.path.parent
    if is_function_name(text) and not (folder / text).exists():
        if str(real_path(folder)) not in sys.path:
            sys.path.insert(0, str(real_path(folder)))
        return text
    named = text and isinstance(OPTIONS[str(option.name)].kind, File)
    return str(folder / text) if named else text
