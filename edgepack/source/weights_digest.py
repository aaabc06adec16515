"""SHA-256 of a network's weights, the same for any file that holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.source.digest import Digest

if TYPE_CHECKING:
    from torch import nn


def hash_weights(module: nn.Module) -> str:
    """Return the SHA-256 of a state dict: names, types, shapes and values of its tensors."""
    import torch

    digest = Digest("weights")
    for name, tensor in sorted(module.state_dict().items()):
        # The extra state of a module may be anything; the code's digest covers it.
        if not isinstance(tensor, torch.Tensor):
            continue
        digest.text(name, f"{tensor.dtype} {list(tensor.shape)}")
        # As bytes, since numpy lacks some of torch's types.
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.data(name, values.numpy().data)
    return digest.hexdigest()
