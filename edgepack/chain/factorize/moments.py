"""Mean and covariance of what layers read or give, streamed over the calibration samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from edgepack.chain.factorize.layers import CONVOLUTIONS, Layer
from edgepack.chain.module import Context
from edgepack.chain.network import arguments
from edgepack.errors import ChainError


@dataclass
class Moments:
    """Sums over the positions of all samples, float64.

    For outputs y = W x + b the covariance is W C W^T, C that of x, whichever window x is cut with:
    for a convolution no window has to be cut. A Linear with fewer inputs than outputs is looked at
    by its inputs.

    Attributes:
        of_inputs: whether it is of x; else of y.
        count: number of positions.
        origin: [n] near the mean, so that the squares lose no digits.
        total: [n] sum of values - origin.
        square: [n, n] sum of their products.
    """

    of_inputs: bool
    count: int = 0
    origin: Any = None
    total: Any = 0.0
    square: Any = 0.0

    def add(self, values: Any) -> None:
        """Add [positions, n]."""
        if self.origin is None:
            self.origin = values.double().mean(0)
        values = values.double() - self.origin
        self.count += len(values)
        self.total = self.total + values.sum(0)
        self.square = self.square + values.t() @ values

    @property
    def mean(self) -> Any:
        """[n]."""
        return self.origin + self.total / self.count

    @property
    def covariance(self) -> Any:
        """[n, n]."""
        off = self.total / self.count
        return self.square / self.count - torch.outer(off, off)


def observe(
    module: Any, layers: Sequence[Layer], context: Context, batch_size: int
) -> dict[str, Moments]:
    """The moments of every layer, by its name.

    Raises ChainError `factorize-not-finite` for a layer that reads or gives infinities or NaN.
    """
    samples = context.calibration
    if samples is None:
        raise ValueError("what is measured needs the calibration samples")
    found = {layer.name: Moments(_by_inputs(layer)) for layer in layers}
    hooks = [
        layer.module.register_forward_hook(_adder(layer, found[layer.name])) for layer in layers
    ]
    seen = 0
    try:
        with torch.no_grad():  # what the network keeps of it may be asked for a gradient later
            for batch in samples.batches(batch_size):
                module(*arguments(context, batch.inputs))
                seen += batch.count
                context.progress.tell(f"{seen:,} calibration samples")
    finally:
        for hook in hooks:
            hook.remove()
    for name, moments in found.items():
        if moments.count and not bool(torch.isfinite(moments.square).all()):
            raise ChainError(
                "factorize-not-finite",
                f"the layer {name} meets infinities or NaN",
                why="so it was on the calibration samples",
                hint=f"--chain factorize:exclude={name}, or method=svd, which looks at the weights",
            )
    return found


def _by_inputs(layer: Layer) -> bool:
    return layer.inputs < layer.outputs and not isinstance(layer.module, CONVOLUTIONS)


def _adder(layer: Layer, moments: Moments) -> Any:
    """The hook that adds one call's positions."""

    def add(_module: Any, inputs: Any, output: Any) -> None:
        values = inputs[0] if moments.of_inputs else output
        if isinstance(layer.module, CONVOLUTIONS):
            # [batch, channels, positions...], or without a batch: channels before the positions.
            values = values.movedim(-len(layer.module.kernel_size) - 1, -1)
        moments.add(values.reshape(-1, values.shape[-1]))

    return add
