"""Passes: each edits a document in place and says whether it changed it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.document import Document


class Pass(Protocol):
    """A verb with its parameters as fields."""

    def __call__(self, document: Document) -> bool:
        """Edits the document in place; returns whether anything changed."""


@dataclass(frozen=True)
class Pipeline:
    """Passes one after the other; itself a pass."""

    passes: tuple[Pass, ...]

    def __call__(self, document: Document) -> bool:
        """Runs every pass; an error names those that ran before it."""
        changed = False
        done: list[str] = []
        for step in self.passes:
            name = type(step).__name__
            try:
                changed = step(document) or changed
            except PruneError:
                raise
            except Exception as error:
                before = ", ".join(done) or "none"
                raise PruneError(
                    f"pass failed ({type(error).__name__}: {error}); passes before it: {before}",
                    where=name,
                    remedy="report this with the output of inspect",
                ) from error
            done.append(name)
        return changed
