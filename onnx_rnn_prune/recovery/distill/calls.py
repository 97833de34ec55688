"""Calls in a row: each goes on from the states that the cut model itself left in the one before.

Gradients flow through the states that calls of one window pass on; those that a window starts from
are numbers (truncated back-propagation through time, Werbos 1990). Where calls pass on nothing but
states of recurrent layers, all calls of a layer are one run over more steps, and everything else is
computed for all of them at once: of a window of 256 calls of a denoiser, that takes a tenth of the
time. Otherwise a window is computed call by call.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from onnx_rnn_prune.operators.recurrent import CELLS
from onnx_rnn_prune.recovery.distill.network import Network, Operation, Tensors

# So many calls of a window are computed one after the other.
_IN_TURN = 64
# Steps of a window whose calls are computed at once, and windows abreast. Gradients have to reach
# far back: windows of 200 calls took DTLN's masks to 14.1 % from the original's in 10,000 batches,
# whole streams of 625 to 12.6 % in 8,000.
_AT_ONCE, _ABREAST = 1024, 6


@dataclass(frozen=True, eq=False)
class Calls:
    """A network that is called in a row.

    Attributes:
        network: one call.
        states: the inputs that it reads in which calls go on, each with the output that they left.
        count: the calls of a window.
        rows: how many windows are computed abreast.
        joined: how all calls are computed at once; None where they are computed in turn.
    """

    network: Network
    states: Mapping[str, str]
    count: int
    rows: int
    joined: Joined | None = None

    @staticmethod
    def of(
        network: Network, states: Mapping[str, str], wanted: Sequence[str], call: Tensors
    ) -> Calls:
        """The way to compute a network's calls.

        Args:
            network: of one call.
            states: inputs in which calls go on, each with the output that the call before left;
                those that the network does not read or leave are given in each call.
            wanted: what is asked for besides the states.
            call: what a call is given.
        """
        made = {name for step in network.steps for name in step.outputs}
        own = {name: output for name, output in states.items() if name in call and output in made}
        joined = join(network, own, wanted)
        if joined is None or not joined.passes_on(call):
            return Calls(network, own, _IN_TURN, 1)
        count = max(1, _AT_ONCE // joined.length(call))
        return Calls(network, own, count, _ABREAST, joined)

    @property
    def constants(self) -> Tensors:
        """Of the network."""
        return self.network.constants

    def may_learn(self, weight: str) -> bool:
        """Whether gradients tell what a weight does in every call.

        Where all calls are computed at once, states are only brought into a window and out of it: a
        weight that they meet there would learn what suits its first call.
        """
        if self.joined is None:
            return True
        between = (*self.joined.first, *self.joined.last)
        return not any(weight in step.inputs for step in between)

    def __call__(
        self, given: Tensors, weights: Tensors, wanted: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """What some calls compute, and the states that the last one leaves.

        Args:
            given: what calls are given, [calls, rows, ...], and the first states, [rows, ...].
            weights: in place of constants of the same names.
            wanted: names of tensors.

        Returns:
            The wanted tensors, [calls, rows, ...], and the states that are left, [rows, ...], by
            the names of their inputs.
        """
        if self.joined is not None:
            return self.joined(given, weights, wanted)
        count = next(v.shape[1] for name, v in given.items() if name not in self.states)
        rows = [self._row(row, given, weights, wanted) for row in range(count)]
        found = {name: torch.stack([row[name] for row in rows], 1) for name in wanted}
        return {**found, **{name: torch.stack([row[name] for row in rows]) for name in self.states}}

    def _row(
        self, row: int, given: Tensors, weights: Tensors, wanted: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """One row, call by call."""
        state = {name: given[name][row] for name in self.states}
        series = {name: value[:, row] for name, value in given.items() if name not in self.states}
        found: list[dict[str, torch.Tensor]] = []
        names = [*wanted, *self.states.values()]
        for call in range(len(next(iter(series.values())))):
            inputs = {name: value[call] for name, value in series.items()}
            found.append(self.network({**inputs, **state}, weights, names))
            state = {name: found[-1][output] for name, output in self.states.items()}
        return {**{name: torch.stack([call[name] for call in found]) for name in wanted}, **state}


_SLOTS = {cell.op: cell.inputs for cell in CELLS}
_STARTS = {"initial_h": 1, "initial_c": 2}  # with the output that goes on in it
_ROUNDING = 1e-5


@dataclass(frozen=True, eq=False)
class Joined:
    """All calls of a network at once.

    Attributes:
        first: steps that compute what layers start from out of the states, in the first call.
        steps: those that lead to what is asked for.
        layers: places of those of the steps that go on from call to call.
        last: steps that compute the states that the last call leaves.
        alike: names of what is the same in all calls: constants and what is made of them.
        states: the inputs in which calls go on, each with the output that they left.
        network: of one call.
    """

    first: tuple[Operation, ...]
    steps: tuple[Operation, ...]
    layers: frozenset[int]
    last: tuple[Operation, ...]
    alike: frozenset[str]
    states: Mapping[str, str]
    network: Network

    def __call__(
        self, given: Tensors, weights: Tensors, wanted: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """See `Calls`."""
        constants = {**self.network.constants, **weights}
        start = {**constants, **{name: given[name] for name in self.states}}
        for step in self.first:
            self._each(step, start)
        series = {name: value for name, value in given.items() if name not in self.states}
        calls, rows = next(iter(series.values())).shape[:2]
        values = {**constants, **{name: value.flatten(0, 1) for name, value in series.items()}}
        finals: dict[str, torch.Tensor] = {}
        for place, step in enumerate(self.steps):
            if place in self.layers:
                finals.update(_run_on(step, values, start, calls))
            elif step.op in _SLOTS:
                _run_anew(step, values)
            else:
                self._each(step, values)
        made = {name for step in self.steps for name in step.outputs} | series.keys()
        parted = {
            n: v.unflatten(0, (calls, rows)) for n, v in values.items() if n in made - self.alike
        }
        end = {**start, **values, **{name: value[-1] for name, value in parted.items()}, **finals}
        for step in self.last:
            self._each(step, end)
        left = {name: end[output] for name, output in self.states.items()}
        return {**{name: parted[name] for name in wanted}, **left}

    def passes_on(self, call: Tensors) -> bool:
        """Whether layers start from just what they left, seen on one call."""
        start = {**self.network.constants, **{name: call[name][None] for name in self.states}}
        names = [name for place in self.layers for name in self.steps[place].outputs if name]
        left = self.network(call, {}, [*names, *self.states.values()])
        start.update({name: left[output][None] for name, output in self.states.items()})
        for step in self.first:
            self._each(step, start)
        return all(
            torch.allclose(start[source][0], left[result], rtol=_ROUNDING, atol=_ROUNDING)
            for place in self.layers
            for source, result in _ends(self.steps[place])
        )

    def length(self, call: Tensors) -> int:
        """The most steps that a layer makes in one call."""
        read = [self.steps[place].inputs[0] for place in self.layers]
        names = [name for name in read if name not in call]
        values = {**call, **self.network(call, {}, names)}
        return max(1, *(len(values[name]) for name in read))

    def _each(self, step: Operation, values: dict[str, torch.Tensor]) -> None:
        """One step for all lines of what it reads."""
        own = [name for name in step.inputs if name and name not in self.alike]

        def function(*lines: torch.Tensor) -> tuple[torch.Tensor, ...]:
            inner = dict(zip(own, lines, strict=True))
            inputs = [inner.get(name, values.get(name)) if name else None for name in step.inputs]
            return _as_tuple(step.function(step.call, *inputs))

        every = torch.func.vmap(function) if own else function
        values.update(zip(step.outputs, every(*(values[name] for name in own)), strict=False))


def join(network: Network, states: Mapping[str, str], wanted: Sequence[str]) -> Joined | None:
    """How all calls are computed at once; None where they pass on more than layers' states."""
    steps = network.steps
    alike = _made_of(steps, frozenset(network.constants))
    early = _made_of(steps, alike | states.keys()) - alike
    first = {n for n, step in enumerate(steps) if early.intersection(step.outputs)}
    layers = {n for n, step in enumerate(steps) if _goes_on(step, early)}
    sequences = [steps[n].outputs[0] for n in layers]
    asked = _needed(steps, [*wanted, *sequences], first)
    last = _needed(steps, states.values(), first | asked)
    memories = {result for n in layers for _, result in _ends(steps[n])[1:]}
    for n in asked | last:
        read = set(steps[n].inputs)
        if n in layers:
            read -= {source for source, _ in _ends(steps[n])}
        elif n in asked and not _stands_alone(steps[n], alike):
            return None
        if read & early or (n in asked and read & memories):
            return None
    if not layers or memories.intersection(wanted) or early.intersection(states.values()):
        return None
    order = sorted(asked)
    return Joined(
        tuple(steps[n] for n in sorted(first)),
        tuple(steps[n] for n in order),
        frozenset(order.index(n) for n in layers),
        tuple(steps[n] for n in sorted(last)),
        alike,
        states,
        network,
    )


def _made_of(steps: Sequence[Operation], names: frozenset[str] | set[str]) -> frozenset[str]:
    """Some tensors, and all that is made of nothing else."""
    found = {*names, ""}
    for step in steps:
        if found.issuperset(step.inputs):
            found.update(step.outputs)
    return frozenset(found)


def _needed(steps: Sequence[Operation], wanted: Iterable[str], without: set[int]) -> set[int]:
    """Places of the steps that lead to some tensors, but for some steps."""
    names, found = set(wanted), set()
    for n in reversed(range(len(steps))):
        if n not in without and any(name and name in names for name in steps[n].outputs):
            found.add(n)
            names.update(steps[n].inputs)
    return found


def _ends(step: Operation) -> list[tuple[str, str]]:
    """What a recurrent layer starts from, each with the output that it leaves there."""
    named = dict(zip(_SLOTS[step.op], step.inputs, strict=False))
    outputs = [*step.outputs, "", ""]
    return [(named[start], outputs[n]) for start, n in _STARTS.items() if named.get(start)]


def _goes_on(step: Operation, early: frozenset[str]) -> bool:
    """Whether a step is a forward layer that starts from states only, and gives all that it has."""
    if step.op not in _SLOTS or step.call.get("direction", "forward") != "forward":
        return False
    ends = _ends(step)
    complete = len(ends) == (2 if step.op == "LSTM" else 1) and all(step.outputs[:1])
    return complete and _is_whole(step) and all(s in early and r for s, r in ends)


def _stands_alone(step: Operation, alike: frozenset[str]) -> bool:
    """Whether a step does in each call the same, whatever the others are given."""
    return step.op not in _SLOTS or (
        _is_whole(step) and alike.issuperset(s for s, _ in _ends(step))
    )


def _is_whole(step: Operation) -> bool:
    """Whether all sequences of a layer last to the end."""
    return not dict(zip(_SLOTS[step.op], step.inputs, strict=False)).get("sequence_lens")


def _run_layer(
    step: Operation, values: Tensors, starts: Tensors, calls: int
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A recurrent layer over all calls, rows side by side.

    Args:
        step: the layer.
        values: X [calls * rows, T, B, I], and what is the same in all calls.
        starts: what it starts from in the first call, [rows, D, B, H].
        calls: how many calls follow one another.

    Returns:
        Y [calls * rows, T, D, B, H], and what it leaves in the last call, [rows, D, B, H].
    """
    read = values[step.inputs[0]].unflatten(0, (calls, -1)).transpose(1, 2)
    rows, batch = read.shape[2:4]
    inputs = [values.get(name) if name else None for name in step.inputs]
    inputs[0] = read.flatten(2, 3).flatten(0, 1)
    for name, _ in _ends(step):
        inputs[step.inputs.index(name)] = starts[name].transpose(0, 1).flatten(1, 2)
    sequence, *ends = _as_tuple(step.function(step.call, *inputs))
    parted = sequence.unflatten(0, (calls, -1)).unflatten(3, (rows, batch))
    finals = [end.unflatten(1, (rows, batch)).transpose(0, 1) for end in ends]
    return parted.permute(0, 3, 1, 2, 4, 5).flatten(0, 1), finals


def _run_on(
    step: Operation, values: dict[str, torch.Tensor], starts: Tensors, calls: int
) -> dict[str, torch.Tensor]:
    """Runs a layer that goes on from call to call; returns what it leaves in the last."""
    sequence, finals = _run_layer(step, values, starts, calls)
    values.update(zip(step.outputs, (sequence, sequence[:, -1]), strict=False))
    return dict(zip(step.outputs[1:], finals, strict=False))


def _run_anew(step: Operation, values: dict[str, torch.Tensor]) -> None:
    """Runs a layer that starts in each call from the same."""
    count = len(values[step.inputs[0]])
    starts = {name: values[name].expand(count, *values[name].shape) for name, _ in _ends(step)}
    sequence, finals = _run_layer(step, values, starts, 1)
    values.update(zip(step.outputs, (sequence, *finals), strict=False))


def _as_tuple(found: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)
