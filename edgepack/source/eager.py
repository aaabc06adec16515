"""Running a torch module as the original model: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgepack.errors import SourceError
from edgepack.runtime.bundle.index import DTYPES
from edgepack.runtime.tensor import Tensor

# Two runs of one torch build on one input differ by rounding at most.
REPEAT_TOLERANCE = 1e-5
_KEYS = "_edgepack_output_keys"

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


def flatten_outputs(module: Any, _inputs: Any, output: Any) -> Any:
    """A forward hook: what the module returns becomes a tensor or a flat tuple of tensors.

    A hook, and not a wrapper, so that the names of the parameters stay as they were trained. The
    keys of a dict are kept for `output_keys`.
    """
    import torch

    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, Mapping) and not hasattr(module, _KEYS):
        plain = all(isinstance(value, torch.Tensor) for value in output.values())
        setattr(module, _KEYS, tuple(output) if plain else None)
    return flatten(output)


def output_keys(module: Any) -> tuple[str, ...] | None:
    """The keys of the dict of tensors that a module returned, once it has been called."""
    keys = getattr(module, _KEYS, None)
    return keys if keys and all(isinstance(key, str) for key in keys) else None


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

    def call(feeds: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        answer = _call(module, in_order(feeds, names))
        if not answer:
            raise SourceError(
                "source-output-unsupported",
                "the model returns nothing",
                why="there is no tensor in what forward returns",
                hint="let forward return a tensor, or a tuple, list or dict of tensors",
            )
        return answer

    return proven(call)


def proven(call: Run) -> Run:
    """A model that is asked the first question twice, since the answers have to be the same.

    Returns:
        A function that raises what `call` does, and SourceError source-nondeterministic.
    """
    asked = False

    def run(feeds: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        nonlocal asked
        answer = call(feeds)
        if not asked:
            _same_again(answer, call(feeds))
            asked = True
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
            return tuple(_array(output, place) for place, output in enumerate(outputs))
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


def _array(output: Any, place: int) -> np.ndarray:
    """An output as an array. Raises SourceError: source-output-unsupported."""
    kind = str(output.dtype).removeprefix("torch.")
    if output.is_sparse or output.is_quantized or kind not in DTYPES:
        raise SourceError(
            "source-output-unsupported",
            "the model returns a tensor that is no plain array of numbers",
            why=f"output {place} is of type {kind}" + (", sparse" if output.is_sparse else ""),
            hint="let forward return torch.view_as_real(output)"
            if output.is_complex()
            else "let forward convert it: output.float()",
        )
    array: np.ndarray = output.detach().cpu().contiguous().numpy()
    return array.copy()


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
