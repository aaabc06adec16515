"""Copy a state dict into a module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MANY = 2000
"""From so many tensors on, torch's own way is slow: it goes through all of them for each module."""

_HOOKS = ("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")


def copy_state(module: Any, state: Mapping[str, Any]) -> None:
    """Copy tensors into a module whose names and shapes they have.

    As `load_state_dict` does it, in a time that grows with the number of tensors and not with its
    square, wherever no module has a way of its own to load.
    """
    import torch

    own = module.state_dict(keep_vars=True)
    direct = len(own) >= MANY and all(isinstance(own[name], torch.Tensor) for name in own)
    if not direct or not all(map(_loads_plainly, module.modules())):
        module.load_state_dict(state, strict=True)
        return
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])


def _loads_plainly(module: Any) -> bool:
    from torch.nn import Module
    from torch.nn.modules.batchnorm import _NormBase

    # A BatchNorm only fills in a counter that old files lack.
    plain = (Module._load_from_state_dict, _NormBase._load_from_state_dict)
    hooked = any(getattr(module, name, None) for name in _HOOKS)
    return type(module)._load_from_state_dict in plain and not hooked
