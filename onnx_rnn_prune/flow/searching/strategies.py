"""Who says what a search tries next."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from onnx_rnn_prune.flow.searching.goal import Aim
from onnx_rnn_prune.flow.searching.greedy import equal, greedy
from onnx_rnn_prune.flow.searching.sampler import optuna
from onnx_rnn_prune.flow.searching.space import Space
from onnx_rnn_prune.flow.searching.trial import Strategy

# By name; the seed is for those that draw.
STRATEGIES: Mapping[str, Callable[[Space, Aim, int], Strategy]] = {
    "greedy": lambda space, aim, seed: greedy(space, aim),
    "uniform": lambda space, aim, seed: equal(space, aim),
    "optuna": optuna,
}
