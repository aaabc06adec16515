"""Search for layers that can be factorized. Importing this module needs torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from edgepack.passes.network import (
    ForwardHook,
    are_outputs_equal,
    find_shared_weights,
    is_transposed,
    run_network,
    substitute_submodules,
)

# Permitted difference of the outputs with a wrapped layer, relative to the largest value.
TOLERANCE = 1e-4
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Layer:
    """Layer whose weights are one matrix.

    Attributes:
        name: as in `named_modules()`.
        module: a Linear, a convolution, or a Hugging Face Conv1D (a Linear that is stored [k, o]).
        outputs: o, its output channels.
        inputs: k, the number of products in the sum of one output: input channels times window.
    """

    name: str
    module: nn.Module
    outputs: int
    inputs: int

    @property
    def matrix(self) -> torch.Tensor:
        """Return the weights [o, k], float64."""
        weight = self.module.weight.detach().double()
        if is_transposed(self.module):
            return weight.t()
        # A convolution's [o, c, window...] is the matrix [o, c * window] of its unfolded inputs.
        return weight.flatten(1)

    @property
    def bias(self) -> torch.Tensor | None:
        """Return the bias [o], float64; None without one."""
        if self.module.bias is None:
            return None
        return self.module.bias.detach().double()

    @property
    def parameters(self) -> int:
        """Count the parameters of the layer before factorization."""
        weights = self.outputs * self.inputs
        if self.module.bias is not None:
            return weights + self.outputs
        return weights

    def count_factorized(self, rank: int, bias: bool) -> int:
        """Count the parameters at a rank; `bias` adds a bias if the layer has none.

        A Linear 512 -> 512 with a bias has 262,656 parameters, and 66,048 at rank 64.
        """
        weights = rank * (self.outputs + self.inputs)
        if bias or self.module.bias is not None:
            return weights + self.outputs
        return weights


def find_layers(
    module: nn.Module, example: Sequence[torch.Tensor]
) -> tuple[list[Layer], dict[str, str]]:
    """Return the layers that can be factorized, and for each other layer the reason by name.

    Args:
        module: the network.
        example: the arguments of one call.
    """
    shared = find_shared_weights(module)
    # A module may be registered under several names; its factors would replace only one of them.
    occurrences = Counter(id(part) for _, part in module.named_modules(remove_duplicate=False))
    layers: dict[str, Layer] = {}
    skipped: dict[str, str] = {}
    for name, part in module.named_modules():
        if not (isinstance(part, (nn.Linear, *CONVOLUTIONS)) or is_transposed(part)):
            if isinstance(part, nn.modules.conv._ConvTransposeNd):
                skipped[name] = "a transposed convolution is not factorized"
            continue
        reason = _reject(name, part, shared, occurrences)
        if reason:
            skipped[name] = reason
            continue
        # Conv1D of Hugging Face stores [inputs, outputs], all other layers [outputs, inputs, ...].
        linear = not isinstance(part, CONVOLUTIONS)
        outputs, inputs = part.weight.shape[0], part.weight[0].numel()
        if linear and is_transposed(part):
            inputs, outputs = outputs, inputs
        layers[name] = Layer(name, part, outputs, inputs)
    # Both checks run the network, so they come after those that only inspect a layer.
    for check in (_find_special, _find_irreplaceable):
        for name, reason in check(module, list(layers), example).items():
            del layers[name]
            skipped[name] = reason
    return list(layers.values()), skipped


def _reject(name: str, part: nn.Module, shared: set[int], occurrences: Counter[int]) -> str:
    """Return the reason for which a layer alone cannot be factorized; "" if it can."""
    if not name:
        return "it is the whole network"
    if is_parametrized(part):
        return "its weights are computed from others"
    if getattr(part, "groups", 1) > 1:
        return "its groups are separate matrices, too small to save parameters"
    if part._forward_hooks or part._forward_pre_hooks:
        return "the network has registered a hook on it"
    if occurrences[id(part)] > 1:
        return "it occurs in the network under several names"
    if any(id(parameter) in shared for parameter in part.parameters()):
        return "it shares its weights with another layer"
    if part.weight.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        return f"its weights are {part.weight.dtype}"
    return ""


def find_torch_class(layer: nn.Module) -> type[nn.Module]:
    """Return the torch class of a layer, or the one that its class derives from."""
    # The four classes exclude each other.
    kind: type[nn.Module] = next(k for k in (nn.Linear, *CONVOLUTIONS) if isinstance(layer, k))
    return kind


def _find_special(
    module: nn.Module, names: Sequence[str], example: Sequence[torch.Tensor]
) -> dict[str, str]:
    """Find layers of derived classes whose outputs differ from their torch class's; name -> reason.

    A Linear subclass that adds a LoRA term, for example, cannot be rebuilt from its weight alone.
    """
    special: dict[str, str] = {}

    def make_hook(name: str) -> ForwardHook:
        def check(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            kind = find_torch_class(layer)
            if kind is nn.Linear:
                expected = nn.Linear.forward(layer, *inputs)
            else:
                # Padding modes such as "reflect" are part of it, but not of functional.conv2d.
                expected = kind._conv_forward(layer, *inputs, layer.weight, layer.bias)
            if expected.shape != output.shape or not torch.allclose(expected, output, 1e-5, 1e-6):
                special[name] = f"a {type(layer).__name__} computes more than a {kind.__name__}"

        return check

    hooks = []
    for name in names:
        layer = module.get_submodule(name)
        if type(layer) not in (nn.Linear, *CONVOLUTIONS) and not is_transposed(layer):
            hooks.append(layer.register_forward_hook(make_hook(name)))
    try:
        run_network(module, example)
    finally:
        for hook in hooks:
            hook.remove()
    return special


class Probe(nn.Sequential):  # type: ignore[misc]
    """Wrapper around a layer that lacks `weight`, as the two layers of a factorization do."""

    calls = 0

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Call the layer, and count the calls."""
        self.calls += 1
        return super().forward(input)


def _find_irreplaceable(
    module: nn.Module, names: Sequence[str], example: Sequence[torch.Tensor]
) -> dict[str, str]:
    """Find layers that the network uses other than by calling them; name -> reason."""
    expected = run_network(module, example)

    def call(selected: Sequence[str]) -> list[str]:
        """Run the network with wrapped layers; return the layers that were not called."""
        probes = {name: Probe(module.get_submodule(name)) for name in selected}
        for probe in probes.values():
            probe.eval()
        with substitute_submodules(module, probes):
            answer = run_network(module, example)
        # A network that tests isinstance(layer, nn.Linear) may take another path for a pair.
        for before, after in zip(expected, answer, strict=True):
            if not are_outputs_equal(before, after, TOLERANCE):
                raise ValueError("its kind of module changes the output")
        return [name for name, probe in probes.items() if not probe.calls]

    bound: dict[str, str] = {}
    unused = "the network does not call it by its name"
    # One call for all layers usually passes; only if it fails is each layer tested alone.
    try:
        return dict.fromkeys(call(names), unused)
    except Exception:  # noqa: BLE001  the user's forward may raise anything
        for name in names:
            try:
                bound.update(dict.fromkeys(call([name]), unused))
            except Exception as error:  # noqa: BLE001  the message becomes the reason
                bound[name] = f"the network uses more of it than its output ({error})"
    return bound
