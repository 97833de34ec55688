"""What the command line offers, from Python."""

import numpy as np

from onnx_rnn_prune.api import looking, pruning, searching
from onnx_rnn_prune.inspection import comparing

# What is no number fails a check, which says so; NumPy's warnings name lines of this package only.
_quiet = np.errstate(all="ignore")

apply = _quiet(pruning.apply)
bench = _quiet(comparing.bench)
compare = _quiet(comparing.compare)
inspect = _quiet(looking.inspect)
plan = _quiet(pruning.plan)
prune = _quiet(pruning.prune)
search = _quiet(searching.search)
sensitivity = _quiet(looking.sensitivity)

__all__ = ["apply", "bench", "compare", "inspect", "plan", "prune", "search", "sensitivity"]
