"""The stage that holds weights in fewer bits, and computes in integers where that is faster."""

from __future__ import annotations

import re
from dataclasses import dataclass

from onnx_rnn_prune.compression.integer_operators import ComputeInIntegers
from onnx_rnn_prune.compression.weight_quantization import LEAST, Bits, Half, HoldWeights
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.passes.base import Pass, Pipeline
from onnx_rnn_prune.passes.cleanup import DropUnread
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.study.feeding import Data

QUANTIZE_FORMS = "int8, fp16 or bits=K with K from 2 to 8"

_FORMS: dict[str, tuple[Pass, ...]] = {
    "int8": (ComputeInIntegers(), HoldWeights(Bits(8))),
    "fp16": (HoldWeights(Half()),),
    **{f"bits={count}": (HoldWeights(Bits(count)),) for count in range(2, 9)},
}
# Arithmetic broadcasts since then.
_LEAST_OPSET = 7


@dataclass(frozen=True)
class Quantize:
    """Quantizes what is left of a model.

    Attributes:
        name: what was asked for.
    """

    name: str

    def __call__(self, document: Document, data: Data, progress: Progress) -> Document:
        """Quantizes in place.

        Raises:
            PruneError: there is nothing to quantize, or the model's opset is too old.
        """
        where = f"--quantize {self.name}"
        if document.graph.opset < _LEAST_OPSET:
            raise PruneError(
                f"the model is of opset {document.graph.opset}, and this takes {_LEAST_OPSET}",
                where=where,
                remedy="leave it out, or convert the model to a newer opset",
            )
        if not Pipeline(_FORMS[self.name])(document):
            raise PruneError(
                f"no weight of {LEAST} entries or more is held in more bits than that",
                where=where,
                remedy="leave it out: the model is quantized already, or too small to gain",
            )
        DropUnread()(document)
        return document


def read_quantize(value: object) -> Quantize:
    """What `--quantize` says.

    Raises:
        PruneError: it is none of the forms.
    """
    text = re.sub(r"\s", "", value) if isinstance(value, str) else None
    if text not in _FORMS:
        raise PruneError(
            f"there is no {value!r}", where="--quantize", remedy=f"give {QUANTIZE_FORMS}"
        )
    return Quantize(text)
