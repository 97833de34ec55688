"""Which tensors to compare where the numbers of an output say little about a cut.

- An *index* is chosen by an ArgMax, a TopK or a comparison: most errors change none of them, and
  the distance between two of them means nothing.
- An output *drawn* at random differs between two runs of the same model.
- The *length* of some depends on values, as that of speech on durations: after one entry more or
  less, entries no longer line up.

Each has signals: the last tensors before it that are numeric, deterministic and of fixed size. A
*state* that callers feed back has none: it matters only through later outputs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import onnx
import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.constants import MOVING, constant_value
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runnable import runnable_outputs
from onnx_rnn_prune.model.walk import all_nodes, bodies_of
from onnx_rnn_prune.operators.recurrent import RECURRENT
from onnx_rnn_prune.roll.probing import is_random

INDEX, DRAWN, LENGTH, STATE = "index", "drawn", "length", "state"

_LIKE = {"RandomNormalLike", "RandomUniformLike"}
_COMPARING = {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"}
_DECIDING = {"ArgMax", "ArgMin", "Hardmax", "NonMaxSuppression", *_COMPARING}
# Operators from indices to an index; of a table lookup, the index counts.
_PASSING = MOVING | {"And", "Cast", "LabelEncoder", "Not", "OneHot", "Or", "Xor"}
_TABLES = {"ArrayFeatureExtractor", "Gather"}
# The inputs whose values determine the size of the output.
_SIZES = {
    "Compress": (1,), "ConstantOfShape": (0,), "Expand": (1,), "Loop": (0,),
    "NonMaxSuppression": (0, 1), "NonZero": (0,), "OneHot": (1,), "Pad": (1,), "Range": (0, 1, 2),
    "Reshape": (1,), "Resize": (2, 3), "Slice": (1, 2), "Tile": (1,), "TopK": (1,), "Unique": (0,),
    "Upsample": (1,),
}  # fmt: skip
_ROUNDING = {"Ceil", "Floor", "Round"}
_WHOLE = {onnx.TensorProto.INT64, onnx.TensorProto.INT32}
# Operators that may follow a rounding.
_SUMMING = {"Cast", "CumSum", "Identity", "Max", "ReduceMax", "ReduceSum", "Reshape", "Squeeze"}
_SUMMING |= {"Unsqueeze", "Mul", "Add", "Clip"}


@dataclass(frozen=True)
class Judged:
    """What outputs are judged by.

    Attributes:
        outputs: all that onnxruntime can compute.
        kinds: for outputs not judged by their own numbers: index, drawn or length.
        signals: by the same names, the tensors to compare instead; may be empty.
    """

    outputs: tuple[str, ...]
    kinds: Mapping[str, str] = field(default_factory=dict)
    signals: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def watched(self) -> tuple[str, ...] | None:
        """The tensors to compute; None for all outputs."""
        return tuple(dict.fromkeys(self._watched())) if self.kinds else None

    @property
    def drawn(self) -> tuple[str, ...]:
        """The outputs drawn at random, which callers get but which are not compared."""
        return tuple(name for name in self.outputs if self.kinds.get(name) == DRAWN)

    @property
    def proven(self) -> tuple[str, ...] | None:
        """The tensors in which two equivalent models agree; None for all outputs."""
        return self.repeatable(self.outputs) if self.drawn else None

    def _watched(self) -> Iterator[str]:
        yield from (name for name in self.outputs if self.kinds.get(name) != DRAWN)
        for names in self.signals.values():
            yield from names

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user about outputs that others stand in for."""
        return tuple(
            f"the output '{name}' is drawn at random; compared instead: "
            + ", ".join(f"'{signal}'" for signal in self.signals[name])
            for name, kind in self.kinds.items()
            if kind == DRAWN and self.signals[name]
        )

    def without(self, names: Collection[str]) -> Judged:
        """A copy without the signals of outputs for which some tensors cannot be compared."""
        signals = {
            output: () if any(name in names for name in signals) else signals
            for output, signals in self.signals.items()
        }
        return replace(self, signals=signals)

    def repeatable(self, outputs: Iterable[str]) -> tuple[str, ...]:
        """Some outputs, those drawn at random replaced by their signals."""
        return self._instead(outputs, {DRAWN})

    def numbers(self, outputs: Iterable[str]) -> tuple[str, ...]:
        """Some outputs, those whose own numbers say little replaced by their signals.

        An output without signals stays, unless it is drawn.
        """
        return self._instead(outputs, {DRAWN, INDEX, LENGTH})

    def _instead(self, outputs: Iterable[str], kinds: Collection[str]) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for output in outputs:
            kind = self.kinds.get(output)
            instead = self.signals.get(output, ()) if kind in kinds else ()
            own = () if kind == DRAWN else (output,)
            found.update(dict.fromkeys(instead or own))
        # If only random outputs are asked for, states and the like will do.
        return tuple(found) or (self.watched or ())


def find_judged(document: Document) -> Judged:
    """Finds what the outputs of a model are to be judged by."""
    graph = document.graph
    flow = _Flow.of(graph)
    kinds: dict[str, str] = {}
    signals: dict[str, tuple[str, ...]] = {}
    for output in graph.outputs:
        found = flow.kind(output)
        if found is not None:
            kinds[output.name], tensors = found
            names = dict.fromkeys(t.name for t in tensors if id(t) in flow.made)
            signals[output.name] = tuple(names)
    outputs = [tensor.name for tensor in graph.outputs]
    if kinds:
        outputs = runnable_outputs(document.outline())
        kinds = {name: kind for name, kind in kinds.items() if name in outputs}
        signals = {name: signals[name] for name in kinds}
    return Judged(tuple(outputs), kinds, signals)


@dataclass(frozen=True, eq=False)
class _Flow:
    """Properties of the tensors of the main graph, which are identified by `id`.

    Attributes:
        made: tensors computed by its nodes.
        valued: tensors that depend on the values of layers, not just on their sizes.
        drawn: tensors that depend on something random.
        open: tensors whose size depends on values, and all downstream.
    """

    made: set[int]
    valued: set[int]
    drawn: set[int]
    open: set[int]

    @staticmethod
    def of(graph: gs.Graph) -> _Flow:
        """The properties for a graph whose nodes are sorted."""
        flow = _Flow({id(t) for node in graph.nodes for t in node.outputs}, set(), set(), set())
        for node in graph.nodes:
            outs = {id(tensor) for tensor in node.outputs}
            if node.op in ("Shape", "Size"):
                continue
            inside = _with_bodies(node)
            reads = {id(tensor) for tensor in _reads(node)}
            if reads & flow.valued or any(item.op in RECURRENT for item in inside):
                flow.valued.update(outs)
            if reads & flow.drawn or any(map(_is_random, inside)):
                flow.drawn.update(outs)
            if reads & flow.open or flow._opens(node):
                flow.open.update(outs)
        return flow

    def kind(self, output: gs.Tensor) -> tuple[str, list[gs.Tensor]] | None:
        """The kind of an output and its signals; None where it is judged by its own numbers."""
        if id(output) in self.drawn:
            return DRAWN, self._frontier(output, self.drawn)
        if id(output) in self.open:
            return LENGTH, list(map(self._unrounded, self._frontier(output, self.open)))
        deciding = self._decided(output)
        return (INDEX, deciding) if deciding else None

    def _opens(self, node: gs.Node) -> bool:
        slots = [node.inputs[n] for n in _SIZES.get(node.op, ()) if n < len(node.inputs)]
        if any(id(tensor) in self.valued for tensor in slots):
            return True
        return node.op == "Loop" and _ends_by_values(node) and id(node.outputs[0]) in self.valued

    def _frontier(self, output: gs.Tensor, tainted: set[int]) -> list[gs.Tensor]:
        """The tensors that feed the random or open part and depend on values themselves."""
        found: dict[int, gs.Tensor] = {}
        waiting, seen, fixed = [output], {id(output)}, self.valued - tainted
        for tensor in waiting:
            node = tensor.inputs[0]
            for item in () if node.op in _LIKE else _reads(node):
                if id(item) in tainted and id(item) in self.made and id(item) not in seen:
                    seen.add(id(item))
                    waiting.append(item)
                elif id(item) in fixed:
                    found[id(item)] = item
        return list(found.values())

    def _unrounded(self, tensor: gs.Tensor) -> gs.Tensor:
        """The tensor before rounding, such as durations before they become frames."""
        best = tensor
        item: gs.Tensor = tensor
        while id(item) in self.made:
            node = item.inputs[0]
            rounds = node.op in _ROUNDING or (node.op == "Cast" and node.attrs.get("to") in _WHOLE)
            if not rounds and node.op not in _SUMMING:
                break
            item = next((t for t in node.inputs if id(t) in self.valued), gs.Variable(""))
            best = item if rounds and id(item) in self.made else best
        return best

    def _decided(self, tensor: gs.Tensor) -> list[gs.Tensor] | None:
        """The tensors that decide an index; None if a tensor is no index."""
        if id(tensor) not in self.valued or not tensor.inputs:
            return []
        node = tensor.inputs[0]
        if node.op in _DECIDING or (node.op == "TopK" and node.outputs[0] is not tensor):
            scores = node.inputs[:1] if node.op == "TopK" else node.inputs
            return [item for item in scores if id(item) in self.valued]
        if node.op in _TABLES:
            read = node.inputs[:1] if id(node.inputs[0]) in self.valued else node.inputs[1:2]
        elif node.op in _PASSING:
            read = node.inputs
        else:
            return None
        found: list[gs.Tensor] = []
        for item in read:
            deciding = self._decided(item)
            if deciding is None:
                return None
            found += deciding
        return found


def _with_bodies(node: gs.Node) -> list[gs.Node]:
    """A node and all nodes in its bodies."""
    return [node, *(item for body in bodies_of(node).values() for item in all_nodes(body))]


def _reads(node: gs.Node) -> list[gs.Tensor]:
    """All tensors read by a node or by nodes in its bodies."""
    outs = [tensor for body in bodies_of(node).values() for tensor in body.outputs]
    return [*outs, *(tensor for item in _with_bodies(node) for tensor in item.inputs)]


def _is_random(node: gs.Node) -> bool:
    if node.op != "Dropout" or len(node.inputs) < 3:
        return is_random(node)
    training = constant_value(node.inputs[2]) if node.inputs[2].name else None
    return training is not None and bool(training.any())


def _ends_by_values(node: gs.Node) -> bool:
    """Whether a Loop may end before its last iteration."""
    for body in bodies_of(node).values():
        last = body.outputs[0]
        while last.inputs and last.inputs[0].op in ("Identity", "Cast"):
            last = last.inputs[0].inputs[0]
        if last is not body.inputs[1] and constant_value(last) is None:
            return True
    return False
