"""The training samples as the loop takes them: in any order, as tensors, some held out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from edgepack.chain.module import Context
from edgepack.chain.training.batches import Plan, hold_out, in_groups
from edgepack.chain.training.options import TrainingOptions
from edgepack.data.store import LABELS, exact_of, store_samples
from edgepack.errors import ChainError

# Samples of one call where nothing is learnt.
ASK_BATCH = 256


class TrainingSet:
    """The training samples of a build, on disk; batches of them on the device.

    Attributes:
        held: positions of the samples that are held out.
        plan: which of the others every step learns from.
        labelled: how many samples have a label.
    """

    def __init__(self, context: Context, options: TrainingOptions, accelerator: Any) -> None:
        samples = context.training
        if samples is None:
            raise ValueError("the options of a pass that trains must say that it needs training")
        self.store = store_samples(context.work / "samples", samples)
        self.names = tuple(tensor.name for tensor in context.inputs)
        self.device = accelerator.device
        self.exact = exact_of(samples)
        self.held, groups = hold_out(self.store.groups, options.holdout, options.seed)
        self.plan = Plan(
            groups=tuple(groups),
            batch_size=options.batch_size,
            parts=accelerator.num_processes * options.accumulate,
            exact=self.exact,
            seed=options.seed,
        )
        self.labelled = self.count_labels(np.arange(self.store.count))
        self._augment = context.code.function(options.augment) if options.augment else None
        self._augment_name = options.augment

    def feed(self, members: np.ndarray, generator: Any = None) -> tuple[Any, ...]:
        """The inputs of some samples, by position; augmented where a generator is given."""
        import torch

        # torch takes no read-only memory; what `rows` gives is a copy already.
        tensors = {name: torch.from_numpy(self.store.rows(name, members)) for name in self.names}
        if generator is not None and self._augment is not None:
            tensors = self._augmented(tensors, generator)
        return tuple(tensors[name].to(self.device) for name in self.names)

    def labels(self, members: np.ndarray) -> Any:
        """The labels of some samples, int64 or float32, where the set has labels."""
        import torch

        found = torch.from_numpy(self.store.rows(LABELS, members))
        return (found.float() if found.is_floating_point() else found).to(self.device)

    def batches(self, members: np.ndarray) -> Iterator[np.ndarray]:
        """Some samples in batches for asking a network, without learning."""
        return in_groups(self.store.groups, members, ASK_BATCH, self.exact)

    def count_labels(self, members: np.ndarray) -> int:
        """How many of some samples have a label, or one at some position."""
        if LABELS not in self.store.names:
            return 0
        count = 0
        for batch in in_groups(self.store.groups, members, 4096, None):
            labels = self.store.rows(LABELS, batch)
            known = has_label(labels).reshape(len(batch), -1).any(axis=1)
            count += int(known.sum())
        return count

    def _augmented(self, tensors: dict[str, Any], generator: Any) -> dict[str, Any]:
        try:
            changed = self._augment(tensors, generator)  # type: ignore[misc]
            wrong = [
                name
                for name, before in tensors.items()
                if changed[name].shape[0] != before.shape[0] or changed[name].dtype != before.dtype
            ]
        except Exception as error:  # whatever the user's function does
            raise ChainError(
                "training-augment",
                f"{self._augment_name} failed",
                why=f"{type(error).__name__}: {error}",
                hint="it is called with a dict of tensors by input name and a torch.Generator, and "
                "returns such a dict",
            ) from error
        if wrong:
            raise ChainError(
                "training-augment",
                f"{self._augment_name} gives {wrong[0]} another type or number of samples",
                why=f"{changed[wrong[0]].dtype} {list(changed[wrong[0]].shape)} for "
                f"{tensors[wrong[0]].dtype} {list(tensors[wrong[0]].shape)}",
                hint="return as many samples as were given, of the same type",
            )
        return dict(changed)


def has_label(labels: Any) -> Any:
    """Where a label is one: neither a negative class nor NaN. Arrays or tensors."""
    import torch

    if isinstance(labels, torch.Tensor):
        return ~labels.isnan() if labels.is_floating_point() else labels >= 0
    return ~np.isnan(labels) if labels.dtype.kind == "f" else labels >= 0
