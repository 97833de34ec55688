"""Recurrences in a Loop or Scan: what the body does in each iteration."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.walk import Ports, ports_of, source
from onnx_rnn_prune.roll.cells import Key
from onnx_rnn_prune.roll.form import Leaf
from onnx_rnn_prune.roll.probing import Sight
from onnx_rnn_prune.roll.reading import Reader
from onnx_rnn_prune.roll.steps import Chain, Found, NotRollableError, moved_from, read_cells
from onnx_rnn_prune.roll.values import Value, fresh

REPEATING = ("Loop", "Scan")
Port = tuple[gs.Tensor, gs.Tensor, int, bool]


def states_of(node: gs.Node) -> list[tuple[gs.Tensor, gs.Tensor, gs.Tensor, gs.Tensor]]:
    """The loop-carried values of a Loop or Scan.

    Returns:
        for each state: the initial tensor, the body's input and output, and the final tensor.
    """
    ports = ports_of(node)
    states = ports.states if ports is not None else ()
    return [(node.inputs[each.slot], each.source, each.result, each.final) for each in states]


def _backwards(node: gs.Node, end: str, count: int) -> list[bool]:
    """Which scanned inputs or stacked outputs run backwards."""
    return [bool(turned) for turned in node.attrs.get(f"scan_{end}_directions") or [0] * count]


@dataclass(frozen=True, eq=False)
class Given:
    """An output of a body in each iteration that was read, as entries of one tensor.

    Attributes:
        leaves: the entries, by iteration.
        value: the output in the first iteration, which gives the layout.
    """

    leaves: tuple[Leaf, ...]
    value: Value

    @property
    def keys(self) -> list[Key]:
        """Equal for the same entries."""
        return [leaf.key for leaf in self.leaves]

    def like(self, tensor: gs.Tensor) -> Leaf:
        """Another tensor, laid out along the same axes."""
        leaf = fresh(tensor.name, self.value.shape).along(self.value.axes()[0]).atom()
        assert isinstance(leaf, Leaf)
        return leaf


@dataclass(frozen=True, eq=False)
class Recurrence:
    """One cell in a body.

    Attributes:
        chain: its steps in the iterations that were read.
        state: the index of the state that is h.
        cell: the index of c, for an LSTM.
    """

    chain: Chain
    state: int
    cell: int | None


class Turns:
    """A Loop or Scan as observed in one run.

    Args:
        node: the node.
        reader: knows all nodes before it.
        sight: the observation of the run.

    Raises:
        NotRollableError: the number of iterations depends on data, or is too small to tell
            anything.
    """

    def __init__(self, node: gs.Node, reader: Reader, sight: Sight) -> None:
        ports = ports_of(node) or Ports((), (), ())
        self.node, self.reader, self.states = node, reader, states_of(node)
        taken = zip(ports.taken, _backwards(node, "input", len(ports.taken)), strict=True)
        put = zip(ports.stacked, _backwards(node, "output", len(ports.stacked)), strict=True)
        # Each with its axis, and whether it runs backwards.
        self.scanned: list[Port] = [(node.inputs[slot], *own, back) for (slot, *own), back in taken]
        self.stacked: list[Port] = [(*own, back) for own, back in put]
        self.body: gs.Graph = node.attrs["body"]
        self._check(sight)
        names = [tensor.name for inner in self.body.nodes for tensor in inner.outputs]
        self.count = sight.turns(names)
        if self.count < 3:
            raise NotRollableError("it has too few iterations to find the pattern")
        self.read = tuple(sorted({0, 1, 2, self.count - 1}))
        self.readers = [self._turn(number, sight) for number in self.read]
        carried = moved_from(given for _, _, given, _ in self.states)
        self.found = [read_cells(each, self.body.nodes, carried) for each in self.readers]
        self.local = frozenset([*names, *(tensor.name for tensor in self.body.inputs)])

    def _check(self, sight: Sight) -> None:
        if self.node.op == "Loop":
            ends = [*self.node.inputs[:2], self.body.outputs[0]]
            if any(tensor.name in sight.data for tensor in ends):
                raise NotRollableError("its number of iterations depends on the data")

    def _turn(self, number: int, sight: Sight) -> Reader:
        """Reads the body in one iteration."""
        reader = self.reader.inside(sight.turn(number))
        for initial, taken, given, _ in self.states:
            if source(given) is taken:
                value = self.reader.get(initial)
                if value is not None:
                    reader.known[taken.name] = value
        for outer, taken, axis, back in self.scanned:
            value = self.reader.get(outer)
            at = self.count - 1 - number if back else number
            if isinstance(value, Value):
                labels = np.take(value.labels, at, axis=axis)
                reader.known[taken.name] = Value(labels, value.form, value.tensor, value.boolean)
        return reader

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all tensors outside the body, constants included."""
        for initial, *_ in self.states:  # may be a constant not read yet
            self.reader.get(initial)
        known = self.reader.known.items()
        constants = {name: value.shape for name, value in known if isinstance(value, np.ndarray)}
        return {**self.reader.seen.shapes, **constants}

    def bindings(self, turn: int) -> list[gs.Node]:
        """Nodes that feed the body from outside in a single iteration."""
        found = []
        for initial, taken, given, _ in self.states:
            if source(given) is taken:
                ports = [gs.Variable(initial.name)], [gs.Variable(taken.name)]
                found.append(gs.Node("Identity", "", {}, *ports))
        for outer, taken, axis, back in self.scanned:
            at = np.array(self.count - 1 - turn if back else turn, np.int64)
            inputs = [gs.Variable(outer.name), gs.Constant(f"{taken.name}_at", at)]
            found.append(gs.Node("Gather", "", {"axis": axis}, inputs, [gs.Variable(taken.name)]))
        return found

    def given(self, tensor: gs.Tensor) -> Given:
        """What an output of the body is in each iteration that was read.

        Raises:
            NotRollableError: it is computed from states or inputs but is not one itself.
        """
        values = [value for each in self.readers if isinstance(value := each.get(tensor), Value)]
        atoms = [value.along(value.axes()[0]).atom() for value in values if value.axes()]
        leaves = tuple(atom for atom in atoms if isinstance(atom, Leaf))
        if len(leaves) < len(self.readers):
            raise NotRollableError(f"{tensor.name} is not a state of a cell")
        return Given(leaves, values[0])


def recurrences(turns: Turns) -> list[Recurrence]:
    """The cells of a body, each with its own states.

    Raises:
        NotRollableError: an iteration differs from the others.
    """
    states: dict[int, Given] = {}
    for number, (_, taken, given, _) in enumerate(turns.states):
        if source(given) is not taken and given.name not in turns.readers[0].seen.numbers:
            with suppress(NotRollableError):
                states[number] = turns.given(given)
    items = (_recurrence(turns, first, states) for first in turns.found[0])
    return [item for item in items if item is not None]


def _recurrence(turns: Turns, first: Found, states: Mapping[int, Given]) -> Recurrence | None:
    steps = []
    for found in turns.found:
        same = [item for item in found if item.output.key == first.output.key]
        if not same or same[0].step.signature != first.step.signature:
            raise NotRollableError("its iterations compute different things")
        steps.append(same[0])
    step, cell = first.step, None
    read = step.sources if step.state is None else {step.state.key}
    state = _own(turns, states, [item.output for item in steps], read)
    if state is None:
        return None
    if step.cell is not None:
        cell = _own(turns, states, [item.cell_output for item in steps], {step.cell.key})
        if cell is None:
            return None
    own = [number for number in (state, cell) if number is not None]
    starts = [states[number].like(turns.states[number][0]) for number in own]
    before = states[state].like(turns.states[state][1])
    chain = Chain(tuple(steps), (before,) * len(steps), starts[0], (*starts, None)[1])
    return Recurrence(chain, state, cell)


def _own(
    turns: Turns,
    states: Mapping[int, Given],
    outputs: Sequence[Leaf | None],
    read: Container[Key],
) -> int | None:
    """The index of the state that holds a cell's output and that the cell reads."""
    keys = [output.key for output in outputs if output is not None]
    for number, given in states.items():
        if given.keys == keys and given.like(turns.states[number][1]).key in read:
            return number
    return None
