"""A pass on the module that does what it is told, also what a pass must not do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from edgepack.passes.module import ModuleContext, ModuleResult
from edgepack.passes.options import PassOptions
from edgepack.passes.protocol import ModulePass


@dataclass(frozen=True)
class Options(PassOptions):
    how: str = "well"


def cut(module: Any, channels: int) -> None:
    """The first convolution of `tiny`, narrower."""
    wide, following = module[0], module[2]
    module[0] = nn.Conv2d(1, channels, 3, padding=1)
    module[2] = nn.Conv2d(channels, 16, 3, stride=2, padding=1)
    module[0].weight.data = wide.weight.data[:channels].clone()
    module[0].bias.data = wide.bias.data[:channels].clone()
    module[2].weight.data = following.weight.data[:, :channels].clone()
    module[2].bias.data = following.bias.data.clone()


def apply(module: Any, options: Options, context: ModuleContext) -> ModuleResult:
    if options.how == "nothing":
        return ModuleResult(module, False, ("There is nothing to cut.",))
    if options.how == "classes":
        module[6] = nn.Linear(16, 5)
    elif options.how == "secretly":
        module[1] = nn.GELU()
    else:
        cut(module, 6)
    return ModuleResult(module, True, ("Cut.",), {"left": 6}, {"how": options.how})


def replay(module: Any, recipe: Mapping[str, Any], context: ModuleContext) -> Any:
    how = recipe.get("how")
    if how == "well":
        cut(module, 6)
    elif how == "classes":
        module[6] = nn.Linear(16, 5)
    return module


class Cut(ModulePass[Options]):
    name = "cut"
    options = Options

    def apply(self, module: nn.Module, options: Options, context: ModuleContext) -> ModuleResult:
        return apply(module, options, context)

    def replay(
        self, module: nn.Module, recipe: Mapping[str, Any], context: ModuleContext
    ) -> nn.Module:
        return replay(module, recipe, context)
