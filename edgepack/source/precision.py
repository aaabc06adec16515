"""Cast networks in half, bfloat16 or double precision to float32.

The values of float16 and bfloat16 are exact in float32. Quantization starts from float32, since
onnxruntime has few kernels of the other types on a CPU.
"""

from __future__ import annotations

from collections import Counter
from types import FunctionType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

# Names in code that casts to a fixed float type.
_CASTS = frozenset({"half", "bfloat16", "double", "float16", "float64"})


def cast_to_float32(module: nn.Module) -> list[str]:
    """Cast a network's tensors to float32 if its parameters are of another float type.

    Buffers and plain attributes of the parameters' types are cast too; a float64 table beside
    float32 parameters is not. The inputs of the network and of its layers are cast by hooks, so
    that a cast inside `forward` does no harm.

    A network that casts the operands of its own parameters, as in
    `F.linear(x.half(), self.weight)`, is left unchanged: the cast would contradict its code.

    Returns:
        Notes for the ledger: the number of parameters of each type, or the reason for no cast.
    """
    import torch

    # With any narrow parameter, buffers of either narrow type are cast too.
    narrow = {torch.float16, torch.bfloat16}
    counts = _count_types(module)
    types = counts.keys() & {torch.float64}
    if not narrow.isdisjoint(counts):
        types |= narrow
    if not types:
        return []
    hooked = []
    for part in module.modules():
        owns = not types.isdisjoint(_count_types(part, recurse=False))
        if owns and _casts(part):
            return [f"Not cast to float32: {type(part).__qualname__} casts its own operands."]
        if owns or part is module:
            hooked.append(part)
    module._apply(lambda tensor: tensor.float() if tensor.dtype in types else tensor)
    for part in module.modules():
        for name, value in list(vars(part).items()):
            if isinstance(value, torch.Tensor) and value.dtype in types:
                setattr(part, name, value.float())
    if not isinstance(module, torch.jit.ScriptModule):
        for part in hooked:
            part.register_forward_pre_hook(_cast_inputs, with_kwargs=True)
    notes = []
    for dtype, count in counts.items():
        if dtype in types:
            name = str(dtype).removeprefix("torch.")
            notes.append(f"Cast {count} parameters from {name} to float32.")
    return notes


def _count_types(module: nn.Module, recurse: bool = True) -> Counter[torch.dtype]:
    """Count the parameters of each type."""
    return Counter(parameter.dtype for parameter in module.parameters(recurse=recurse))


def _casts(part: nn.Module) -> bool:
    """Return True if the code of a user's class names a float type to cast to."""
    if type(part).__module__.startswith("torch."):
        return False
    # co_names has the names of attributes and globals: ("F", "linear", "half", "weight") for
    # F.linear(x.half(), self.weight).
    for value in vars(type(part)).values():
        if isinstance(value, FunctionType) and not _CASTS.isdisjoint(value.__code__.co_names):
            return True
    return False


def _cast_inputs(
    _module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
) -> tuple[tuple[object, ...], dict[str, object]]:
    """Cast the floating-point tensors among a layer's arguments to float32."""
    from torch.utils import _pytree as pytree

    return pytree.tree_map(_to_float32, args), pytree.tree_map(_to_float32, kwargs)


def _to_float32(value: object) -> object:
    import torch

    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.float()
    return value
