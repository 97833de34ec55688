"""Running a model in onnxruntime, with states carried along in streams."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model import signature
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.external import (
    LARGE,
    SessionWeights,
    is_apart,
    raw_length,
    with_weights,
)
from onnx_rnn_prune.model.runnable import (
    as_single,
    guarded,
    may_be_empty,
    narrowed,
    runnable_outputs,
    runs_whole,
    unknown_type,
    with_outputs,
)
from onnx_rnn_prune.model.scratch import give_back, temporary_folder, written_in

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]


# The option for the folder of external weights.
_FOLDER = "session.model_external_initializers_file_folder_path"


_FATAL = 4  # the lowest severity printed: errors come as exceptions anyway
# Optimization levels of onnxruntime, from none to the default. Some checks happen only when an
# operator runs that it would have rewritten, such as a Slice with a scalar start.
_REWRITING = (
    ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
)
# Advice if a model made here does not run.
OURS = "report this; no file was written"


class Runner:
    """A model loaded in onnxruntime on the CPU.

    Args:
        model: the model; it is not changed.
        outputs: tensors to compute; the model's own outputs by default or, where one depends on an
            operator that onnxruntime lacks, that operator's inputs.
        also: tensors computed only in calls that ask for them.
        threads: intra-operator threads; 1 makes runs repeatable.
        optimize: let onnxruntime rewrite the graph, as it does by default. Better off if inner
            tensors are wanted or two models compared operator by operator. Models that do not run
            otherwise are still rewritten, as little as possible.
        order: in which nodes run. By priority, the shape of a tensor is read as soon as it is
            computed; by default at the end, until when it is kept.
        profile: prefix of the file for a profile of each node's time, see `profiled`; None for no
            profiling.
        name: of the model in errors.
        remedy: advice in errors; by default, to check the file or the feed.
    """

    def __init__(
        self,
        model: onnx.ModelProto | Document,
        *,
        outputs: Sequence[str] | None = None,
        also: Sequence[str] = (),
        threads: int = 1,
        optimize: bool = True,
        order: ort.ExecutionOrder = ort.ExecutionOrder.DEFAULT,
        profile: Path | None = None,
        name: str = "the model",
        remedy: str | None = None,
    ) -> None:
        self.name = name
        self.remedy = remedy
        self._threads, self._order, self._profile = threads, order, profile
        self._levels = list(_REWRITING[-1:] if optimize else _REWRITING)
        # onnxruntime loads no model without outputs; if none are wanted, none are computed.
        self._asked = [*outputs, *also] if outputs else None
        try:
            # Kept until the first run, as it may have to be loaded again.
            self._spare: _Loadable | None = _loadable(model, self._asked)
        except PruneError:
            raise
        except Exception as error:
            raise self._unfit(error) from error
        if self._spare.kept is not None:
            weakref.finalize(self, self._spare.kept.cleanup)
        self._unsafe = model if self._spare.endangered else None
        # A copy that raises an error if a layer gets an empty sequence; loaded when needed.
        self._guarded: Runner | None = None
        self._session = self._load(self._spare)
        if not self._levels:
            self._done()
        self._proven: set[tuple[tuple[int, ...], ...]] = set()
        self._takes, self._gives = _conversions(
            model.source if isinstance(model, Document) else model
        )
        self.inputs = [value.name for value in self._session.get_inputs()]
        given = [value.name for value in self._session.get_outputs()]
        self.outputs = given if outputs is None else list(outputs)

    def __call__(self, feed: Feed, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Runs one feed; returns the named outputs (all by default)."""
        names = list(self.outputs if outputs is None else outputs)
        if not names:
            return {}
        known = {name: self._given(name, feed) for name in self.inputs if name in feed}
        sizes = tuple(value.shape for value in known.values())
        if self._unsafe is not None and sizes not in self._proven:
            self._guarded = self._guarded or Runner(
                self._unsafe, outputs=self.outputs, name=self.name, remedy=self.remedy
            )
            self._guarded(feed, names)
            self._proven.add(sizes)
        try:
            values = self._run(names, known)
        except Exception as error:
            name = getattr(feed, "name", "the feed")
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in known.items())
            raise PruneError(
                f"onnxruntime cannot run it on {name} ({shapes}): {first_line(error)}",
                where=self.name,
                remedy=self.remedy or "check that the file runs on this feed in onnxruntime",
            ) from error
        return {
            name: _widened(value, self._gives.get(name))
            for name, value in zip(names, values, strict=True)
        }

    @property
    def runner(self) -> Runner:
        """Itself; wrappers of a model return the wrapped one, which is what gets timed."""
        return self

    def ready(self, feed: Feed) -> Feed:
        """The feed itself; wrappers of a model may convert it."""
        return feed

    def _given(self, name: str, feed: Feed) -> Array:
        value, dtype = feed[name], self._takes.get(name)
        if dtype == np.float32 and value.dtype != dtype:
            return narrowed(value, f"input '{name}' of {getattr(feed, 'name', 'the feed')}")
        return value if dtype is None else value.astype(dtype, copy=False)

    def _done(self) -> None:
        """Drops what was kept for loading the model again."""
        if self._spare is not None and self._spare.kept is not None:
            self._spare.kept.cleanup()
        self._spare = None

    def _load(self, loadable: _Loadable) -> ort.InferenceSession:
        """Opens a session, with as little rewriting as that takes."""
        while True:
            level = self._levels.pop(0)
            try:
                return loadable.open(self._options(level))
            except Exception as error:  # onnxruntime raises a dozen unrelated types
                if not self._levels:
                    raise self._unfit(error) from error

    def _unfit(self, error: Exception) -> PruneError:
        return PruneError(
            f"onnxruntime cannot load it: {first_line(error)}",
            where=self.name,
            remedy=self.remedy or "check that the file runs in onnxruntime before pruning it",
        )

    def _options(self, level: ort.GraphOptimizationLevel) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _FATAL
        ort.set_default_logger_severity(_FATAL)  # used by its allocators
        options.graph_optimization_level = level
        options.execution_order = self._order
        # An arena saves time between runs, which only matters where runs are as users have them.
        options.enable_cpu_mem_arena = self._asked is None
        # Planning takes time quadratic in the number of tensors kept.
        options.enable_mem_pattern = self._asked is None
        if level == _REWRITING[0]:  # weights are read from the mapping, not copied
            options.add_session_config_entry("session.disable_prepacking", "1")
        if self._profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(self._profile)
        return options

    def _run(self, names: Sequence[str], known: Feed) -> list[Any]:
        while True:
            try:
                values: list[Any] = self._session.run(names, known)
            except Exception:
                if self._spare is None or not self._levels:
                    raise
                self._session = self._load(self._spare)
            else:
                self._done()
                return values

    def profiled(self) -> Path:
        """Ends profiling; returns the file with the profile of all runs."""
        return Path(self._session.end_profiling())


@dataclass(frozen=True)
class _Loadable:
    """What a session is opened from, at any optimization level.

    Attributes:
        content: the model, with references to large weights.
        folder: the folder with all files that it refers to.
        endangered: whether a layer may get an empty sequence; not checked if outputs are named.
        given: values of weights outside the folder, memory-mapped.
        kept: the folder with weights written for it, deleted with this; mappings outlive their
            file.
    """

    content: bytes
    folder: str
    endangered: bool
    given: Mapping[str, Array] = field(default_factory=dict)
    kept: TemporaryDirectory[str] | None = None

    def open(self, options: ort.SessionOptions) -> ort.InferenceSession:
        options.add_session_config_entry(_FOLDER, self.folder)
        if self.given:
            values = map(ort.OrtValue.ortvalue_from_numpy, self.given.values())
            options.add_external_initializers(list(self.given), list(values))
        # If this fails, onnxruntime reports nothing itself.
        providers = ["CPUExecutionProvider"]
        return ort.InferenceSession(self.content, options, providers=providers, enable_fallback=0)


def _loadable(model: onnx.ModelProto | Document, outputs: Sequence[str] | None) -> _Loadable:
    source = model.source if isinstance(model, Document) else model
    if unknown_type(source):
        model = as_single(model.write() if isinstance(model, Document) else model)
    if _is_small(source) and not is_apart(source):
        whole = model.write() if isinstance(model, Document) else model
        content = _asked(whole, outputs).SerializeToString()
        return _Loadable(content, os.devnull, outputs is None and bool(may_be_empty(whole)))
    with contextlib.ExitStack() as stack:
        folder = temporary_folder()  # where mapped files cannot be deleted, the system cleans up
        path = Path(stack.enter_context(folder)).resolve() / "weights"
        with written_in(folder.name), path.open("wb") as file:
            weights = SessionWeights(path, file, source)
            light = (
                model.write(weights.take, weights.make)
                if isinstance(model, Document)
                else with_weights(model, weights.take)
            )
        given = weights.given(light)
        content = _asked(light, outputs).SerializeToString()
        endangered = outputs is None and bool(may_be_empty(light))
        del light
        stack.pop_all()  # the caller needs it longer
    give_back(sum(map(raw_length, source.graph.initializer)), len(source.graph.node))
    return _Loadable(content, str(weights.folder), endangered, given, folder)


def _is_small(model: onnx.ModelProto) -> bool:
    """Whether a model is small, without serializing it, which would double the memory."""
    held = sum(map(raw_length, model.graph.initializer))
    return held < LARGE and model.ByteSize() < LARGE


Types = Mapping[str, np.dtype[Any]]


def _conversions(model: onnx.ModelProto) -> tuple[Types, Types]:
    """Type conversions of inputs and outputs if a copy in single precision runs instead."""
    if not unknown_type(model):
        return {}, {}
    twin = with_weights(model, lambda tensor: onnx.TensorProto(name=tensor.name))
    sides = signature.inputs(as_single(twin)), signature.outputs(model)
    takes, gives = ({port.name: port.dtype for port in ports if port.dtype} for ports in sides)
    return takes, gives


def _widened(value: Array, dtype: np.dtype[Any] | None) -> Array:
    """An output of a copy in single precision, in the model's own type.

    Overflow in single precision need not be one in the other type: such values become NaN.
    """
    if dtype is None or value.dtype == dtype:
        return value
    return np.where(np.isinf(value), np.float32(np.nan), value).astype(dtype)


def _asked(model: onnx.ModelProto, outputs: Sequence[str] | None) -> onnx.ModelProto:
    """A model with other outputs, by default all that can be computed.

    Only the default matches what users run, and may be timed.
    """
    names = runnable_outputs(model) if outputs is None else outputs
    if not names:
        raise ValueError("all of its outputs depend on operators that onnxruntime lacks")
    if names != [port.name for port in model.graph.output] or not runs_whole(model):
        model = with_outputs(model, names)
    return model if outputs is None else guarded(model)


def first_line(error: BaseException) -> str:
    """The readable part of an onnxruntime error message."""
    text = str(error).strip() or type(error).__name__
    line, *others = text.splitlines()
    # For an input of the wrong size, the lines after the first say which was expected.
    sizes = [" ".join(other.split()) for other in others if other.startswith(" index: ")]
    if sizes:
        line = f"{line}: {', '.join(sizes)}"
    return line.split(" : ", 3)[-1] if line.startswith("[ONNXRuntimeError]") else line


class NamedFeed(dict[str, Array]):
    """A feed with a name for errors.

    Args:
        values: by input name.
        name: such as its file.
        labels: the correct answers, if known; not an input of any model.
        follows: if it continues the previous feed, the state inputs, each with the output of the
            previous call that it takes; else empty.
    """

    def __init__(
        self,
        values: Feed,
        name: str,
        labels: Array | None = None,
        follows: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(values)
        self.name = name
        self.labels = labels
        self.follows = follows


class Streaming:
    """A model that is called with feeds in order and carries its own states along.

    If a feed continues the previous one, its state inputs are replaced by this model's own states
    from that call; other feeds are passed on unchanged. It keeps those outputs of a call that
    `states` names, or all.
    """

    def __init__(
        self, run: Callable[[Feed], Mapping[str, Any]], states: Collection[str] | None = None
    ) -> None:
        self._run = run
        self._states = states
        self._last: Mapping[str, Any] = {}

    def __call__(self, feed: Feed) -> Mapping[str, Any]:
        """The outputs for the next feed."""
        return self.gave(self._run(self.given(feed)))

    def given(self, feed: Feed) -> Feed:
        """The next feed with this model's own states."""
        if not isinstance(feed, NamedFeed) or not feed.follows:
            return feed
        states = {name: np.asarray(self._last[out]) for name, out in feed.follows.items()}
        return NamedFeed({**feed, **states}, feed.name, feed.labels, feed.follows)

    def gave(self, outputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Keeps the states in some outputs for the next feed."""
        states = outputs if self._states is None else outputs.keys() & self._states
        self._last = {name: outputs[name] for name in states}
        return outputs


def runs(run: Callable[[Feed], object], feed: Feed) -> bool:
    """Whether a model runs on a feed."""
    try:
        run(feed)
    except PruneError:
        return False
    return True
