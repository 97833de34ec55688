"""The command line: it parses, calls `onnx_rnn_prune.api` and prints.

Results go to standard output, progress and errors to standard error. Exit codes: 0 success, 1 an
error that the user can fix (one line, no traceback), 2 wrong usage, 3 outputs differ or a budget is
unmet, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import io
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

import click

from onnx_rnn_prune.cli.commands import cli
from onnx_rnn_prune.errors import ConstraintError, PruneError
from onnx_rnn_prune.text import visible

__all__ = ["run", "terminate"]

_NAME = "onnx-rnn-prune"


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM to end a command, as KeyboardInterrupt is on Ctrl-C."""


def terminate(number: int, frame: FrameType | None) -> NoReturn:
    """Signal handler that ends a command after cleanup; a second signal ends it at once.

    Raises:
        Terminated: always.
    """
    signal.signal(number, signal.SIG_DFL)
    raise Terminated


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: those of the process by default.

    Returns:
        The exit code.
    """
    try:
        code = cli.main(arguments, prog_name=_NAME, standalone_mode=False, obj=_typed(arguments))
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        return _show(error)
    except (click.Abort, KeyboardInterrupt) as error:
        if isinstance(error, Terminated) or isinstance(error.__cause__, Terminated):
            click.echo("Terminated", err=True)
            return 143
        return 130
    except PruneError as error:
        return _fail(error.for_shell, error, 3 if isinstance(error, ConstraintError) else 1)
    except MemoryError as error:
        return _fail("out of memory; free some memory, or use smaller or fewer feeds", error, 1)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _fail(f"{place}{error.strerror or error}", error, 1)
    except Exception as error:
        text = f"unexpected {type(error).__name__}: {error}; this is a bug, please report it"
        return _fail(text, error, 1)


def _typed(arguments: Sequence[str] | None) -> str:
    """The command line, quoted for a shell, as reports show it."""
    return shlex.join([_NAME, *(sys.argv[1:] if arguments is None else arguments)])


def _fail(text: str, error: BaseException, code: int) -> int:
    """Prints one line; `python -X dev` shows the traceback before it."""
    if sys.flags.dev_mode:
        traceback.print_exception(error)
    click.echo(f"Error: {visible(' '.join(text.split()))}", err=True)
    return code


def _show(error: click.ClickException) -> int:
    """Prints a usage error; file names in it are escaped."""
    shown = io.StringIO()
    error.show(shown)
    for line in shown.getvalue().splitlines():
        click.echo(visible(line), err=True)
    return error.exit_code
