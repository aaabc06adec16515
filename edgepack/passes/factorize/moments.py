"""Mean and covariance of layer inputs or outputs, streamed over the calibration samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from edgepack.errors import ChainError
from edgepack.passes.factorize.layers import CONVOLUTIONS, Layer
from edgepack.passes.module import ModuleContext
from edgepack.passes.network import ForwardHook, make_arguments

if TYPE_CHECKING:
    from torch import nn


@dataclass
class Moments:
    """Sums over the positions of all samples, float64.

    For outputs y = W x + b the covariance is W C W^T with C that of x, so measuring y of a
    convolution avoids extracting its windows. A Linear with fewer inputs than outputs is measured
    at its inputs, whose covariance is smaller.

    Attributes:
        of_inputs: True for moments of x, False for those of y.
        count: number of positions.
        origin: [n] the first batch's mean, subtracted so that the squares lose no precision; None
            before the first batch.
        total: [n] sum of values - origin.
        square: [n, n] sum of their products.
    """

    of_inputs: bool
    count: int = 0
    origin: torch.Tensor | None = None
    total: torch.Tensor | float = 0.0
    square: torch.Tensor | float = 0.0

    def add(self, values: torch.Tensor) -> None:
        """Add values [positions, n]."""
        # E[x^2] - E[x]^2 cancels if the mean is large: for a mean of 1e4 and a variance of 1, eight
        # of the digits are lost. Subtracting a constant near the mean avoids that.
        if self.origin is None:
            self.origin = values.double().mean(0)
        values = values.double() - self.origin
        self.count += len(values)
        self.total = self.total + values.sum(0)
        self.square = self.square + values.t() @ values

    @property
    def mean(self) -> torch.Tensor:
        """Return the mean [n]."""
        if self.origin is None:
            raise ValueError("the mean of no values is undefined")
        return self.origin + self.total / self.count

    @property
    def covariance(self) -> torch.Tensor:
        """Return the covariance [n, n]."""
        # cov(x) = E[d d^T] - E[d] E[d]^T for d = x - origin; the origin cancels.
        off = self.total / self.count
        return self.square / self.count - torch.outer(off, off)


def observe(
    module: nn.Module, layers: Sequence[Layer], context: ModuleContext, batch_size: int
) -> dict[str, Moments]:
    """Return the moments of each layer by name.

    Raises ChainError `factorize-not-finite` for a layer with infinite or NaN activations.
    """
    samples = context.calibration
    if samples is None:
        raise ValueError("the moments of layers need the calibration samples")
    moments = {layer.name: Moments(_measures_inputs(layer)) for layer in layers}
    hooks = []
    for layer in layers:
        hook = _make_hook(layer, moments[layer.name])
        hooks.append(layer.module.register_forward_hook(hook))
    count = 0
    try:
        # Not inference_mode: tensors that the network stores may need gradients in a later pass.
        with torch.no_grad():
            for batch in samples.batches(batch_size):
                module(*make_arguments(context, batch.inputs))
                count += batch.count
                context.progress.tell(f"{count:,} calibration samples")
    finally:
        for hook in hooks:
            hook.remove()
    for name, sums in moments.items():
        if sums.count and not bool(torch.isfinite(sums.square).all()):
            raise ChainError(
                "factorize-not-finite",
                f"the layer {name} has infinite or NaN activations",
                why="measured on the calibration samples",
                hint=f"--chain factorize:exclude={name}, or method=svd, which reads only weights",
            )
    return moments


def _measures_inputs(layer: Layer) -> bool:
    """Return True if the covariance of the inputs is the smaller one, and cheap to measure."""
    return layer.inputs < layer.outputs and not isinstance(layer.module, CONVOLUTIONS)


def _make_hook(layer: Layer, moments: Moments) -> ForwardHook:
    """Return a forward hook that adds the positions of one call."""

    def add(_module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        values = inputs[0] if moments.of_inputs else output
        if isinstance(layer.module, CONVOLUTIONS):
            # [batch, channels, positions...] or [channels, positions...]: counting from the end
            # finds the channel axis of both.
            values = values.movedim(-len(layer.module.kernel_size) - 1, -1)
        moments.add(values.reshape(-1, values.shape[-1]))

    return add
