"""Layers that pruning changes, and reasons for the others. Importing this module needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

from torch import nn
from torch.nn.modules.conv import _ConvNd


def find_weighted_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Return the Linears and convolutions of a network by name."""
    layers = {}
    for name, part in module.named_modules():
        if isinstance(part, (nn.Linear, _ConvNd)):
            layers[name] = part
    return layers


def join_reasons(skipped: Mapping[str, str], most: int) -> str:
    """Join the reasons of the first skipped layers into one line, "" without any.

    {"fc": "it is excluded", "conv1": "its channels are an output"} with at most one gives
    "fc: it is excluded".
    """
    parts = []
    for name, reason in islice(skipped.items(), most):
        parts.append(f"{name}: {reason}")
    return "; ".join(parts)
