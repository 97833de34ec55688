"""Opens models: reads them and loads them in onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.constants import check_sizes
from onnx_rnn_prune.model.document import Document, inline_layers, inlined
from onnx_rnn_prune.model.files import load_model
from onnx_rnn_prune.model.runnable import unknown_type
from onnx_rnn_prune.model.runner import OURS, Feed, Runner
from onnx_rnn_prune.model.walk import places
from onnx_rnn_prune.operators.feed_forward import FEED_FORWARD, all_layers
from onnx_rnn_prune.operators.layers import Layer
from onnx_rnn_prune.operators.recurrent import CELLS, STANDARD, computed_parameters, find_layers
from onnx_rnn_prune.options import Inputs
from onnx_rnn_prune.passes import Pipeline
from onnx_rnn_prune.passes.biases import FoldBiases
from onnx_rnn_prune.passes.cleanup import DropUnread
from onnx_rnn_prune.passes.layout import (
    Freeze,
    ListBounds,
    PlainProducts,
    RealOperators,
    SortNodes,
    StackSequences,
    StateHiddenSize,
    TakeBranches,
    TakeInvariants,
    TimeFirst,
    UniqueNames,
)
from onnx_rnn_prune.roll.distributed import may_have_copies
from onnx_rnn_prune.roll.feeding import proof_feeds
from onnx_rnn_prune.roll.loops import REPEATING
from onnx_rnn_prune.roll.rolling import Rolling, roll
from onnx_rnn_prune.trace.decomposed import (
    DecomposedRecurrence,
    advice,
    find_decomposed,
    state_products,
    with_reasons,
)
from onnx_rnn_prune.trace.invalid_nodes import InvalidNode, find_invalid_nodes
from onnx_rnn_prune.trace.judged import Judged, find_judged
from onnx_rnn_prune.trace.trace import Trace
from onnx_rnn_prune.validate.timing import latency

ModelSource = str | Path | onnx.ModelProto

RECURRENT_ONLY, ALL = "recurrent", "all"
AS_IT_IS = Inputs()
# Seconds for timing the speedup from rolling.
_SECONDS = 0.6


@dataclass(frozen=True, eq=False)
class OpenedModel:
    """A model that was read and loaded.

    Attributes:
        name: its name in errors and tables.
        model: the protobuf message as read; never changed.
        document: its graph, in a form that onnxruntime can run; never changed.
        layers: its layers that may be cut.
        runnable: `model` or `document`, whichever onnxruntime loads.
        judged: how its outputs are judged.
        invalid_nodes: its recurrent nodes that no runtime accepts.
        notes: for the user.
        rolling: which decomposed recurrences became layers of the document.
    """

    name: str
    model: onnx.ModelProto
    document: Document
    layers: list[Layer]
    runnable: onnx.ModelProto | Document
    judged: Judged
    invalid_nodes: tuple[InvalidNode, ...] = ()
    notes: tuple[str, ...] = ()
    rolling: Rolling | None = None

    @property
    def rolled(self) -> bool:
        """Whether decomposed recurrences became layers of the document."""
        return self.rolling is not None and bool(self.rolling.rolled)

    @property
    def find_counted(self) -> Callable[[gs.Graph], list[Layer]]:
        """A function that finds the layers whose operations count: recurrent ones, or all."""
        recurrent = all(layer.cell.stacked for layer in self.layers)
        return find_layers if recurrent else all_layers

    def run(self) -> Runner:
        """Loads it in onnxruntime."""
        return Runner(self.runnable, name=self.name)

    def rolled_speedup(self, feed: Feed | Sequence[Feed]) -> float | None:
        """The speedup of rolling alone; None if nothing was rolled."""
        if not self.rolled:
            return None
        rolled = Runner(self.document, name=self.name)
        return latency(self.run(), rolled, feed, seconds=_SECONDS).speedup

    def watched(self) -> Runner:
        """Loads it with the signals that its outputs are judged by."""
        if self.judged.watched is None:
            return self.run()
        judged = self.judged
        return Runner(self.document, outputs=judged.watched, also=judged.drawn, name=self.name)

    def beside(self, model: onnx.ModelProto | Document, name: str) -> Runner:
        """Loads a model derived from it, with the signals to compare the two by."""
        judged = self.judged
        return Runner(model, outputs=judged.watched, also=judged.drawn, name=name, remedy=OURS)

    def pairs(
        self, model: onnx.ModelProto, name: str
    ) -> tuple[tuple[Runner, Runner], tuple[Runner, Runner]]:
        """It and a model derived from it, loaded once for judging and once for timing.

        The signals that outputs are judged by would take time.
        """
        judged = self.watched(), self.beside(model, name)
        if self.judged.watched is None:
            return judged, judged
        return judged, (self.run(), Runner(model, name=name, remedy=OURS))

    def beside_cuts(self, trace: Trace) -> OpenedModel:
        """The same for comparison with cuts, in which tensors that hold units differ.

        Raises:
            PruneError: everything that depends on units is random.
        """
        judged = self.judged.without(trace.labels)
        if judged.proven == ():
            raise PruneError(
                "all of its outputs are random, and so are the inputs of its layers",
                where=self.name,
                remedy="make the noise an input of the model, or export it without noise",
            )
        return replace(self, judged=judged)


def open_model(
    source: ModelSource,
    asked: Inputs = AS_IT_IS,
    layers: Sequence[str] = (RECURRENT_ONLY,),
    planned: Iterable[str] = (),
) -> OpenedModel:
    """Reads a model to prune, and loads it in onnxruntime.

    Args:
        asked: which inputs to fix, and whether to roll unrolled recurrences.
        layers: which layers may be cut: recurrent, all, or globs of names.
        planned: names of further layers that may be cut, if they exist.

    Raises:
        PruneError: it is not a model, has no such layer, or does not load.
    """
    opened = read_model(source, asked, layers)
    missing = set(planned).difference(layer.name for layer in opened.layers)
    if missing:  # they may be feed-forward, or inside functions
        opened = read_model(source, asked, (*layers, *map(escape, missing)))
    for node in opened.invalid_nodes:
        raise PruneError(str(node), where=opened.name, remedy=node.remedy)
    opened.run()
    check_globs(opened, layers)
    if not opened.layers:
        raise PruneError(
            "; ".join([*opened.notes, *stays_written_out(opened)])
            or "has no LSTM, GRU or RNN node",
            where=opened.name,
            remedy=remedy_of(opened, written_out(opened), asked.roll)
            or "give a model with recurrent layers whose weights are constants",
        )
    return opened


def remedy_of(opened: OpenedModel, written: Sequence[DecomposedRecurrence], rolls: bool) -> str:
    """The remedy for decomposed recurrences, or if only other layers can be cut.

    Args:
        written: its decomposed recurrences.
        rolls: whether these were to become layers.
    """
    if written and not rolls:
        return "leave out --no-roll, to convert decomposed recurrences into layers where possible"
    others = not opened.layers and all_layers(opened.document.graph)
    return advice(written, opened.model.producer_name) or (
        "prune its dense layers and convolutions with --layers=all" if others else ""
    )


def stays_written_out(opened: OpenedModel) -> list[str]:
    """Messages on recurrences that are not layers, with the reason why they were not rolled."""
    left = opened.rolling.left if opened.rolling is not None else {}
    reasons = [f"it was not rolled because {reason}" for reason in dict.fromkeys(left.values())]
    return [*map(str, written_out(opened)), *reasons]


def read_model(
    source: ModelSource, asked: Inputs = AS_IT_IS, layers: Sequence[str] = (RECURRENT_ONLY,)
) -> OpenedModel:
    """Reads a model, which may have no recurrent layer and may not run.

    Args:
        asked: which inputs to fix, and whether to roll unrolled recurrences.

    Raises:
        PruneError: it is not a model.
    """
    name = "the model" if isinstance(source, onnx.ModelProto) else str(source)
    return follow(frozen(load_model(source), asked.freeze), name, layers, asked.roll)


def frozen(model: onnx.ModelProto, values: Mapping[str, str] | None) -> onnx.ModelProto:
    """The model with some inputs fixed; these and the branches not taken are removed.

    Raises:
        PruneError: it has no such input, or a value does not fit it.
    """
    if not values:
        return model
    document = Document.read(model)
    Pipeline((Freeze(values), TakeBranches(), DropUnread()))(document)
    return document.write()


def follow(
    model: onnx.ModelProto, name: str, layers: Sequence[str] = (RECURRENT_ONLY,), rolls: bool = True
) -> OpenedModel:
    """Opens a model that was read.

    Args:
        model: with weights in it, or absolute paths to them.
    """
    feed_forward = () if set(layers) == {RECURRENT_ONLY} else FEED_FORWARD
    flat = inline_layers(model, [*(cell.op for cell in CELLS), *feed_forward])
    document = read_document(flat)
    notes = []
    for layer, parameter in computed_parameters(document.graph).items():
        notes.append(f"{layer} is not pruned: its {parameter} is computed at run time")
    rolling = _rolled(document, flat, name) if rolls else None
    document = rolling.document if rolling is not None else document
    Pipeline((ListBounds(), TakeInvariants(), StackSequences(), PlainProducts(), FoldBiases()))(
        document
    )
    real = RealOperators()(document)
    stated = StateHiddenSize()(document)
    turned = TimeFirst()(document)
    found = _wanted(document, layers)
    invalid_nodes = find_invalid_nodes(document.graph)
    if turned:
        notes.append(
            "layers with layout=1, which onnxruntime cannot run, were converted to layout=0"
        )
    if real:
        notes.append(
            "QLinearConv and similar operators were rewritten as Conv and the like between"
            " DequantizeLinear and QuantizeLinear, which onnxruntime fuses back"
        )
    kind = unknown_type(model)
    if kind:
        notes.append(
            f"layers compute in {kind}, for which onnxruntime has no kernels: all measurements"
            " and checks used a float32 copy"
        )
    runnable = document if stated or turned else flat
    judged = find_judged(document)
    return OpenedModel(
        name, model, document, found, runnable, judged, invalid_nodes, tuple(notes), rolling
    )


def _rolled(document: Document, model: onnx.ModelProto, name: str) -> Rolling | None:
    """The document with decomposed recurrences and copied layers rolled; None if there are none."""
    copies = may_have_copies(document.graph.nodes)
    if not (copies or find_decomposed(document.graph) or _has_operators_in_turns(document)):
        return None
    try:
        feeds = proof_feeds(document, Runner(model, name=name))
        return with_reasons(roll(document, feeds, fewest=1))
    except PruneError as error:  # it does not run, or not on random feeds
        return Rolling(document, left={name: error.what})


def _has_operators_in_turns(document: Document) -> bool:
    """Whether a repeated subgraph contains layers, which would run faster outside of it."""
    turning = [
        place.graph
        for place in places(document.graph)
        if place.way and place.way[-1][0].op in REPEATING
    ]
    return any(node.op in STANDARD and not node.domain for graph in turning for node in graph.nodes)


def _wanted(document: Document, layers: Sequence[str]) -> list[Layer]:
    """The layers that may be cut."""
    recurrent = recurrent_keys(document.graph) if RECURRENT_ONLY in layers else frozenset()
    return [
        layer
        for layer in all_layers(document.graph)
        if ALL in layers
        or layer.key in recurrent
        or any(fnmatchcase(layer.name, glob) for glob in layers)
    ]


def recurrent_keys(graph: gs.Graph) -> frozenset[str]:
    """Keys of the layers that count as recurrent, including those that are not operators."""
    return state_products(graph).union(layer.key for layer in find_layers(graph))


def check_globs(opened: OpenedModel, layers: Sequence[str]) -> None:
    """Checks the globs of layers that may be cut.

    Raises:
        PruneError: one matches no layer.
    """
    names = [layer.name for layer in all_layers(opened.document.graph)]
    for glob in layers:
        if glob not in (RECURRENT_ONLY, ALL) and not any(fnmatchcase(n, glob) for n in names):
            raise PruneError(
                f"no layer matches '{glob}'",
                where="--layers",
                remedy=f"give recurrent, all, or globs that match {', '.join(names)}",
            )


def written_out(opened: OpenedModel) -> tuple[DecomposedRecurrence, ...]:
    """The recurrences of a model that are not recurrent operators, including those in functions."""
    document = opened.document
    if document.source.functions:
        every = sorted((function.domain, function.name) for function in document.source.functions)
        with suppress(PruneError):
            document = Document.read(inlined(document.write(), every))
            UniqueNames()(document)
    return find_decomposed(document.graph)


def read_document(model: onnx.ModelProto) -> Document:
    """The graph of a model, sorted, with unique names of tensors."""
    document = Document.read(model)
    check_sizes(document.graph)
    Pipeline((UniqueNames(), SortNodes()))(document)
    return document


def as_run(model: onnx.ModelProto) -> Document | onnx.ModelProto:
    """A model that computes the same, in the form that onnxruntime runs."""
    document = Document.read(model)
    check_sizes(document.graph)
    changed = Pipeline((StateHiddenSize(), TimeFirst()))(document)
    return document if changed else model
