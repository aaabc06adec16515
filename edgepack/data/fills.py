"""Plausible values of a model's inputs, where there are no samples to feed."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgepack.runtime.tensor import Tensor

Draw = Callable[[np.random.Generator, "tuple[int, ...]"], np.ndarray]

# Sizes of dynamic axes, largest first, since a model of 32 positions refuses 128 tokens.
TOKENS = (128, 32, 8)
# Height and width: multiples of 32, by which most networks divide them.
PIXELS = (224, 64, 32)
# One second at 16 kHz, and frames of a spectrogram.
WAVEFORM = (16000, 4000, 512)
FRAMES = (96, 32, 8)
# A signal of unknown kind: chunks of voice detectors have 512 or 576 samples.
SIGNAL = (576, 16000, 96, 32)

_WAVE = re.compile(r"audio|wave|speech|pcm|samples|input_values")
_STATE = re.compile(r"(^|_)(state|hidden|h0|c0|h|c|mem)\d*$")
_SUM = re.compile(r"\s*\+\s*")


@dataclass(frozen=True)
class Fill:
    """Distribution of an input's values.

    Attributes:
        text: description, such as "integers in [0, 30522)".
        draw: returns an array of a shape, in any type of numbers.
    """

    text: str
    draw: Draw


def normal(scale: float = 1.0) -> Fill:
    """Draw from the normal distribution of mean 0."""
    return Fill(
        f"normal values, standard deviation {scale:g}",
        lambda generator, shape: generator.standard_normal(shape) * scale,
    )


def uniform() -> Fill:
    """Draw evenly from [0, 1)."""
    return Fill("values in [0, 1)", lambda generator, shape: generator.random(shape))


def integers(bound: int) -> Fill:
    """Draw evenly from the integers in [0, bound)."""
    return Fill(
        f"integers in [0, {bound:,})",
        lambda generator, shape: generator.integers(0, bound, shape),
    )


def tokens(rows: int, special: Collection[int], last: int | None) -> Fill:
    """Draw words of a vocabulary without its special tokens, and end with one of those.

    Args:
        rows: size of the vocabulary.
        special: ids that no word has, such as the padding's.
        last: id of the token that ends a text; None for none.
    """
    words = np.setdiff1d(np.arange(rows), list(special))

    def draw(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        drawn = generator.choice(words, shape)
        if last is not None:
            drawn[..., -1] = last
        return drawn

    ending = "" if last is None else f", the last one {last}"
    return Fill(f"tokens in [0, {rows:,}){ending}", draw)


def constant(value: int) -> Fill:
    """Fill with one value."""
    text = {0: "zeros", 1: "ones"}.get(value, str(value))
    return Fill(text, lambda _, shape: np.full(shape, value))


def positions() -> Fill:
    """Count from 0 along the last axis."""

    def draw(_: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return np.broadcast_to(np.arange(shape[-1] if shape else 1), shape)

    return Fill("positions from 0", draw)


# Names of inputs whose values follow from their role, with the alternatives in the order in which
# they are tried. An attention mask is 1 where there is a token; a padding mask is 1 where there is
# none. "sr" is the rate of Silero VAD, which branches on it.
_BY_NAME: tuple[tuple[re.Pattern[str], tuple[Fill, ...]], ...] = (
    (re.compile(r"pad(ding)?_?mask|ignore_?mask"), (constant(0), constant(1))),
    (re.compile(r"mask"), (constant(1), constant(0))),
    (re.compile(r"token_?type|segment"), (constant(0),)),
    (re.compile(r"position"), (positions(), constant(0))),
    (re.compile(r"\bsr\b|sampl(e|ing)_?rate"), (constant(16000), constant(8000))),
    (re.compile(r"past|cache"), (constant(0), normal(0.1))),
    (_STATE, (constant(0), normal(0.1))),
)
_FLOATS = (normal(), uniform(), normal(0.01), constant(1))


def list_fills(
    tensor: Tensor,
    rows: int | None,
    length: int,
    special: Collection[int] = (),
    last: int | None = None,
) -> tuple[Fill, ...]:
    """Return the plausible values of an input, the most plausible first.

    Args:
        tensor: the input.
        rows: of the table that its values index; None if there is none.
        length: size of a sequence, for an input that holds lengths.
        special: ids in a vocabulary that no word has.
        last: id of the token that ends a text; None if there is none.
    """
    kind, name = np.dtype(tensor.dtype).kind, tensor.name.lower()
    # A table decides before the name: values that index it must be among its rows.
    if rows is not None and not re.search(r"token_?type|segment|position", name):
        if rows > len(special) + 1 and tensor.rank >= 2:
            return tokens(rows, special, last), integers(rows), integers(min(rows, 2))
        return integers(rows), integers(min(rows, 2))
    for pattern, fills in _BY_NAME:
        if pattern.search(name):
            return fills
    if kind in "iu":
        if re.search(r"len(gth)?s?\b|num_|count", name):
            return constant(length), constant(1)
        if "byte" in name or (tensor.dtype == "uint8" and tensor.rank >= 3):
            return integers(256), integers(2)
        return integers(2), constant(0), constant(1)
    if kind == "b":
        return integers(2), constant(1), constant(0)
    return _FLOATS


def list_sizes(inputs: Sequence[Tensor], declared: Mapping[str, int]) -> list[dict[str, int]]:
    """Return sizes of the dynamic axes to try in turn, without that of the batch.

    Args:
        inputs: the model's inputs; axis 0 of the first is the batch.
        declared: sizes that the user states, by axis.

    Of image:float32:batch,3,height,width they are 224 by 224, then 64 by 64, then 32 by 32.
    """
    choices: dict[str, tuple[int, ...]] = {}
    # A state of (2, batch, 128) has the batch at another axis than the first input.
    batch = inputs[0].shape[0] if inputs and inputs[0].rank else None
    for tensor in inputs:
        for axis, dim in enumerate(tensor.shape):
            if isinstance(dim, str) and axis > 0 and dim != batch:
                choices.setdefault(dim, _suggest_sizes(tensor, axis))
    sizes = []
    for number in range(max(map(len, choices.values()), default=1)):
        trial = {}
        for dim, options in choices.items():
            # Once the choices of an axis are used up, its last one stays.
            trial[dim] = declared.get(dim, options[min(number, len(options) - 1)])
        for dim in trial:
            # Exported caches have axes such as "past_sequence_length + sequence_length".
            parts = _SUM.split(dim)
            if len(parts) > 1 and all(part in trial or part.isdecimal() for part in parts):
                trial[dim] = sum(trial.get(part) or int(part) for part in parts)
        if trial not in sizes:
            sizes.append(trial)
    return sizes


def _suggest_sizes(tensor: Tensor, axis: int) -> tuple[int, ...]:
    """Return sizes of a dynamic axis of an input, the most plausible first."""
    kind, name = np.dtype(tensor.dtype).kind, tensor.name.lower()
    if kind in "ib":
        return TOKENS
    if tensor.rank == 4 and (tensor.shape[1] in (1, 3, 4) or tensor.shape[-1] in (1, 3, 4)):
        return PIXELS
    # (2, ?, 128): the axis that is not named is a batch of one.
    if _STATE.search(name) and tensor.rank <= 3:
        return (1,)
    last = axis == tensor.rank - 1
    mono = tensor.rank == 2 or (tensor.rank == 3 and tensor.shape[1] in (1, 2))
    if last and mono and _WAVE.search(f"{name} {tensor.shape[axis]}"):
        return WAVEFORM
    if last and tensor.rank == 2:
        return SIGNAL
    return FRAMES
