"""Determines what each tensor of a graph is, from shapes and integers observed in a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.constants import constant_value, evaluate
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.operators.recurrent import STANDARD
from onnx_rnn_prune.roll.cells import Step, outputs
from onnx_rnn_prune.roll.form import Activation, Form, Index, Leaf, Matrix, OpaqueError, Product
from onnx_rnn_prune.roll.rules import FUNCTIONS, RULES
from onnx_rnn_prune.roll.values import MOVES, Known, Value, formed, fresh, moved

# Larger tensors are not analyzed.
_MOST_ENTRIES = 1 << 21
# Operators that are evaluated if all inputs are constant.
_CONSTANT = MOVES | {"Cast", "Concat", "Add", "Sub", "Mul", "Div", "Neg"}


@dataclass(frozen=True, eq=False)
class Seen:
    """Observations of a run, by tensor name.

    Attributes:
        shapes: of floating-point and boolean tensors.
        numbers: integers that are the same for all inputs of the same shapes.
        booleans: which tensors are boolean.
    """

    shapes: Mapping[str, tuple[int, ...]]
    numbers: Mapping[str, Array]
    booleans: frozenset[str]


class Reader:
    """Reads nodes one after the other.

    Args:
        seen: what a run showed.
        opset: of the model.
        known: tensors that were read before, by name.
    """

    def __init__(self, seen: Seen, opset: int, known: Mapping[str, Known]) -> None:
        self.seen, self.opset = seen, opset
        self.known: dict[str, Known] = dict(known)
        # Whether it reads a loop body, in which a boolean may hold a state.
        self.turning = False
        # The forms of leaves that may be states after a first step.
        self.firsts: dict[tuple[object, ...], Form] = {}
        self._matrices: dict[tuple[int, bool], tuple[Array, Matrix]] = {}
        self._computed: dict[tuple[object, ...], tuple[list[Array], list[Known]]] = {}
        self._numbers: Index = np.arange(0)

    def inside(self, seen: Seen) -> Reader:
        """A reader for one iteration of a body, which knows what this one knows."""
        reader = Reader(seen, self.opset, self.known)
        reader.turning = True
        reader._matrices, reader._computed = self._matrices, self._computed
        return reader

    def read(self, node: gs.Node) -> None:
        """Determines the outputs of a node."""
        outputs = [tensor.name for tensor in node.outputs]
        if all(name in self.seen.numbers for name in outputs):
            self.known |= {name: self.seen.numbers[name] for name in outputs}
            return
        if node.op == "Constant":
            self.get(node.outputs[0])
            return
        given = [self.get(tensor) for tensor in node.inputs]
        found: Sequence[Known | None]
        try:
            found = self._constants(node, given) or self._values(node, given)
        except (OpaqueError, ValueError, IndexError):  # declared shapes in a body may be wrong
            found = [None] * len(outputs)
        for name, value in zip(outputs, found, strict=False):
            if name in self.seen.numbers:
                self.known[name] = self.seen.numbers[name]
            elif value is not None:
                self.known[name] = value
            elif name in self.seen.shapes:
                self.known[name] = self.leaf(name)

    def leaf(self, name: str) -> Value:
        """A tensor as a leaf."""
        shape = self.seen.shapes[name]
        if prod(shape) > len(self._numbers):
            self._numbers = np.arange(prod(shape))
            self._numbers.flags.writeable = False  # all leaves look at the same numbers
        labels = self._numbers[: prod(shape)].reshape(shape)
        return Value(labels, None, name, name in self.seen.booleans)

    def get(self, tensor: gs.Tensor) -> Known | None:
        """What a tensor is; None if it is omitted or unknown."""
        if not tensor.name:
            return None
        if tensor.name not in self.known:
            value = constant_value(tensor, self.opset)
            if value is not None:
                self.known[tensor.name] = value
            elif tensor.name in self.seen.numbers:
                self.known[tensor.name] = self.seen.numbers[tensor.name]
            elif tensor.name in self.seen.shapes:
                self.known[tensor.name] = self.leaf(tensor.name)
        return self.known.get(tensor.name)

    def shape(self, node: gs.Node) -> tuple[int, ...]:
        """The shape of a node's first output."""
        return self.seen.shapes[node.outputs[0].name]

    def matrix(self, values: Array, transposed: bool) -> Matrix:
        """A constant as a matrix, or its transpose; cached."""
        key = id(values), transposed
        if key not in self._matrices:
            entries = np.array(values.T if transposed else values, np.float64, order="C")
            self._matrices[key] = (values, Matrix(entries))
        return self._matrices[key][1]

    def _constants(self, node: gs.Node, given: Sequence[Known | None]) -> list[Known] | None:
        """The outputs of a node that reads constants only."""
        arrays = [value for value in given if isinstance(value, np.ndarray)]
        if node.op not in _CONSTANT or len(arrays) < len(given) or not arrays or node.domain:
            return None
        if arrays[0].size > _MOST_ENTRIES << 4:
            return None
        key = (node.op, repr(node.attrs), *map(id, arrays))
        if key not in self._computed:  # arrays are kept, so that no id is reused
            self._computed[key] = (arrays, list(evaluate(node, arrays, self.opset)))
        return self._computed[key][1]

    def _values(self, node: gs.Node, given: Sequence[Known | None]) -> list[Value]:
        shape = self.seen.shapes.get(node.outputs[0].name) if node.outputs else None
        if node.domain or not shape or not 0 < prod(shape) <= _MOST_ENTRIES or not node.inputs:
            raise OpaqueError
        if node.op in MOVES or node.op == "Cast":
            return self._moved(node, given)
        if node.op in STANDARD and self.turning:
            return self._step(node, given, shape)
        rule = RULES.get(node.op)
        if rule is None or any(item is None for item in given[:2]):
            raise OpaqueError
        found = rule(self, node, given)
        if found.shape != tuple(shape) or (not self.turning and self._blends(found)):
            raise OpaqueError
        return [self._named(found, node.outputs[0].name)]

    def _blends(self, value: Value) -> bool:
        """Whether it multiplies entries of non-boolean tensors, as no cell does."""
        atoms = [atom for atom, _ in value.form.terms.values()] if value.form is not None else []
        return any(
            isinstance(atom, Product)
            and all(isinstance(part, Leaf) and not part.boolean for part in atom.factors)
            for atom in atoms
        )

    def _step(
        self, node: gs.Node, given: Sequence[Known | None], shape: tuple[int, ...]
    ) -> list[Value]:
        """An operator in a body that runs one step per iteration: Y is Y_h with another axis."""
        h, *cell = outputs(operator_step(self, node, given))
        y = self._named(formed(h, shape, 3), node.outputs[0].name)
        return [
            y,
            replace(y, labels=y.labels[0], plain=None),
            *(formed(form, shape[1:], 2) for form in cell),
        ]

    def _named(self, value: Value, name: str) -> Value:
        """Records which tensor holds the values of an atom."""
        atom = value.form.atom() if value.form is not None else None
        if atom is None or isinstance(atom, Leaf) or value.form is None:
            return value
        axis = value.axes()[0]
        index = fresh(name, value.shape).along(axis).atom()
        assert isinstance(index, Leaf)
        return formed(Form.of(replace(atom, origin=index)), value.shape, axis)

    def _moved(self, node: gs.Node, given: Sequence[Known | None]) -> list[Value]:
        value = given[0]
        if not isinstance(value, Value):
            raise OpaqueError
        name = node.outputs[0].name
        if node.op == "Cast" and name in self.seen.booleans and not value.boolean:
            raise OpaqueError
        shapes = [self.seen.shapes.get(tensor.name) for tensor in node.outputs]
        if None in shapes:  # no shapes are observed for outputs whose type is not inferred
            raise OpaqueError
        parts = moved(node, value.labels, given[1:], shapes)
        if len(parts) == 1 and parts[0] is value.labels:
            return [value]
        return [replace(value, labels=part, plain=None) for part in parts]


def operator_step(reader: Reader, node: gs.Node, given: Sequence[Known | None]) -> Step:
    """The step of an operator in a body that runs one step per iteration.

    Raises:
        OpaqueError: it has more steps, does not start from a state, or has features that templates
            lack.
    """
    x, w, r, b, lengths, h, c, peepholes = (*given, *[None] * 8)[:8]
    if lengths is not None or peepholes is not None or _is_special(node):
        raise OpaqueError
    states = [value.along(2).atom() for value in (h, c) if isinstance(value, Value)]
    if not isinstance(x, Value) or x.shape[0] != 1 or len(states) != 1 + (node.op == "LSTM"):
        raise OpaqueError
    if not isinstance(w, np.ndarray) or not isinstance(r, np.ndarray):
        raise OpaqueError
    leaves = [state for state in states if isinstance(state, Leaf)]
    if len(leaves) < len(states):
        raise OpaqueError
    row = STANDARD[node.op]
    count, units = len(row.gates), r.shape[-1]
    bias = np.zeros(2 * count * units) if b is None else np.asarray(b, np.float64).reshape(-1)
    own, recurrent = (np.split(part, count) for part in np.split(bias, 2))

    def total(form: Form, weight: Array, bias: list[Array]) -> list[Form]:
        blocks = [reader.matrix(block, True) for block in np.split(weight[0], count)]
        return [form.then(m).plus(Form.constant(n)) for m, n in zip(blocks, bias, strict=True)]

    sums, again = total(x.along(2), w, own), total(Form.of(leaves[0]), r, recurrent)
    hidden = again.pop() if node.attrs.get("linear_before_reset", 0) else None
    gates = [one.plus(two) for one, two in zip(sums, again, strict=False)] + sums[len(again) :]
    names = node.attrs.get("activations", row.activations)
    acts = tuple(Activation(name, (), gates[0]) for name in names)
    return Step(node.op, tuple(gates), acts, leaves[0], (*leaves, None)[1], hidden=hidden)


def _is_special(node: gs.Node) -> bool:
    """Whether an operator has features that templates lack."""
    numbers = ("clip", "input_forget", "layout", "activation_alpha", "activation_beta")
    names = node.attrs.get("activations", ())
    plain = all(FUNCTIONS.get(name, True) == () for name in names)
    return (
        node.attrs.get("direction", "forward") != "forward"
        or not plain
        or any(node.attrs.get(key) for key in numbers)
    )
