"""Readers and producers of the tensors in one call of a network. Importing this needs torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch.overrides import TorchFunctionMode

from edgepack.passes.network import ForwardHook

if TYPE_CHECKING:
    from torch import nn


@dataclass
class Value:
    """State of a tensor; an in-place operation gives the tensor a new value.

    Attributes:
        axes: number of axes.
        layer: the followed layer that produced it, or "".
        source: the value that this layer read; None without such a layer.
        readers: names of the functions that read it, in order.
    """

    axes: int
    layer: str = ""
    source: Value | None = None
    readers: list[str] = field(default_factory=list)


@dataclass
class Trace:
    """Record of one call.

    Attributes:
        calls: number of calls of each followed layer.
        outputs: output of the last call of each.
        returned: ids of the values that the network returned.
    """

    calls: Counter[str] = field(default_factory=Counter)
    outputs: dict[str, Value] = field(default_factory=dict)
    returned: set[int] = field(default_factory=set)


def trace(
    network: nn.Module, followed: Mapping[str, nn.Module], example: Sequence[torch.Tensor]
) -> Trace:
    """Call a network and record its functions.

    Args:
        network: in eval mode.
        followed: some of its layers by name; each maps one tensor to one.
        example: the arguments of the call.
    """
    record, recorder = Trace(), _Recorder()
    hooks = []
    for name, layer in followed.items():
        hooks.append(layer.register_forward_hook(_make_hook(name, record, recorder)))
    # Cloned, since a network may write into its inputs.
    fed = [argument.clone() for argument in example]
    try:
        with torch.no_grad(), recorder:
            answer = network(*fed)
    finally:
        for hook in hooks:
            hook.remove()
    record.returned = {id(recorder.value(tensor)) for tensor in _iterate_tensors(answer)}
    return record


def _make_hook(name: str, record: Trace, recorder: _Recorder) -> ForwardHook:
    """Return a forward hook that records a call of a followed layer."""

    def note(_layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        record.calls[name] += 1
        if isinstance(output, torch.Tensor) and inputs and isinstance(inputs[0], torch.Tensor):
            value = recorder.value(output)
            value.layer, value.source = name, recorder.read.get(id(output))
            record.outputs[name] = value

    return note


class _Recorder(TorchFunctionMode):  # type: ignore[misc]
    """Records each torch function that reads and returns tensors.

    For y = relu(conv2d(x, w)), the value of conv2d's output gets the reader "relu", and `read`
    holds x's value as its first operand.
    """

    def __init__(self) -> None:
        super().__init__()
        self._values: dict[int, Value] = {}
        # First operand of the function that returned a tensor, by the tensor's id.
        self.read: dict[int, Value] = {}
        # References to all tensors, so that Python does not reuse an id.
        self._alive: list[torch.Tensor] = []

    def value(self, tensor: torch.Tensor) -> Value:
        """Return the current value of a tensor."""
        if id(tensor) not in self._values:
            self._alive.append(tensor)
            self._values[id(tensor)] = Value(tensor.ndim)
        return self._values[id(tensor)]

    def __torch_function__(
        self,
        function: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        output = function(*args, **(kwargs or {}))
        outputs = list(_iterate_tensors(output))
        # A function that returns no tensor, such as size() or dim(), reads no values.
        if not outputs:
            return output
        # An operand that the function reads twice, as in x * x, has it as a reader once.
        read = [self.value(tensor) for tensor in _iterate_tensors((args, kwargs or {}))]
        for value in {id(value): value for value in read}.values():
            value.readers.append(getattr(function, "__name__", str(function)))
        for tensor in outputs:
            self._alive.append(tensor)
            self._values[id(tensor)] = Value(tensor.ndim)
            if read:
                self.read[id(tensor)] = read[0]
        return output


def _iterate_tensors(nested: object) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested tuples, lists and dicts."""
    if isinstance(nested, torch.Tensor):
        yield nested
    elif isinstance(nested, Mapping):
        for part in nested.values():
            yield from _iterate_tensors(part)
    elif isinstance(nested, (tuple, list)):
        for part in nested:
            yield from _iterate_tensors(part)
