"""The directions along which a layer's output is kept, and what each is worth.

Rank r keeps V = U_r U_r^T W for U_r [o, r] with orthonormal columns, so that of an output y = W x
what is lost is (1 - U_r U_r^T) y. With the bias b' = b + (1 - U_r U_r^T) E[y] the mean is kept, and

    E|y - y'|^2 = sum over i > r of u_i^T C u_i,      C = cov(y) = W cov(x) W^T

svd          U: left singular vectors of W. Best for white inputs (Eckart and Young, 1936).
activation   U: eigenvectors of C, i.e. left singular vectors of W cov(x)^1/2. Best of all rank-r
             layers on the calibration samples. That is SVD-LLM's whitening (Wang et al.,
             arXiv:2403.07378, there with E[x x^T]), which ASVD (Yuan et al., arXiv:2312.05821)
             approximates with a diagonal; for convolutions it is the response reconstruction of
             Zhang et al., arXiv:1505.06798. Written by outputs, nothing has to be inverted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edgepack.chain.factorize.layers import Layer
from edgepack.chain.factorize.moments import Moments


@dataclass(frozen=True)
class Spectrum:
    """Directions of one layer's output.

    Attributes:
        basis: [o, n] orthonormal columns, float64.
        energy: [n] what each direction holds: variance of the output, or a squared singular value.
        mean: [o] of W x on the calibration samples; None where only the weights were looked at.
    """

    basis: Any
    energy: np.ndarray
    mean: Any

    def lost(self) -> np.ndarray:
        """[n + 1] the share of the energy that rank 0, 1, ... n loses, falling from 1 to 0."""
        after = np.append(np.cumsum(self.energy[::-1])[::-1], 0.0)
        # A layer whose output never changes loses nothing.
        return after / after[0] if after[0] > 0 else np.zeros_like(after)


def spectrum(layer: Layer, moments: Moments | None, method: str) -> Spectrum:
    """The directions of a layer.

    Args:
        layer: the layer.
        moments: of its inputs or outputs; None to go by the weights alone.
        method: "activation" or "svd".
    """
    matrix = layer.matrix
    if moments is None or not moments.count:
        basis, values, _ = torch.linalg.svd(matrix, full_matrices=False)
        return Spectrum(basis, values.square().numpy(), None)
    covariance, mean = moments.covariance, moments.mean
    if moments.of_inputs:
        # W C^1/2 is narrower than W C W^T.
        values, vectors = torch.linalg.eigh(covariance)
        root = matrix @ (vectors * values.clamp(min=0).sqrt())
        mean = matrix @ mean
    else:
        mean = mean if layer.bias is None else mean - layer.bias
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
        energy, basis = (found.flip(-1) for found in torch.linalg.eigh(covariance))
        energy, basis = energy[: layer.inputs], basis[:, : layer.inputs]
    return Spectrum(basis, energy.clamp(min=0).numpy(), mean)
