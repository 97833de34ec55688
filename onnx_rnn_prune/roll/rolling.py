"""Rolling a model: finding steps, putting operators in their place, and proving that."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import Feed
from onnx_rnn_prune.model.walk import bodies_of, tensors_of
from onnx_rnn_prune.roll.form import Leaf
from onnx_rnn_prune.roll.proof import prove_step, prove_whole
from onnx_rnn_prune.roll.reading import Reader
from onnx_rnn_prune.roll.rewrite import Builder
from onnx_rnn_prune.roll.seeing import Sight, element_types, see
from onnx_rnn_prune.roll.steps import (
    Chain,
    NotRollableError,
    chains,
    read_cells,
    shared_operands,
)
from onnx_rnn_prune.roll.unrolled import roll_chain

_TYPES = {1: np.float32, 10: np.float16}


@dataclass(frozen=True)
class Rolled:
    """A recurrence that became an operator.

    Attributes:
        name: of the operator's node.
        op: LSTM, GRU or RNN.
        units: H.
        kind: what it was: unrolled, single step, loop or scan.
        at: where it was: the first tensor that held its state, or the node that carried it.
        steps: how many steps were written; 1 where a body repeats them.
    """

    name: str
    op: str
    units: int
    kind: str
    at: str
    steps: int


@dataclass(frozen=True, eq=False)
class Rolling:
    """What became of a model.

    Attributes:
        document: the model; the very one that was given where nothing was rolled.
        rolled: what became operators.
        left: what did not, with the reason: by the tensor or node where it is.
        error: the largest difference of an output to the original's.
    """

    document: Document
    rolled: tuple[Rolled, ...] = ()
    left: dict[str, str] = field(default_factory=dict)
    error: float = 0.0


def roll(document: Document, feeds: Sequence[Feed], fewest: int = 2) -> Rolling:
    """Rolls all recurrences of a model that can be.

    Args:
        document: the model; not changed.
        feeds: what it runs on, of several batches and lengths.
        fewest: chains of fewer steps stay as they are.

    Raises:
        PruneError: the model does not run on a feed.
    """
    sample = max(feeds, key=lambda feed: sum(value.size for value in feed.values()))
    left: dict[str, str] = {}
    done: list[Rolled] = []
    current, error = document, 0.0
    while True:
        step = _Round(current, sample, fewest, left)
        rolled = step.candidates()
        if not rolled:
            return Rolling(current, tuple(done), left, error)
        for item in rolled:
            try:
                made, what = step.attempt(item)
                error = max(error, prove_whole(document, made, feeds))
            except NotRollableError as reason:
                left[_place(item)] = str(reason)
            except PruneError as reason:
                left[_place(item)] = reason.what
            else:
                current = made
                done.append(what)
                break


def _place(chain: Chain) -> str:
    return chain.steps[0].output.tensor


class _Round:
    """The chains of a model as it is."""

    def __init__(self, document: Document, sample: Feed, fewest: int, left: dict[str, str]) -> None:
        self.document, self.left, self.fewest = document, left, fewest
        self.sight = see(document, sample)

    def candidates(self) -> list[Chain]:
        """The chains that were not tried yet."""
        reader = Reader(self.sight.turn(0), self.document.graph.opset, {})
        nodes = self.document.graph.nodes
        found = chains(read_cells(reader, nodes, shared_operands(nodes)))
        return [
            chain
            for chain in found
            if _place(chain) not in self.left and len(chain.steps) >= self.fewest
        ]

    def attempt(self, chain: Chain) -> tuple[Document, Rolled]:
        """A copy of the model with an operator instead of a chain."""
        document = self.document.copy()
        graph = document.graph
        reader = Reader(self.sight.turn(0), graph.opset, {})
        read_cells(reader, graph.nodes, shared_operands(graph.nodes))
        check_independence(graph, chain)
        prove_step(graph.nodes, chain.steps[-1], reader.seen, reader.known, graph.opset)
        dtype = _TYPES.get(element_types(document).get(_place(chain), 0))
        if dtype is None:
            raise NotRollableError("onnxruntime has no kernel for its type of numbers")
        tensors = {tensor.name: tensor for tensor in tensors_of(graph)}
        maker = tensors[_place(chain)].inputs[0]
        builder = Builder(graph, graph, f"{maker.name or _place(chain)}/{chain.step.op}")
        old = [tensors[item.output.tensor].inputs[0] for item in chain.steps]
        node = roll_chain(builder, chain, reader, tensors, np.dtype(dtype))
        tidy(graph)
        if any(item is node for node in old for item in graph.nodes):
            raise NotRollableError("a state inside it is read that the operator does not put out")
        steps = len(chain.steps)
        form = "unrolled" if steps > 1 else "single step"
        what = Rolled(
            node.name, node.op, chain.step.units, form, maker.name or _place(chain), steps
        )
        return document, what


def check_independence(graph: gs.Graph, chain: Chain) -> None:
    """What the steps read must not depend on what they compute.

    Raises:
        NotRollableError: it does.
    """
    outputs = {item.output.tensor for item in chain.steps}
    outputs |= {item.cell_output.tensor for item in chain.steps if item.cell_output}
    behind = downstream(graph.nodes, outputs)
    initial = (chain.initial_h, chain.initial_c)
    read = [leaf for group in chain.inputs() for leaf in group]
    read += [leaf for leaf in initial if isinstance(leaf, Leaf)]
    if any(leaf.tensor in behind for leaf in read):
        raise NotRollableError("what a step reads depends on the states of earlier ones")
    state = chain.states[-1]
    for key in chain.step.sources:
        if state is not None and key != state.key:
            forms = [form for form in chain.step.gates if key in form.terms]
            if forms and all(form.terms[key][1].diagonal for form in forms):
                raise NotRollableError("its gates add an input that no weight is multiplied with")


def downstream(nodes: Iterable[gs.Node], names: Iterable[str]) -> set[str]:
    """Tensors that depend on some, these included."""
    found = set(names)
    for node in nodes:
        if any(name in found for name in _reads(node)):
            found.update(tensor.name for tensor in node.outputs if tensor.name)
    return found


def _reads(node: gs.Node) -> set[str]:
    """What a node reads, its bodies included."""
    names = {tensor.name for tensor in node.inputs if tensor.name}
    for body in bodies_of(node).values():
        names |= {tensor.name for tensor in tensors_of(body)}
    return names


def tidy(graph: gs.Graph) -> None:
    """Drops nodes that nothing reads any more, and puts the others in order."""
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
            names = sorted(_reads(node), reverse=True)
            waiting += [(makers[name], False) for name in names if name in makers]
    for node in graph.nodes:
        if id(node) not in alive:
            node.inputs.clear()
    graph.nodes[:] = ordered


__all__ = ["Rolled", "Rolling", "Sight", "roll"]
