"""Networks in half, bfloat16 or double precision, cast to float32 before anything else.

The values of float16 and bfloat16 are exact in float32. Whatever is quantized later starts from
float32, as onnxruntime has few kernels of the other types on a CPU.
"""

from __future__ import annotations

from typing import Any


def cast_to_float32(module: Any) -> list[str]:
    """Cast a network's tensors to float32 where its parameters are of another float type.

    Buffers and plain attributes of the types that the parameters have are cast too; a float64
    table beside float32 parameters stays as it is. Inputs of those types, also those that
    `forward` casts itself, are cast where they reach the network and its layers.

    Returns:
        A note for each type, for the ledger.
    """
    import torch

    narrow = {torch.float16, torch.bfloat16}
    used = {parameter.dtype for parameter in module.parameters()}
    types = (narrow if used & narrow else set()) | (used & {torch.float64})
    if not types:
        return []
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


def _cast_inputs(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Cast the floating-point tensors among a layer's arguments to float32."""
    from torch.utils import _pytree as pytree

    return pytree.tree_map(_to_float32, args), pytree.tree_map(_to_float32, kwargs)


def _to_float32(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.float()
    return value
