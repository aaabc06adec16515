"""The training loop: step after step, from wherever an earlier build was killed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgepack.chain.training import checkpoint, processes
from edgepack.chain.training.batches import Plan
from edgepack.chain.training.checkpoint import Position
from edgepack.chain.training.device import deterministic, recomputing
from edgepack.chain.training.optimizer import make_optimizer, pruned, set_rates
from edgepack.chain.training.options import TrainingOptions
from edgepack.errors import ChainError
from edgepack.ledger import Progress

# Steps after which the loss is looked at.
LOOK = 20


class Objective(Protocol):
    """What a training is to reach."""

    score_name: str

    def loss(self, model: Any, members: np.ndarray, generator: Any) -> Any:
        """The sum of the losses of some samples, a scalar tensor.

        Args:
            model: what is trained, called with its inputs by position.
            members: the samples' positions.
            generator: on the CPU, for whatever is drawn at random.
        """

    def score(self, model: Any) -> float | None:
        """How good the model is on the held-out samples, more is better; None without any."""

    def reached(self, score: float) -> bool:
        """Whether the score holds the quality gate."""


@dataclass(frozen=True)
class Trained:
    """What a training ended with; the module holds the weights.

    Attributes:
        steps: optimizer steps that were made.
        epochs: epochs that they are.
        loss: mean loss of the last epoch's steps.
        scores: held-out score after every epoch.
        kept: the epoch whose weights were kept.
        resumed: the step from which an earlier build's training went on.
        precision: what the layers were computed in.
        device: where.
        processes: how many processes trained.
        masks: how many parameters kept their zeros.
    """

    steps: int
    epochs: int
    loss: float
    scores: tuple[float, ...]
    kept: int
    resumed: int
    precision: str
    device: str
    processes: int
    masks: int


class Loop:
    """One training of one module.

    Args:
        module: what is trained, in place; in eval mode before and afterwards.
        objective: what it is to reach.
        plan: which samples every step learns from.
        options: of the loop.
        accelerator: from `make_accelerator`.
        work: the folder of the checkpoint.
        progress: told every step, the loss and the score.
    """

    def __init__(
        self, module: Any, objective: Objective, plan: Plan, options: TrainingOptions,
        accelerator: Any, work: Path, progress: Progress,
    ) -> None:  # fmt: skip
        self.objective, self.plan, self.options = objective, plan, options
        self.accelerator, self.work, self.progress = accelerator, work, progress
        self.module = module
        self.per_epoch = plan.steps()
        self.steps = self.per_epoch * options.epochs
        if not self.steps:
            raise ChainError(
                "training-too-few",
                "there are too few training samples for a single step",
                why=f"they must be cut into {plan.parts} parts"
                + (f" of {plan.exact}" if plan.exact else ""),
                hint="give more samples, or train with fewer processes or accumulate=1",
            )
        self.masks: list[tuple[Any, Any]] = []
        self.best: Mapping[str, Any] | None = None

    def run(self) -> Trained:
        """Train.

        Raises ChainError: training-diverged, training-failed, training-memory, training-nothing,
            training-no-checkpointing.
        """
        import torch

        thrifty = recomputing(self.module) if self.options.gradient_checkpointing else nullcontext()
        with deterministic(), torch.random.fork_rng(), thrifty:
            self.optimizer = make_optimizer(self.module, self.options)
            self.model, self.optimizer = self.accelerator.prepare(self.module, self.optimizer)
            if self.options.keep_zeros:
                self.masks = pruned(self.module)
            try:
                return self._run()
            finally:
                # accelerate wraps the forward for mixed precision; the export must not see that.
                self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
                self.module.to("cpu").eval()
                self.module.zero_grad(set_to_none=True)

    def _run(self) -> Trained:
        at, self.best = checkpoint.load(self.work, self.module, self.optimizer.optimizer)
        if self.accelerator.scaler is not None and at.scaler:
            self.accelerator.scaler.load_state_dict(dict(at.scaler))
        resumed = at.step
        self.progress.expect(self.steps)
        self.progress.advance(at.step)
        while at.step < self.steps and not self._ended(at):
            self._epoch(at)
        if self.options.stop != "none" and self.best is not None:
            checkpoint.put_back(self.module, self.best)
        if self.accelerator.num_processes > 1:
            # What no gradient moves (the statistics of batch norms) each process has of its own.
            checkpoint.put_back(self.module, processes.broadcast(checkpoint.copied(self.module)))
        return Trained(
            steps=at.step,
            epochs=at.step // self.per_epoch,
            loss=at.loss / max(at.losses, 1),
            scores=tuple(at.scores),
            kept=at.best_epoch if self.best is not None else at.step // self.per_epoch,
            resumed=resumed,
            precision={"no": "fp32"}.get(
                self.accelerator.mixed_precision, self.accelerator.mixed_precision
            ),
            device=str(self.accelerator.device),
            processes=self.accelerator.num_processes,
            masks=len(self.masks),
        )

    def _ended(self, at: Position) -> bool:
        """Whether the held-out score says that it is enough."""
        if not at.scores or at.step % self.per_epoch:
            return False
        if self.options.stop == "gate":
            return self.objective.reached(at.scores[-1])
        waited = len(at.scores) - at.best_epoch
        return self.options.stop == "plateau" and waited >= self.options.patience

    def _epoch(self, at: Position) -> None:
        """The rest of an epoch, its score and a checkpoint."""
        import torch

        epoch, first = divmod(at.step, self.per_epoch)
        if first == 0:
            at.loss, at.losses = 0.0, 0
        losses: list[Any] = []
        self.model.train()
        for parts in self.plan.epoch(epoch)[first:]:
            losses.append(self._step(at.step, parts))
            at.step += 1
            self.progress.advance()
            ends = at.step % self.per_epoch == 0
            saves = at.step % self.options.checkpoint_steps == 0 and not ends
            # At the same steps in every process, since each takes part.
            if ends or saves or len(losses) == LOOK:
                self._add(at, torch.stack(losses))
                losses = []
                self._tell(at, epoch)
            if saves:
                self._save(at)
        self.model.eval()
        score = processes.broadcast(
            self.objective.score(self.module) if processes.is_main() else None
        )
        if score is not None:
            at.scores.append(score)
            if at.best is None or score > at.best:
                at.best, at.best_epoch = score, len(at.scores)
                if self.options.stop != "none":
                    self.best = checkpoint.copied(self.module)
        self._tell(at, epoch)
        self._save(at)

    def _add(self, at: Position, losses: Any) -> None:
        with processes.together():
            total = self.accelerator.reduce(losses.sum(), "mean").item()
        if not math.isfinite(total):
            import torch

            halves = any(weights.dtype == torch.float16 for weights in self.module.parameters())
            raise ChainError(
                "training-diverged",
                "the loss is no longer a finite number",
                why=f"it was lost in the last {len(losses)} steps up to step {at.step}",
                hint="float16 weights do not train: hand them over in float32"
                if halves
                else f"a smaller learning rate than {self.options.peak:g}, or clip=1",
            )
        at.loss += total
        at.losses += len(losses)

    def _tell(self, at: Position, epoch: int) -> None:
        score = f", {self.objective.score_name} {at.scores[-1]:.4g}" if at.scores else ""
        loss = at.loss / max(at.losses, 1)
        self.progress.tell(f"epoch {epoch + 1}/{self.options.epochs}, loss {loss:.4g}{score}")

    def _save(self, at: Position) -> None:
        if self.accelerator.scaler is not None:
            at.scaler = self.accelerator.scaler.state_dict()
        checkpoint.save(self.work, at, self.module, self.optimizer.optimizer, self.best)

    def _step(self, step: int, parts: Sequence[np.ndarray]) -> Any:
        """One optimizer step; its mean loss, on the device."""
        import torch

        count = sum(len(part) for part in parts)
        mine = parts[self.accelerator.process_index :: self.accelerator.num_processes]
        set_rates(self.optimizer.optimizer, self.options, step, self.steps)
        # What is random follows from step and process: a resumed training draws the same.
        seed = [self.options.seed, step, self.accelerator.process_index]
        drawn = int(np.random.SeedSequence(seed).generate_state(1)[0])
        torch.manual_seed(drawn)
        generator = torch.Generator().manual_seed(drawn)
        total = 0.0
        for index, members in enumerate(mine):
            last = index == len(mine) - 1
            # The processes' gradients are averaged: over `count` samples that is their sum.
            scale = self.accelerator.num_processes / count
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                loss = self._backward(members, generator, scale)
            total = total + loss.detach()
        if self.options.clip:
            self.accelerator.clip_grad_norm_(self.module.parameters(), self.options.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for parameter, mask in self.masks:
                parameter.mul_(mask)
        return total

    def _backward(self, members: np.ndarray, generator: Any, scale: float) -> Any:
        try:
            with processes.together():
                loss = self.objective.loss(self.model, members, generator) * scale
                self.accelerator.backward(loss)
                return loss
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            full = "out of memory" in str(error) or "can't allocate memory" in str(error)
            raise ChainError(
                "training-memory" if full else "training-failed",
                "the network cannot be trained on these samples",
                why=f"{type(error).__name__}: {error}".strip(),
                hint="accumulate=4, or gradient_checkpointing=true: less memory, more time"
                if full
                else "check the labels, the outputs' kinds and the batch size",
            ) from error
