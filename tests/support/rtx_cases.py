"""TensorRT-RTX in the tests: whether it is here, and what it made of a model."""

from __future__ import annotations

import re

import onnx
import pytest

from edgepack.engine import tensorrt_rtx
from edgepack.runtime.session.tensorrt_build import Options, Profiles, build

needs_rtx = pytest.mark.skipif(
    not tensorrt_rtx.installed(),
    reason="TensorRT-RTX is not installed (make test installs it on x86-64 Linux)",
)
# What multiplies matrices, as a plan calls it.
LINEAR = ("corrltn", "fully_connected", "gemm", "matmul", "bmm")


def profiles_of(model: onnx.ModelProto, least: int = 1, usual: int = 2, most: int = 4) -> Profiles:
    """Shapes for every dynamic input, all of whose dynamic axes have the same sizes."""
    profiles = {}
    for value in model.graph.input:
        dims = [dim.dim_value or None for dim in value.type.tensor_type.shape.dim]
        if None in dims:
            small, middle, large = (
                tuple(dim or size for dim in dims) for size in (least, usual, most)
            )
            profiles[value.name] = (small, middle, large)
    return profiles


def plan_of(model: onnx.ModelProto, capability: str = "8.9") -> bytes:
    """The engine that TensorRT-RTX builds for a GPU that is not here."""
    import tensorrt_rtx as trt

    options = Options(profiles=profiles_of(model), compute_capability=capability)
    engine, _ = build(trt, model.SerializeToString(), options, b"", lambda seconds: None)
    return engine


def linear_kernels(engine: bytes) -> dict[str, tuple[str, ...]]:
    """The kernels of a plan that multiply matrices: name -> element types of the two operands.

    A plan is text of NVIDIA's own; how it is written is known of the pinned version alone.
    """
    text = engine.decode("latin-1")
    types: dict[str, str] = {}
    for line in text.splitlines():
        if "tensor={" in line:
            name, kind = re.search(r'name="([^"]+)"', line), re.search(r"type=(\w+)", line)
            if name and kind:
                types[name[1]] = kind[1]
    kernels = {}
    pattern = rf'\b({"|".join(LINEAR)})=\{{ name="([^"]+)" .*?input=\{{([^}}]*)\}}'
    for found in re.finditer(pattern, text, re.DOTALL):
        operands = re.findall(r'"([^"]+)"', found[3])[:2]
        kernels[found[2]] = tuple(types.get(operand, "?") for operand in operands)
    return kernels
