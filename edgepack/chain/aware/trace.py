"""Who reads what in one call of a network. Only importable where torch is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


@dataclass
class Value:
    """A tensor at one time: what is written over in place is another value afterwards.

    Attributes:
        axes: number of them.
        layer: the followed layer that gave it, or "".
        source: of a followed layer's output, the value that the layer read.
        readers: names of the functions that read it, in order.
    """

    axes: int
    layer: str = ""
    source: Value | None = None
    readers: list[str] = field(default_factory=list)


@dataclass
class Trace:
    """One call.

    Attributes:
        calls: how often each followed layer was called.
        made: what each gave, the last time.
        answered: ids of the values that the network returned.
    """

    calls: Counter[str] = field(default_factory=Counter)
    made: dict[str, Value] = field(default_factory=dict)
    answered: set[int] = field(default_factory=set)


def trace(network: Any, followed: Mapping[str, Any], example: Sequence[Any]) -> Trace:
    """Call a network and look on.

    Args:
        network: in eval mode.
        followed: layers of it, by name; each reads one tensor and gives one.
        example: the arguments of the call.
    """
    found, recorder = Trace(), _Recorder()
    hooks = [
        layer.register_forward_hook(_noting(name, found, recorder))
        for name, layer in followed.items()
    ]
    fed = [argument.clone() for argument in example]
    try:
        with torch.no_grad(), recorder:
            answer = network(*fed)
    finally:
        for hook in hooks:
            hook.remove()
    found.answered = {id(recorder.value(tensor)) for tensor in _tensors(answer)}
    return found


def _noting(name: str, found: Trace, recorder: _Recorder) -> Any:
    def note(_layer: Any, given: Any, output: Any) -> None:
        found.calls[name] += 1
        if isinstance(output, torch.Tensor) and given and isinstance(given[0], torch.Tensor):
            value = recorder.value(output)
            value.layer, value.source = name, recorder.read.get(id(output))
            found.made[name] = value

    return note


class _Recorder(TorchFunctionMode):  # type: ignore[misc]
    """Notes every function of torch that reads tensors and gives some."""

    def __init__(self) -> None:
        super().__init__()
        self._values: dict[int, Value] = {}
        # First operand of the function that gave a tensor.
        self.read: dict[int, Value] = {}
        # Alive until the end, so that no id is given twice.
        self._kept: list[Any] = []

    def value(self, tensor: Any) -> Value:
        """What a tensor is now."""
        if id(tensor) not in self._values:
            self._kept.append(tensor)
            self._values[id(tensor)] = Value(tensor.ndim)
        return self._values[id(tensor)]

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        made = list(_tensors(output))
        # Whatever asks for a size or a type reads no values.
        if not made:
            return output
        read = [self.value(tensor) for tensor in _tensors((args, kwargs or {}))]
        for value in {id(value): value for value in read}.values():
            value.readers.append(getattr(function, "__name__", str(function)))
        for tensor in made:
            self._kept.append(tensor)
            self._values[id(tensor)] = Value(tensor.ndim)
            if read:
                self.read[id(tensor)] = read[0]
        return output


def _tensors(found: Any) -> Iterator[Any]:
    """Every tensor in nested tuples, lists and dicts."""
    if isinstance(found, torch.Tensor):
        yield found
    elif isinstance(found, Mapping):
        for part in found.values():
            yield from _tensors(part)
    elif isinstance(found, (tuple, list)):
        for part in found:
            yield from _tensors(part)
