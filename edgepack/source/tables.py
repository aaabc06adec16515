"""Find the tables that a model's integer inputs index, such as an embedding of 30,522 words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import SourceError
from edgepack.onnx_tools.operators import Trait, having
from edgepack.runtime.tensor import Tensor
from edgepack.source.model import Source

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

# Operators of ONNX whose output is their input, in another type at most.
_COPYING = frozenset({"Cast", "Identity"})
# Operators of ONNX whose output holds indices of their first input. `Where` moves values too, but
# its first input is a condition.
_PASSING = having(Trait.MOVES) - having(Trait.ELEMENTWISE) | _COPYING
# Operators of torch that index a table, with the positions of the table, the indices and, where
# it is an argument, the axis.
_LOOKUPS = {
    "aten.embedding.default": (0, 1, None),
    "aten._embedding_bag.default": (0, 1, None),
    "aten._embedding_bag_forward_only.default": (0, 1, None),
    "aten.index_select.default": (0, 2, 1),
    "aten.index.Tensor": (0, 1, None),
}


def find_tables(
    source: Source, inputs: tuple[Tensor, ...], feed: Mapping[str, np.ndarray]
) -> dict[str, int]:
    """Return the rows of the smallest table that each integer input indexes, by input name.

    An input that indexes no table, or one that is not found, is absent.

    Args:
        source: the model.
        inputs: of the model.
        feed: arrays that the model answers; their integers are replaced.
    """
    # "serving:ids" of an ONNX graph may be read by two tables: the smaller one bounds it.
    integers = [tensor.name for tensor in inputs if np.dtype(tensor.dtype).kind in "iu"]
    if source.onnx is not None:
        return _find_in_graph(source.onnx, integers)
    if not source.has_network and source.program is None:
        return {}
    rows = {}
    for name in integers:
        size = _watch_lookups(source, feed, name, integers)
        if size is not None:
            rows[name] = size
    return rows


def read_special_tokens(source: Source) -> tuple[frozenset[int], int | None]:
    """Return the ids of a Hugging Face vocabulary that no word has, and that of a text's end."""
    config = source.path / "config.json"
    if not config.is_file():
        return frozenset(), None
    # The source has been loaded from this file, so it can be read.
    settings = json.loads(config.read_text(encoding="utf-8"))
    special: dict[str, int] = {}
    for name in ("pad", "bos", "eos", "sep", "cls", "mask", "unk", "decoder_start"):
        number = settings.get(f"{name}_token_id")
        if isinstance(number, int):
            special[name] = number
    return frozenset(special.values()), special.get("eos", special.get("sep"))


def _watch_lookups(
    source: Source, feed: Mapping[str, np.ndarray], probed: str, integers: list[str]
) -> int | None:
    """Run the model with zeros and ones as one input, and find the tables that they index."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    pattern = np.arange(feed[probed].size).reshape(feed[probed].shape) % 3 % 2
    probe = torch.from_numpy(pattern.reshape(-1).astype(np.int64))
    sizes: list[int] = []

    class Watch(TorchDispatchMode):  # type: ignore[misc]
        """Record of the tables that are indexed by the pattern."""

        def __torch_dispatch__(  # type: ignore[no-untyped-def]
            self, function, types, args=(), kwargs=None
        ):
            lookup = _LOOKUPS.get(str(function))
            if lookup is not None:
                size = _measure_table(args, lookup, probe)
                if size is not None:
                    sizes.append(size)
            return function(*args, **(kwargs or {}))

    arrays = {name: np.zeros_like(array) for name, array in feed.items() if name in integers}
    arrays[probed] = pattern.astype(feed[probed].dtype)
    # A model that refuses zeros and ones has been asked all the same: lookups come first.
    with suppress(SourceError), Watch():
        source.run({**feed, **arrays})
    return min(sizes, default=None)


def _measure_table(
    args: tuple[object, ...], lookup: tuple[int, int, int | None], probe: object
) -> int | None:
    """Return the rows of a table if the probe indexes it."""
    import torch

    table, indices = args[lookup[0]], args[lookup[1]]
    axis = 0
    if lookup[2] is not None:
        axis = int(str(args[lookup[2]]))
    if isinstance(indices, (list, tuple)):
        indices = indices[0] if len(indices) == 1 else None
    if not isinstance(table, torch.Tensor) or not isinstance(indices, torch.Tensor):
        return None
    if indices.dtype == torch.bool or not isinstance(probe, torch.Tensor):
        return None
    # Of one value, every index of 0 would look like the probe.
    if indices.numel() != probe.numel() or not torch.equal(indices.reshape(-1).long(), probe):
        return None
    return int(table.shape[axis])


def _find_in_graph(path: Path, names: list[str]) -> dict[str, int]:
    import onnx

    model: ModelProto = onnx.load(str(path), load_external_data=False)
    shapes, depths = {}, {}
    for value in model.graph.initializer:
        shapes[value.name] = tuple(value.dims)
        # A single integer may be the number of classes of a OneHot, whose data are in the file.
        if prod(value.dims) == 1 and value.data_location == onnx.TensorProto.DEFAULT:
            number = onnx.numpy_helper.to_array(value).reshape(-1)
            if number.dtype.kind == "i":
                depths[value.name] = int(number[0])
    rows = {}
    for name in names:
        sizes = list(_list_gathered(model.graph, name, shapes, depths))
        if sizes:
            rows[name] = min(sizes)
    return rows


def _list_gathered(
    graph: GraphProto,
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
    depths: Mapping[str, int],
) -> list[int]:
    """Return the rows of every initializer that an input gathers from, through casts.

    Args:
        graph: the graph.
        name: of the input.
        shapes: of the initializers.
        depths: values of the initializers that hold one number.
    """
    # Nodes are in topological order: input_ids -> Cast -> Gather(table) is found in one pass.
    values, sizes = {name}, []
    for node in graph.node:
        if node.op_type == "OneHot" and node.input[0] in values:
            depth = depths.get(node.input[1])
            if depth:
                sizes.append(depth)
        elif node.op_type == "Gather" and node.input[1] in values:
            shape = shapes.get(_find_table(graph, node.input[0]))
            if shape:
                sizes.append(shape[_read_axis(node)])
        elif node.op_type in _PASSING and node.input and node.input[0] in values:
            values.update(node.output)
    return sizes


def _find_table(graph: GraphProto, name: str) -> str:
    """Return the initializer behind a table: itself, or that of its cast or dequantization."""
    for node in graph.node:
        copies = node.op_type in _COPYING or node.op_type == "DequantizeLinear"
        if copies and name in node.output:
            return str(node.input[0])
    return name


def _read_axis(node: NodeProto) -> int:
    for attribute in node.attribute:
        if attribute.name == "axis":
            return int(attribute.i)
    return 0
