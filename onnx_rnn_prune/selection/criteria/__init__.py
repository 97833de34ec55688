"""Criteria: how much each unit matters. Each file defines the criterion of its name.

A file states formula, source and use, and defines one `CRITERION`; a file added here is available
on the command line.
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
