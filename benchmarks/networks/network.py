"""What a network of the benchmark is, and how one is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Network:
    """A network with its samples.

    Attributes:
        kind: of architecture, for people.
        weights: "real", or "random" with the shapes of the real one.
        module: torch module in eval mode; None where the network exists as ONNX alone.
        onnx: ONNX file; None where it is exported from the module.
        calibration: array of each input, samples first.
        evaluation: the same, of other recordings or pictures.
        output: name of the output.
        axes: dynamic axes of each input, as torch.onnx.export takes them; else one sample.
    """

    kind: str
    weights: str
    calibration: Feeds
    evaluation: Feeds
    output: str
    module: Any = None
    onnx: Path | None = None
    axes: Mapping[str, Mapping[int, str]] = field(default_factory=dict)


Maker = Callable[[], Network]


def write(network: Network, folder: Path) -> int:
    """Write model.onnx, module.pt2 (with a module), the samples and a README.

    Returns:
        Bytes of model.onnx.
    """
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "calibration.npz", **network.calibration)
    np.savez(folder / "evaluation.npz", **network.evaluation)
    target = folder / "model.onnx"
    if network.module is not None:
        _export(network, target)
    elif network.onnx is not None:
        _fix_batch(network, target)
    counts = [
        len(next(iter(feeds.values()))) for feeds in (network.calibration, network.evaluation)
    ]
    (folder / "README").write_text(
        f"{network.kind}; {network.weights} weights; {counts[0]} calibration and "
        f"{counts[1]} evaluation samples\n"
    )
    return target.stat().st_size


def _export(network: Network, target: Path) -> None:
    import copy

    import torch

    # A copy, since tracing leaves its tensors behind in some modules.
    eager = copy.deepcopy(network.module)
    example = tuple(torch.from_numpy(array[:1]) for array in network.calibration.values())
    torch.onnx.export(
        network.module, example, str(target), opset_version=17, dynamo=False,
        input_names=list(network.calibration), output_names=[network.output],
        dynamic_axes={name: dict(axes) for name, axes in network.axes.items()} or None,
    )  # fmt: skip
    dimensions = None
    if network.axes:
        auto = torch.export.Dim.AUTO
        dimensions = tuple(
            {axis: auto for axis in network.axes.get(name, {}) if axis != 0}
            for name in network.calibration
        )
    with torch.no_grad():
        exported = torch.export.export(eager, example, dynamic_shapes=dimensions)
    torch.export.save(exported, target.with_name("module.pt2"))


def _fix_batch(network: Network, target: Path) -> None:
    """Write the ONNX with the shapes of one sample, in opset 17 if it is older."""
    import onnx
    from onnx import shape_inference, version_converter

    model = onnx.load(str(network.onnx))
    if model.opset_import[0].version < 17:
        model = version_converter.convert_version(model, 17)
    for value in model.graph.input:
        if value.name in network.calibration:
            _set_shape(value, (1, *network.calibration[value.name].shape[1:]))
    for value in model.graph.output:
        for i, dimension in enumerate(value.type.tensor_type.shape.dim):
            if dimension.dim_param:
                dimension.dim_param = f"{value.name}_{i}"
    onnx.save(shape_inference.infer_shapes(model), str(target))


def _set_shape(value: Any, shape: tuple[int, ...]) -> None:
    dimensions = value.type.tensor_type.shape
    del dimensions.dim[:]
    for size in shape:
        dimensions.dim.add().dim_value = size
