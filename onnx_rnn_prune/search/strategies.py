"""Who says what a search tries next."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from onnx_rnn_prune.search.goal import Aim
from onnx_rnn_prune.search.greedy import equal, greedy
from onnx_rnn_prune.search.sampler import optuna
from onnx_rnn_prune.search.space import Space
from onnx_rnn_prune.search.trial import Strategy

# By name; the seed is for those that draw.
STRATEGIES: Mapping[str, Callable[[Space, Aim, int], Strategy]] = {
    "greedy": lambda space, aim, seed: greedy(space, aim),
    "uniform": lambda space, aim, seed: equal(space, aim),
    "optuna": optuna,
}
