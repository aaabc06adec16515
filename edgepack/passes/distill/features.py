"""Outputs of inner parts of teacher and student, for the feature term of the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from edgepack.errors import ChainError
from edgepack.passes.distill.loss import measure_cosine_distance
from edgepack.passes.distill.options import DistillOptions
from edgepack.spec.suggestions import did_you_mean

if TYPE_CHECKING:
    import torch
    from torch import nn


class Features:
    """Outputs of a named part of the teacher and one of the student in their last call.

    Raises ChainError `distill-features` if either has no such part.
    """

    def __init__(self, options: DistillOptions, teacher: nn.Module, student: nn.Module) -> None:
        # "layer3=block2" aligns the teacher's layer3 with the student's block2, "fc" two fc.
        theirs, _, ours = options.features.partition("=")
        self.names = {"teacher": theirs, "student": ours or theirs}
        self.outputs: dict[str, torch.Tensor] = {}
        self.hooks = []
        for role, network in (("teacher", teacher), ("student", student)):
            part = _find_part(network, self.names[role], role)
            self.hooks.append(part.register_forward_hook(self._make_hook(role)))

    def _make_hook(self, role: str) -> Callable[[nn.Module, object, object], None]:
        """Return a forward hook that stores the first output of a part."""

        def keep(_module: nn.Module, _inputs: object, output: object) -> None:
            while isinstance(output, (tuple, list)) and output:
                output = output[0]
            # Hugging Face networks return a ModelOutput, which is not a tuple.
            if hasattr(output, "to_tuple"):
                output = output.to_tuple()[0]
            self.outputs[role] = output

        return keep

    def loss(self, count: int) -> torch.Tensor:
        """Return 1 - cosine of each of `count` samples. Raises ChainError `distill-features`."""
        ours, theirs = self.outputs["student"], self.outputs["teacher"]
        shapes = [list(getattr(output, "shape", ())) for output in (ours, theirs)]
        if shapes[0] != shapes[1] or shapes[0][:1] != [count]:
            raise ChainError(
                "distill-features",
                "the features of teacher and student cannot be compared",
                why=f"for {count} samples the student's {self.names['student']} has the shape "
                f"{shapes[0]}, the teacher's {self.names['teacher']} {shapes[1]}",
                hint="name parts whose outputs have the same shape, samples along axis 0",
            )
        return measure_cosine_distance(ours, theirs, count)

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self.hooks:
            hook.remove()


def _find_part(network: nn.Module, name: str, role: str) -> nn.Module:
    """Return a named submodule. Raises ChainError `distill-features`."""
    parts = dict(network.named_modules())
    if not name or name not in parts:
        why = f"it has {len(parts)} parts"
        # Without a similar name it lists all of them, which would be hundreds.
        near = did_you_mean(name, parts)
        if near.startswith("; did"):
            why += near
        raise ChainError(
            "distill-features",
            f"the {role} has no part named {name!r}",
            why=why,
            hint="the names are those of named_modules(): " + ", ".join(list(parts)[1:6]),
        )
    return parts[name]
