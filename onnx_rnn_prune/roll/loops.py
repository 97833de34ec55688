"""Steps that a Loop or a Scan repeats: what its body does in each turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.walk import Ports, ports_of, source
from onnx_rnn_prune.roll.cells import solve_rnn
from onnx_rnn_prune.roll.form import Activation, Form, Leaf, OpaqueError
from onnx_rnn_prune.roll.probing import Sight
from onnx_rnn_prune.roll.reading import Reader
from onnx_rnn_prune.roll.steps import Chain, Found, NotRollableError, read_cells
from onnx_rnn_prune.roll.values import Value, fresh

REPEATING = ("Loop", "Scan")
Key = tuple[object, ...]


Port = tuple[gs.Tensor, gs.Tensor, int, bool]


def states_of(node: gs.Node) -> list[tuple[gs.Tensor, gs.Tensor, gs.Tensor, gs.Tensor]]:
    """What a Loop or Scan carries.

    Returns:
        for each state: the tensor before the first turn, what the body takes and gives, and the
        tensor after the last turn.
    """
    ports = ports_of(node)
    states = ports.states if ports is not None else ()
    return [(node.inputs[each.slot], each.source, each.result, each.final) for each in states]


def _backwards(node: gs.Node, end: str, count: int) -> list[bool]:
    """Which of its scanned inputs or stacked outputs begin at the back."""
    return [bool(turned) for turned in node.attrs.get(f"scan_{end}_directions") or [0] * count]


@dataclass(frozen=True, eq=False)
class Update:
    """What a state or a stacked output is after a turn.

    Attributes:
        leaf: the tensor that it becomes.
        mask: the truth value that says so; None where nothing does.
        held: what it is where the mask is 0: a tensor, or None for zeros.
        value: the tensor of the body, of which the layout is asked.
    """

    leaf: Leaf
    mask: Leaf | None
    held: Leaf | None
    value: Value

    @property
    def key(self) -> object:
        """Equal for the same leaf, mask and held value."""
        return self.leaf.key, self.mask and self.mask.key, self.held and self.held.key


@dataclass(frozen=True, eq=False)
class Recurrence:
    """One cell in a body.

    Attributes:
        chain: its steps in the turns that were read.
        state: the number of the state that is h.
        cell: of an LSTM, that of c.
        masks: in each turn that was read, what says whether the step counts; None where all do.
    """

    chain: Chain
    state: int
    cell: int | None
    masks: tuple[Leaf, ...] | None


class Turns:
    """A Loop or Scan as it was seen in one run.

    Args:
        node: the node.
        reader: knows all that stands before it.
        sight: what the run showed.

    Raises:
        NotRollableError: its turns depend on data, or there are too few to tell anything.
    """

    def __init__(self, node: gs.Node, reader: Reader, sight: Sight) -> None:
        ports = ports_of(node) or Ports((), (), ())
        self.node, self.reader, self.states = node, reader, states_of(node)
        taken = zip(ports.taken, _backwards(node, "input", len(ports.taken)), strict=True)
        put = zip(ports.stacked, _backwards(node, "output", len(ports.stacked)), strict=True)
        # Each with its axis, and whether it begins at the back.
        self.scanned: list[Port] = [(node.inputs[slot], *own, back) for (slot, *own), back in taken]
        self.stacked: list[Port] = [(*own, back) for own, back in put]
        self.body: gs.Graph = node.attrs["body"]
        self._check(sight)
        names = [tensor.name for inner in self.body.nodes for tensor in inner.outputs]
        self.count = sight.turns(names)
        if self.count < 3:
            raise NotRollableError("it has too few iterations to tell what they have in common")
        self.read = tuple(sorted({0, 1, 2, self.count - 1}))
        self.readers = [self._turn(number, sight) for number in self.read]
        self.found = [read_cells(each, self.body.nodes, frozenset()) for each in self.readers]
        self.local = frozenset([*names, *(tensor.name for tensor in self.body.inputs)])

    def _check(self, sight: Sight) -> None:
        if self.node.op == "Loop":
            ends = [*self.node.inputs[:2], self.body.outputs[0]]
            if any(tensor.name in sight.data for tensor in ends):
                raise NotRollableError("its number of iterations depends on the data")

    def _turn(self, number: int, sight: Sight) -> Reader:
        """Reads the body in one turn."""
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
        """The shapes of all tensors outside, those of constants included."""
        for initial, *_ in self.states:  # which may be a constant that no node read
            self.reader.get(initial)
        known = self.reader.known.items()
        constants = {name: value.shape for name, value in known if isinstance(value, np.ndarray)}
        return {**self.reader.seen.shapes, **constants}

    def bindings(self, turn: int) -> list[gs.Node]:
        """Nodes that give the body what it takes from outside, for a look at one turn."""
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

    def updates(self, tensor: gs.Tensor, taken: gs.Tensor | None = None) -> list[Update]:
        """What a tensor of the body is in each turn that was read.

        Args:
            tensor: what the body gives.
            taken: where that is a state, what it takes: a state keeps its axes.

        Raises:
            NotRollableError: it is neither a state of a cell nor one of these or another tensor.
        """
        return [
            self._update(reader, found, tensor, taken)
            for reader, found in zip(self.readers, self.found, strict=True)
        ]

    def _update(
        self, reader: Reader, found: list[Found], tensor: gs.Tensor, taken: gs.Tensor | None
    ) -> Update:
        value = reader.get(tensor)
        if not isinstance(value, Value) or not value.axes():
            raise NotRollableError(f"{tensor.name} is not a state of a cell")
        axis = value.axes()[0]
        form = value.along(axis)
        masks = form.masks()
        if len(masks) > 1:
            raise NotRollableError(f"{tensor.name} depends on several truth values")
        mask = next(iter(masks), None)
        chosen = form if mask is None else form.at(mask, 1)
        atom = chosen.atom()
        if isinstance(atom, Activation):
            atom = self._plain(found, chosen, atom)
        if not isinstance(atom, Leaf):
            raise NotRollableError(f"{tensor.name} is not a state of a cell")
        held = None
        if mask is not None:
            rest = form.at(mask, 0)
            kept = rest.atom()
            held = kept if isinstance(kept, Leaf) else None
            if held is None and (rest.terms or rest.bias.any()):
                raise NotRollableError(f"{tensor.name} is no held state where its mask is 0")
        return Update(atom, mask, held, value)

    def _plain(self, found: list[Found], form: Form, atom: Activation) -> Leaf | None:
        """The output of a cell without gates, which is one where it is a state."""
        try:
            step = solve_rnn(form)
        except OpaqueError:
            return None
        if step is None or atom.origin is None:
            return None
        if all(item.output.key != atom.origin.key for item in found):
            found.append(Found(step, atom.origin))
        return atom.origin


def recurrences(turns: Turns) -> list[Recurrence]:
    """The cells of a body, each with the states that are its own.

    Raises:
        NotRollableError: a turn differs from the others.
    """
    states: dict[int, list[Update]] = {}
    for number, (_, taken, given, _) in enumerate(turns.states):
        if source(given) is taken or given.name in turns.readers[0].seen.numbers:
            continue
        try:
            states[number] = turns.updates(given, taken)
        except NotRollableError:
            continue
    found = []
    for first in turns.found[0]:
        item = _recurrence(turns, first, states)
        if item is not None:
            found.append(item)
    return found


def _recurrence(
    turns: Turns, first: Found, states: Mapping[int, list[Update]]
) -> Recurrence | None:
    steps = []
    for found in turns.found:
        same = [item for item in found if item.output.key == first.output.key]
        if not same or same[0].step.signature != first.step.signature:
            raise NotRollableError("its iterations compute different things")
        steps.append(same[0])
    state = _own(turns, states, [item.output for item in steps], steps[0], first.step.state)
    if state is None:
        return None
    cell = None
    if first.step.cell is not None:
        outputs = [item.cell_output for item in steps if item.cell_output is not None]
        cell = _own(turns, states, outputs, steps[0], first.step.cell)
        if cell is None:
            return None
    masks = [update.mask for update in states[state]]
    known = tuple(mask for mask in masks if mask is not None)
    (initial, taken, *_), update = turns.states[state], states[state][0]
    initial_c = None
    if cell is not None:
        initial_c = _as_leaf(turns.states[cell][0], states[cell][0])
    held = (_as_leaf(taken, update),) * len(steps)
    chain = Chain(tuple(steps), held, _as_leaf(initial, update), initial_c)
    if cell is not None and [update.mask and update.mask.key for update in states[cell]] != [
        mask and mask.key for mask in masks
    ]:
        raise NotRollableError("its two states are not held together")
    return Recurrence(chain, state, cell, known or None)


def _own(
    turns: Turns,
    states: Mapping[int, list[Update]],
    outputs: Sequence[Leaf],
    step: Found,
    wanted: Leaf | None,
) -> int | None:
    """The state that a cell's output becomes, and that the cell reads."""
    for number, updates in states.items():
        keys = [update.leaf.key for update in updates]
        if keys != [output.key for output in outputs]:
            continue
        leaf = _as_leaf(turns.states[number][1], updates[0])
        held = [update.held for update in updates if update.mask is not None]
        if any(item is None or item.key != leaf.key for item in held):
            continue
        if leaf.key == wanted.key if wanted is not None else leaf.key in step.step.sources:
            return number
    return None


def _as_leaf(tensor: gs.Tensor, update: Update) -> Leaf:
    """A state before a turn, by the axes by which the body gives it."""
    leaf = fresh(tensor.name, update.value.shape).along(update.value.axes()[0]).atom()
    assert isinstance(leaf, Leaf)
    return leaf
