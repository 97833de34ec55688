"""The plan: which units each layer keeps, per direction; a value, saved as JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.external import is_reference, raw_chunks, with_weights
from onnx_rnn_prune.model.files import require_plain, write_atomically
from onnx_rnn_prune.operators.labels import Mask
from onnx_rnn_prune.operators.layers import Layer
from onnx_rnn_prune.trace.trace import Trace

FORMAT = "onnx_rnn_prune.plan/1"
_REMEDY = "make the plan again for this model"


@dataclass(frozen=True)
class LayerPlan:
    """What one layer keeps.

    Attributes:
        hidden_size: H in the model that the plan is for.
        keep: per direction, the kept units, sorted.
        scope: path to the layer's graph; empty for the main graph.
    """

    hidden_size: int
    keep: tuple[tuple[int, ...], ...]
    scope: str = ""


@dataclass(frozen=True)
class Plan:
    """Which units are kept; layers that are not named keep all.

    Attributes:
        model: SHA-256 of the model that the plan is for, see `fingerprint`.
        layers: by layer name.
        notes: what the user should know about the choice; not saved.
        pinned: layers left whole, and why; not saved.
    """

    model: str
    layers: Mapping[str, LayerPlan]
    notes: tuple[str, ...] = field(default=(), compare=False)
    pinned: Mapping[str, str] = field(default_factory=dict, compare=False)

    @staticmethod
    def from_mask(model: str, trace: Trace, keep: Mask) -> Plan:
        """The plan for a choice of units."""
        layers = {}
        for layer in trace.layers:
            lanes = keep[trace.directions_of(layer)]
            kept = tuple(tuple(np.flatnonzero(lane).tolist()) for lane in lanes)
            layers[layer.name] = LayerPlan(lanes.shape[1], kept, layer.scope)
        return Plan(model, layers)

    def cut(self) -> tuple[str, ...]:
        """The layers that lose units."""
        return tuple(
            name
            for name, layer in self.layers.items()
            if any(len(lane) < layer.hidden_size for lane in layer.keep)
        )

    def mask(self, trace: Trace) -> Mask:
        """For each unit of a trace, whether it stays.

        Raises:
            PruneError: the plan separates units that belong together.
        """
        keep = np.ones(trace.units.count, dtype=bool)
        for layer in trace.layers:
            lanes = trace.directions_of(layer)
            for lane, kept in zip(lanes, self.layers[layer.name].keep, strict=True):
                keep[lane] = False
                keep[lane[list(kept)]] = True
        for group in trace.groups:
            for atoms in group.atoms:
                if np.any(keep[atoms].any(axis=1) != keep[atoms].all(axis=1)):
                    raise PruneError(
                        "their units are added together, so they must keep the same ones",
                        where=f"plan for {', '.join(group.layers)}",
                        remedy=_REMEDY,
                    )
            if len({int(keep[atoms[:, 0]].sum()) for atoms in group.atoms}) > 1:
                raise PruneError(
                    "they must keep equally many units in each layer and direction, since their"
                    " outputs lie side by side",
                    where=f"plan for {', '.join(group.layers)}",
                    remedy=_REMEDY,
                )
        return keep

    def to_json(self) -> str:
        """The text of a plan file."""
        layers = {
            name: {
                "scope": layer.scope,
                "hidden_size": layer.hidden_size,
                "keep": [[int(unit) for unit in lane] for lane in layer.keep],
            }
            for name, layer in self.layers.items()
        }
        document = {"format": FORMAT, "model": {"sha256": self.model}, "layers": layers}
        return json.dumps(document, indent=1) + "\n"

    def save(self, path: str | Path) -> None:
        """Writes a plan file, whole or not at all."""
        write_atomically(path, self.to_json().encode())

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Reads a plan file.

        Raises:
            PruneError: the file is missing or is no valid plan.
        """
        if not isinstance(path, str | Path):
            raise PruneError(
                f"{type(path).__name__} is not a plan", where="plan", remedy="give a Plan or a path"
            )
        require_plain(Path(path))
        try:
            return Plan.from_json(Path(path).read_text(encoding="utf-8"))
        except PruneError as error:
            raise PruneError(
                error.what, where=f"{path}: {error.where}", remedy=error.remedy
            ) from error
        except OSError as error:
            raise PruneError(
                f"cannot be read ({error.strerror})",
                where=str(path),
                remedy="give a file written by onnx-rnn-prune plan",
            ) from error
        except (ArithmeticError, AttributeError, LookupError, RecursionError) as error:
            raise _no_plan(path, error) from error
        except (TypeError, ValueError) as error:  # JSON's and encoding's own among them
            raise _no_plan(path, error) from error

    @staticmethod
    def from_json(text: str) -> Plan:
        """Reads the text of a plan file.

        Raises:
            PruneError: an entry of a layer makes no sense.
            ValueError, KeyError, TypeError: it is no plan.
        """
        document: dict[str, Any] = json.loads(text, object_pairs_hook=_without_repeats)
        if document["format"] != FORMAT:
            raise ValueError(f"its format is {document['format']!r}, not {FORMAT!r}")
        layers = {name: _read_layer(name, entry) for name, entry in document["layers"].items()}
        return Plan(str(document["model"]["sha256"]), layers)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; repeated keys are refused, since all but the last would be lost."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"it has two entries '{name}'")
        found[name] = value
    return found


def _read_layer(name: str, entry: Any) -> LayerPlan:
    try:
        keep = tuple(tuple(lane) for lane in entry["keep"])
        layer = LayerPlan(entry["hidden_size"], keep, entry.get("scope", ""))
    except (AttributeError, LookupError, TypeError) as error:
        raise _wrong(name, "it needs hidden_size, and a list per direction in keep") from error
    _check_units(name, layer)
    return replace(layer, keep=tuple(tuple(sorted(lane)) for lane in keep))


def _check_units(name: str, layer: LayerPlan) -> None:
    """Checks that a layer's plan is valid in itself."""
    hidden = layer.hidden_size
    if not _is_whole(hidden) or hidden < 1:
        raise _wrong(name, f"hidden_size is {hidden!r}, which is not a number of units")
    if len({len(lane) for lane in layer.keep}) != 1 or not layer.keep[0]:
        raise _wrong(name, "keep must list equally many units for each direction, at least one")
    for direction, lane in enumerate(layer.keep):
        before: set[int] = set()
        for place, unit in enumerate(lane):
            entry = f"keep[{direction}][{place}] is {unit!r}"
            if not _is_whole(unit) or not 0 <= unit < hidden:
                raise _wrong(name, f"{entry}, which is not a unit from 0 to {hidden - 1}")
            if unit in before:
                raise _wrong(name, f"{entry}, which is listed twice")
            before.add(unit)


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _wrong(name: str, what: str) -> PruneError:
    return PruneError(what, where=f"plan for {name}", remedy="correct it, or make the plan again")


def _no_plan(path: str | Path, error: Exception) -> PruneError:
    reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return PruneError(
        f"is not a plan file ({reason})",
        where=str(path),
        remedy="make one with onnx-rnn-prune plan",
    )


def fingerprint(model: onnx.ModelProto) -> str:
    """SHA-256 of a model's serialized message: equals the file's hash if that holds all weights.

    External weights are hashed after the message, wherever they lie.
    """
    found = hashlib.sha256()
    apart = [tensor for tensor in model.graph.initializer if is_reference(tensor)]
    whole = with_weights(model, _without_place) if apart else model
    found.update(whole.SerializeToString(deterministic=True))
    for tensor in apart:
        for chunk in raw_chunks(tensor):
            found.update(chunk)
    return found.hexdigest()


def _without_place(tensor: onnx.TensorProto) -> onnx.TensorProto:
    result = onnx.TensorProto()
    result.CopyFrom(tensor)
    result.ClearField("external_data")
    return result


def check_plan(plan: Plan, model: onnx.ModelProto, layers: Sequence[Layer]) -> None:
    """Checks that a plan is for this model.

    Raises:
        PruneError: it is for another one, or for none.
    """
    known = {layer.name: layer for layer in layers}
    for name, wanted in plan.layers.items():
        _check_units(name, wanted)
        layer = known.get(name)
        if layer is None:
            raise PruneError(f"the model has no layer '{name}'", where="plan", remedy=_REMEDY)
        if wanted.scope != layer.scope:
            raise _wrong(name, f"scope is {wanted.scope!r}, but the layer's is {layer.scope!r}")
        if (layer.hidden, layer.directions) != (wanted.hidden_size, len(wanted.keep)):
            raise PruneError(
                f"the plan is for {len(wanted.keep)} x {wanted.hidden_size} units, the layer has"
                f" {layer.directions} x {layer.hidden}",
                where=f"plan for {name}",
                remedy=_REMEDY,
            )
    if plan.model != fingerprint(model):
        raise PruneError(
            "it was made for another model (the SHA-256 differs)", where="plan", remedy=_REMEDY
        )
