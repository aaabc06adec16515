"""Student: built by the user's factory, or the network with fewer layers, or unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgepack.errors import ChainError
from edgepack.passes.distill.options import DistillOptions
from edgepack.passes.module import ModuleContext, Recipe

if TYPE_CHECKING:
    from torch import nn

# Names of the number of layers in the configurations of Hugging Face networks.
COUNTS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers", "encoder_layers", "depth")


def make_recipe(module: nn.Module, options: DistillOptions) -> dict[str, object]:
    """Return the recipe of the student, as JSON.

    Raises ChainError `distill-layers` if the network lacks the layers to keep.
    """
    if options.student:
        return {"student": options.student, "arguments": dict(options.student_args)}
    if not options.layers and not options.drop:
        return {}
    name, layers = find_layers(module)
    count = len(layers)
    keep = options.layers or spread(count, options.drop)
    if keep[-1] >= count:
        raise ChainError(
            "distill-layers",
            f"the network has no layer {keep[-1]}",
            why=f"{name} has {count} layers, counted from 0",
            hint=f"layers={','.join(map(str, spread(count, 0.5)))}",
        )
    if len(keep) == count:
        raise ChainError(
            "distill-layers",
            "no layer would be removed",
            why=f"{name} has {count} layers, and the options keep all of them",
            hint="a larger drop, or fewer layers",
        )
    return {"list": name, "keep": list(keep)}


def make_student(module: nn.Module, recipe: Recipe, context: ModuleContext) -> nn.Module:
    """Build the student of a recipe; changes `module` unless a factory builds the student."""
    if "student" in recipe:
        return context.code.build(recipe["student"], recipe["arguments"])
    if "keep" in recipe:
        keep_layers(module, recipe["list"], recipe["keep"])
    return module


def spread(count: int, drop: float) -> tuple[int, ...]:
    """Return the layers that remain without a share of `count`, evenly from first to last.

    Of 12 layers, 0.5 leaves 0, 2, 4, 7, 9, 11. At least one remains.
    """
    remaining = max(round(count * (1 - drop)), 1)
    # The first and the last layer remain; those between are at equal distances.
    if remaining == 1:
        return (0,)
    return tuple(round(i * (count - 1) / (remaining - 1)) for i in range(remaining))


def find_layers(module: nn.Module) -> tuple[str, nn.Module]:
    """Find the layers of a transformer: the largest list of parts of one class.

    Returns its name and the list. Raises ChainError `distill-layers` if there is none.
    """
    import torch

    candidates: list[tuple[int, str, nn.Module]] = []
    for name, part in module.named_modules():
        # A list of equal parts, like BertEncoder.layer; a Sequential of different ones is none.
        kinds = {type(layer) for layer in part.children()}
        listed = isinstance(part, (torch.nn.ModuleList, torch.nn.Sequential))
        if listed and len(kinds) == 1 and len(part) > 1:
            size = sum(parameter.numel() for parameter in part.parameters())
            candidates.append((size, name, part))
    if not candidates:
        raise ChainError(
            "distill-layers",
            "the network has no list of layers to remove from",
            why="it has no ModuleList or Sequential with several parts of one class; networks "
            "whose layers share their weights (ALBERT) have a single layer",
            hint="build a student with student=file.py:factory",
        )
    _, name, layers = max(candidates, key=lambda entry: entry[0])
    return name, layers


def keep_layers(module: nn.Module, name: str, keep: Sequence[int]) -> None:
    """Remove all other layers, and update the counts in the configurations."""
    layers = module.get_submodule(name)
    count = len(layers)
    remaining = [layers[i] for i in keep]
    # In place, since the network may hold other references to the list.
    for i in reversed(range(len(remaining), count)):
        del layers[i]
    for i, layer in enumerate(remaining):
        layers[i] = layer
    # The forward of some Hugging Face networks iterates over the configured number of layers.
    for part in module.modules():
        config = getattr(part, "config", None)
        for option in COUNTS:
            if getattr(config, option, None) == count:
                setattr(config, option, len(remaining))
