"""Copy a state dict into a module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

MANY = 2000
"""Number of tensors from which torch's loader is slow: each module goes through all of them."""

_HOOKS = ("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")


def copy_state(module: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Copy tensors into a module with the same names and shapes.

    The result is that of `load_state_dict`, in linear instead of quadratic time, unless a part of
    the module customizes its loading.
    """
    import torch

    # torch filters a module's state dict once for each of its children: 2,000 layers side by side
    # with 4,000 tensors are 8 million comparisons of names.
    target = module.state_dict(keep_vars=True)
    direct = len(target) >= MANY and all(isinstance(t, torch.Tensor) for t in target.values())
    if not direct or not all(map(_loads_plainly, module.modules())):
        module.load_state_dict(state, strict=True)
        return
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(state[name])


def _loads_plainly(module: nn.Module) -> bool:
    from torch.nn import Module
    from torch.nn.modules.batchnorm import _NormBase

    # A BatchNorm only fills in a counter that old files lack.
    plain = (Module._load_from_state_dict, _NormBase._load_from_state_dict)
    hooked = any(getattr(module, name, None) for name in _HOOKS)
    return type(module)._load_from_state_dict in plain and not hooked
