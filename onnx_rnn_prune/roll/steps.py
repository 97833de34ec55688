"""Finds steps of cells, and how they follow one another.

Nodes are read in order. If the form of a tensor is the new state of a cell, the tensor becomes a
leaf from there on, and so does the new c of an LSTM: the next step is read as a function of these.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.constants import constant_value
from onnx_rnn_prune.model.walk import bodies_of, tensors_of
from onnx_rnn_prune.roll.cells import Key, Step, from_zero, solve, solve_rnn
from onnx_rnn_prune.roll.form import Activation, Atom, Form, Leaf, OpaqueError, Product, digest
from onnx_rnn_prune.roll.reading import Reader
from onnx_rnn_prune.roll.values import MOVES, Value, fresh

PRODUCTS = ("MatMul", "Gemm")
# More inputs than any first step has.
_MOST_INPUTS = 3


class NotRollableError(Exception):
    """Raised, with the reason, if steps have to stay as they are."""


@dataclass(frozen=True, eq=False)
class Found:
    """A step found in a graph.

    Attributes:
        step: what it computes.
        output: the new h, as the entries of the tensor that holds it.
        cell_output: the new c, for an LSTM.
        mask: the boolean that says whether it counts; if not, the states stay as before.
        plain: if there is a mask, h and c where the step counts.
        kept: if there is a mask, h before the step.
        gated: tensors that are h where the step counts, each with its value elsewhere: such a
            tensor of the previous step, or None for zero.
    """

    step: Step
    output: Leaf
    cell_output: Leaf | None = None
    mask: Leaf | None = None
    plain: tuple[Leaf, ...] = ()
    kept: Leaf | None = None
    gated: tuple[tuple[Leaf, Leaf | None], ...] = ()

    @property
    def unmasked(self) -> Found:
        """The same step without its mask."""
        return Found(self.step, self.plain[0], (*self.plain, None)[1]) if self.plain else self

    @property
    def outputs(self) -> tuple[Leaf, ...]:
        """All of its outputs, h first."""
        ends = self.output, self.cell_output, *self.plain, *(leaf for leaf, _ in self.gated)
        return tuple(leaf for leaf in ends if leaf is not None)


@dataclass(frozen=True, eq=False)
class Chain:
    """Consecutive steps of one cell.

    Attributes:
        steps: in order; for a loop, those of the iterations that were read.
        states: for each step, the leaf that is its h; None for the first if it starts at 0.
        initial_h: h before the first step.
        initial_c: c before it.
    """

    steps: tuple[Found, ...]
    states: tuple[Leaf | None, ...]
    initial_h: Leaf | None
    initial_c: Leaf | None

    @property
    def step(self) -> Step:
        """A step with all terms: the last one."""
        return self.steps[-1].step

    def inputs(self) -> list[tuple[Leaf, ...]]:
        """The leaves multiplied by the same weights, one per step, for each input."""
        blocks: dict[bytes, list[Leaf]] = {}
        for found, state in zip(self.steps, self.states, strict=True):
            for key, leaf in found.step.sources.items():
                if state is None or key != state.key:
                    blocks.setdefault(found.step.block_keys[key], []).append(leaf)
        return [tuple(blocks[block]) for block in sorted(blocks)]


def read_cells(reader: Reader, nodes: Iterable[gs.Node], states: frozenset[str]) -> list[Found]:
    """Reads nodes and finds the steps of cells among them.

    Args:
        reader: knows the nodes' inputs.
        nodes: in order.
        states: only these may be states of cells without gates: tensors multiplied by weights that
            another product shares, or loop-carried ones.
    """
    found: list[Found] = []
    plain: dict[Key, Step] = {}
    named: dict[bytes, list[str]] = {}
    makers: dict[str, gs.Node] = {}
    read, heads, waiting = dict[int, int](), set[int](), deque(nodes)
    while waiting:
        node = waiting.popleft()
        reader.read(node)
        read.setdefault(id(node), len(read))
        makers |= {tensor.name: node for tensor in node.outputs}
        forms = _forms(reader, node)
        for form, names in forms.values():
            named.setdefault(form.key, []).extend(names)
        for form, names in forms.values():
            is_state = not states.isdisjoint(names)
            step = _solved(form, is_state, plain) if _form(reader, names[0]) is form else None
            if step is not None:
                output = _cut(reader, names)
                cell = step.next_cell
                known = named.get(cell.key, []) if cell is not None else []
                found.append(Found(step, output, _cut(reader, known) if known else None))
                heads.add(id(node))
                again = _behind([makers[name] for name in known], read, heads)
                waiting.extendleft(again[::-1])
                if step.op == "RNN":
                    plain[output.key] = step
            elif form.masks() and not _is_summand(node):
                held = _hold(reader, found, form, names)
                if held is not None and held.step.op == "RNN":
                    plain[held.output.key] = held.step
                elif held is None and any(isinstance(a, Product) for a, _ in form.terms.values()):
                    reader.known |= {name: reader.leaf(name) for name in names}  # not a state
            elif is_state and not reader.turning and _may_be_first(form):
                for inner in [each for each in _within(form) if each.key in named]:
                    reader.firsts[_cut(reader, named[inner.key]).key] = inner
                reader.firsts[_cut(reader, names).key] = form
    return [item for item in found if item.step.op != "LSTM" or item.cell_output is not None]


def _behind(
    makers: Iterable[gs.Node], read: Mapping[int, int], heads: Container[int]
) -> list[gs.Node]:
    """The nodes after c that were read before h revealed that it is a cell state.

    Args:
        makers: the nodes that output c.
        read: the positions of nodes that were read.
        heads: nodes that output an h; nodes after them are not read again.
    """
    found: dict[int, gs.Node] = {}
    waiting = list(makers)
    while waiting:
        readers = [reader for tensor in waiting.pop().outputs for reader in tensor.outputs]
        new = {id(n): n for n in readers if id(n) in read and id(n) not in heads}
        waiting += [n for number, n in new.items() if number not in found]
        found |= new
    return sorted(found.values(), key=lambda node: read[id(node)])


def _hold(reader: Reader, found: list[Found], form: Form, names: Sequence[str]) -> Found | None:
    """Records the output of a masked step, if a form is one."""
    masks = form.masks()
    new, rest = form.at(masks[0], 1).atom(), form.at(masks[0], 0)
    old = rest.atom()
    if isinstance(new, Activation) and new.origin is not None and len(masks) == 1:
        step = _solved(Form.of(new), True, {})  # a state without gates
        if step is not None:
            new = _cut(reader, [new.origin.tensor])
            found.append(Found(step, new))
    if (
        len(masks) > 1
        or not isinstance(new, Leaf)
        or (old is None and (rest.terms or rest.bias.any()))
    ):
        return None
    for place, item in enumerate(found):
        h, c = (*item.plain, None, None)[:2] if item.plain else (item.output, item.cell_output)
        if h is None or (item.mask is not None and item.mask.key != masks[0].key):
            continue
        plain, before = (h,) if c is None else (h, c), item.step.cell
        first = new.key == h.key and item.kept is None
        if first and isinstance(old, Leaf) and old.key in item.step.sources:
            found[place] = replace(item, output=_cut(reader, names), plain=plain, kept=old)
        elif new.key == h.key and (old is None or isinstance(old, Leaf)):
            gated = (_cut(reader, names), old)
            found[place] = replace(item, plain=plain, gated=(*item.gated, gated))
        elif c and old and before and (new.key, old.key) == (c.key, before.key):
            found[place] = replace(item, cell_output=_cut(reader, names), plain=plain)
        else:
            continue
        found[place] = replace(found[place], mask=masks[0])
        return found[place]
    return None


def _is_summand(node: gs.Node) -> bool:
    """Whether a node is one half of a blend of two values."""
    return node.op == "Mul" and all(reader.op == "Add" for reader in node.outputs[0].outputs)


def _form(reader: Reader, name: str) -> Form | None:
    value = reader.known.get(name)
    return value.form if isinstance(value, Value) else None


def _forms(reader: Reader, node: gs.Node) -> dict[bytes, tuple[Form, list[str]]]:
    """The forms of a node's outputs with their names: an operator outputs its last h twice."""
    found: dict[bytes, tuple[Form, list[str]]] = {}
    for tensor in node.outputs if node.op not in MOVES else ():
        form = _form(reader, tensor.name)
        if form is not None:
            found.setdefault(form.key, (form, []))[1].append(tensor.name)
    return found


def _solved(form: Form, is_state: bool, before: Mapping[Key, Step]) -> Step | None:
    try:
        step = solve(form)
        if step is None and (is_state or before):
            step = solve_rnn(form)
            if step is not None and not is_state and not _goes_on(step, before):
                return None
    except OpaqueError:
        return None
    return step


def _goes_on(step: Step, before: Mapping[Key, Step]) -> bool:
    """Whether a dense layer is a further step of a cell, and so its last."""
    return any(
        key in before and _joins(before[key], step, leaf) for key, leaf in step.sources.items()
    )


def _may_be_first(form: Form) -> bool:
    """Whether a form may be h of a first step, from which zero states were folded away."""
    parts = [
        factor
        for atom, _ in form.terms.values()
        for factor in (atom.factors if isinstance(atom, Product) else (atom,))
    ]
    return bool(parts) and all(isinstance(part, Activation) and part.op for part in parts)


def _within(form: Form) -> list[Form]:
    """The form of c, if a form may be h of a first step that has no c yet."""
    atom = form.atom()
    factors: tuple[Atom, ...] = atom.factors if isinstance(atom, Product) else ()
    acts = [factor for factor in factors if isinstance(factor, Activation) and factor.op]
    return [act.argument for act in acts if len(act.argument.terms) <= 2]  # I G, or G - F G


def _cut(reader: Reader, names: Sequence[str]) -> Leaf:
    """Turns tensors with the same form into leaves, all of them entries of the first one."""
    values = [reader.known[name] for name in names]
    first = values[0]
    assert isinstance(first, Value) and first.form is not None
    leaf = fresh(names[0], first.shape).along(first.axes()[0]).atom()
    assert isinstance(leaf, Leaf)
    for name, value in zip(names, values, strict=True):
        if isinstance(value, Value):
            reader.known[name] = replace(value, form=Form.of(leaf))
    return leaf


def shared_operands(nodes: Sequence[gs.Node]) -> frozenset[str]:
    """Tensors that are multiplied by weights that another product shares."""
    products: dict[bytes, list[gs.Tensor]] = {}
    known: dict[int, bytes | None] = {}
    for node in nodes:
        if node.op in PRODUCTS and not node.domain:
            for slot in (0, 1):
                weight = node.inputs[slot]
                if id(weight) not in known:
                    value = constant_value(weight)
                    known[id(weight)] = None if value is None else digest(value)
                key = known[id(weight)]
                if key is not None:
                    products.setdefault(key, []).append(node.inputs[1 - slot])
    return moved_from(tensor for group in products.values() if len(group) > 1 for tensor in group)


def moved_from(tensors: Iterable[gs.Tensor]) -> frozenset[str]:
    """Some computed tensors, and those that they are moved from."""
    found: set[str] = set()
    waiting = list(tensors)
    for tensor in waiting:
        if tensor.name in found or not tensor.inputs:
            continue
        found.add(tensor.name)
        node = tensor.inputs[0]
        if node.op in MOVES or node.op in ("Cast", "Concat"):
            waiting += [item for item in node.inputs if isinstance(item, gs.Variable)]
    return frozenset(found)


def chains(found: Sequence[Found], firsts: Mapping[Key, Form]) -> list[Chain]:
    """Chains of consecutive steps, in the order of their first steps.

    Args:
        found: the steps.
        firsts: the forms of leaves that may be states after a first step.
    """
    holders = {item.output.key: item for item in found}
    runs: list[list[tuple[Found, Leaf | None]]] = []
    ends: dict[int, list[tuple[Found, Leaf | None]]] = {}
    for item in found:
        state = _state_before(item, holders)
        before = holders.get(state.key) if state is not None else None
        run = ends.pop(id(before), None) if before is not None else None
        if run is not None and before is not None and not _joins(before.step, item.step, state):
            ends[id(before)] = run
            run = None
        if run is None:
            run = []
            runs.append(run)
        run.append((item, state))
        ends[id(item)] = run
    made = (_chain(run) for run in runs)
    return [_with_first(chain, firsts) for chain in made if chain is not None]


def _state_before(item: Found, holders: dict[Key, Found]) -> Leaf | None:
    """The leaf that is h of a step, if the step alone tells."""
    if item.step.state is not None:
        return item.step.state
    cell = item.step.cell
    for key, leaf in item.step.sources.items():
        before = holders.get(key)
        if before is None or before.step.op != item.step.op or before.step.units != leaf.size:
            continue
        if cell is None or (before.cell_output and before.cell_output.key == cell.key):
            return leaf
    return None


def _joins(before: Step, step: Step, state: Leaf | None) -> bool:
    """Whether a step continues the cell of another, which may have started at 0."""
    return before.signature == step.signature or _starts_at_zero(before, step, state)


def _starts_at_zero(first: Step, second: Step, state: Leaf | None) -> bool:
    if state is None or first.op != "RNN" or first.activations[0].op != second.activations[0].op:
        return False
    blocks = sorted(block for key, block in second.block_keys.items() if key != state.key)
    same = np.array_equal(first.bias, second.bias)
    return same and sorted(first.block_keys.values()) == blocks


def _chain(run: Sequence[tuple[Found, Leaf | None]]) -> Chain | None:
    """The chain of consecutive steps; None if its state is unclear."""
    steps, states = [item for item, _ in run], [state for _, state in run]
    last = states[-1]
    if len(run) == 1:
        first = steps[0]
        last = last or _likely_state(first.step)
        states = [last]
    if last is None:
        return None
    if states[0] is None:
        block = steps[-1].step.block_keys[last.key]
        own = [key for key, its in steps[0].step.block_keys.items() if its == block]
        if len(own) == 1:
            states[0] = steps[0].step.sources[own[0]]
        elif own or not _starts_at_zero(steps[0].step, steps[1].step, states[1]):
            return None
    return Chain(tuple(steps), tuple(states), states[0], steps[0].step.cell)


def _with_first(chain: Chain, firsts: Mapping[Key, Form]) -> Chain:
    """The chain with the step before it, from which zero states were folded away."""
    starts = [leaf for leaf in (chain.initial_h, chain.initial_c) if leaf is not None]
    forms = [firsts.get(leaf.key) for leaf in starts]
    if not forms or None in forms:
        return chain
    step, state = chain.steps[0].step, chain.states[0]
    inputs = [key for key in step.sources if state is None or key != state.key]
    wanted = [form.key for form in forms if form]
    leaves = list(_leaves(atom for atom, _ in forms[0].terms.values()).values()) if forms[0] else []
    # A product with a zero state may be written out.
    for keys in (inputs, [*inputs, *([state.key] if state else [])]):
        for chosen in permutations(leaves, len(keys)) if len(leaves) <= _MOST_INPUTS else ():
            if [leaf.size for leaf in chosen] == [step.sources[key].size for key in keys]:
                first, ways = from_zero(step, dict(zip(keys, chosen, strict=True)))
                if wanted in ([form.key for form in way] for way in ways):
                    before = chosen[-1] if len(keys) > len(inputs) else None
                    steps = (Found(first, starts[0], (*starts, None)[1]), *chain.steps)
                    return Chain(steps, (before, *chain.states), before, None)
    return chain


def _leaves(atoms: Iterable[Atom]) -> dict[Key, Leaf]:
    """All leaves in some atoms."""
    found: dict[Key, Leaf] = {}
    for atom in atoms:
        if isinstance(atom, Leaf):
            found[atom.key] = atom
        elif isinstance(atom, Product):
            found |= _leaves(atom.factors)
        else:
            found |= _leaves(atom for atom, _ in atom.argument.terms.values())
    return found


def _likely_state(step: Step) -> Leaf | None:
    """The leaf that is h in a single step: of those of that width, the one concatenated with c."""
    fitting = [leaf for leaf in step.sources.values() if leaf.size == step.units]
    for leaf in fitting:
        if step.cell is not None and leaf.tensor == step.cell.tensor:
            return leaf
    return fitting[0] if len(fitting) == 1 and step.op != "RNN" else None


def downstream(nodes: Iterable[gs.Node], names: Iterable[str]) -> set[str]:
    """Some tensors and all that depend on them."""
    found = set(names)
    for node in nodes:
        if any(name in found for name in reads(node)):
            found.update(tensor.name for tensor in node.outputs if tensor.name)
    return found


def reads(node: gs.Node) -> set[str]:
    """The names of the tensors that a node and its bodies read."""
    names = {tensor.name for tensor in node.inputs if tensor.name}
    for body in bodies_of(node).values():
        names |= {tensor.name for tensor in tensors_of(body)}
    return names
