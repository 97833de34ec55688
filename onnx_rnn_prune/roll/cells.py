"""The three operators as templates over normal forms.

A template gives the new state as a sum of products of atoms; solving it yields the contents of the
atoms. Gate order, transposition and shared biases need no treatment, since a form has none of
these: each gate is an activation of a sum of matrix products over leaves.

LSTM: `h' = O act(C)`, `C = F c + I G`; with coupled gates `I = 1 - F` or `F = 1 - I`.
GRU: `h' = z h + n - z n`, or with the other meaning of z `h' = h - z h + z n`.
RNN: `h' = act(sum)`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import permutations

import numpy as np

from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.roll.form import (
    WHOLE,
    Activation,
    Atom,
    Form,
    Leaf,
    Matrix,
    Product,
    digest,
)
from onnx_rnn_prune.roll.rules import CLIPPED

# The activations of onnxruntime's recurrent operators, by their names here.
_SAME = "Elu LeakyRelu Relu Sigmoid Softplus Softsign Tanh ThresholdedRelu"
_KNOWN = {name: name for name in _SAME.split()} | {CLIPPED: "HardSigmoid"}
Key = tuple[object, ...]
# Activations with 1 - f(x) = f(c - x), and the constant c.
_MIRRORED = {"Sigmoid": 0.0, CLIPPED: 1.0}


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a cell, solved.

    Attributes:
        op: LSTM, GRU or RNN.
        gates: the argument of each gate's activation, over leaves, in the operator's order.
        activations: of the gates and the state, in the operator's order, with alpha and beta.
        state: the leaf that is h; None if the template cannot tell it from an input.
        cell: the leaf that is c, for an LSTM.
        next_cell: the form of the new c, for an LSTM.
        hidden: the product with R, if a GRU's reset gate multiplies that rather than h.
        peepholes: of an LSTM's gates i, o and f: [3, H].
    """

    op: str
    gates: tuple[Form, ...]
    activations: tuple[Activation, ...]
    state: Leaf | None = None
    cell: Leaf | None = None
    next_cell: Form | None = None
    hidden: Form | None = None
    peepholes: Array | None = None

    @property
    def units(self) -> int:
        """H."""
        return self.gates[0].size

    @cached_property
    def sources(self) -> dict[tuple[object, ...], Leaf]:
        """All leaves that gates sum, by key."""
        forms = [*self.gates, *([self.hidden] if self.hidden else [])]
        atoms = [atom for form in forms for atom, _ in form.terms.values()]
        return {atom.key: atom for atom in atoms if isinstance(atom, Leaf)}

    def weight(self, key: tuple[object, ...]) -> Array:
        """The gates' weights for a leaf, stacked: [G H, n]."""
        blocks = [form.terms[key][1].full.T if key in form.terms else None for form in self.gates]
        if self.hidden is not None and key in self.hidden.terms:
            blocks[2] = self.hidden.terms[key][1].full.T
        size = self.sources[key].size
        zero = np.zeros((self.units, size))
        return np.concatenate([zero if block is None else block for block in blocks])

    @cached_property
    def block_keys(self) -> dict[tuple[object, ...], bytes]:
        """For each leaf, a digest of its weight."""
        found = {}
        for key in self.sources:
            parts = [form.terms[key][1].key if key in form.terms else b"" for form in self.gates]
            if self.hidden is not None and key in self.hidden.terms:
                parts[2] = self.hidden.terms[key][1].key
            found[key] = repr(parts).encode()
        return found

    @cached_property
    def bias(self) -> Array:
        """B of the operator: [2 G H]."""
        own = np.concatenate([form.bias for form in self.gates])
        recurrent = np.zeros_like(own)
        if self.hidden is not None:
            recurrent[2 * self.units :] = self.hidden.bias
        return np.concatenate([own, recurrent])

    @cached_property
    def signature(self) -> tuple[object, ...]:
        """Equal for steps of the same cell."""
        acts = tuple((act.op, act.attributes) for act in self.activations)
        peeps = b"" if self.peepholes is None else digest(self.peepholes)
        after = self.hidden is not None
        return (self.op, acts, after, digest(self.bias), peeps, *sorted(self.block_keys.values()))

    def attributes(self) -> dict[str, object]:
        """The operator's attributes."""
        found: dict[str, object] = {"hidden_size": self.units}
        found["activations"] = [_KNOWN[act.op] for act in self.activations]
        named = [dict(act.attributes) for act in self.activations]
        clipped = [act.op == CLIPPED for act in self.activations]
        # HardSigmoid with alpha 1 and beta 0 is a clip to 0..1.
        alphas = [
            1.0 if clip else each["alpha"]
            for each, clip in zip(named, clipped, strict=True)
            if clip or "alpha" in each
        ]
        betas = [0.0 for clip in clipped if clip]
        found |= {"activation_alpha": alphas} if alphas else {}
        found |= {"activation_beta": betas} if betas else {}
        if self.op == "GRU":
            found["linear_before_reset"] = int(self.hidden is not None)
        return found


def solve(form: Form) -> Step | None:
    """The LSTM or GRU step whose new state h is this form, if any."""
    return _lstm(form) or _gru(form)


def solve_rnn(form: Form) -> Step | None:
    """The step without gates whose new state is this form, if any.

    Any dense layer has this form, so recognizing a recurrence takes more than that.
    """
    act = _activation(form.atom())
    if act is None:
        return None
    argument = _over_leaves(act.argument)
    return None if argument is None else Step("RNN", (argument,), (act,))


def _activation(atom: Atom | None) -> Activation | None:
    return atom if isinstance(atom, Activation) and atom.op in _KNOWN else None


def _over_leaves(form: Form) -> Form | None:
    """A form over leaves: other atoms are replaced by the tensors that hold their values."""
    result = Form.constant(form.bias)
    for atom, matrix in form.terms.values():
        leaf = atom if isinstance(atom, Leaf) else atom.origin
        if leaf is None:
            return None
        result = result.plus(Form({leaf.key: (leaf, matrix)}, np.zeros(form.size)))
    return result


def _alike(one: Activation, *others: Activation) -> bool:
    return all((one.op, one.attributes) == (other.op, other.attributes) for other in others)


def _pairs(atom: Atom) -> Iterator[tuple[Atom, Atom]]:
    """The two factors of a product, in both orders."""
    if isinstance(atom, Product) and len(atom.factors) == 2:
        yield atom.factors[0], atom.factors[1]
        yield atom.factors[1], atom.factors[0]


def _scales(form: Form) -> list[tuple[Atom, float]] | None:
    """The atoms of a form and their scalar factors; None if the form is not such a sum."""
    found = []
    for atom, matrix in form.terms.values():
        if not matrix.diagonal or not np.all(matrix.values == matrix.values[0]):
            return None
        found.append((atom, float(matrix.values[0])))
    return None if form.bias.any() else found


def _mirrored(form: Form, act: Activation) -> Form | None:
    """The argument x' with f(x') = 1 - f(x), if there is one."""
    if act.op not in _MIRRORED:
        return None
    one = Form.constant(np.full(form.size, _MIRRORED[act.op]))
    return one.plus(form, -1.0)


def _lstm(form: Form) -> Step | None:
    for first, second in _pairs(form.atom() or Leaf("", np.zeros((1, 1), np.int64))):
        out, squashed = _activation(first), _activation(second)
        if out is None or squashed is None:
            continue
        state = squashed.argument
        for cell, forget, enter, new in _cell_updates(state):
            step = _lstm_step(out, squashed, state, cell, (forget, enter, new))
            if step is not None:
                return step
    return None


Gate = Activation | tuple[Activation]
Update = tuple[Leaf, Gate, Gate, Activation]


def _cell_updates(state: Form) -> Iterator[Update]:
    """The readings of a form as a new c: the old c, F, I and G.

    A gate in a tuple stands for 1 minus it.
    """
    parts = _scales(state)
    if parts is None or len(parts) not in (2, 3):
        return
    for ordered in permutations(parts):
        (first, a), (second, b), *rest = ordered
        third, c = rest[0] if rest else (None, 0.0)
        for one, other in _pairs(second):
            gate = _activation(one)
            if third is None and (a, b) == (1, 1):  # F c + I G
                yield from _plain(first, gate, other)
            elif third is not None and gate is not None and (a, b, c) == (1, -1, 1):
                # F c - F G + G, or c - I c + I G
                yield from _coupled(first, gate, other, third)


def _plain(first: Atom, gate: Activation | None, other: Atom) -> Iterator[Update]:
    new = _activation(other)
    for forget, cell in _pairs(first):
        kept = _activation(forget)
        if kept is not None and isinstance(cell, Leaf) and gate is not None and new is not None:
            yield cell, kept, gate, new


def _coupled(first: Atom, gate: Activation, other: Atom, third: Atom) -> Iterator[Update]:
    new = _activation(third)
    for forget, cell in _pairs(first):
        same = forget.key == gate.key and new is not None and new.key == other.key
        if same and new is not None and isinstance(cell, Leaf):
            yield cell, gate, (gate,), new
    if isinstance(first, Leaf) and other.key == first.key:
        for enter, candidate in _pairs(third):
            new = _activation(candidate)
            if enter.key == gate.key and new is not None:
                yield first, (gate,), gate, new


def _lstm_step(
    out: Activation,
    squashed: Activation,
    state: Form,
    cell: Leaf,
    gates: tuple[Gate, Gate, Activation],
) -> Step | None:
    forget, enter, new = gates
    plain = [gate if isinstance(gate, Activation) else gate[0] for gate in (forget, enter)]
    if not _alike(out, *plain):
        return None
    arguments = []
    for gate, act in zip((enter, forget), plain[::-1], strict=True):
        form: Form | None = act.argument
        if form is not None and not isinstance(gate, Activation):
            form = _mirrored(form, act)
        arguments.append(form)
    taken = [_peephole(form, Form.of(cell)) for form in arguments]
    last = _peephole(out.argument, state)
    candidate = _over_leaves(new.argument)
    (enters, p_i), (keeps, p_f), (puts, p_o) = *taken, last
    if enters is None or keeps is None or puts is None or candidate is None:
        return None
    peepholes = np.stack([p_i, p_o, p_f])
    return Step(
        "LSTM",
        (enters, puts, keeps, candidate),
        (out, new, squashed),
        cell=cell,
        next_cell=state,
        peepholes=peepholes if peepholes.any() else None,
    )


def _peephole(form: Form | None, seen: Form) -> tuple[Form | None, Array]:
    """A gate's argument without its peephole on c, and the peephole weights."""
    if form is None:
        return None, np.zeros(0)
    scale = np.zeros(form.size)
    for key, (_, matrix) in seen.terms.items():
        if key in form.terms and form.terms[key][1].diagonal:
            scale = form.terms[key][1].values / matrix.values
            break
    rest = form.plus(seen.scaled(scale), -1.0) if scale.any() else form
    return _over_leaves(rest), scale


def _gru(form: Form) -> Step | None:
    parts = _scales(form)
    if parts is None or len(parts) != 3:
        return None
    for (first, a), (second, b), (third, c) in permutations(parts):
        if (a, b, c) != (1, -1, 1):
            continue
        for left, right in _pairs(second):
            gate = _activation(left)
            if gate is None:
                continue
            new = _activation(third)
            if new is not None and new.key == right.key:  # z h - z n + n
                for z, state in _pairs(first):
                    if z.key == gate.key and isinstance(state, Leaf):
                        return _gru_step(gate, gate.argument, state, new)
            if isinstance(first, Leaf) and first.key == right.key:  # h - z h + z n
                for z, candidate in _pairs(third):
                    new = _activation(candidate)
                    turned = _mirrored(gate.argument, gate)
                    if z.key == gate.key and new is not None and turned is not None:
                        return _gru_step(gate, turned, first, new)
    return None


def _gru_step(gate: Activation, update: Form, state: Leaf, new: Activation) -> Step | None:
    """Solves the candidate's argument, in which the reset gate multiplies R h, or h."""
    linear: dict[tuple[object, ...], tuple[Atom, Matrix]] = {}
    products = []
    for key, (atom, matrix) in new.argument.terms.items():
        if isinstance(atom, Product) and any(
            isinstance(f, Activation) and f.op != WHOLE for f in atom.factors
        ):
            products.append((atom, matrix))
        else:
            linear[key] = (atom, matrix)
    candidate = _over_leaves(Form(linear, new.argument.bias))
    update_form = _over_leaves(update)
    if len(products) != 1 or candidate is None or update_form is None or state.key in linear:
        return None
    atom, matrix = products[0]
    for first, second in _pairs(atom):
        reset = _activation(first)
        resets = None if reset is None else _over_leaves(reset.argument)
        if reset is None or resets is None or not _alike(gate, reset):
            continue
        acts = (gate, new)
        if second.key == state.key:
            own = Form({state.key: (state, matrix)}, np.zeros(candidate.size))
            gates = (update_form, resets, candidate.plus(own))
            return Step("GRU", gates, acts, state=state)
        hides = second if isinstance(second, Activation) and second.op == WHOLE else None
        if hides and matrix.diagonal and set(hides.argument.terms) == {state.key}:
            hidden = hides.argument.scaled(matrix.values)
            gates = (update_form, resets, candidate)
            return Step("GRU", gates, acts, state=state, hidden=hidden)
    return None


def outputs(step: Step, entering: Form | None = None) -> tuple[Form, ...]:
    """The new h, and for an LSTM the new c, by the equations of the specification.

    Args:
        step: the step; states that it does not name are 0.
        entering: replaces the first gate, the share of the candidate that enters an LSTM, or stays
            out of a GRU.
    """
    zero = Form.constant(np.zeros(step.units))

    def act(number: int, form: Form) -> Form:
        function = step.activations[number]
        return Form.of(Activation(function.op, function.attributes, form))

    if step.op == "RNN":
        return (act(0, step.gates[0]),)
    if step.op == "GRU":
        state = zero if step.state is None else Form.of(step.state)
        z, r = entering or act(0, step.gates[0]), act(0, step.gates[1])
        candidate = step.gates[2]
        if step.hidden is not None:
            candidate = candidate.plus(r.times(step.hidden))
        elif step.state is not None:
            terms = dict(candidate.terms)
            _, matrix = terms.pop(step.state.key)
            candidate = Form(terms, candidate.bias).plus(r.times(state).then(matrix))
        new = act(1, candidate)
        return (z.times(state).plus(new).plus(z.times(new), -1.0),)
    cell = zero if step.cell is None else Form.of(step.cell)
    i, o, f, g = step.gates
    p_i, p_o, p_f = np.zeros((3, step.units)) if step.peepholes is None else step.peepholes
    enter = entering or act(0, i.plus(cell.scaled(p_i)))
    next_cell = act(0, f.plus(cell.scaled(p_f))).times(cell).plus(enter.times(act(1, g)))
    return act(0, o.plus(next_cell.scaled(p_o))).times(act(2, next_cell)), next_cell


def from_zero(step: Step, inputs: Mapping[Key, Leaf]) -> tuple[Step, list[tuple[Form, ...]]]:
    """A step from zero states, with other inputs.

    Args:
        step: a step of the same cell.
        inputs: the replacement for each leaf that is not a state, by key.

    Returns:
        The step, and the possible forms of h, each with that of c in an LSTM: one more if 1 minus
            the first gate is itself a gate.
    """

    def moved(form: Form) -> Form:
        terms = {
            inputs[key].key: (inputs[key], form.terms[key][1]) for key in inputs.keys() & form.terms
        }
        return Form(terms, form.bias)

    gates = tuple(map(moved, step.gates))
    hidden = None if step.hidden is None else moved(step.hidden)
    first = replace(step, gates=gates, hidden=hidden, state=None, cell=None, next_cell=None)
    function = step.activations[0]
    turned = None if step.op == "RNN" else _mirrored(gates[0], function)
    if turned is None:
        return first, [outputs(first)]
    other = Form.of(Activation(function.op, function.attributes, turned))
    entering = Form.constant(np.ones(step.units)).plus(other, -1.0)
    return first, [outputs(first), outputs(first, entering)]
