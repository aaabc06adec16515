"""Read the build's measurements: the parts of every output, and the quality on all samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Dict, List, Mapping, Sequence, Tuple

from ..parity.parts import Part
from ..strict_json import Reader
from ..tensor import Tensor

if TYPE_CHECKING:
    from ..documents import RecordedQuality

# Figures that the build records for each part of an output.
_ERRORS = ("worst_error", "max_abs")


def _part(tensor: Tensor) -> Callable[[Reader], Part]:
    def read(reader: Reader) -> Part:
        # For example {"axis": 1, "ranges": [[0, 4]], "variance": 12.5} is `[:, 0:4]`, the boxes of
        # a detector, and {"axis": null, "ranges": [], "variance": 1.0} is a whole output.
        variance = float(reader.get("variance", int, float))
        if variance < 0:
            raise reader.fault("its variance is negative")
        pairs = reader.get("ranges", list)
        if reader.value.get("axis") is None:
            return Part(None, (), variance)
        axis, size = reader.get("axis", int), None
        if 0 <= axis < tensor.rank:
            size = tensor.shape[axis]
        if not isinstance(size, int) or not pairs:
            raise reader.fault(f"its axis is not an axis of fixed size of {tensor}")
        return Part(axis, _read_ranges(reader, pairs, size), variance)

    return read


def _read_ranges(reader: Reader, pairs: List[object], size: int) -> Tuple[Tuple[int, int], ...]:
    """Return the ranges of a part along an axis of some size."""
    ranges = []
    for pair in pairs:
        # Not `isinstance`, for which True is an int.
        if not isinstance(pair, list) or list(map(type, pair)) != [int, int]:
            raise reader.fault("its ranges are not pairs of whole numbers")
        start, end = pair
        if not 0 <= start < end <= size:
            raise reader.fault(f"its range {pair} does not lie in {size} slices")
        ranges.append((start, end))
    return tuple(ranges)


def read_parts(top: Reader, outputs: Sequence[Tensor]) -> Dict[str, Tuple[Part, ...]]:
    """Return the parts of every output; integers have none.

    Raises BundleError if the index does not state them.
    """
    parts = top.at("parts")
    return {tensor.name: parts.each(tensor.name, _part(tensor)) for tensor in outputs}


def check_quality(
    top: Reader, outputs: Sequence[Tensor], parts: Mapping[str, Sequence[Part]]
) -> RecordedQuality:
    """Return the index's `quality` once each part of every output has a figure; empty in a draft.

    Raises BundleError if a figure is missing.
    """
    quality = top.at("quality")
    if not quality.value:
        return {}
    quality.get("passed", bool)
    for key in ("outputs", "reference"):
        metrics = quality.at(key)
        for tensor in outputs:
            output = metrics.at(tensor.name)
            # One entry per part, in the order of `parts`, or the figures would be assigned wrongly.
            figures = output.each("parts", _errors)
            if len(figures) != len(parts[tensor.name]):
                raise output.fault("its parts are not those that the index states")
            if output.get("decisions", int):
                output.get("top1_agreement", int, float)
    recorded: RecordedQuality = quality.value
    return recorded


def _errors(reader: Reader) -> Tuple[float, ...]:
    return tuple(float(reader.get(key, int, float)) for key in _ERRORS)
