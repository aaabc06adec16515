"""Training loop; it resumes from the checkpoint of an interrupted build."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from edgepack.errors import ChainError
from edgepack.ledger import Progress
from edgepack.passes.training import checkpoint, processes
from edgepack.passes.training.batches import Plan
from edgepack.passes.training.checkpoint import Position
from edgepack.passes.training.device import deterministic, recomputing
from edgepack.passes.training.optimizer import find_pruned, make_optimizer, set_rates
from edgepack.passes.training.options import TrainingOptions

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import nn

# Steps between checks of the loss, each of which waits for the device.
CHECK_STEPS = 20


class Objective(Protocol):
    """Loss and score of a training."""

    score_name: str

    def loss(
        self, model: nn.Module, members: np.ndarray, generator: torch.Generator
    ) -> torch.Tensor:
        """Return the sum of the losses of some samples, a scalar tensor.

        Args:
            model: the network in training; it takes its inputs by position.
            members: positions of the samples.
            generator: on the CPU, the source of random numbers.
        """

    def score(self, model: nn.Module) -> float | None:
        """Score the model on the held-out samples, higher is better; None without any."""

    def reached(self, score: float) -> bool:
        """Return True if the score passes the quality gate."""


@dataclass(frozen=True)
class Trained:
    """Result of a training; the module holds the weights.

    Attributes:
        steps: number of optimizer steps.
        epochs: number of epochs.
        loss: mean loss of the last epoch's steps.
        scores: held-out score of each epoch.
        weights_epoch: the epoch of the final weights, counted from 1.
        resumed: the step at which this build resumed; 0 from the beginning.
        precision: precision of the layers.
        device: device of the training.
        processes: number of processes.
        masks: number of parameters with preserved zeros.
    """

    steps: int
    epochs: int
    loss: float
    scores: tuple[float, ...]
    weights_epoch: int
    resumed: int
    precision: str
    device: str
    processes: int
    masks: int


class Loop:
    """Training of a module.

    Args:
        module: the network to train, in place; in eval mode before and afterwards.
        objective: its loss and score.
        plan: the samples of each step.
        options: of the loop.
        accelerator: from `make_accelerator`.
        work: folder of the checkpoint.
        progress: receives each step, the loss and the score.
    """

    def __init__(
        self, module: nn.Module, objective: Objective, plan: Plan, options: TrainingOptions,
        accelerator: Accelerator, work: Path, progress: Progress,
    ) -> None:  # fmt: skip
        self.objective, self.plan, self.options = objective, plan, options
        self.accelerator, self.work, self.progress = accelerator, work, progress
        self.module = module
        self.per_epoch = plan.steps()
        self.steps = self.per_epoch * options.epochs
        if not self.steps:
            size = ""
            if plan.exact:
                size = f" of {plan.exact} samples"
            raise ChainError(
                "training-too-few",
                "too few training samples for a single step",
                why=f"a step is divided into {plan.parts} parts{size}",
                hint="provide more samples, or train with fewer processes or accumulate=1",
            )
        self.masks: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.best: Mapping[str, torch.Tensor] | None = None

    def run(self) -> Trained:
        """Train the module, and return the figures.

        Raises ChainError: training-diverged, training-failed, training-memory, training-nothing,
            training-no-checkpointing.
        """
        import torch

        storage: AbstractContextManager[None] = nullcontext()
        if self.options.gradient_checkpointing:
            storage = recomputing(self.module)
        with deterministic(), torch.random.fork_rng(), storage:
            self.optimizer = make_optimizer(self.module, self.options)
            self.model, self.optimizer = self.accelerator.prepare(self.module, self.optimizer)
            # Before a checkpoint is restored: the masks are those of the network before training.
            if self.options.keep_zeros:
                self.masks = find_pruned(self.module)
            try:
                return self._run()
            finally:
                # accelerate wraps the forward for mixed precision; the export must not see that.
                self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
                self.module.to("cpu").eval()
                self.module.zero_grad(set_to_none=True)

    def _run(self) -> Trained:
        """Restore the checkpoint, run the remaining epochs, and select the weights."""
        position, self.best = checkpoint.load(self.work, self.module, self.optimizer.optimizer)
        if self.accelerator.scaler is not None and position.scaler:
            self.accelerator.scaler.load_state_dict(dict(position.scaler))
        resumed = position.step
        self.progress.expect(self.steps)
        self.progress.advance(position.step)
        # A checkpoint may have been written by a build that was interrupted after its last epoch.
        while position.step < self.steps and not self._has_ended(position):
            self._run_epoch(position)
        if self.options.stop != "none" and self.best is not None:
            checkpoint.restore(self.module, self.best)
        if self.accelerator.num_processes > 1:
            # Buffers without a gradient, such as batch norm statistics, differ between processes.
            checkpoint.restore(
                self.module, processes.broadcast(checkpoint.copy_tensors(self.module))
            )
        precision = self.accelerator.mixed_precision
        epochs = position.step // self.per_epoch
        return Trained(
            steps=position.step,
            epochs=epochs,
            loss=position.loss / max(position.losses, 1),
            scores=tuple(position.scores),
            weights_epoch=epochs if self.best is None else position.best_epoch,
            resumed=resumed,
            precision="fp32" if precision == "no" else precision,
            device=str(self.accelerator.device),
            processes=self.accelerator.num_processes,
            masks=len(self.masks),
        )

    def _has_ended(self, position: Position) -> bool:
        """Return True if the held-out score ends the training at the end of an epoch."""
        if not position.scores or position.step % self.per_epoch:
            return False
        if self.options.stop == "gate":
            return self.objective.reached(position.scores[-1])
        # Scores [0.7, 0.8, 0.79, 0.8] have waited 2 epochs for one better than the second.
        waited = len(position.scores) - position.best_epoch
        return self.options.stop == "plateau" and waited >= self.options.patience

    def _run_epoch(self, position: Position) -> None:
        """Run the rest of an epoch, score the model, and write a checkpoint."""
        import torch

        # A checkpoint within an epoch resumes at its next step; the order of steps is seeded.
        epoch, first = divmod(position.step, self.per_epoch)
        if first == 0:
            position.loss, position.losses = 0.0, 0
        losses: list[torch.Tensor] = []
        self.model.train()
        for parts in self.plan.epoch(epoch)[first:]:
            losses.append(self._run_step(position.step, parts))
            position.step += 1
            self.progress.advance()
            ends = position.step % self.per_epoch == 0
            saves = position.step % self.options.checkpoint_steps == 0 and not ends
            # Reading the loss is collective: every process does so at the same steps.
            if ends or saves or len(losses) == CHECK_STEPS:
                self._add_losses(position, torch.stack(losses))
                losses = []
                self._tell(position, epoch)
            if saves:
                self._save(position)
        self.model.eval()
        self._score(position)
        self._tell(position, epoch)
        self._save(position)

    def _score(self, position: Position) -> None:
        """Score the model on the held-out samples, and remember the best weights."""
        # The main process decides, so that rounding cannot end the training in only some of them.
        score = None
        if processes.is_main():
            score = self.objective.score(self.module)
        score = processes.broadcast(score)
        if score is not None:
            position.scores.append(score)
            if position.best is None or score > position.best:
                position.best, position.best_epoch = score, len(position.scores)
                if self.options.stop != "none":
                    self.best = checkpoint.copy_tensors(self.module)

    def _add_losses(self, position: Position, losses: torch.Tensor) -> None:
        """Add losses to the position. Raises ChainError training-diverged."""
        with processes.together():
            total = self.accelerator.reduce(losses.sum(), "mean").item()
        if not math.isfinite(total):
            import torch

            hint = f"a smaller learning rate than {self.options.peak:g}, or clip=1"
            if any(weights.dtype == torch.float16 for weights in self.module.parameters()):
                hint = "float16 weights cannot be trained: convert them to float32"
            raise ChainError(
                "training-diverged",
                "the loss is not finite",
                why=f"it became infinite or NaN in {len(losses)} steps up to step {position.step}",
                hint=hint,
            )
        position.loss += total
        position.losses += len(losses)

    def _tell(self, position: Position, epoch: int) -> None:
        """Report the epoch, the mean loss and the last score."""
        loss = position.loss / max(position.losses, 1)
        message = f"epoch {epoch + 1}/{self.options.epochs}, loss {loss:.4g}"
        if position.scores:
            message += f", {self.objective.score_name} {position.scores[-1]:.4g}"
        self.progress.tell(message)

    def _save(self, position: Position) -> None:
        """Write a checkpoint."""
        if self.accelerator.scaler is not None:
            position.scaler = self.accelerator.scaler.state_dict()
        checkpoint.save(self.work, position, self.module, self.optimizer.optimizer, self.best)

    def _run_step(self, step: int, parts: Sequence[np.ndarray]) -> torch.Tensor:
        """Run one optimizer step, and return its mean loss on the device."""
        import torch

        count = sum(len(part) for part in parts)
        # With 4 parts and 2 processes the first one computes parts 0 and 2, the second 1 and 3.
        own_parts = parts[self.accelerator.process_index :: self.accelerator.num_processes]
        set_rates(self.optimizer.optimizer, self.options, step, self.steps)
        # Random numbers depend on step and process only, so a resumed training draws the same.
        seed = [self.options.seed, step, self.accelerator.process_index]
        random_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
        torch.manual_seed(random_seed)
        generator = torch.Generator().manual_seed(random_seed)
        total = 0.0
        for index, members in enumerate(own_parts):
            last = index == len(own_parts) - 1
            # Gradients are averaged over processes. With 2 processes and 8 samples each loss sum is
            # scaled by 2 / 8, and the average of both is the mean over the 8 samples.
            scale = self.accelerator.num_processes / count
            # Gradients are exchanged only once per step, with the last part.
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                loss = self._backward(members, generator, scale)
            total = total + loss.detach()
        if self.options.clip:
            self.accelerator.clip_grad_norm_(self.module.parameters(), self.options.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        # The optimizer moves pruned weights too, by momentum and weight decay.
        with torch.no_grad():
            for parameter, mask in self.masks:
                parameter.mul_(mask)
        return total

    def _backward(
        self, members: np.ndarray, generator: torch.Generator, scale: float
    ) -> torch.Tensor:
        """Compute the loss and gradients of a part. Raises ChainError for the user's network."""
        try:
            with processes.together():
                loss = self.objective.loss(self.model, members, generator) * scale
                self.accelerator.backward(loss)
                return loss
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if "out of memory" in str(error) or "can't allocate memory" in str(error):
                raise ChainError(
                    "training-memory",
                    "the training does not fit into memory",
                    why=f"{type(error).__name__}: {error}".strip(),
                    hint="accumulate=4, or gradient_checkpointing=true: less memory, more time",
                ) from error
            raise ChainError(
                "training-failed",
                "the network cannot be trained on these samples",
                why=f"{type(error).__name__}: {error}".strip(),
                hint="check the labels, the outputs' kinds and the batch size",
            ) from error
