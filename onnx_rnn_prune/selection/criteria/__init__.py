"""Criteria: how much each unit matters. Each file is the criterion of its name.

A file states its formula, source and use, and holds one `CRITERION`; a file added here is a
criterion of the command line.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from importlib import import_module

from onnx_rnn_prune.selection.context import Criterion

CRITERIA: Mapping[str, Criterion] = {
    module.name.replace("_", "-"): import_module(f"{__name__}.{module.name}").CRITERION
    for module in pkgutil.iter_modules(__path__)
}
