"""How much each unit matters: a criterion a file, called by the file's name.

Each file states its formula, its source and when to use it, and holds one `CRITERION`. A file that
is added here is a criterion of the command line.
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
