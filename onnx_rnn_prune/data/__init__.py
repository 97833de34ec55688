"""Feeds: the inputs on which a model is calibrated and checked."""

from onnx_rnn_prune.data.asked import Asked, read_asked
from onnx_rnn_prune.data.feeds import Feeds, open_feeds
from onnx_rnn_prune.data.places import absolute, places
from onnx_rnn_prune.data.synthetic import random_feeds

__all__ = ["Asked", "Feeds", "absolute", "open_feeds", "places", "random_feeds", "read_asked"]
