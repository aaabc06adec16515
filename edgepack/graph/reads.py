"""Detection of tensor values that a forward pass reads into Python; a trace would freeze them."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

from edgepack.graph.quiet import quiet
from edgepack.graph.trace import innermost_model_frame

if TYPE_CHECKING:
    from torch import Tensor as TorchTensor
    from torch.nn import Module

# Methods and functions of torch that return a tensor's values, not its shape or type.
_VALUE_READS = frozenset(
    {"__bool__", "__int__", "__float__", "__complex__", "__index__", "__array__", "__contains__",
     "item", "tolist", "numpy", "equal", "allclose", "is_nonzero"}
)  # fmt: skip


def input_read(module: Module, args: tuple[TorchTensor, ...]) -> str | None:
    """Return the first line of the model that reads a value computed from an input, or None.

    `if x.mean() > 0` is such a line. `if x.shape[0] > 1` and `if self.table.max() > 3` are not,
    since neither depends on the values of the inputs.

    Args:
        module: the torch module; it is called once.
        args: its inputs, tensors.
    """
    import torch
    from torch.overrides import TorchFunctionMode
    from torch.utils._pytree import tree_leaves
    from torch.utils.weak import WeakTensorKeyDictionary

    # All tensors computed from an input so far; weak, so that activations are freed as usual.
    derived = WeakTensorKeyDictionary()
    for tensor in args:
        derived[tensor] = True
    lines: list[str] = []

    def is_derived(leaf: object) -> bool:
        return isinstance(leaf, torch.Tensor) and leaf in derived

    class Watch(TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            # A shape or a parameter of the model is not a value of an input.
            if not any(map(is_derived, tree_leaves((args, kwargs)))):
                return result
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor):
                    derived[leaf] = True
            if getattr(func, "__name__", "") in _VALUE_READS:
                lines.append(innermost_model_frame(traceback.extract_stack()) or "the model")
            return result

    with quiet(), torch.no_grad(), Watch():
        module(*args)
    return next(iter(lines), None)
