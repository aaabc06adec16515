"""Load weights from a file into a module: all of them, and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.errors import SourceError
from edgepack.source.names import differ, mismatch
from edgepack.source.state import copy_state

if TYPE_CHECKING:
    import torch
    from torch import nn

# torch before 0.4.1 did not save this counter, and inference does not read it.
_COUNTER = "num_batches_tracked"
MAX_TENSORS = 10_000


def load_state(path: Path, module: nn.Module, state: dict[str, torch.Tensor]) -> list[str]:
    """Load a state dict into a module, strictly.

    Every parameter and every persistent buffer comes from the file. A tensor that the module
    shares under two names may be in the file under one of them.

    Returns:
        Notes on the tensors that were converted.

    Raises:
        SourceError: source-too-many-tensors, source-weights-mismatch, source-weights-dtype,
            source-weights-nonfinite.
    """
    if len(state) > MAX_TENSORS:
        raise SourceError(
            "source-too-many-tensors",
            f"{path.name} has too many tensors to be exported",
            why=f"it has {len(state):,}; at most {MAX_TENSORS:,}, since the time that torch takes "
            "grows with the square of their number",
            hint="give the part of the network that the device runs, or stack its experts",
        )
    state = dict(state)
    target = module.state_dict(keep_vars=True)
    _fill_shared(target, state)
    _fill_counters(target, state)
    if state.keys() != target.keys() or any(differ(target[name], state[name]) for name in target):
        raise mismatch(path, target, state)
    buffers = dict(module.named_buffers(remove_duplicate=False))
    check_finite(path, named_tensors(module, state))
    notes = _cast(path, target, state, buffers)
    if notes:
        check_finite(path, named_tensors(module, state))  # a narrower float may overflow
    try:
        copy_state(module, state)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise SourceError(
            "source-weights-mismatch",
            f"the weights of {path.name} cannot be loaded into the network",
            why=str(error).strip(),
            hint="check --arch and --arch-arg",
        ) from error
    return notes


def _fill_shared(target: Mapping[str, torch.Tensor], state: dict[str, torch.Tensor]) -> None:
    """Set every name of a shared tensor to the value that the file has under one of its names."""
    # With a tied output layer, "head.weight" may be missing and "embedding.weight" present.
    values = {}
    for name, tensor in target.items():
        if name in state:
            values[id(tensor)] = state[name]
    for name, tensor in target.items():
        if name not in state and id(tensor) in values:
            state[name] = values[id(tensor)]


def _fill_counters(target: Mapping[str, torch.Tensor], state: dict[str, torch.Tensor]) -> None:
    """Keep the network's counters if the file has none, or has another type or shape."""
    for name, value in target.items():
        if not name.endswith(_COUNTER):
            continue
        # The file's counter is used only if it can be copied unchanged.
        other = state.get(name)
        if getattr(other, "dtype", None) != value.dtype or differ(value, other):
            state[name] = value


def _cast(
    path: Path,
    network: Mapping[str, torch.Tensor],
    state: dict[str, torch.Tensor],
    buffers: Mapping[str, torch.Tensor],
) -> list[str]:
    """Cast each tensor to the network's type, and return notes.

    A float may change its width. Everything else must keep its values, and only a buffer may
    change between integers and floats: a counter in float32, for example.
    """
    import torch

    converted: Counter[str] = Counter()
    for name, value in state.items():
        target = network[name]
        if not isinstance(value, torch.Tensor):
            if isinstance(target, torch.Tensor):
                raise _wrong_type(path, name, type(value).__name__, target.dtype)
            continue  # Extra state: its module accepts or refuses it.
        if value.dtype != target.dtype:
            if not _may_cast(value, target.dtype, name in buffers):
                raise _wrong_type(path, name, str(value.dtype), target.dtype)
            state[name] = value.to(target.dtype)
            converted[f"{value.dtype} to {target.dtype}".replace("torch.", "")] += 1
    return [f"Converted {count} tensors from {step}." for step, count in converted.items()]


def _may_cast(value: torch.Tensor, dtype: torch.dtype, is_buffer: bool) -> bool:
    """Return True if a tensor may be cast: to another float, or without a change of its values."""
    import torch

    # float16 to float32, and float64 to float32, which may round: True. int64 to int32 for small
    # numbers: True. A float for an integer parameter: False.
    if value.is_quantized or value.is_complex() != dtype.is_complex:
        return False
    if value.is_complex() or (value.is_floating_point() and dtype.is_floating_point):
        return True
    if not is_buffer and (value.is_floating_point() or dtype.is_floating_point):
        return False
    if not bool(value.isfinite().all()):
        return False
    return bool(torch.equal(value.to(dtype).to(value.dtype), value))


def _wrong_type(path: Path, name: str, dtype: str, expected: object) -> SourceError:
    return SourceError(
        "source-weights-dtype",
        f"a tensor of {path.name} has a type that the network cannot take",
        why=f"{name} is {dtype}, the network's is {expected}",
        hint="use the weights from before any quantization",
    )


def refuse_nested(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse tensors without a shape. Raises SourceError: source-weights-dtype."""
    for name, tensor in tensors.items():
        if getattr(tensor, "is_nested", False):
            raise SourceError(
                "source-weights-dtype",
                f"a tensor of {path.name} does not hold plain numbers",
                why=f"{name} is a nested tensor: rows of different lengths",
                hint="use dense weights, as they were trained",
            )


def _check_plain(path: Path, name: str, tensor: torch.Tensor) -> None:
    """Refuse tensors that do not hold the values that the network computes with.

    A tensor on the device "meta" has no values, a sparse one omits most, and 8-bit floats are
    meant to be multiplied by scales from other tensors.
    """
    import torch

    if tensor.is_floating_point() and tensor.element_size() < 2:
        kind = tensor.dtype
    elif tensor.is_meta:
        kind = "without values (device meta)"
    elif tensor.layout != torch.strided:
        kind = tensor.layout
    else:
        return
    raise SourceError(
        "source-weights-dtype",
        f"a tensor of {path.name} does not hold plain numbers",
        why=f"{name} is {kind}",
        hint="use dense weights of 16 bits or more, from before any quantization",
    )


def named_tensors(
    module: nn.Module, state: Mapping[str, torch.Tensor] | None = None
) -> list[tuple[str, torch.Tensor, bool]]:
    """List the tensors of a module, or of a state dict for it: name, tensor, True if trained."""
    trained = dict(module.named_parameters(remove_duplicate=False))
    tensors = [*module.named_parameters(), *module.named_buffers()]
    if state is not None:
        tensors = list(state.items())
    entries = []
    for name, tensor in tensors:
        # The extra state of a module may be anything that can be pickled.
        if hasattr(tensor, "isnan"):
            entries.append((name, tensor, name in trained))
    return entries


def check_finite(path: Path, tensors: Iterable[tuple[str, torch.Tensor, bool]]) -> None:
    """Refuse NaN and infinities.

    A buffer may hold minus infinity: attention masks do.

    Raises:
        SourceError: source-weights-nonfinite, naming the first such tensor; source-weights-dtype
            for one that holds no plain numbers.
    """
    for name, tensor, trained in tensors:
        _check_plain(path, name, tensor)
        if not tensor.is_floating_point() or bool(tensor.isfinite().all()):
            continue
        nans = int(tensor.isnan().sum())
        infinite = int(tensor.isinf().sum())
        if not trained and not nans and not int(tensor.isposinf().sum()):
            continue
        raise SourceError(
            "source-weights-nonfinite",
            f"the weights of {path.name} are not all finite",
            why=f"{name} of shape {list(tensor.shape)} has {nans} NaN and {infinite} infinite "
            "values",
            hint="the training diverged, or the file is damaged: use an earlier checkpoint, or "
            "other weights of this one (--weights KEY)",
        )
