"""Rolls a model: finds steps, replaces them by operators, and proves the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import onnx_graphsurgeon as gs

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.constants import constant_shape
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import Feed
from onnx_rnn_prune.model.scratch import trim
from onnx_rnn_prune.model.walk import (
    Place,
    node_key,
    nodes_by_key,
    places,
    source,
)
from onnx_rnn_prune.operators.recurrent import STANDARD
from onnx_rnn_prune.record import Record
from onnx_rnn_prune.roll.directions import merge, pairs, turn, turnable
from onnx_rnn_prune.roll.distributed import Copies, find_copies, may_have_copies, put_layer
from onnx_rnn_prune.roll.loops import REPEATING, Turns, recurrences, states_of
from onnx_rnn_prune.roll.probing import element_types, see
from onnx_rnn_prune.roll.proof import Proof, prove_step
from onnx_rnn_prune.roll.reading import Reader
from onnx_rnn_prune.roll.repeated import Repeated
from onnx_rnn_prune.roll.rewrite import Builder, Shapes
from onnx_rnn_prune.roll.steps import (
    PRODUCTS,
    Chain,
    Found,
    NotRollableError,
    chains,
    downstream,
    read_cells,
    reads,
    shared_operands,
)
from onnx_rnn_prune.roll.unrolled import masks_of, roll_chain

_TYPES = {1: np.float32, 10: np.float16}


@dataclass(frozen=True, eq=False)
class Rolled(Record):
    """A decomposed recurrence, or copies of a layer, that became an operator.

    Attributes:
        name: of the operator's node.
        op: LSTM, GRU or RNN; MatMul for copies, of several products the last.
        units: H, or the units of the copied layer.
        kind: what it was: unrolled, single step, loop or scan; or turned for an operator on a
            reversed sequence, both directions for a pair of operators, or copies.
        at: where it was: the first tensor that held its state, the Loop or Scan, or the Concat.
        steps: the number of unrolled steps, or of copies; 1 in a loop.
    """

    name: str
    op: str
    units: int
    kind: str
    at: str
    steps: int

    def __str__(self) -> str:
        article = "a" if self.op == "GRU" else "an"
        if self.kind == "turned":
            return f"{article} {self.op} of {self.units} units whose sequence {self.at} reversed"
        if self.kind == "copies":
            return f"a {self.op} of {self.units} units that was copied for {self.steps} steps"
        if self.kind == "both directions":
            return f"{article} {self.op} of {self.units} units in both directions, with {self.at}"
        how = {
            "loop": f"decomposed in the Loop {self.at}",
            "scan": f"decomposed in the Scan {self.at}",
            "single step": f"decomposed into a single step at {self.at}",
        }.get(self.kind, f"unrolled over {self.steps} steps from {self.at}")
        return f"{article} {self.op} of {self.units} units that was {how}"


@dataclass(frozen=True, eq=False)
class Rolling:
    """The result of rolling a model.

    Attributes:
        document: the model; the given object itself if nothing was rolled.
        rolled: the recurrences that became operators.
        left: the reasons for others, by the tensor or node where they are.
        error: the largest difference of an output to the original's.
    """

    document: Document
    rolled: tuple[Rolled, ...] = ()
    left: dict[str, str] = field(default_factory=dict)
    error: float = 0.0


# Why a single step stays.
SHORT = "a single step is no faster as an operator"


def roll(document: Document, feeds: Sequence[Feed], fewest: int = 2) -> Rolling:
    """Rolls all recurrences of a model that can be rolled.

    Args:
        document: the model; not changed.
        feeds: to run it on, of several batches and lengths.
        fewest: chains of fewer steps stay as they are.

    Raises:
        PruneError: the model does not run on a feed.
    """
    feeds = sorted(feeds, key=_telling, reverse=True)
    result, proof = Rolling(document), Proof(document, feeds)
    while (further := _further(result, feeds, fewest, proof)) is not None:
        result = further
        trim()
    return result


def _further(before: Rolling, feeds: Sequence[Feed], fewest: int, proof: Proof) -> Rolling | None:
    """With one more recurrence rolled, or None; `before.left` gets the reasons why others are not.

    What was read of the model is let go of before it is read again.
    """
    now, left = _Model(before.document, feeds), before.left
    for place, attempt in now.candidates(fewest):
        if place in left:
            continue
        try:
            made = before.document.copy()
            what = attempt(made.graph)
            error = max(before.error, proof(made))
        except NotRollableError as reason:
            left[place] = str(reason)
        except PruneError as reason:
            left[place] = reason.what
        except Exception as defect:  # what is not recognised must not keep others from pruning
            text = f"{type(defect).__name__}: {defect}"
            left[place] = f"recognizing it failed; please report this: {text}"
        else:
            return Rolling(made, (*before.rolled, *what), left, error)
    for place in now.short(fewest):
        left.setdefault(place, f"{SHORT}; prune still converts it, in order to cut it")
    return None


def _telling(feed: Feed) -> tuple[int, int, int]:
    """How well a feed's sizes tell axes apart; of equals, the smaller one is better."""
    sizes = [size for value in feed.values() for size in value.shape]
    entries = sum(value.size for value in feed.values())
    return sum(size > 1 for size in sizes), sum(size > 2 for size in sizes), -entries


# Rolls something in a copy of the graph.
Attempt = Callable[[gs.Graph], list[Rolled]]


class _Model:
    """The present state of a model, and the ways to roll something in it."""

    def __init__(self, document: Document, feeds: Sequence[Feed]) -> None:
        self.document = document
        self.sights = see(document, feeds)
        self.sight = self.sights[0]
        self.kinds = element_types(document)
        self._seen: dict[str, tuple[Reader, list[Found]]] = {}
        self._shared: frozenset[str] = frozenset()

    def candidates(self, fewest: int) -> Iterator[tuple[str, Attempt]]:
        """Where something may be rolled, each with a way to try it."""
        graph = self.document.graph
        for place in places(graph):
            if place.way and fewest > 1:  # a remaining body is a single step
                continue
            reader = self._read(place)[0]
            for chain in self._chains(place):
                if len(chain.steps) >= max(fewest, 2) or (fewest == 1 and self._alone(chain)):
                    yield _place(chain), partial(self._unroll, chain, place.scope, reader)
            for node in place.graph.nodes if not place.way else ():
                if node.op in REPEATING and not node.domain:
                    yield (
                        node.name or node_key(node),
                        partial(self._repeated, node_key(node), reader),
                    )
        reader, copies = self._copies()
        if copies:
            attempt = partial(self._distribute, copies, reader.seen.shapes)
            yield node_key(copies[0].stack), attempt
        seen = self.sight.turn(0)
        for node in graph.nodes:
            if turnable(graph, node, seen):
                yield node.name or node_key(node), partial(self._turn, node_key(node))
        for pair in pairs(graph):
            keys = node_key(pair.forward), node_key(pair.reverse)
            yield pair.reverse.name or keys[1], partial(self._merge, keys)

    def _alone(self, chain: Chain) -> bool:
        """Whether no other steps share a single step's weights.

        If something stands between such steps, they are cut in place, with one plan.
        """
        leaves = chain.step.sources.values()
        return len(chain.steps) == 1 and not any(leaf.tensor in self._shared for leaf in leaves)

    def short(self, fewest: int) -> Iterator[str]:
        """Where chains have fewer steps than `fewest`."""
        for place in places(self.document.graph) if fewest > 1 else ():
            for chain in self._chains(place):
                if len(chain.steps) < fewest:
                    yield _place(chain)

    def _chains(self, place: Place) -> list[Chain]:
        reader, found = self._read(place)
        return chains(found, reader.firsts)

    def _read(self, place: Place) -> tuple[Reader, list[Found]]:
        if place.scope not in self._seen:
            self._seen[place.scope] = self._read_anew(place)
        return self._seen[place.scope]

    def _copies(self) -> tuple[Reader, list[Copies]]:
        """Copies of layers, and the reader that found them, to which none is a state.

        Not in bodies: few feeds may take a branch, so too few lengths would be tried.
        """
        place = next(iter(places(self.document.graph)))
        reader, nodes = self._reader(place), place.graph.nodes
        if not may_have_copies(nodes):
            return reader, []
        for node in nodes:
            reader.read(node)
        return reader, find_copies(reader, nodes)

    def _read_anew(self, place: Place) -> tuple[Reader, list[Found]]:
        nodes = place.graph.nodes
        shared = shared_operands(nodes)
        self._shared |= shared
        reader = self._reader(place)
        return reader, read_cells(reader, nodes, shared)

    def _reader(self, place: Place) -> Reader:
        """A reader of a graph; around a body, shapes and the constants it captures are known."""
        made = {tensor.name for node in place.graph.nodes for tensor in node.outputs}
        sight = next((s for s in self.sights if not made.isdisjoint(s.shapes)), self.sight)
        reader = Reader(sight.turn(0), self.document.graph.opset, {})
        for node, _ in place.way:
            for initial, taken, given, _ in states_of(node):
                value = reader.get(initial) if source(given) is taken else None
                if isinstance(value, np.ndarray):
                    reader.known[taken.name] = value
        return reader

    def _unroll(self, chain: Chain, scope: str, reader: Reader, graph: gs.Graph) -> list[Rolled]:
        home = next(place.graph for place in places(graph) if place.scope == scope)
        check_independence(home, chain)
        check_projection(home, chain)
        prove_step(home.nodes, chain.steps[-1].unmasked, reader.seen, reader.known, graph.opset)
        makers = {tensor.name: node for node in home.nodes for tensor in node.outputs}
        at = makers[_place(chain)].name or _place(chain)
        ends = [leaf for item in chain.steps for leaf in (item.output, *item.plain)]
        old = [makers[leaf.tensor] for leaf in ends]
        builder = Builder(graph, home, at, reader.seen.shapes, self._dtype(chain))
        node = roll_chain(builder, chain, reader)
        tidy(home)
        if any(item is node for node in old for item in home.nodes):
            raise NotRollableError("an inner state that the operator does not output is read")
        steps = len(chain.steps)
        kind = "unrolled" if steps > 1 else "single step"
        return [Rolled(node.name, node.op, chain.step.units, kind, at, steps)]

    def _repeated(self, key: str, reader: Reader, graph: gs.Graph) -> list[Rolled]:
        node = nodes_by_key(graph)[key]
        turns = Turns(node, reader, self.sight)
        items = recurrences(turns)
        if not items:
            raise NotRollableError("no cell was recognized in its body")
        operators = {t.name for n in turns.body.nodes if n.op in STANDARD for t in n.outputs}
        for item in items:
            step = item.chain.steps[0].unmasked
            if step.output.tensor in operators:  # an operator trivially matches itself
                continue
            nodes = [*graph.nodes, *turns.bindings(0), *turns.body.nodes]
            first = turns.readers[0]
            prove_step(nodes, step, first.seen, first.known, graph.opset)
        at = node.name or key
        builder = Builder(graph, graph, at, turns.shapes(), self._dtype(items[0].chain))
        made = Repeated(builder, turns)(items)
        tidy(graph)
        if any(item is node for item in graph.nodes):
            raise NotRollableError("it is read in a way that the operator does not support")
        return [
            Rolled(new.name, new.op, item.chain.step.units, node.op.lower(), at, 1)
            for new, item in zip(made, items, strict=True)
        ]

    def _distribute(self, every: Sequence[Copies], shapes: Shapes, graph: gs.Graph) -> list[Rolled]:
        """Turns all copies of layers into layers on all steps."""
        stacks, rolled, old = nodes_by_key(graph), list[Rolled](), list[gs.Node]()
        for copies in every:
            key = node_key(copies.stack)
            stack = stacks[key]
            at, steps = stack.name or key, len(stack.inputs)
            old += [maker for tensor in stack.inputs for maker in tensor.inputs]
            dtype = self._dtype_of(key)
            if dtype != np.float32:
                raise NotRollableError(f"onnxruntime may crash on a transposed product in {dtype}")
            builder = Builder(graph, graph, at, shapes, dtype)
            made = put_layer(builder, copies, stack.outputs[0])
            rolled.append(Rolled(made.name, made.op, copies.form.size, "copies", at, steps))
        tidy(graph)
        if any(item is node for node in old for item in graph.nodes):
            raise NotRollableError("the output of a single step is read, too")
        return rolled

    def _turn(self, key: str, graph: gs.Graph) -> list[Rolled]:
        """Makes an operator on a reversed sequence a reverse one."""
        node = nodes_by_key(graph)[key]
        turned = turn(Builder(graph, graph, node.name or key), node, self.sight.turn(0))
        tidy(graph)
        units = int(node.attrs["hidden_size"])
        return [Rolled(node.name, node.op, units, "turned", turned.name or key, 1)]

    def _merge(self, keys: tuple[str, str], graph: gs.Graph) -> list[Rolled]:
        """Merges two operators that read the same from both ends."""
        pair = next(p for p in pairs(graph) if keys == (node_key(p.forward), node_key(p.reverse)))
        node = merge(Builder(graph, graph, pair.forward.name or keys[0]), pair)
        tidy(graph)
        at = pair.reverse.name or keys[1]
        units = int(node.attrs["hidden_size"])
        return [Rolled(node.name, node.op, units, "both directions", at, 1)]

    def _dtype(self, chain: Chain) -> np.dtype[np.generic]:
        return self._dtype_of(_place(chain))

    def _dtype_of(self, tensor: str) -> np.dtype[np.generic]:
        dtype = _TYPES.get(self.kinds.get(tensor, 0))
        if dtype is None:
            raise NotRollableError("onnxruntime has no kernel for its data type")
        return np.dtype(dtype)


def _place(chain: Chain) -> str:
    return chain.steps[0].output.tensor


def check_independence(graph: gs.Graph, chain: Chain) -> None:
    """Checks that the steps' inputs do not depend on their outputs.

    Raises:
        NotRollableError: they do.
    """
    outputs = {leaf.tensor for item in chain.steps for leaf in item.outputs}
    behind = downstream(graph.nodes, outputs)
    initial = (chain.initial_h, chain.initial_c)
    read = [leaf for group in chain.inputs() for leaf in group]
    read += [leaf for leaf in (*initial, *masks_of(chain)) if leaf is not None]
    if any(leaf.tensor in behind for leaf in read):
        raise NotRollableError("what a step reads depends on the states of earlier steps")
    state = chain.states[-1]
    for key in chain.step.sources:
        if state is not None and key != state.key:
            forms = [form for form in chain.step.gates if key in form.terms]
            if forms and all(form.terms[key][1].diagonal for form in forms):
                raise NotRollableError("its gates add an input that is not multiplied by a weight")


def check_projection(graph: gs.Graph, chain: Chain) -> None:
    """Checks that no state is projected: folding the projection into R would enlarge it.

    The first step, whose state is as narrow as the projection's input, would keep its weights as
    well.

    Raises:
        NotRollableError: one is.
    """
    units = chain.step.units
    for before, after in zip(chain.steps, chain.steps[1:2], strict=False):
        for node in graph.nodes:
            if node.op in PRODUCTS and before.output.tensor in reads(node):
                narrow = min(
                    (n for t in node.inputs[:2] for n in constant_shape(t) or ()), default=units
                )
                behind = downstream(graph.nodes, [node.outputs[0].name]) if narrow < units else ()
                if after.unmasked.output.tensor in behind:
                    raise NotRollableError(
                        f"its state of {units} units is projected to {narrow} numbers, which no"
                        " operator supports"
                    )


def tidy(graph: gs.Graph) -> None:
    """Drops unread nodes and sorts the others."""
    makers = {tensor.name: node for node in graph.nodes for tensor in node.outputs if tensor.name}
    alive: dict[int, gs.Node] = {}
    ordered: list[gs.Node] = []
    waiting: list[tuple[gs.Node, bool]] = []
    for output in reversed(graph.outputs):
        if output.name in makers:
            waiting.append((makers[output.name], False))
    while waiting:
        node, ready = waiting.pop()
        if ready:
            ordered.append(node)
        elif id(node) not in alive:
            alive[id(node)] = node
            waiting.append((node, True))
            names = sorted(reads(node), reverse=True)
            waiting += [(makers[name], False) for name in names if name in makers]
    for node in graph.nodes:
        if id(node) not in alive:
            node.inputs.clear()
    graph.nodes[:] = ordered
