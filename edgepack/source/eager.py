"""Running a torch module as the original model: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgepack.errors import SourceError
from edgepack.runtime.tensor import Tensor

# Two runs of one torch build on one input differ by rounding at most.
REPEAT_TOLERANCE = 1e-5

Run = Callable[[Mapping[str, np.ndarray]], "tuple[np.ndarray, ...]"]


def flatten(value: Any, where: str = "output") -> tuple[Any, ...]:
    """The tensors of a model's answer, in order: nested tuples, lists, dicts and None.

    Dicts (and the outputs of Hugging Face models) give their values in their own order; None
    gives nothing.

    Raises:
        SourceError: source-output-unsupported for anything else.
    """
    import torch

    if isinstance(value, torch.Tensor):
        return (value,)
    if value is None:
        return ()
    if isinstance(value, Mapping):
        return tuple(t for key, v in value.items() for t in flatten(v, f"{where}[{key!r}]"))
    if isinstance(value, (tuple, list)):
        return tuple(t for i, v in enumerate(value) for t in flatten(v, f"{where}[{i}]"))
    raise SourceError(
        "source-output-unsupported",
        "the model returns something other than tensors",
        why=f"{where} is of type {type(value).__module__}.{type(value).__qualname__}",
        hint="let forward return a tensor, or a tuple, list or dict of tensors",
    )


def flatten_outputs(_module: Any, _inputs: Any, output: Any) -> Any:
    """A forward hook: what the module returns becomes a tensor or a flat tuple of tensors.

    A hook, and not a wrapper, so that the names of the parameters stay as they were trained.
    """
    import torch

    if isinstance(output, torch.Tensor):
        return output
    return flatten(output)


def torch_run(module: Any, inputs: tuple[Tensor, ...] | None = None) -> Run:
    """The `Source.run` of a torch module.

    Args:
        module: called with its inputs by position, in the order of `inputs`; where these are
            not known, in the order of the mapping that it is fed.
        inputs: the inputs, where they are known.

    Returns:
        A function that raises SourceError: source-input-names, source-run-failed,
        source-output-unsupported, source-nondeterministic.
    """
    names = None if inputs is None else tuple(tensor.name for tensor in inputs)
    proven = False

    def run(feeds: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        nonlocal proven
        arrays = in_order(feeds, names)
        answer = _call(module, arrays)
        if not proven:
            _same_again(answer, _call(module, arrays))
            proven = True
        return answer

    return run


def in_order(
    feeds: Mapping[str, np.ndarray], names: tuple[str, ...] | None
) -> dict[str, np.ndarray]:
    """The arrays in the order of the inputs.

    Raises:
        SourceError: source-input-names where they are not the model's inputs.
    """
    if names is None:
        return dict(feeds)
    if set(feeds) != set(names):
        raise SourceError(
            "source-input-names",
            "the arrays that were fed are not the model's inputs",
            why=f"fed: {', '.join(feeds) or 'nothing'}; inputs: {', '.join(names)}",
            hint="name the samples' arrays as the inputs are named",
        )
    return {name: feeds[name] for name in names}


def _call(module: Any, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    import torch

    # A copy: torch warns of read-only arrays, and a model may write into its input.
    tensors = [torch.from_numpy(np.array(array, order="C")) for array in arrays.values()]
    try:
        with torch.inference_mode():
            outputs = flatten(module(*tensors))
            return tuple(output.detach().cpu().contiguous().numpy().copy() for output in outputs)
    except SourceError:
        raise
    except Exception as error:
        fed = ", ".join(f"{name}:{a.dtype}:{list(a.shape)}" for name, a in arrays.items())
        raise SourceError(
            "source-run-failed",
            "the original model cannot be run on the samples",
            why=f"{type(error).__name__}: {_shorten(str(error))}\nfed: {fed}",
            hint="check the order, shapes and types of --input against the model's forward",
        ) from error


def _shorten(text: str, lines: int = 6) -> str:
    kept = text.strip().splitlines()
    return "\n".join(kept[-lines:]) if len(kept) > lines else text.strip()


def _same_again(first: tuple[np.ndarray, ...], second: tuple[np.ndarray, ...]) -> None:
    """A model that remembers, or draws random numbers, has no answer to be compared with."""
    for index, (one, two) in enumerate(zip(first, second, strict=True)):
        if one.shape == two.shape and np.array_equal(one, two, equal_nan=one.dtype.kind in "fc"):
            continue
        worst = _difference(one, two)
        if worst is None or worst > REPEAT_TOLERANCE:
            raise SourceError(
                "source-nondeterministic",
                "the model gives another answer when it is asked the same again",
                why=f"output {index} of the first call differs from the second's"
                + ("" if worst is None else f" by {worst:.2e} of its largest value"),
                hint="make its state an input and an output, and take random numbers and dropout "
                "out of forward",
            )


def _difference(one: np.ndarray, two: np.ndarray) -> float | None:
    if one.shape != two.shape or one.dtype.kind != "f" or not np.isfinite(one).all():
        return None
    scale = max(float(np.abs(one).max(initial=0.0)), 1e-30)
    return float(np.abs(one.astype(np.float64) - two).max(initial=0.0)) / scale


def count_parameters(module: Any) -> int:
    """Number of trained values: the elements of all parameters, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())
