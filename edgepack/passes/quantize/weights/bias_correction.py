"""Bias correction: subtract the mean error of a layer from its bias.

Nagel et al., "Data-free quantization through weight equalization and bias correction" (2019),
with measured means: E[x] of the float network, and E[q] of the same values after quantization.
Since earlier layers are corrected in the same way, the means of a layer's input are those of the
float network.
"""

from __future__ import annotations

import numpy as np

from edgepack.passes.quantize.calibration.moments import Moments
from edgepack.passes.quantize.layers import Layer


def mean_error(layer: Layer, effective: np.ndarray, moments: Moments) -> np.ndarray:
    """Return (outputs,) E[W x - V q], to be added to the bias.

    Args:
        layer: with its real weights W as rows.
        effective: (outputs, K) weights V that the integers represent.
        moments: of the layer's input: the means of x and of q.
    """
    # The means are per group, (groups, K), and the rows (groups, outputs of the group, K).
    real, quantized = moments.real / moments.count, moments.quantized / moments.count
    float_output = np.einsum("grk,gk->gr", layer.per_group(layer.rows), real)
    integer_output = np.einsum("grk,gk->gr", layer.per_group(effective), quantized)
    return np.asarray((float_output - integer_output).ravel())
