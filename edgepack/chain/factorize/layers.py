"""Which layers can be factorized, and why others cannot. Only importable where torch is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from edgepack.chain.network import alike, ask, in_place_of, is_transposed, shared_weights

# Of the largest value: how far answers may lie from each other where a layer stands in another.
TOLERANCE = 1e-4
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Layer:
    """A layer whose weights are one matrix.

    Attributes:
        name: as in `named_modules()`.
        module: a Linear, a convolution, or a Hugging Face Conv1D (a Linear that is stored [k, o]).
        outputs: o, its output channels.
        inputs: k, what one output is a sum over: input channels times the window.
    """

    name: str
    module: Any
    outputs: int
    inputs: int

    @property
    def matrix(self) -> Any:
        """Its weights [o, k], float64."""
        weight = self.module.weight.detach().double()
        return weight.t() if is_transposed(self.module) else weight.flatten(1)

    @property
    def bias(self) -> Any:
        """Its bias [o], float64; None without one."""
        return None if self.module.bias is None else self.module.bias.detach().double()

    @property
    def parameters(self) -> int:
        """Of the layer as it is."""
        return self.outputs * self.inputs + (self.outputs if self.module.bias is not None else 0)

    def factorized(self, rank: int, bias: bool) -> int:
        """Parameters at a rank; `bias` where it gets one."""
        has = bias or self.module.bias is not None
        return rank * (self.outputs + self.inputs) + (self.outputs if has else 0)


def find_layers(module: Any, example: Sequence[Any]) -> tuple[list[Layer], dict[str, str]]:
    """The layers that can be factorized, and the reason of each of the others by name.

    Args:
        module: the network.
        example: the arguments of one call.
    """
    shared = shared_weights(module)
    places = Counter(id(part) for _, part in module.named_modules(remove_duplicate=False))
    found: dict[str, Layer] = {}
    left: dict[str, str] = {}
    for name, part in module.named_modules():
        if not (isinstance(part, (nn.Linear, *CONVOLUTIONS)) or is_transposed(part)):
            if isinstance(part, nn.modules.conv._ConvTransposeNd):
                left[name] = "a transposed convolution is not factorized"
            continue
        reason = _unfit(name, part, shared, places)
        if reason:
            left[name] = reason
            continue
        linear = not isinstance(part, CONVOLUTIONS)
        outputs, inputs = part.weight.shape[0], part.weight[0].numel()
        if linear and is_transposed(part):
            inputs, outputs = outputs, inputs
        found[name] = Layer(name, part, outputs, inputs)
    for refused in (_special, _bound):
        for name, reason in refused(module, list(found), example).items():
            del found[name]
            left[name] = reason
    return list(found.values()), left


def _unfit(name: str, part: Any, shared: set[int], places: Counter[int]) -> str:
    """Why a layer cannot be factorized, by itself; "" where it can."""
    if not name:
        return "it is the whole network"
    if is_parametrized(part):
        return "its weights are computed from others"
    if getattr(part, "groups", 1) > 1:
        return "its groups are matrices of their own, too small to gain anything"
    if part._forward_hooks or part._forward_pre_hooks:
        return "the network has hung a hook on it"
    if places[id(part)] > 1:
        return "it stands in the network under several names"
    if any(id(parameter) in shared for parameter in part.parameters()):
        return "it shares its weights with another layer"
    if part.weight.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        return f"its weights are {part.weight.dtype}"
    return ""


def plain_kind(layer: Any) -> Any:
    """The class of torch's own that a layer is of, or derived from."""
    return next(kind for kind in (nn.Linear, *CONVOLUTIONS) if isinstance(layer, kind))


def _special(module: Any, names: Sequence[str], example: Sequence[Any]) -> dict[str, str]:
    """Layers of derived classes that compute something else than torch's own do, and why."""
    special: dict[str, str] = {}

    def checker(name: str) -> Any:
        def check(layer: Any, inputs: Any, output: Any) -> None:
            kind = plain_kind(layer)
            if kind is nn.Linear:
                plain = nn.Linear.forward(layer, *inputs)
            else:
                plain = kind._conv_forward(layer, *inputs, layer.weight, layer.bias)
            if plain.shape != output.shape or not torch.allclose(plain, output, 1e-5, 1e-6):
                special[name] = f"a {type(layer).__name__} computes more than a {kind.__name__}"

        return check

    hooks = []
    for name in names:
        layer = module.get_submodule(name)
        if type(layer) not in (nn.Linear, *CONVOLUTIONS) and not is_transposed(layer):
            hooks.append(layer.register_forward_hook(checker(name)))
    try:
        ask(module, example)
    finally:
        for hook in hooks:
            hook.remove()
    return special


class Probe(nn.Sequential):  # type: ignore[misc]
    """A layer inside of another, as two layers would stand in its place: without `weight`."""

    calls = 0

    def forward(self, input: Any) -> Any:
        """Call it, and count."""
        self.calls += 1
        return super().forward(input)


def _bound(module: Any, names: Sequence[str], example: Sequence[Any]) -> dict[str, str]:
    """Layers whose parent needs more of them than to be called, and why."""
    expected = ask(module, example)

    def call(chosen: Sequence[str]) -> list[str]:
        """The ones that were not called."""
        probes = {name: Probe(module.get_submodule(name)) for name in chosen}
        for probe in probes.values():
            probe.eval()
        with in_place_of(module, probes):
            answer = ask(module, example)
        if not all(alike(*pair, TOLERANCE) for pair in zip(expected, answer, strict=True)):
            raise ValueError("the kind of module that stands there")
        return [name for name, probe in probes.items() if not probe.calls]

    bound: dict[str, str] = {}
    unused = "the network does not call it by its name"
    try:
        return dict.fromkeys(call(names), unused)
    except Exception:  # noqa: BLE001  whatever the user's forward raises: each is asked alone
        for name in names:
            try:
                bound.update(dict.fromkeys(call([name]), unused))
            except Exception as error:  # noqa: BLE001  that is the reason
                bound[name] = f"the network takes more from it than its output ({error})"
    return bound
