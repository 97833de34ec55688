"""Progress bars on standard error."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from onnx_rnn_prune.text import visible


class ProgressBars:
    """One bar per task, gone when all is done; call it with what is done.

    Nothing is shown where standard error is not a terminal.

    Args:
        console: where to draw; standard error by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ProgressBars:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def __call__(self, what: str, done: int, total: int | None) -> None:
        """Reports that `done` of `total` steps (None: unknown) of a task are done."""
        count = str(done) if total is None else f"{done}/{total}"
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(
                escape(visible(what)), total=total, count=count
            )
        self._progress.update(self._tasks[what], completed=done, total=total, count=count)
