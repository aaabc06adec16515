"""Cast networks in half, bfloat16 or double precision to float32.

The values of float16 and bfloat16 are exact in float32. Quantization starts from float32, since
onnxruntime has few kernels of the other types on a CPU.
"""

from __future__ import annotations

from types import FunctionType
from typing import TYPE_CHECKING, Any

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
    used = {parameter.dtype for parameter in module.parameters()}
    types = used & {torch.float64}
    if used & narrow:
        types |= narrow
    if not types:
        return []
    casting = next((p for p in module.modules() if _owns(p, types) and _casts(p)), None)
    if casting is not None:
        return [f"Not cast to float32: {type(casting).__qualname__} casts its own operands."]
    counts: dict[torch.dtype, int] = {}
    for parameter in module.parameters():
        if parameter.dtype in types:
            counts[parameter.dtype] = counts.get(parameter.dtype, 0) + 1
    hooked = [part for part in module.modules() if part is module or _owns(part, types)]
    module._apply(lambda tensor: tensor.float() if tensor.dtype in types else tensor)
    for part in module.modules():
        for name, value in list(vars(part).items()):
            if isinstance(value, torch.Tensor) and value.dtype in types:
                setattr(part, name, value.float())
    if not isinstance(module, torch.jit.ScriptModule):
        for part in hooked:
            part.register_forward_pre_hook(_cast_inputs, with_kwargs=True)
    return [
        f"Cast {count} parameters from {str(dtype).removeprefix('torch.')} to float32."
        for dtype, count in counts.items()
    ]


def _owns(part: nn.Module, types: set[torch.dtype]) -> bool:
    return any(parameter.dtype in types for parameter in part.parameters(recurse=False))


def _casts(part: nn.Module) -> bool:
    """Return True if the code of a user's class names a float type to cast to."""
    if type(part).__module__.startswith("torch."):
        return False
    functions = [value for value in vars(type(part)).values() if isinstance(value, FunctionType)]
    return any(_CASTS & set(function.__code__.co_names) for function in functions)


def _cast_inputs(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Cast the floating-point tensors among a layer's arguments to float32."""
    from torch.utils import _pytree as pytree

    return pytree.tree_map(_to_float32, args), pytree.tree_map(_to_float32, kwargs)


def _to_float32(value: object) -> Any:
    import torch

    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.float()
    return value
