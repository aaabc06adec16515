"""Place Q/DQ pairs for TensorRT, by rules that each add nodes that read a tensor quantized.

TensorRT takes the pairs literally. It moves a Q towards the producer of its tensor and a DQ towards
the readers, over operators that only move or clamp values, and fuses adjacent nodes into one
integer kernel. One pair too many splits a kernel in two, so pairs are placed only by these rules.
Four properties follow:

- no pair is placed between a convolution and its Relu, Clip or other pointwise operators: one
  kernel computes them in float before it rounds;
- a tensor is rounded for the nodes that read it quantized, and float for all others;
- outputs of the network are never rounded, also where a layer of the network reads them;
- a bias stays float: the parser refuses a dequantized int32.

The rules are those of the TensorRT Developer Guide, "Q/DQ Layer-Placement Recommendations".
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from edgepack.onnx_tools.operators import Trait, having, operator
from edgepack.onnx_tools.view import GraphView
from edgepack.passes.quantize.layers import (
    FLOAT_LAYERS,
    Layer,
    by_added_bias,
    find_subgraph_layers,
    is_layer,
    read_layer,
)
from edgepack.passes.quantize.static.placement import Placement, Read, Reader

# TensorRT moves a Q backwards over these operators.
MOVES = having(Trait.TENSORRT_MOVES)
# Operators that a layer's kernel computes on its sums.
POINTWISE = having(Trait.TENSORRT_POINTWISE)
POOLS = having(Trait.AVERAGES)

FLOAT_IN_TENSORRT = {
    name: operator(name).no_tensorrt or reason for name, reason in FLOAT_LAYERS.items()
}


def place(view: GraphView, exclude: Collection[str], read: Reader = read_layer) -> Placement:
    """Decide which nodes of a prepared graph become integer; nodes in `exclude` stay float."""
    layers: dict[int, Layer] = {}
    float_layers = []
    for index, node in enumerate(view.nodes):
        if not is_layer(node):
            continue
        if node.name in exclude:
            result: Layer | str = "excluded by name"
        elif node.op_type in FLOAT_IN_TENSORRT:
            result = FLOAT_IN_TENSORRT[node.op_type]
        else:
            result = read(view, index)
        if isinstance(result, Layer):
            layers[index] = result
        else:
            float_layers.append((node.name, node.op_type, result))
    # Rules run in order; each sees the reads of those before and its own.
    sketch = _Sketch(view, layers, exclude)
    for rule in RULES:
        for tensor_read in rule(sketch):
            sketch.reads.add(tensor_read)
    return Placement(
        layers=tuple(layers[index] for index in sorted(layers)),
        points={name: name for _, name in sorted(sketch.reads)},
        reads=frozenset(sketch.reads),
        float_layers=(*float_layers, *find_subgraph_layers(view.nodes)),
    )


class _Sketch:
    """Reads added by earlier rules, and queries about them."""

    def __init__(self, view: GraphView, layers: dict[int, Layer], exclude: Collection[str]) -> None:
        self.view, self.layers = view, layers
        self.excluded = frozenset(exclude)
        self.reads: set[Read] = set()
        # The Add with a MatMul's bias counts as part of the MatMul.
        self.biases = by_added_bias(layers.values())

    def layer_of(self, name: str) -> Layer | None:
        """Return the layer that computes a tensor, its bias included; None for other tensors."""
        index = self.view.producer.get(name)
        if index is None:
            return None
        return self.layers.get(index) or self.biases.get(index)

    def ends_layer(self, name: str) -> bool:
        """Return True if a layer's kernel outputs a tensor, after pointwise operators."""
        index = self.view.producer.get(name)
        if index is None or self.layer_of(name) is not None:
            return index is not None
        node = self.view.nodes[index]
        if node.op_type in POINTWISE:
            return self.ends_layer(node.input[0])
        return node.op_type == "Add" and any(map(self.layer_of, node.input))

    def is_read_quantized(self, name: str) -> bool:
        """Return True if a node reads a tensor quantized, directly or behind moves."""
        return any(self._read_quantized(reader, name) for reader in self._readers(name))

    def is_read_only_quantized(self, name: str, ignored: int | None = None) -> bool:
        """Return True if no node but `ignored`, and no output, needs a tensor as float."""
        if name in self.view.outputs or name in self.view.captured:
            return False
        for reader in self._readers(name):
            if reader != ignored and not self._read_quantized(reader, name, True):
                return False
        return True

    def _readers(self, name: str) -> list[int]:
        return self.view.readers.get(name, [])

    def _read_quantized(self, reader: int, name: str, alone: bool = False) -> bool:
        node = self.view.nodes[reader]
        if (reader, name) in self.reads:
            return True
        if node.op_type not in MOVES or node.input[0] != name:
            return False
        if alone:
            return self.is_read_only_quantized(node.output[0])
        return self.is_read_quantized(node.output[0])


def weighted_inputs(sketch: _Sketch) -> Iterator[Read]:
    """Yield the activation of every layer; its weights are stored as s8.

    Integer kernels move fewer bytes and compute more products at a time.
    """
    for index, layer in sketch.layers.items():
        yield index, layer.input


def pools_between(sketch: _Sketch) -> Iterator[Read]:
    """Yield the input of averages between two integer layers.

    The layer then outputs s8 instead of float, and the pooling, fused with the DQ before and the Q
    behind it, runs in integers (TensorRT moves a Q over a maximum but not over an average). If a
    float reader needs the pool's input or output, rounding would take another kernel.
    """
    view = sketch.view
    # From the end, since the readers of a pool decide about it.
    for index in reversed(range(len(view.nodes))):
        node = view.nodes[index]
        if node.op_type not in POOLS or node.name in sketch.excluded:
            continue
        name, output = node.input[0], node.output[0]
        between = sketch.ends_layer(name) and sketch.is_read_quantized(output)
        if (
            between
            and sketch.is_read_only_quantized(name, ignored=index)
            and sketch.is_read_only_quantized(output)
        ):
            yield index, name


def skip_branches(sketch: _Sketch) -> Iterator[Read]:
    """Yield the skip branch of additions behind a layer, but not the layer's side.

    Layer, addition and activation become one kernel that reads the skip branch as another operand.
    The kernel outputs the type of that operand, so with a float one the Q behind it would be a
    kernel of its own. A pair on the layer's side would split the kernel before the addition. If no
    node reads the sum quantized, the kernel has to output float anyway.
    """
    view = sketch.view
    # From the end, since the addition of the next block may read the sum quantized.
    for index in reversed(range(len(view.nodes))):
        node = view.nodes[index]
        if node.op_type != "Add" or index in sketch.biases or node.name in sketch.excluded:
            continue
        sides = list(node.input)
        if len(set(sides)) < 2 or any(map(view.is_constant, sides)):
            continue
        fused = []
        for name in sides:
            if view.only_reader(name) == index and sketch.layer_of(name):
                fused.append(name)
        if not fused or not sketch.is_read_quantized(node.output[0]):
            continue
        # If both sides are layers (a projected skip branch), the larger one computes the addition.
        main = max(fused, key=lambda name: _size(sketch.layer_of(name)))
        skip = sides[1] if main == sides[0] else sides[0]
        yield index, skip


def _size(layer: Layer | None) -> tuple[int, int]:
    if layer is None:
        return 0, 0
    return layer.rows.size, layer.index


# Later rules read the results of earlier ones.
RULES: tuple[Callable[[_Sketch], Iterator[Read]], ...] = (
    weighted_inputs,
    pools_between,
    skip_branches,
)
