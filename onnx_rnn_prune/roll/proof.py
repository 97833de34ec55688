"""Proofs that a rewritten model is correct.

A form equals a template by construction. The rest is checked here: one step agrees with its nodes
in double precision, on random, saturated and zero inputs; and the whole model agrees with the
original in onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.constants import constant_value, evaluate
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import Array, Feed, Runner
from onnx_rnn_prune.roll.cells import outputs
from onnx_rnn_prune.roll.form import WHOLE, Atom, Form, Leaf, Product
from onnx_rnn_prune.roll.reading import Seen
from onnx_rnn_prune.roll.rules import CLIPPED
from onnx_rnn_prune.roll.steps import Found, NotRollableError, downstream
from onnx_rnn_prune.roll.values import Known, Value

_STEP, _WHOLE = 1e-10, 1e-5
_FLOAT_TYPES = frozenset((1, 10, 11, 16))
_SCALES = (1.0, 30.0, 0.0)


def prove_step(
    nodes: Sequence[gs.Node], found: Found, seen: Seen, known: Mapping[str, Known], opset: int
) -> None:
    """Compares the nodes of one step with the operator's equations in double precision.

    Args:
        nodes: of the graph that holds the step, in order.
        found: the step.
        seen: shapes and numbers of the tensors.
        known: values of tensors that are constant.
        opset: of the model.

    Raises:
        NotRollableError: they differ.
    """
    step = found.step
    leaves = [*step.sources.values(), *([step.cell] if step.cell else [])]
    ends = [found.output] + ([found.cell_output] if found.cell_output else [])
    rng = np.random.default_rng(0)
    behind = downstream(nodes, [leaf.tensor for leaf in leaves])
    for scale in _SCALES:
        values: dict[str, Array] = {}
        for leaf in leaves:
            shape = seen.shapes.get(leaf.tensor) or np.shape(known[leaf.tensor])
            drawn = scale * rng.standard_normal(shape)
            values[leaf.tensor] = drawn > 0 if leaf.boolean else drawn

        def given(tensor: gs.Tensor, scale: float = scale) -> Array | None:
            """A constant, or anything for another leaf, since those make no difference."""
            value, name = known.get(tensor.name), tensor.name
            own = isinstance(value, Value) and value.form is None and value.tensor == name
            if not own or name in behind or name not in seen.shapes:
                return _constant(tensor, seen, known, opset)
            drawn = scale * rng.standard_normal(seen.shapes[name])
            return np.asarray(drawn > 0 if name in seen.booleans else drawn)

        try:
            computed = _run(nodes, [end.tensor for end in ends], values, given, opset)
        except KeyError as lacking:
            what = f"its step reads {lacking}, which is unknown"
            raise NotRollableError(what) from lacking
        for end, form in zip(ends, outputs(step), strict=False):
            wanted = _computed_form(form, end.rows, values)
            got = computed[end.tensor].reshape(-1)[end.index]
            error = float(np.abs(got - wanted).max())
            if not error <= _STEP:
                raise NotRollableError(f"one step deviates by {error:.1e}")


def _computed_form(form: Form, rows: int, values: Mapping[str, Array]) -> Array:
    """The values of a form in double precision: [rows, n]."""

    def of(atom: Atom) -> Array:
        if isinstance(atom, Leaf):
            return values[atom.tensor].reshape(-1)[atom.index].astype(np.float64)
        if isinstance(atom, Product):
            return reduce(np.multiply, map(of, atom.factors))
        argument = _computed_form(atom.argument, rows, values)
        if atom.op == CLIPPED:
            return np.clip(argument, 0.0, 1.0)
        if atom.op == WHOLE:
            return argument
        node = gs.Node(atom.op, attrs=dict(atom.attributes), outputs=[gs.Variable("y")])
        return evaluate(node, [argument], 17)[0]

    total = np.broadcast_to(form.bias, (rows, form.size)).copy()
    for atom, matrix in form.terms.values():
        total += of(atom) * matrix.values if matrix.diagonal else of(atom) @ matrix.values
    return total


def _run(
    nodes: Sequence[gs.Node],
    wanted: Sequence[str],
    values: Mapping[str, Array],
    given: Callable[[gs.Tensor], Array | None],
    opset: int,
) -> dict[str, Array]:
    """What nodes compute in double precision; only those that are needed run.

    Args:
        nodes: of the graph that holds the wanted tensors.
        wanted: names of tensors.
        values: of tensors by name, that are not to be computed.
        given: the value of another such tensor; None for one that is computed.
        opset: of the model.
    """
    makers = {tensor.name: node for node in nodes for tensor in node.outputs}
    found = dict(values)
    waiting = [makers[name] for name in wanted]
    while waiting:
        node = waiting[-1]
        lacking = []
        for tensor in node.inputs:
            if tensor.name and tensor.name not in found:
                value = given(tensor)
                if value is not None:
                    found[tensor.name] = value
                else:
                    lacking.append(makers[tensor.name])
        if lacking:
            waiting += lacking
            continue
        waiting.pop()
        inputs = [found[tensor.name] if tensor.name else None for tensor in node.inputs]
        outputs = _computed(node, inputs, opset)
        found.update((t.name, value) for t, value in zip(node.outputs, outputs, strict=False))
    return found


def _constant(
    tensor: gs.Tensor, seen: Seen, known: Mapping[str, Known], opset: int
) -> Array | None:
    if tensor.name in seen.numbers:
        return seen.numbers[tensor.name]
    value = known.get(tensor.name)
    if not isinstance(value, np.ndarray):
        value = constant_value(tensor, opset)
    if value is None:
        return None
    return value.astype(np.float64) if value.dtype.kind == "f" else value


def _computed(node: gs.Node, inputs: list[Array | None], opset: int) -> list[Array]:
    if node.op == "Cast" and node.attrs["to"] in _FLOAT_TYPES and inputs[0] is not None:
        return [inputs[0].astype(np.float64)]
    return evaluate(node, inputs, opset)


@dataclass(frozen=True, eq=False)
class Proof:
    """What the whole model computes, for rolled ones to be compared with.

    Attributes:
        original: the model.
        feeds: what it is run on, once.
    """

    original: Document
    feeds: Sequence[Feed]

    @cached_property
    def wanted(self) -> list[Feed]:
        """The original's outputs, by feed."""
        runner = Runner(self.original)
        return [runner(feed) for feed in self.feeds]

    def __call__(self, rolled: Document) -> float:
        """Runs a rolled model.

        Returns:
            The largest difference of an output from the original's, relative to its largest value
            where that is above 1.

        Raises:
            NotRollableError: they differ.
        """
        wanted, worst = self.wanted, 0.0
        runner = Runner(rolled, name="the rolled model")
        for feed, right in zip(self.feeds, wanted, strict=True):
            got = runner(feed)
            worst = max([worst, *(_error(name, right[name], got[name]) for name in right)])
        return worst


def _error(name: str, wanted: Array, got: Array) -> float:
    """How far an output is off, see `Proof`."""
    if wanted.shape != got.shape:
        raise NotRollableError(f"output '{name}' is of shape {got.shape}, not {wanted.shape}")
    if wanted.dtype.kind != "f" or not wanted.size:
        if not np.array_equal(wanted, got):
            raise NotRollableError(f"output '{name}' differs")
        return 0.0
    top = max(1.0, float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0)))
    with np.errstate(invalid="ignore"):  # infinity minus itself
        error = float(np.nanmax(np.abs(wanted.astype(np.float64) - got), initial=0)) / top
    same = np.array_equal(np.isnan(wanted), np.isnan(got))
    if not same or not error <= (_WHOLE if wanted.dtype.itemsize > 2 else 1e-2):
        raise NotRollableError(f"output '{name}' deviates by {error:.1e}")
    return error
