"""The student: of the user's, or the network with fewer layers, or the network as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgepack.chain.distill.options import DistillOptions
from edgepack.chain.module import Context
from edgepack.errors import ChainError

# How the configurations of Hugging Face networks call the number of layers.
COUNTS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers", "encoder_layers", "depth")


def recipe_of(module: Any, options: DistillOptions) -> dict[str, Any]:
    """What makes the student out of a module, as JSON.

    Raises ChainError `distill-layers` where the layers that were asked for are not there.
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
            why=f"{name} has {count}, counted from 0",
            hint=f"layers={','.join(map(str, spread(count, 0.5)))}",
        )
    if len(keep) == count:
        raise ChainError(
            "distill-layers",
            "no layer would be left out",
            why=f"{name} has {count} layers, and all of them are kept",
            hint="a larger drop, or fewer layers",
        )
    return {"list": name, "keep": list(keep)}


def make_student(module: Any, recipe: Mapping[str, Any], context: Context) -> Any:
    """The student that a recipe describes; `module` is changed, or left aside."""
    if "student" in recipe:
        return context.code.build(recipe["student"], recipe["arguments"])
    if "keep" in recipe:
        keep_layers(module, recipe["list"], recipe["keep"])
    return module


def spread(count: int, drop: float) -> tuple[int, ...]:
    """Which of `count` layers stay when a share is left out: first and last, evenly between.

    Of 12 layers, 0.5 leaves 0, 2, 4, 7, 9, 11. At least one stays.
    """
    left = max(round(count * (1 - drop)), 1)
    if left == 1:
        return (0,)
    return tuple(round(i * (count - 1) / (left - 1)) for i in range(left))


def find_layers(module: Any) -> tuple[str, Any]:
    """The list of layers of a transformer: the largest list of parts of one class.

    Returns its name and itself. Raises ChainError `distill-layers` where there is none.
    """
    import torch

    found: list[tuple[int, str, Any]] = []
    for name, part in module.named_modules():
        kinds = {type(layer) for layer in part.children()}
        listed = isinstance(part, (torch.nn.ModuleList, torch.nn.Sequential))
        if listed and len(kinds) == 1 and len(part) > 1:
            size = sum(parameter.numel() for parameter in part.parameters())
            found.append((size, name, part))
    if not found:
        raise ChainError(
            "distill-layers",
            "the network has no list of layers that could be left out",
            why="no ModuleList or Sequential of it holds several parts of one class; networks "
            "whose layers share their weights (ALBERT) have one layer alone",
            hint="give a student of your own: student=file.py:factory",
        )
    _, name, layers = max(found, key=lambda entry: entry[0])
    return name, layers


def keep_layers(module: Any, name: str, keep: Sequence[int]) -> None:
    """Leave all other layers out, and correct the counts in the configurations."""
    layers = module.get_submodule(name)
    count = len(layers)
    kept = [layers[i] for i in keep]
    for i in reversed(range(len(kept), count)):
        del layers[i]
    for i, layer in enumerate(kept):
        layers[i] = layer
    for part in module.modules():
        config = getattr(part, "config", None)
        for option in COUNTS:
            if getattr(config, option, None) == count:
                setattr(config, option, len(kept))
