"""Run a torch module as the original model: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import SourceError
from edgepack.runtime.bundle.index import DTYPES
from edgepack.runtime.tensor import Tensor
from edgepack.source.binding import match_inputs
from edgepack.spec.tensors import names_of

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.export import ExportedProgram

# Two runs of one torch build on one input differ by rounding at most.
REPEAT_TOLERANCE = 1e-5
_KEYS = "_edgepack_output_keys"

Run = Callable[[Mapping[str, np.ndarray]], "tuple[np.ndarray, ...]"]


def flatten(value: object) -> tuple[torch.Tensor, ...]:
    """Return the tensors of a model's answer, in order.

    Raises:
        SourceError: source-output-unsupported for anything but tensors and None.
    """
    return tuple(tensor for _, tensor in output_leaves(value))


def output_leaves(
    value: object, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    """Yield the tensors of a model's answer in order, each with its path of keys and positions.

    `{"logits": a, "loss": None, "hidden_states": [b, c]}` gives ("logits",) a,
    ("hidden_states", "0") b and ("hidden_states", "1") c. Dicts (and the outputs of Hugging Face
    models) give their values in their own order; None gives nothing.

    Raises:
        SourceError: source-output-unsupported for anything else.
    """
    import torch

    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from output_leaves(inner, (*path, str(key)))
    elif isinstance(value, (tuple, list)):
        for key, inner in zip(_positions(value), value, strict=True):
            yield from output_leaves(inner, (*path, key))
    elif value is not None:
        raise SourceError(
            "source-output-unsupported",
            "the model returns something other than tensors",
            why=f"{'.'.join(('output', *path))} is of type "
            f"{type(value).__module__}.{type(value).__qualname__}",
            hint="let forward return a tensor, or a tuple, list or dict of tensors",
        )


def _positions(value: Sequence[object]) -> tuple[str, ...]:
    """Return the names of the fields of a named tuple, else the positions."""
    fields = getattr(value, "_fields", None)
    if isinstance(fields, tuple):
        return fields
    return tuple(map(str, range(len(value))))


def name_outputs(answer: object) -> tuple[str, ...] | None:
    """Return names for the tensors of an answer: the keys of its dicts and named tuples.

    None if no key names anything, as in a tuple of tensors, or if two names would clash.
    """
    names = [".".join(path) for path, _ in output_leaves(answer)]
    if not _is_keyed(answer) or len(set(names)) != len(names) or "" in names:
        return None
    if not _has_keys(answer):
        # A dict inside of a tuple: ("0",), ("1", "aux") are named as outputs of a tuple are.
        names = [f"output_{name}" for name in names]
    return tuple(names)


def _has_keys(answer: object) -> bool:
    return isinstance(answer, Mapping) or hasattr(answer, "_fields")


def _is_keyed(answer: object) -> bool:
    """Return True if an answer has keys at any depth: (x, {"aux": y}) has, (x, [y]) has none."""
    if _has_keys(answer):
        return True
    return isinstance(answer, (tuple, list)) and any(map(_is_keyed, answer))


def flatten_outputs(module: nn.Module, _inputs: object, output: object) -> object:
    """Flatten a module's output into a tensor or a tuple of tensors, as a forward hook.

    A hook rather than a wrapper, so that the parameters keep their trained names. The names of
    the first answer's tensors are stored for `output_keys`.
    """
    import torch

    if isinstance(output, torch.Tensor):
        return output
    if not hasattr(module, _KEYS):
        setattr(module, _KEYS, name_outputs(output))
    return flatten(output)


class OutputOrder:
    """Forward hook like `flatten_outputs`, with a dict's outputs in another module's order.

    Args:
        names: of the other module's outputs. An answer with the same keys is returned in this
            order; an answer with other keys, or without any, keeps its order.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def __call__(self, module: nn.Module, inputs: object, output: object) -> object:
        keys = None if len(self.names) == 1 else name_outputs(output)
        if keys is None or set(keys) != set(self.names):
            return flatten_outputs(module, inputs, output)
        tensors = dict(zip(keys, flatten(output), strict=True))
        return tuple(tensors[name] for name in self.names)


def output_keys(module: nn.Module) -> tuple[str, ...] | None:
    """Return the names of a module's output tensors; None before its first call."""
    # Stored in the module, so that a deep copy of it keeps the names.
    keys: tuple[str, ...] | None = getattr(module, _KEYS, None)
    return keys


def torch_run(module: nn.Module, inputs: tuple[Tensor, ...] | None = None) -> Run:
    """Return the `Source.run` of a torch module.

    Args:
        module: called with its inputs by position, in the order of `inputs`; without `inputs`,
            arrays are bound by name to the parameters of its forward.
        inputs: the inputs in the module's order.

    Returns:
        A function that raises SourceError: source-input-names, source-run-failed,
        source-output-unsupported, source-nondeterministic.
    """
    names = None if inputs is None else names_of(inputs)

    def call(feeds: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        answer = _call(module, feeds, names)
        if not answer:
            raise SourceError(
                "source-output-unsupported",
                "the model returns nothing",
                why="the value that forward returns holds no tensor",
                hint="let forward return a tensor, or a tuple, list or dict of tensors",
            )
        return answer

    return proven(call)


def proven(call: Run) -> Run:
    """Run a model's first feed twice, and require the same answer.

    Returns:
        A function that raises the errors of `call`, and SourceError source-nondeterministic.
    """
    # Once is enough: a model that draws random numbers draws them for every feed. Twice as many
    # calls for every sample would double the time of the evaluation.
    checked = False

    def run(feeds: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        nonlocal checked
        answer = call(feeds)
        if not checked:
            _check_repeatable(answer, call(feeds))
            checked = True
        return answer

    return run


def in_order(feeds: Mapping[str, np.ndarray], names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return the arrays in the order of the inputs.

    Raises:
        SourceError: source-input-names if the names are not those of the model's inputs.
    """
    if set(feeds) != set(names):
        raise SourceError(
            "source-input-names",
            "the arrays do not match the model's inputs",
            why=f"fed: {', '.join(feeds) or 'nothing'}; inputs: {', '.join(names)}",
            hint="name the samples' arrays as the inputs are named",
        )
    return {name: feeds[name] for name in names}


def describe_feeds(arrays: Mapping[str, np.ndarray]) -> str:
    """List arrays by name, type and shape: "image:float32:[8, 3, 32, 32], scale:float64:[8]"."""
    return ", ".join(f"{name}:{a.dtype}:{list(a.shape)}" for name, a in arrays.items())


def _call(
    module: nn.Module, feeds: Mapping[str, np.ndarray], names: tuple[str, ...] | None
) -> tuple[np.ndarray, ...]:
    import torch

    arrays = dict(feeds)
    if names is not None:
        arrays = in_order(feeds, names)
    tensors = {}
    for name, array in arrays.items():
        # A copy: torch warns of read-only arrays, and a model may write into its input.
        tensors[name] = torch.from_numpy(np.array(array, order="C"))
    if names is None:
        args, keywords = match_inputs(module, tuple(tensors)).arguments(tensors)
    else:
        args, keywords = list(tensors.values()), {}
    outputs = []
    try:
        with torch.inference_mode():
            for index, output in enumerate(flatten(module(*args, **keywords))):
                outputs.append(_array(output, index))
    except SourceError:
        raise
    except Exception as error:
        raise SourceError(
            "source-run-failed",
            "the original model cannot be run on the samples",
            why=f"{type(error).__name__}: {_shorten(str(error))}\nfed: {describe_feeds(arrays)}",
            hint=_suggest_type(module, arrays)
            or "check the names, shapes and types of --input against the model's forward; a "
            "parameter that takes a dict of inputs is best annotated: dict[str, Tensor]",
        ) from error
    return tuple(outputs)


def _suggest_type(module: nn.Module, arrays: Mapping[str, np.ndarray]) -> str:
    """Return the conversion of samples that are not of the weights' type; "" if they are.

    scikit-learn and numpy compute in float64, and pictures are uint8; weights are float32.
    """
    types = {p.dtype for p in module.parameters() if p.is_floating_point()}
    if len(types) != 1:
        return ""
    weights = str(types.pop()).removeprefix("torch.")
    for name, array in arrays.items():
        kind = array.dtype.name
        if kind != weights and (kind == "uint8" or array.dtype.kind == "f"):
            return f"{name} is {kind}, the weights are {weights}: store array.astype({weights!r})"
    return ""


def _array(output: torch.Tensor, index: int) -> np.ndarray:
    """Return an output as an array. Raises SourceError: source-output-unsupported."""
    kind = str(output.dtype).removeprefix("torch.")
    if output.is_sparse or output.is_quantized or kind not in DTYPES:
        hint = "let forward convert it: output.float()"
        if output.is_complex():
            hint = "let forward return torch.view_as_real(output)"
        raise SourceError(
            "source-output-unsupported",
            "the model returns a tensor that is not a plain array of numbers",
            why=f"output {index} is of type {kind}" + (", sparse" if output.is_sparse else ""),
            hint=hint,
        )
    array: np.ndarray = output.detach().cpu().contiguous().numpy()
    return array.copy()


def _shorten(text: str, lines: int = 6) -> str:
    # The last lines of a torch error name the cause; those before it are the stack.
    return "\n".join(text.strip().splitlines()[-lines:])


def _check_repeatable(first: tuple[np.ndarray, ...], second: tuple[np.ndarray, ...]) -> None:
    """Refuse a model with state or random numbers: it has no answer to compare with."""
    for index, (before, after) in enumerate(zip(first, second, strict=True)):
        worst = difference(before, after)
        # A NaN fails this comparison, too.
        if worst is None or not worst <= REPEAT_TOLERANCE:
            amount = "" if worst is None else f" by {worst:.2e} of its largest value"
            raise SourceError(
                "source-nondeterministic",
                "the model answers the same input differently on a second call",
                why=f"output {index} of the first call differs from the second's{amount}",
                hint="make its state an input and an output, and take random numbers and dropout "
                "out of forward",
            )


def difference(first: np.ndarray, second: np.ndarray) -> float | None:
    """Return the largest difference of two answers, as a share of the first's largest value.

    None if it is undefined: other shapes, integers that differ, infinities.
    """
    # [1.0, -2.0] and [1.0, -2.1] differ by 0.1 / 2.0 = 0.05. The largest value is the scale, since
    # values near 0 have no meaningful relative error.
    if first.shape != second.shape:
        return None
    if np.array_equal(first, second, equal_nan=first.dtype.kind in "fc"):
        return 0.0
    if first.dtype.kind != "f" or not np.isfinite(first).all():
        return None
    scale = max(float(np.abs(first).max(initial=0.0)), 1e-30)
    return float(np.abs(first.astype(np.float64) - second).max(initial=0.0)) / scale


def count_parameters(module: nn.Module | ExportedProgram) -> int:
    """Count the trained values: the elements of all parameters, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())
