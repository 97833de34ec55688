"""Where work is done: in this process, in others beside it, or on a Dask cluster.

Work is a function of items; it does not know where it runs, and gives the same results everywhere:
they come in the order of the items, and products of matrices, which depend by rounding on the
number of threads, are computed by one.
"""

# `joblib.Parallel` does not do for this: its processes are one pool for the whole program, which
# may be the caller's own, outlives a search, and is ended by nothing that is public; and on a
# cluster, it waits for ever once no worker is left, and cancels nothing when a search ends.

from __future__ import annotations

import gc
import hashlib
import os
import pickle
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Future
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import cloudpickle
import numpy as np
from joblib.externals.loky import ProcessPoolExecutor
from threadpoolctl import threadpool_limits

from onnx_rnn_prune.data import absolute
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.scratch import temporary_folder, written_in
from onnx_rnn_prune.options import Effort, Inputs

Item = TypeVar("Item")
Result = TypeVar("Result")
# Does work for items, one result after the other, in their order.
Mapper = Callable[[Sequence[Item]], Iterator[Result]]

# Seconds for a pool to queue what it was given, which takes it some milliseconds; between two looks
# of a worker at whether it is still wanted; and for a scheduler to answer, and to have workers.
_QUEUEING, _GLANCE, _PATIENCE = 5.0, 0.5, 30


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


@dataclass(frozen=True)
class Executor:
    """How many work at a search, and where.

    Attributes:
        jobs: processes on this machine; with one, all is done in the caller's.
        cluster: the address of a Dask scheduler, whose workers do all instead.
    """

    jobs: int = 1
    cluster: str | None = None

    @staticmethod
    def of(effort: Effort) -> Executor:
        """Those that are asked for.

        Raises:
            PruneError: Dask is missing, which is needed.
        """
        if effort.cluster is not None and find_spec("distributed") is None:
            raise PruneError(
                "needs Dask, which is not installed",
                where="--cluster",
                remedy="run pip install 'onnx_rnn_prune[cluster]'",
            )
        return Executor(effort.jobs, effort.cluster)

    @contextmanager
    def open(self) -> Iterator[Workers]:
        """The workers, while they are needed; this process, too, multiplies with one thread."""
        with threadpool_limits(1, user_api="blas"), self._workers() as workers, _frozen():
            yield workers

    def reachable(self, inputs: Inputs) -> Inputs:
        """The same data for workers that run in another folder."""
        if self.cluster is None:
            return inputs
        return replace(inputs, data=absolute(inputs.data), eval_data=absolute(inputs.eval_data))

    def _workers(self) -> AbstractContextManager[Workers]:
        if self.cluster is not None:
            return _cluster(self.cluster)
        return nullcontext(_Here()) if self.jobs == 1 else _processes(self.jobs)


@contextmanager
def _frozen() -> Iterator[None]:
    """What is there already is not looked through for garbage, which is done after each trial."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@dataclass(frozen=True)
class _Packed:
    """A recipe as bytes, or the file that holds them; the digest says whether two are the same."""

    digest: str
    content: bytes | Path = field(compare=False, repr=False)


def _pack(work: Work[Any, Any], option: str) -> _Packed:
    try:
        content: bytes = cloudpickle.dumps(work.recipe)
    except Exception as error:  # objects of the user's may raise anything
        raise PruneError(
            f"data or metric cannot be sent to other processes ({type(error).__name__}: {error})",
            where=option,
            remedy="give files or module:function, or leave the option out",
        ) from error
    return _Packed(hashlib.sha256(content).hexdigest(), content)


def do(packed: _Packed, item: Any) -> Any:
    """What a worker does."""
    with np.errstate(all="ignore"):
        return _function(packed)(item)


# A worker keeps what it opened for the next item. What is kept follows from the argument alone, and
# it is one thing at most.
@lru_cache(maxsize=1)
def _function(packed: _Packed) -> Callable[[Any], Any]:
    threadpool_limits(1, user_api="blas")
    held = packed.content
    function: Callable[[Any], Any] = pickle.loads(
        held if isinstance(held, bytes) else held.read_bytes()
    )()
    gc.freeze()
    return function


class _Here:
    """This process does the work."""

    def send(self, work: Work[Item, Result]) -> Mapper[Item, Result]:
        return partial(map, work.function)


@dataclass(frozen=True, eq=False)
class _Processes:
    """Other processes on this machine do the work, which is sent through a folder."""

    pool: ProcessPoolExecutor
    jobs: int
    folder: Path

    def send(self, work: Work[Item, Result]) -> Mapper[Item, Result]:
        packed = _pack(work, "--jobs")
        path = self.folder / packed.digest
        assert isinstance(packed.content, bytes)
        with written_in(self.folder):
            path.write_bytes(packed.content)
        return partial(self._done, _Packed(packed.digest, path))

    def _done(self, packed: _Packed, items: Sequence[Any]) -> Iterator[Any]:
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
        except BrokenExecutor as error:
            raise PruneError(
                "a worker process was killed or ran out of memory",
                where="--jobs",
                remedy="lower it; with --study, a search resumes where it stopped",
            ) from error
        finally:
            end = time.monotonic() + _QUEUEING
            while not all(f.running() or f.done() for f in asked) and time.monotonic() < end:
                time.sleep(0.001)


@contextmanager
def _processes(jobs: int) -> Iterator[Workers]:
    """So many processes beside this one; they end when what they were opened for does."""
    with temporary_folder() as folder, _modules_from_elsewhere():
        # They are killed in the end, so what is temporary of theirs goes with this folder.
        own = {"TMPDIR": folder}
        pool = ProcessPoolExecutor(jobs, initializer=_end_with, initargs=(os.getpid(),), env=own)
        try:
            yield _Processes(pool, jobs, Path(folder))
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


@dataclass(frozen=True, eq=False)
class _Cluster:
    """Workers of a Dask cluster do the work; what one leaves undone, Dask gives to another.

    Dask is imported only here and only where it is used.
    """

    client: Any
    address: str

    def send(self, work: Work[Item, Result]) -> Mapper[Item, Result]:
        packed = _pack(work, "--cluster")
        with warnings.catch_warnings():  # of its size; it is sent but once
            warnings.simplefilter("ignore", UserWarning)
            # As the result of a task it can be made again, which what is scattered cannot: that
            # is lost with the workers that hold it.
            sent = self.client.submit(_same, packed, pure=False)
        return partial(self._done, sent)

    def _done(self, sent: Any, items: Sequence[Any]) -> Iterator[Any]:
        for future in self.client.map(do, [sent] * len(items), items, pure=False):
            yield self._result(future)

    def _result(self, future: Any) -> Any:
        from distributed import KilledWorker, TimeoutError

        while True:
            try:
                return future.result(timeout=_PATIENCE)
            except PruneError:
                raise
            except TimeoutError:
                self.require_workers()
            except ImportError as error:
                raise PruneError(
                    f"a worker lacks a required package ({error})",
                    where=self.address,
                    remedy="install the same packages on all workers",
                ) from error
            except (KilledWorker, CancelledError, OSError) as error:
                raise PruneError(
                    f"the cluster gave up on a trial ({type(error).__name__}: {error})",
                    where=self.address,
                    remedy="check its logs; with --study, a search resumes where it stopped",
                ) from error

    def require_workers(self) -> None:
        """Waits for a worker to be there."""
        from distributed import TimeoutError

        try:
            self.client.wait_for_workers(1, timeout=_PATIENCE)
        except TimeoutError as error:
            raise PruneError(
                "the cluster has no workers",
                where=self.address,
                remedy=f"start some with `dask worker {self.address}`",
            ) from error


def _same(packed: _Packed) -> _Packed:
    return packed


@contextmanager
def _cluster(address: str) -> Iterator[Workers]:
    """The workers of a scheduler."""
    from distributed import Client

    try:
        client = Client(address, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise PruneError(
            f"no Dask scheduler answers ({error})",
            where=address,
            remedy="start one with `dask scheduler`, and give its address: tcp://host:port",
        ) from error
    with client:
        found = _Cluster(client, address)
        found.require_workers()
        yield found
