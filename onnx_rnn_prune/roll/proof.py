"""Proofs that a rewritten model is correct.

A form equals a template by construction. The rest is checked here: one step agrees with its nodes
in double precision, on random, saturated and zero inputs; and the whole model agrees with the
original in onnxruntime.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce

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
        # Other leaves do not matter and may be anything.
        for name, shape in seen.shapes.items():
            value = known.get(name)
            own = isinstance(value, Value) and value.form is None and value.tensor == name
            if own and name not in behind:
                drawn = scale * rng.standard_normal(shape)
                values[name] = drawn > 0 if name in seen.booleans else drawn
        for leaf in leaves:
            shape = seen.shapes.get(leaf.tensor) or np.shape(known[leaf.tensor])
            drawn = scale * rng.standard_normal(shape)
            values[leaf.tensor] = drawn > 0 if leaf.boolean else drawn
        try:
            computed = _run(nodes, [end.tensor for end in ends], values, seen, known, opset)
        except KeyError as lacking:
            what = f"its step reads {lacking}, of which nothing is known"
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
    seen: Seen,
    known: Mapping[str, Known],
    opset: int,
) -> dict[str, Array]:
    """The results of nodes in double precision; only the necessary ones run."""
    makers = {tensor.name: node for node in nodes for tensor in node.outputs}
    found = dict(values)
    waiting = [makers[name] for name in wanted]
    while waiting:
        node = waiting[-1]
        lacking = []
        for tensor in node.inputs:
            if tensor.name and tensor.name not in found:
                value = _given(tensor, seen, known, opset)
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


def _given(tensor: gs.Tensor, seen: Seen, known: Mapping[str, Known], opset: int) -> Array | None:
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


def prove_whole(original: Document, rolled: Document, feeds: Iterable[Feed]) -> float:
    """Compares the outputs of the original and the rolled model.

    Returns:
        The largest difference of an output, relative to its largest value if that is above 1.

    Raises:
        NotRollableError: they differ.
    """
    worst = 0.0
    before, after = Runner(original), Runner(rolled, name="the rolled model")
    for feed in feeds:
        wanted, got = before(feed), after(feed)
        for name, value in wanted.items():
            other = got[name]
            if value.shape != other.shape:
                raise NotRollableError(
                    f"output '{name}' is of shape {other.shape}, not {value.shape}"
                )
            if value.dtype.kind != "f" or not value.size:
                if not np.array_equal(value, other):
                    raise NotRollableError(f"output '{name}' differs")
                continue
            top = max(1.0, float(np.abs(value[np.isfinite(value)]).max(initial=0)))
            error = float(np.nanmax(np.abs(value.astype(np.float64) - other), initial=0)) / top
            same = np.array_equal(np.isnan(value), np.isnan(other))
            if not same or not error <= (_WHOLE if value.dtype.itemsize > 2 else 1e-2):
                raise NotRollableError(f"output '{name}' deviates by {error:.1e}")
            worst = max(worst, error)
    return worst
