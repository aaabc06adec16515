"""Estimate of the memory that the quantization takes, for `--dry-run`."""

from __future__ import annotations

import math
from pathlib import Path

from edgepack.onnx_tools.attributes import attribute
from edgepack.onnx_tools.stream import HELD_BYTES
from edgepack.passes.quantize.calibration.partition import (
    LAYER_BYTES,
    MOMENT_BYTES,
    limit_width,
)
from edgepack.passes.quantize.layers import LINEAR
from edgepack.passes.quantize.options import QuantizeOptions

# The graph before and after each change, its weights as float64 rows, and the session's copies.
WEIGHT_COPIES = 7
# Sessions, the columns and rows that wait, and temporary arrays, whatever the model.
FIXED_BYTES = 160 * 2**20
# Copies of a layer's second moments while they are factorized, in two threads.
FACTORS, TOGETHER = 4, 2


def estimate_memory(model: Path, is_onnx: bool, size: int, options: QuantizeOptions) -> int:
    """Estimate by how many bytes the quantization raises the memory of the process.

    Args:
        model: path of the model.
        is_onnx: whether it is an ONNX file, whose layers can be read without their weights.
        size: bytes of its weights.
        options: of the pass.
    """
    total = WEIGHT_COPIES * size + FIXED_BYTES
    if not options.needs:
        return total
    # Activations of a batch and the arena of the session, at most.
    total += HELD_BYTES
    if options.rounding != "gptq":
        return total
    # A model whose layers are unknown is taken to have one with as many inputs as outputs, in
    # which its second moments are as large as its weights.
    moments = [min(size, LAYER_BYTES)]
    if is_onnx:
        moments = _list_moment_bytes(model)
    largest = sorted(moments)[-TOGETHER:]
    return total + min(sum(moments), MOMENT_BYTES) + FACTORS * sum(largest)


def _list_moment_bytes(path: Path) -> list[int]:
    """Return the size of the second moments of every layer of an ONNX file."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    dims = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    sizes: dict[tuple[str, int, int], int] = {}
    for node in model.graph.node:
        if node.op_type not in LINEAR or len(dims.get(node.input[1], ())) < 2:
            continue
        shape, groups = dims[node.input[1]], 1
        columns = shape[0]
        if node.op_type == "Conv":
            groups, columns = int(attribute(node, "group", 1)), math.prod(shape[1:])
        elif attribute(node, "transB", 0):
            columns = shape[1]
        width = limit_width(groups, columns)
        # Layers that multiply the same columns share their moments.
        sizes[node.input[0], columns, groups] = 4 * groups * columns * width
    return list(sizes.values())
