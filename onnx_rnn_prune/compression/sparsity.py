"""The stages that put zeros in the place of single weights, and store them as such."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx_rnn_prune.arguments import one_of
from onnx_rnn_prune.compression.patterns import Pattern, parse_pattern
from onnx_rnn_prune.compression.sparsify import Sparsify
from onnx_rnn_prune.compression.stage import Stage
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.evidence.evidence import collect
from onnx_rnn_prune.evidence.moments import Moments
from onnx_rnn_prune.evidence.products import find_products
from onnx_rnn_prune.evidence.readers import Reader
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import OURS, Runner
from onnx_rnn_prune.model.sparse import with_sparse
from onnx_rnn_prune.operators.recurrent import find_layers
from onnx_rnn_prune.passes.base import Pipeline
from onnx_rnn_prune.passes.cleanup import ShareTwins
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.study.feeding import Data
from onnx_rnn_prune.trace.observe import observe
from onnx_rnn_prune.trace.trace import trace
from onnx_rnn_prune.validate import oracle

SPARSIFIERS = ("magnitude", "obs")
_NO_FASTER = (
    "onnxruntime multiplies by zeros as by other numbers: a file with zeros compresses better, and"
    " runs no faster"
)


@dataclass(frozen=True)
class Zeros:
    """Puts zeros into the gates of all recurrent layers, and into what reads their units.

    Attributes:
        text: the pattern as the user wrote it.
        pattern: which weights may go.
        by: magnitude, or obs for those whose absence the others can make up for.
    """

    text: str
    pattern: Pattern
    by: str

    @property
    def name(self) -> str:
        return f"zeros {self.text} by {self.by}"

    def __call__(self, document: Document, data: Data, progress: Progress) -> Document:
        layers = find_layers(document.graph)
        followed = trace(document, layers, observe(document, layers, data.fitting))
        readers = find_products(document, followed)
        moments = None
        if self.by == "obs":
            shelf = collect(document, followed, readers, data.fitting, progress).moments

            def moments(reader: Reader) -> Moments:
                return shelf[reader.pool]

        Pipeline((Sparsify(readers, self.pattern, moments), ShareTwins()))(document)
        return document


@dataclass(frozen=True)
class SparseStorage:
    """Stores weights as lists of their entries that are not zero, where that takes less room."""

    name: str = "sparse initializers"

    def __call__(self, document: Document, data: Data, progress: Progress) -> Document:
        """Leaves all as it was where onnxruntime does not load the result, or computes another."""
        dense = document.write()
        stored = with_sparse(dense)
        if not stored.graph.sparse_initializer:
            return document
        before = Runner(dense, name="the model", remedy=OURS)
        try:
            after = Runner(stored, name="the model with sparse initializers", remedy=OURS)
            feeds = [next(iter(data.judging))]
            same = oracle(before, after, feeds, original=before)
        except PruneError:
            return document
        return Document.read(stored) if same else document


def read_zeros(sparsify: object, by: object, given: bool) -> list[Stage]:
    """Which weights become zero, as a stage; none where none do.

    Args:
        sparsify: the pattern as text; None where no weights go.
        by: one of SPARSIFIERS; None for obs where there is data, and magnitude where there is none.
        given: whether there is data.

    Raises:
        PruneError: one of them means nothing, or obs has no data to look at.
    """
    if by is not None:
        one_of(by, SPARSIFIERS, "--sparsify-by")
        if sparsify is None:
            raise PruneError("no weights go", where="--sparsify-by", remedy="add --sparsify")
    if sparsify is None:
        return []
    pattern = parse_pattern(sparsify)
    if by == "obs" and not given:
        raise PruneError(
            "obs looks at what products read, and there is no data",
            where="--sparsify-by",
            remedy="pass --data, or choose magnitude",
        )
    chosen = by or ("obs" if given else "magnitude")
    return [Zeros(str(sparsify), pattern, str(chosen))]


def read_storage(sparse: object) -> list[Stage]:
    """How zeros are stored, as a stage; none where they are as other entries.

    Raises:
        PruneError: it is neither True nor False.
    """
    if not isinstance(sparse, bool):
        raise PruneError(
            f"{sparse!r} is neither True nor False",
            where="--sparse-initializers",
            remedy="give one",
        )
    return [SparseStorage()] if sparse else []


def notes_on(stages: Sequence[Stage]) -> list[str]:
    """What the user should know about them."""
    return [_NO_FASTER] if any(isinstance(stage, Zeros) for stage in stages) else []
