"""Directions of a layer's output, and the energy of each.

Rank r replaces W by U_r U_r^T W for U_r [o, r] with orthonormal columns, so that an output y = W x
loses (1 - U_r U_r^T) y. The bias b' = b + (1 - U_r U_r^T) E[y] preserves the mean, and

    E|y - y'|^2 = sum over i > r of u_i^T C u_i,      C = cov(y) = W cov(x) W^T

svd          U: left singular vectors of W. Best for white inputs (Eckart and Young, 1936).
activation   U: eigenvectors of C, i.e. left singular vectors of W cov(x)^1/2. Best of all rank-r
             layers on the calibration samples. That is SVD-LLM's whitening (Wang et al.,
             arXiv:2403.07378, there with E[x x^T]), which ASVD (Yuan et al., arXiv:2312.05821)
             approximates with a diagonal; for convolutions it is the response reconstruction of
             Zhang et al., arXiv:1505.06798. In terms of outputs, no matrix has to be inverted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from edgepack.passes.factorize.layers import Layer
from edgepack.passes.factorize.moments import Moments


@dataclass(frozen=True)
class Spectrum:
    """Directions of one layer's output.

    Attributes:
        basis: [o, n] orthonormal columns, float64.
        energy: [n] variance of the output along each direction, or its squared singular value.
        mean: [o] of W x on the calibration samples; None if only the weights were read.
    """

    basis: torch.Tensor
    energy: np.ndarray
    mean: torch.Tensor | None

    def losses(self) -> np.ndarray:
        """Return the share of the energy that ranks 0 to n lose: [n + 1], from 1 down to 0.

        The energy [6, 3, 1] gives [1, 0.4, 0.1, 0].
        """
        remainder = np.append(np.cumsum(self.energy[::-1])[::-1], 0.0)
        # A constant output has no variance to lose.
        if remainder[0] <= 0:
            return np.zeros_like(remainder)
        shares: np.ndarray = remainder / remainder[0]
        return shares


def compute_spectrum(layer: Layer, moments: Moments | None, method: str) -> Spectrum:
    """Return the directions of a layer.

    Args:
        layer: the layer.
        moments: of its inputs or outputs; None to use the weights alone.
        method: "activation" or "svd".
    """
    matrix = layer.matrix
    if moments is None or not moments.count:
        basis, values, _ = torch.linalg.svd(matrix, full_matrices=False)
        return Spectrum(basis, values.square().numpy(), None)
    covariance, mean = moments.covariance, moments.mean
    if moments.of_inputs:
        # The left singular vectors of W C^1/2 [o, k] are the eigenvectors of W C W^T [o, o], and
        # k < o here.
        values, vectors = torch.linalg.eigh(covariance)
        root = matrix @ (vectors * values.clamp(min=0).sqrt())
        mean = matrix @ mean
    elif layer.bias is not None:
        mean = mean - layer.bias
    # With method = svd, snr_db still needs the variance along the directions of the weights.
    if method == "svd":
        basis, _, _ = torch.linalg.svd(matrix, full_matrices=False)
        if moments.of_inputs:
            energy = (basis.t() @ root).square().sum(1)
        else:
            energy = ((covariance @ basis) * basis).sum(0)
    elif moments.of_inputs:
        basis, values, _ = torch.linalg.svd(root, full_matrices=False)
        energy = values.square()
    else:
        # eigh sorts ascending; W has rank k at most, so at most k directions carry energy.
        values, vectors = torch.linalg.eigh(covariance)
        energy = values.flip(-1)[: layer.inputs]
        basis = vectors.flip(-1)[:, : layer.inputs]
    return Spectrum(basis, energy.clamp(min=0).numpy(), mean)
