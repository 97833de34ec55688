"""Running a model in onnxruntime."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import onnxruntime as ort

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.external import WeightFile, without_weights
from onnx_rnn_prune.model.memory import give_back
from onnx_rnn_prune.model.outputs import runnable_outputs, with_outputs

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]


class NamedFeed(dict[str, Array]):
    """A feed that errors can call by its name.

    Args:
        values: by input name.
        name: such as the file that it comes from.
    """

    def __init__(self, values: Feed, name: str) -> None:
        super().__init__(values)
        self.name = name


# A session of a larger model is opened from files, which takes less memory.
_LARGE = 1 << 20


class Runner:
    """A model loaded in onnxruntime on the CPU.

    Args:
        model: the model; it is not changed.
        outputs: tensors to compute; the model's own outputs where none are named, and where one
            depends on an operator that onnxruntime does not know, what goes into that operator.
        threads: intra-operator threads; 1 makes runs repeatable.
        optimize: let onnxruntime rewrite the graph, as it does by default for users. Where values
            of inner tensors are wanted, or two models must be compared operator by operator, it is
            better off.
        whole: let onnxruntime compute products of 8-bit numbers without the overflow that they
            have by default on x86 processors before VNNI. It gets there by rewriting the graph, so
            `optimize` must be left on.
        name: how errors call the model.
    """

    def __init__(
        self,
        model: onnx.ModelProto | Document,
        *,
        outputs: Sequence[str] | None = None,
        threads: int = 1,
        optimize: bool = True,
        whole: bool = False,
        name: str = "the model",
    ) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        if whole:
            options.add_session_config_entry("session.x64quantprecision", "1")
        levels = ort.GraphOptimizationLevel
        if not optimize:  # its weights are read where they are mapped, not copied
            options.add_session_config_entry("session.disable_prepacking", "1")
        options.graph_optimization_level = (
            levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
        )
        self.name = name
        try:
            self._session = _open(model, outputs, options)
        except Exception as error:  # onnxruntime raises a dozen unrelated types
            raise PruneError(
                f"onnxruntime cannot load it: {first_line(error)}",
                where=name,
                remedy="check that the file runs in onnxruntime before pruning it",
            ) from error
        self.inputs = [value.name for value in self._session.get_inputs()]
        self.outputs = [value.name for value in self._session.get_outputs()]

    def __call__(self, feed: Feed, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Runs one feed; returns the named outputs (all by default)."""
        names = list(self.outputs if outputs is None else outputs)
        known = {name: feed[name] for name in self.inputs if name in feed}
        try:
            values = self._session.run(names, known)
        except Exception as error:
            name = feed.name if isinstance(feed, NamedFeed) else "the feed"
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in known.items())
            raise PruneError(
                f"onnxruntime cannot run it on {name} ({shapes}): {first_line(error)}",
                where=self.name,
                remedy="check the feed's shapes and values",
            ) from error
        return dict(zip(names, values, strict=True))


def _open(
    model: onnx.ModelProto | Document, outputs: Sequence[str] | None, options: ort.SessionOptions
) -> ort.InferenceSession:
    providers = ["CPUExecutionProvider"]
    source = model.source if isinstance(model, Document) else model
    if source.ByteSize() < _LARGE:
        whole = model.write() if isinstance(model, Document) else model
        content = _asked(whole, outputs).SerializeToString()
        return ort.InferenceSession(content, options, providers=providers)
    # What is mapped lives on when its file is gone; where it cannot go, the system cleans up.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        weights = WeightFile(Path(folder) / "weights")
        light = (
            model.write(weights.take)
            if isinstance(model, Document)
            else without_weights(model, weights)
        )
        weights.close()
        path = Path(folder) / "model.onnx"
        path.write_bytes(_asked(light, outputs).SerializeToString())
        give_back()
        return ort.InferenceSession(str(path), options, providers=providers)


def _asked(model: onnx.ModelProto, outputs: Sequence[str] | None) -> onnx.ModelProto:
    """A model with other outputs; with all that can be computed where none are named."""
    names = runnable_outputs(model) if outputs is None else outputs
    if names == [port.name for port in model.graph.output]:
        return model
    return with_outputs(model, names)


def first_line(error: BaseException) -> str:
    """The part of an onnxruntime message that a person reads."""
    text = str(error).strip() or type(error).__name__
    line = text.splitlines()[0]
    return line.split(" : ", 3)[-1] if line.startswith("[ONNXRuntimeError]") else line
