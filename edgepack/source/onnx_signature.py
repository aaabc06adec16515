"""Read the inputs and outputs of an ONNX file without running it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.errors import SourceError
from edgepack.runtime.bundle.index import DTYPES
from edgepack.runtime.tensor import Dim, Tensor

if TYPE_CHECKING:
    from types import ModuleType

    from onnx import ModelProto, TensorProto, TensorShapeProto, ValueInfoProto


def graph_inputs(path: Path, onnx: ModuleType, model: ModelProto) -> tuple[Tensor, ...]:
    """Return the graph's inputs, without those that have an initializer.

    Raises SourceError: source-onnx-inputs.
    """
    # Before IR version 4, every initializer was listed as an input as well.
    constant = set(value_names(model.graph.initializer))
    for sparse in model.graph.sparse_initializer:
        constant.add(sparse.values.name)
    inputs = []
    for value in model.graph.input:
        if value.name in constant:
            continue
        if not value.type.HasField("tensor_type"):
            raise SourceError(
                "source-onnx-inputs",
                f"the input {value.name} of {path.name} is not a tensor",
                why=f"it is a {value.type.WhichOneof('value')}",
                hint="export the network with tensors as its inputs",
            )
        if not value.type.tensor_type.HasField("shape"):
            raise SourceError(
                "source-onnx-inputs",
                f"the input {value.name} of {path.name} has no shape",
                why="its number of axes is unknown",
                hint="export it again with shapes; name the axes that vary",
            )
        dtype = _dtype(onnx, value)
        if dtype not in DTYPES:
            raise SourceError(
                "source-onnx-inputs",
                f"the input {value.name} of {path.name} is of a type that edgepack does not feed",
                why=f"it is {dtype}; supported: {', '.join(DTYPES)}",
                hint="export the network with numbers as its inputs",
            )
        inputs.append(Tensor(value.name, dtype, _shape(value)))
    if not inputs:
        raise SourceError(
            "source-onnx-inputs",
            f"{path.name} takes no input",
            why="its answer is constant, so there is nothing to verify",
            hint="export the network with its inputs",
        )
    return tuple(inputs)


def _dtype(onnx: ModuleType, value: ValueInfoProto) -> str:
    """Return the element type of an input or output, by numpy's name if it has one.

    numpy has no bfloat16; float32 represents all of its values.
    """
    number = value.type.tensor_type.elem_type
    name = str(onnx.TensorProto.DataType.Name(number)).lower()
    return {"float": "float32", "bfloat16": "float32", "double": "float64"}.get(name, name)


def check_outputs(path: Path, onnx: ModuleType, model: ModelProto) -> None:
    """Refuse outputs that are not plain arrays or share a name, and a graph without outputs.

    Raises SourceError: source-output-unsupported, source-onnx-outputs.
    """
    names = value_names(model.graph.output)
    for value in model.graph.output:
        kind = value.type.WhichOneof("value")
        dtype = _dtype(onnx, value) if kind == "tensor_type" else kind
        if dtype not in DTYPES:
            hint = f"export it with {value.name} as one of {', '.join(DTYPES)}"
            if dtype in ("sequence_type", "map_type"):
                hint = "export it without ZipMap and sequences (for scikit-learn: zipmap=False)"
            raise SourceError(
                "source-output-unsupported",
                "the model returns something other than plain arrays of numbers",
                why=f"{value.name} is of type {dtype}",
                hint=hint,
            )
    if not names:
        raise SourceError(
            "source-onnx-outputs",
            f"{path.name} returns nothing",
            why="its graph has no outputs",
            hint="export the network with outputs, each with a distinct name",
        )
    if len(set(names)) < len(names):
        raise SourceError(
            "source-onnx-outputs",
            f"the outputs of {path.name} share a name",
            why=f"they are called {', '.join(names)}",
            hint="export the network with outputs, each with a distinct name",
        )


def value_names(values: Iterable[ValueInfoProto | TensorProto]) -> list[str]:
    """Return the names of a graph's inputs, outputs or initializers."""
    return [value.name for value in values]


def _shape(value: ValueInfoProto) -> tuple[Dim, ...]:
    """Return the axes of an input; a dynamic axis without a name gets one.

    The axes (?, 3, "height", ?) of an input "image" give ("batch", 3, "height", "image_dim3").
    """
    return tuple(
        _dim(value.name, axis, dim) for axis, dim in enumerate(value.type.tensor_type.shape.dim)
    )


def _dim(name: str, axis: int, dim: TensorShapeProto.Dimension) -> Dim:
    # Some exporters write 0 or -1 for a dynamic axis.
    if dim.HasField("dim_value") and dim.dim_value > 0:
        return int(dim.dim_value)
    if dim.dim_param:
        return str(dim.dim_param)
    if axis == 0:
        return "batch"
    return f"{name}_dim{axis}"
