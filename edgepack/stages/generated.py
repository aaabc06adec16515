"""Inputs of a build without samples: values that the original answers with finite numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from edgepack.data import random_samples
from edgepack.data.fills import Fill, list_fills, list_sizes
from edgepack.data.samples import Samples
from edgepack.data.stream import SampleStream
from edgepack.errors import DataError, EdgepackError
from edgepack.request import Request
from edgepack.runtime.tensor import Tensor
from edgepack.source.model import Source
from edgepack.source.tables import find_tables, read_special_tokens

SEED = 0
# Samples that the model answers in a trial: two, so that a constant answer shows.
_TRIAL = 2
# Different reasons that a message lists.
FAULTS = 3


@dataclass(frozen=True)
class Recipe:
    """Sizes of the dynamic axes, and values of every input.

    Attributes:
        sizes: by axis.
        fills: by input name.
    """

    sizes: Mapping[str, int]
    fills: Mapping[str, Fill]

    def describe(self, inputs: tuple[Tensor, ...]) -> str:
        """Return what is fed: "input_ids (1, 128): integers in [0, 30,522); ..."."""
        parts = []
        for tensor in inputs:
            shape = ", ".join(str(self.sizes.get(str(dim), dim)) for dim in tensor.shape)
            parts.append(f"{tensor.name} ({shape}): {self.fills[tensor.name].text}")
        return "; ".join(parts)


@dataclass(frozen=True)
class _Trial:
    """Answer of the original to the first samples of a recipe.

    Attributes:
        fault: the reason why they cannot be used; "" for finite answers.
        varies: True if two samples have different answers.
    """

    fault: str
    varies: bool = False


def generate_samples(
    request: Request, source: Source, inputs: tuple[Tensor, ...], count: int
) -> tuple[Samples, str]:
    """Return samples that the original answers with finite numbers, and what they hold.

    Plausible values are tried in turn. The first on which two samples have different answers are
    used, else the first that are answered at all.

    Raises:
        DataError: generated-refused if the original answers none of them; samples-dtype.
    """
    constant = None
    faults: dict[str, str] = {}
    for recipe in _list_recipes(request, source, inputs):
        samples = _draw(inputs, count, recipe)
        trial = _try_samples(source, samples)
        # A model whose answers do not depend on the input proves nothing about its optimized form.
        if trial.varies:
            return samples, recipe.describe(inputs)
        if not trial.fault:
            constant = constant or (samples, recipe.describe(inputs))
        else:
            # The first fault is that of the most plausible values, at the usual sizes.
            faults.setdefault(trial.fault, recipe.describe(inputs))
    if constant is not None:
        return constant
    reasons = []
    for fault, text in list(faults.items())[:FAULTS]:
        reasons.append(f"{fault}\n  on {text}")
    axes = _list_axes(inputs)
    hint = "--evaluation PATH with real samples (.npz, .npy, a folder of them, or module:function)"
    if axes:
        hint += "\nor state realistic sizes: " + " ".join(f"--axis {name}=SIZE" for name in axes)
    raise DataError(
        "generated-refused",
        "the original model answers none of the generated inputs",
        why="\n".join(reasons),
        hint=hint,
    )


def _list_axes(inputs: tuple[Tensor, ...]) -> list[str]:
    """Return the names of the dynamic axes without the batch."""
    names: list[str] = []
    for tensor in inputs:
        for dim in tensor.shape[1:]:
            if isinstance(dim, str) and dim.isidentifier() and dim not in names:
                names.append(dim)
    return names


def _list_recipes(request: Request, source: Source, inputs: tuple[Tensor, ...]) -> Iterator[Recipe]:
    """Yield recipes, the most plausible first.

    At each size the most plausible values of all inputs come first, then the alternatives of one
    input at a time: of an image and a mask, (normal, ones), (uniform, ones), (normal, zeros).
    """
    declared = {name: span.usual for name, span in request.axes.items()}
    special, last = read_special_tokens(source)
    for sizes in list_sizes(inputs, declared):
        # An input that holds lengths gets that of the longest axis.
        length = max(sizes.values(), default=1)
        rows = _find_rows(source, inputs, sizes)
        options = {}
        for tensor in inputs:
            options[tensor.name] = list_fills(tensor, rows.get(tensor.name), length, special, last)
        usual = {name: fills[0] for name, fills in options.items()}
        yield Recipe(sizes, usual)
        for name, fills in options.items():
            for fill in fills[1:]:
                yield Recipe(sizes, {**usual, name: fill})
        # At last, the second values of all inputs at once: of two numbers, both positive.
        yield Recipe(
            sizes, {name: fills[min(1, len(fills) - 1)] for name, fills in options.items()}
        )


def _find_rows(
    source: Source, inputs: tuple[Tensor, ...], sizes: Mapping[str, int]
) -> dict[str, int]:
    """Return the rows of the tables that the inputs index, found on a first plausible feed."""
    fills = {}
    for tensor in inputs:
        fills[tensor.name] = list_fills(tensor, None, 1)[0]
    samples = _draw(inputs, 1, Recipe(sizes, fills))
    return find_tables(source, inputs, next(iter(samples.batches(1))).inputs)


def _draw(inputs: tuple[Tensor, ...], count: int, recipe: Recipe) -> SampleStream:
    """Draw samples; for a model of a fixed batch, as many as fill two batches or more."""
    samples = random_samples(inputs, count, SEED, recipe.sizes, fills=recipe.fills)
    if samples.exact is not None and count < 2 * samples.exact:
        return _draw(inputs, 2 * samples.exact, recipe)
    return samples


def _try_samples(source: Source, samples: Samples) -> _Trial:
    """Run the original on the first batches, and look for numbers that are not finite."""
    answers: list[tuple[np.ndarray, ...]] = []
    for batch in samples.batches(1):
        try:
            outputs = source.run(batch.inputs)
        except EdgepackError as error:
            return _Trial(_summarize(error))
        for index, array in enumerate(outputs):
            if array.dtype.kind == "f" and (np.isnan(array) | np.isposinf(array)).any():
                return _Trial(f"output {index} is NaN or inf")
            if array.dtype.kind == "f" and array.size and not np.isfinite(array).any():
                return _Trial(f"output {index} holds no finite value")
        answers.append(outputs)
        if len(answers) == _TRIAL:
            break
    first = answers[0]
    return _Trial("", any(not _is_same(first, other) for other in answers[1:]))


def _summarize(error: EdgepackError) -> str:
    """Return the cause of an error in one line, without the list of what was fed."""
    lines = [line for line in error.why.splitlines() if not line.startswith("fed: ")]
    return " ".join(lines) or error.what


def _is_same(first: tuple[np.ndarray, ...], second: tuple[np.ndarray, ...]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
