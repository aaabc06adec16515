"""Training samples for the loop: in any order, as tensors, some held out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgepack.data.store import LABELS, exact_of, store_samples
from edgepack.errors import ChainError
from edgepack.passes.module import ModuleContext
from edgepack.passes.training.batches import Plan, batch_groups, hold_out
from edgepack.passes.training.options import TrainingOptions

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

# Samples per call without training.
ASK_BATCH = 256


class TrainingSet:
    """Training samples of a build, on disk; batches of them on the device.

    Attributes:
        held_out: positions of the held-out samples.
        plan: division of the others into steps.
        labelled: number of samples with a label.
    """

    def __init__(
        self, context: ModuleContext, options: TrainingOptions, accelerator: Accelerator
    ) -> None:
        samples = context.training
        if samples is None:
            raise ValueError('the options of a pass that trains must list "training" in `needs`')
        self.store = store_samples(context.work / "samples", samples)
        self.names = tuple(tensor.name for tensor in context.inputs)
        self.device = accelerator.device
        self.exact = exact_of(samples)
        self.held_out, groups = hold_out(self.store.groups, options.holdout, options.seed)
        self.plan = Plan(
            groups=tuple(groups),
            batch_size=options.batch_size,
            parts=accelerator.num_processes * options.accumulate,
            exact=self.exact,
            seed=options.seed,
        )
        self.labelled = self.count_labels(np.arange(self.store.count))
        self._augment: Callable[..., Mapping[str, torch.Tensor]] | None = None
        if options.augment:
            self._augment = context.code.function(options.augment)
        self._augment_name = options.augment

    def feed(
        self, members: np.ndarray, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Return the inputs of some samples, by position; a generator augments them."""
        import torch

        # torch rejects read-only memory, but `rows` returns a copy.
        tensors = {name: torch.from_numpy(self.store.rows(name, members)) for name in self.names}
        if generator is not None and self._augment is not None:
            tensors = self._apply_augment(tensors, generator)
        return tuple(tensors[name].to(self.device) for name in self.names)

    def labels(self, members: np.ndarray) -> torch.Tensor:
        """Return the labels of some samples, int64 or float32, of a set with labels."""
        import torch

        labels = torch.from_numpy(self.store.rows(LABELS, members))
        if labels.is_floating_point():
            labels = labels.float()
        return labels.to(self.device)

    def batches(self, members: np.ndarray) -> Iterator[np.ndarray]:
        """Yield batches of some samples for inference."""
        return batch_groups(self.store.groups, members, ASK_BATCH, self.exact)

    def count_labels(self, members: np.ndarray) -> int:
        """Count the samples with a label, or with a label at any position."""
        if LABELS not in self.store.names:
            return 0
        # A sample of 5 tokens with the labels [-1, 3, -1, -1, 7] counts once.
        count = 0
        for batch in batch_groups(self.store.groups, members, 4096, None):
            labels = self.store.rows(LABELS, batch)
            present = has_label(labels).reshape(len(batch), -1).any(axis=1)
            count += int(present.sum())
        return count

    def _apply_augment(
        self, tensors: dict[str, torch.Tensor], generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Apply the user's augmentation, and check its result."""
        try:
            result = self._augment(tensors, generator)  # type: ignore[misc]
            # The labels belong to the samples by position, so their number must not change.
            wrong = []
            for name, before in tensors.items():
                after = result[name]
                if after.shape[0] != before.shape[0] or after.dtype != before.dtype:
                    wrong.append(name)
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
                f"{self._augment_name} changes the type or number of samples of {wrong[0]}",
                why=f"{result[wrong[0]].dtype} {list(result[wrong[0]].shape)} for "
                f"{tensors[wrong[0]].dtype} {list(tensors[wrong[0]].shape)}",
                hint="return the same number of samples, of the same type",
            )
        return dict(result)


def has_label(labels: torch.Tensor) -> torch.Tensor:
    """Return the mask of present labels, neither negative nor NaN, of an array or a tensor."""
    import torch

    if isinstance(labels, torch.Tensor):
        if labels.is_floating_point():
            return ~labels.isnan()
        return labels >= 0
    if labels.dtype.kind == "f":
        return ~np.isnan(labels)
    return labels >= 0
