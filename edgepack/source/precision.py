"""Networks in half, bfloat16 or double precision, cast to float32 before anything else.

The values of float16 and bfloat16 are exact in float32. Whatever is quantized later starts from
float32, as onnxruntime has few kernels of the other types on a CPU.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

# Names in code that casts to a float type of its own choice.
_CASTS = frozenset({"half", "bfloat16", "double", "float16", "float64"})


def cast_to_float32(module: Any) -> list[str]:
    """Cast a network's tensors to float32 where its parameters are of another float type.

    Buffers and plain attributes of the types that the parameters have are cast too; a float64
    table beside float32 parameters stays as it is. Inputs of those types, also those that
    `forward` casts itself, are cast where they reach the network and its layers.

    A network whose own code casts beside parameters that it uses directly, as in
    `F.linear(x.half(), self.weight)`, stays as it is: the cast would contradict its code.

    Returns:
        Notes for the ledger: how many parameters of each type were cast, or why none was.
    """
    import torch

    narrow = {torch.float16, torch.bfloat16}
    used = {parameter.dtype for parameter in module.parameters()}
    types = (narrow if used & narrow else set()) | (used & {torch.float64})
    if not types:
        return []
    casting = next((p for p in module.modules() if _owns(p, types) and _casts(p)), None)
    if casting is not None:
        return [f"Not cast to float32: {type(casting).__qualname__} casts its own operands."]
    counts: dict[Any, int] = {}
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


def _owns(part: Any, types: set[Any]) -> bool:
    return any(parameter.dtype in types for parameter in part.parameters(recurse=False))


def _casts(part: Any) -> bool:
    """Return whether a class of the user's casts to a float type that its code names."""
    if type(part).__module__.startswith("torch."):
        return False
    functions = [value for value in vars(type(part)).values() if isinstance(value, FunctionType)]
    return any(_CASTS & set(function.__code__.co_names) for function in functions)


def _cast_inputs(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Cast the floating-point tensors among a layer's arguments to float32."""
    from torch.utils import _pytree as pytree

    return pytree.tree_map(_to_float32, args), pytree.tree_map(_to_float32, kwargs)


def _to_float32(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.float()
    return value
