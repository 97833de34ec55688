"""Where work is done: in this process or in others.

Work is a function of items; it does not know where it runs, and gives the same results everywhere:
they come in the order of the items, and products of matrices, which depend by rounding on the
number of threads, are computed by one.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import cloudpickle
import numpy as np
from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.process_executor import BrokenProcessPool
from threadpoolctl import threadpool_limits

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.scratch import temporary_folder, written_in

Item = TypeVar("Item")
Result = TypeVar("Result")
# Does work for items, one result after the other, in their order.
Mapper = Callable[[Sequence[Item]], Iterator[Result]]

# Seconds for a pool to queue what it was given, which takes it some milliseconds.
_PATIENCE = 5.0
# And between two looks of a worker at whether it is still wanted.
_GLANCE = 0.5


@dataclass(frozen=True, eq=False)
class Work(Generic[Item, Result]):
    """A function, and how another process comes by the same one.

    Attributes:
        function: for this process.
        recipe: makes it in another process, which is sent the recipe once.
    """

    function: Callable[[Item], Result]
    recipe: Callable[[], Callable[[Item], Result]]


class Workers(Protocol):
    """Those who do work."""

    def send(self, work: Work[Item, Result]) -> Mapper[Item, Result]:
        """Tells all workers how to do some work.

        Raises:
            PruneError: it cannot be sent; or, while results are asked for, a worker raised that, or
                there is none left.
        """


class Here:
    """This process does the work."""

    def send(self, work: Work[Item, Result]) -> Mapper[Item, Result]:
        return partial(map, work.function)


@dataclass(frozen=True, eq=False)
class Processes:
    """Other processes on this machine do the work.

    Attributes:
        pool: of the processes.
        jobs: how many there are.
        folder: through which work is sent.
    """

    pool: ProcessPoolExecutor
    jobs: int
    folder: Path

    def send(self, work: Work[Item, Result]) -> Mapper[Item, Result]:
        content = pack(work.recipe, "--jobs")
        path = self.folder / hashlib.sha256(content).hexdigest()
        with written_in(self.folder):
            path.write_bytes(content)
        return partial(self._done, InFile(path))

    def _done(self, packed: Packed, items: Sequence[Any]) -> Iterator[Any]:
        # The pool queues two items for each process, and is given no more. It fails when it is to
        # end before all that it was given is in its queue.
        asked: deque[Future[Any]] = deque()
        try:
            for item in items:
                if len(asked) == 2 * self.jobs:
                    yield asked.popleft().result()
                asked.append(self.pool.submit(do, packed, item))
            while asked:
                yield asked.popleft().result()
        except BrokenProcessPool as error:
            raise PruneError(
                "a process that made trials was ended from outside, or ran out of memory",
                where="--jobs",
                remedy="lower it; with --study, a search goes on where it stopped",
            ) from error
        finally:
            end = time.monotonic() + _PATIENCE
            while not all(f.running() or f.done() for f in asked) and time.monotonic() < end:
                time.sleep(0.001)


class Packed(Hashable, Protocol):
    """A recipe as bytes, which knows whether it is the same as another."""

    def read(self) -> bytes:
        """What `pack` made."""


@dataclass(frozen=True)
class InFile:
    """A recipe in a file that is not written to again."""

    path: Path

    def read(self) -> bytes:
        return self.path.read_bytes()


@dataclass(frozen=True)
class InMemory:
    """A recipe in memory."""

    digest: str
    content: bytes = field(compare=False, repr=False)

    def read(self) -> bytes:
        return self.content


def pack(recipe: object, option: str) -> bytes:
    """A recipe as bytes.

    Raises:
        PruneError: something in it, which the user gave, cannot be sent to another process.
    """
    try:
        content: bytes = cloudpickle.dumps(recipe)
    except Exception as error:  # objects of the user's may raise anything
        raise PruneError(
            f"data or metric cannot be sent to other processes ({type(error).__name__}: {error})",
            where=option,
            remedy="name files or module:function, or leave the option out",
        ) from error
    return content


def do(packed: Packed, item: Any) -> Any:
    """What a worker does."""
    with np.errstate(all="ignore"):
        return _function(packed)(item)


# A worker keeps what it opened for the next item. What is kept follows from the argument alone, and
# it is one thing at most.
@lru_cache(maxsize=1)
def _function(packed: Packed) -> Callable[[Any], Any]:
    threadpool_limits(1, user_api="blas")
    function: Callable[[Any], Any] = pickle.loads(packed.read())()
    return function


@contextmanager
def processes(jobs: int) -> Iterator[Workers]:
    """So many processes beside this one; they end when what they were opened for does."""
    with (
        temporary_folder() as folder,
        _modules_from_elsewhere(),
    ):
        # They are killed in the end, so what is temporary of theirs goes with this folder.
        own = {"TMPDIR": folder}
        pool = ProcessPoolExecutor(jobs, initializer=_end_with, initargs=(os.getpid(),), env=own)
        try:
            yield Processes(pool, jobs, Path(folder))
        finally:
            # An interruption may come before a thread of the pool's has begun, which cannot be
            # joined then; workers that this leaves end with this process.
            with suppress(RuntimeError):
                pool.shutdown(kill_workers=True)


def _end_with(parent: int) -> None:
    """Ends this process when that is gone, whatever ended it.

    Linux could send a signal then, but already when the thread that began this process ends.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_GLANCE)
        os._exit(1)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()


@contextmanager
def _modules_from_elsewhere() -> Iterator[None]:
    """Processes that start meanwhile import nothing from the working folder by themselves.

    It may be anyone's. What this process looks for modules in, they are told. From Python 3.11 on.
    """
    name = "PYTHONSAFEPATH"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
