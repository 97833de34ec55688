"""Consecutive calls: each starts from the states that the cut model left in the previous one.

Gradients flow through states passed on within a window, and stop at its start (truncated
back-propagation through time, Werbos 1990). If only states of recurrent layers are passed on, each
layer runs once over the steps of all calls, and everything else is computed for all calls at once:
for a window of 256 calls of a denoiser, that takes a tenth of the time. Otherwise a window is
computed call by call.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from onnx_rnn_prune.operators.recurrent import CELLS
from onnx_rnn_prune.recovery.distill.network import Network, Operation, Tensors

# Calls per window if they are computed one by one.
_IN_TURN = 64
# Steps per window if all its calls are computed at once, and windows per batch. Gradients have to
# reach far back: windows of 200 calls took DTLN's masks to 14.1 % from the original's in 10,000
# batches, whole streams of 625 to 12.6 % in 8,000.
_AT_ONCE, _ABREAST = 1024, 6


@dataclass(frozen=True, eq=False)
class Calls:
    """A network run over windows of consecutive calls.

    Attributes:
        network: computes one call.
        states: its state inputs, each with the output that the next call continues from.
        count: calls per window.
        rows: windows per batch.
        joined: computes all calls at once; None if they are computed one by one.
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
        """Chooses how to compute a network's calls: at once if possible, else one by one.

        Args:
            network: computes one call.
            states: state inputs, each with the output that the next call continues from; those
                that the network does not read or compute are given in each call.
            wanted: names of tensors wanted besides the states.
            call: the inputs of one call, as an example.
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
        """The network's constants."""
        return self.network.constants

    def may_learn(self, weight: str) -> bool:
        """Whether a weight gets gradients from every call.

        If all calls are computed at once, operators on states run only at the window's start and
        end: a weight there would fit the first call only.
        """
        if self.joined is None:
            return True
        between = (*self.joined.first, *self.joined.last)
        return not any(weight in step.inputs for step in between)

    def __call__(
        self, given: Tensors, weights: Tensors, wanted: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """Computes a window: the wanted tensors, and the states after its last call.

        Args:
            given: inputs, [calls, rows, ...], and initial states, [rows, ...].
            weights: override constants of the same names.
            wanted: names of tensors.

        Returns:
            The wanted tensors, [calls, rows, ...], and the final states, [rows, ...], by the names
            of their inputs.
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
        """Computes one row, call by call."""
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
_STARTS = {"initial_h": 1, "initial_c": 2}  # with the output that the next call continues from
_ROUNDING = 1e-5


@dataclass(frozen=True, eq=False)
class Joined:
    """Computes all calls of a window at once.

    Attributes:
        first: steps that compute the layers' initial states from the state inputs, in the first
            call.
        steps: steps that lead to the wanted tensors.
        layers: indices of those steps that are layers running on from call to call.
        last: steps that compute the state outputs of the last call.
        alike: names of tensors equal in all calls: constants and what depends on nothing else.
        states: state inputs, each with the output that the next call continues from.
        network: computes one call.
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
        """Whether layers start from exactly the states they ended with, tested on one call."""
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
        """The largest number of time steps of a layer in one call."""
        read = [self.steps[place].inputs[0] for place in self.layers]
        names = [name for name in read if name not in call]
        values = {**call, **self.network(call, {}, names)}
        return max(1, *(len(values[name]) for name in read))

    def _each(self, step: Operation, values: dict[str, torch.Tensor]) -> None:
        """Runs one step on every line of its inputs."""
        own = [name for name in step.inputs if name and name not in self.alike]

        def function(*lines: torch.Tensor) -> tuple[torch.Tensor, ...]:
            inner = dict(zip(own, lines, strict=True))
            inputs = [inner.get(name, values.get(name)) if name else None for name in step.inputs]
            return _as_tuple(step.function(step.call, *inputs))

        every = torch.func.vmap(function) if own else function
        values.update(zip(step.outputs, every(*(values[name] for name in own)), strict=False))


def join(network: Network, states: Mapping[str, str], wanted: Sequence[str]) -> Joined | None:
    """Plans computing all calls at once; None if they pass on more than states of layers."""
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
    """The given tensors, and all that depend on nothing else."""
    found = {*names, ""}
    for step in steps:
        if found.issuperset(step.inputs):
            found.update(step.outputs)
    return frozenset(found)


def _needed(steps: Sequence[Operation], wanted: Iterable[str], without: set[int]) -> set[int]:
    """Indices of the steps that lead to the wanted tensors, not going through excluded ones."""
    names, found = set(wanted), set()
    for n in reversed(range(len(steps))):
        if n not in without and any(name and name in names for name in steps[n].outputs):
            found.add(n)
            names.update(steps[n].inputs)
    return found


def _ends(step: Operation) -> list[tuple[str, str]]:
    """A recurrent layer's initial states, each with the final state to continue from."""
    named = dict(zip(_SLOTS[step.op], step.inputs, strict=False))
    outputs = [*step.outputs, "", ""]
    return [(named[start], outputs[n]) for start, n in _STARTS.items() if named.get(start)]


def _goes_on(step: Operation, early: frozenset[str]) -> bool:
    """Whether a step is a forward layer that starts from states only and has all its outputs."""
    if step.op not in _SLOTS or step.call.get("direction", "forward") != "forward":
        return False
    ends = _ends(step)
    complete = len(ends) == (2 if step.op == "LSTM" else 1) and all(step.outputs[:1])
    return complete and _is_whole(step) and all(s in early and r for s, r in ends)


def _stands_alone(step: Operation, alike: frozenset[str]) -> bool:
    """Whether a step computes each call independently of the others."""
    return step.op not in _SLOTS or (
        _is_whole(step) and alike.issuperset(s for s, _ in _ends(step))
    )


def _is_whole(step: Operation) -> bool:
    """Whether a layer has no sequence lengths: all sequences run to the end."""
    return not dict(zip(_SLOTS[step.op], step.inputs, strict=False)).get("sequence_lens")


def _run_layer(
    step: Operation, values: Tensors, starts: Tensors, calls: int
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Runs a recurrent layer over all calls, rows side by side.

    Args:
        step: the layer.
        values: X [calls * rows, T, B, I], and tensors equal in all calls.
        starts: initial states of the first call, [rows, D, B, H].
        calls: number of consecutive calls.

    Returns:
        Y [calls * rows, T, D, B, H], and the final states of the last call, [rows, D, B, H].
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
    """Runs a layer that continues from call to call; returns its final states."""
    sequence, finals = _run_layer(step, values, starts, calls)
    values.update(zip(step.outputs, (sequence, sequence[:, -1]), strict=False))
    return dict(zip(step.outputs[1:], finals, strict=False))


def _run_anew(step: Operation, values: dict[str, torch.Tensor]) -> None:
    """Runs a layer that starts from the same states in each call."""
    count = len(values[step.inputs[0]])
    starts = {name: values[name].expand(count, *values[name].shape) for name, _ in _ends(step)}
    sequence, finals = _run_layer(step, values, starts, 1)
    values.update(zip(step.outputs, (sequence, *finals), strict=False))


def _as_tuple(found: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)
