"""Prepare a network for its export: constant weights in place of hooks, and its export mode.

The older `weight_norm` and `spectral_norm` store a product, such as `weight = g * v / |v|`, as a
plain attribute and recompute it in a forward pre-hook in every call. No state dict holds it,
torch.export refuses to assign it, and its module cannot be copied; in eval mode it is a constant.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def fix_normalized_weights(module: nn.Module) -> list[str]:
    """Turn the weights that `weight_norm` and `spectral_norm` compute into parameters.

    Returns:
        Notes for the ledger; none if there are no such weights.
    """
    from torch.nn.utils import remove_spectral_norm, remove_weight_norm
    from torch.nn.utils.spectral_norm import SpectralNorm
    from torch.nn.utils.weight_norm import WeightNorm

    # weight_norm(Conv2d) has the parameters weight_g and weight_v and the plain attribute weight;
    # after its removal weight is a parameter, and g and v are gone.
    removers = {WeightNorm: remove_weight_norm, SpectralNorm: remove_spectral_norm}
    counts: Counter[str] = Counter()
    for part in module.modules():
        for hook in list(part._forward_pre_hooks.values()):
            if type(hook) in removers:
                removers[type(hook)](part, hook.name)
                # A recurrent layer also has a list of its weights, which follows assignments.
                setattr(part, hook.name, getattr(part, hook.name))
                counts[type(hook).__name__] += 1
    return [f"Computed the weights of {n} {name} hooks once." for name, n in counts.items()]


def run_pre_hooks(module: nn.Module) -> None:
    """Call, without inputs, the forward pre-hooks of every part that has plain tensors.

    A hook that computes a weight from parameters ignores the inputs; a hook that reads them fails
    and leaves the tensors unchanged.
    """
    import torch

    for part in module.modules():
        if not any(isinstance(value, torch.Tensor) for value in vars(part).values()):
            continue
        for hook in list(part._forward_pre_hooks.values()):
            try:
                with torch.no_grad():
                    hook(part, ())
            except Exception:  # noqa: BLE001, S112 - it needs inputs: nothing is computed
                continue


def set_export_mode(module: nn.Module) -> list[str]:
    """Set the flag `export` of parts that have one, such as the heads of YOLO networks.

    Without it, such a head also returns what only its training loss reads.

    Returns:
        A note for the ledger; none if no part has the flag.
    """
    names: dict[str, None] = {}
    for part in module.modules():
        # A method of this name is none: torch's own modules have no such attribute.
        if getattr(part, "export", None) is False:
            part.export = True
            names[type(part).__name__] = None
    if not names:
        return []
    return [f"Set the export mode of {', '.join(names)} (its flag `export`)."]
