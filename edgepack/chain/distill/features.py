"""Inner outputs of teacher and student, for the term that lets them point the same way."""

from __future__ import annotations

from typing import Any

from edgepack.chain.distill.loss import opposed
from edgepack.chain.distill.options import DistillOptions
from edgepack.errors import ChainError
from edgepack.spec.document import did_you_mean


class Features:
    """What a named part of the teacher and one of the student gave in their last call.

    Raises ChainError `distill-features` where there is no such part.
    """

    def __init__(self, options: DistillOptions, teacher: Any, student: Any) -> None:
        theirs, _, ours = options.features.partition("=")
        self.names = {"teacher": theirs, "student": ours or theirs}
        self.found: dict[str, Any] = {}
        self.hooks = [
            _part(network, self.names[role], role).register_forward_hook(self._keeper(role))
            for role, network in (("teacher", teacher), ("student", student))
        ]

    def _keeper(self, role: str) -> Any:
        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            while isinstance(output, (tuple, list)) and output:
                output = output[0]
            if hasattr(output, "to_tuple"):  # an answer of a Hugging Face network
                output = output.to_tuple()[0]
            self.found[role] = output

        return keep

    def loss(self, count: int) -> Any:
        """1 - cosine of each of `count` samples. Raises ChainError `distill-features`."""
        ours, theirs = self.found["student"], self.found["teacher"]
        shapes = [list(getattr(found, "shape", ())) for found in (ours, theirs)]
        if shapes[0] != shapes[1] or shapes[0][:1] != [count]:
            raise ChainError(
                "distill-features",
                "the features of teacher and student cannot be compared",
                why=f"{self.names['student']} gives {shapes[0]}, the teacher's "
                f"{self.names['teacher']} {shapes[1]}, of {count} samples",
                hint="name parts whose outputs have the same shape, samples along axis 0",
            )
        return opposed(ours, theirs, count)

    def close(self) -> None:
        """Take the hooks off."""
        for hook in self.hooks:
            hook.remove()


def _part(network: Any, name: str, role: str) -> Any:
    parts = dict(network.named_modules())
    if not name or name not in parts:
        near = did_you_mean(name, parts)
        raise ChainError(
            "distill-features",
            f"the {role} has no part named {name!r}",
            why=f"it has {len(parts)} parts" + (near if near.startswith("; did") else ""),
            hint="the names are those of named_modules(): " + ", ".join(list(parts)[1:6]),
        )
    return parts[name]
