"""Learning rate and momentum as functions of the step alone, so that a training can resume.

The formulas are those of torch.optim.lr_scheduler.OneCycleLR and CosineAnnealingLR.
"""

from __future__ import annotations

import math

from edgepack.passes.training.options import TrainingOptions

# First and last learning rate of OneCycle relative to the peak (torch's defaults).
START, END = 1 / 25, 1 / 25 / 1e4
# OneCycle lowers the momentum while the learning rate rises, between these (torch's defaults).
MOMENTUM = (0.95, 0.85)


def compute_learning_rate(options: TrainingOptions, step: int, steps: int) -> float:
    """Return the learning rate of a step, 0 to `steps` - 1."""
    peak = options.peak
    if options.schedule == "onecycle":
        return _interpolate_cycle(options, step, steps, peak * START, peak, peak * END)
    rise = math.ceil(options.warmup * steps)
    if step < rise:
        return peak * (step + 1) / rise
    if options.schedule == "constant":
        return peak
    return _interpolate(peak, 0.0, (step - rise) / max(steps - rise, 1))


def compute_momentum(options: TrainingOptions, step: int, steps: int) -> float | None:
    """Return the momentum of a step (Adam's first beta); None if the schedule keeps it."""
    if options.schedule != "onecycle":
        return None
    high, low = MOMENTUM
    return _interpolate_cycle(options, step, steps, high, low, high)


def _interpolate_cycle(
    options: TrainingOptions, step: int, steps: int, start: float, peak: float, end: float
) -> float:
    """Interpolate from start to peak over the warmup, then to the end."""
    # The peak is at the last step of the warmup, as in torch: step 29 of 100 for warmup = 0.3.
    top = options.warmup * steps - 1
    if step < top:
        return _interpolate(start, peak, step / top)
    return _interpolate(peak, end, (step - top) / max(steps - 1 - top, 1e-9))


def _interpolate(start: float, end: float, share: float) -> float:
    """Interpolate along half a cosine from `start` at share 0 to `end` at share 1.

    From 1 to 0 the shares 0.25, 0.5 and 0.75 give 0.85, 0.5 and 0.15: slow at both ends.
    """
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
