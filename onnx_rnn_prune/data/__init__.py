"""Feeds: the inputs on which a model is calibrated and checked."""

from onnx_rnn_prune.data.feeds import Feeds, open_feeds
from onnx_rnn_prune.data.folders import absolute, input_paths
from onnx_rnn_prune.data.sizes import StatedSizes
from onnx_rnn_prune.data.synthetic import random_feeds

__all__ = ["Feeds", "StatedSizes", "absolute", "input_paths", "open_feeds", "random_feeds"]
