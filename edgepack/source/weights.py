"""Weights from a file into a module: all of them, and nothing that is not in the file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edgepack.errors import SourceError
from edgepack.spec.document import nearest

# Where training scripts put the state dict inside what they save; the first that is there counts.
_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights",
             "params", "module")  # fmt: skip

# What wrappers of the network put before its names: torch.compile, DataParallel, Lightning.
_PREFIXES = ("_orig_mod.", "module.", "model.", "net.", "network.")


def unwrap(path: Path, content: Any) -> tuple[dict[str, Any], list[str]]:
    """The state dict in what `torch.load` gave.

    Returns:
        Tensors by name, and notes on what was unwrapped.

    Raises:
        SourceError: source-no-weights where there is none.
    """
    import torch

    notes: list[str] = []
    for _ in range(3):
        if not isinstance(content, Mapping):
            break
        if any(isinstance(value, torch.Tensor) for value in content.values()):
            return {str(name): value for name, value in content.items()}, notes
        key = next((k for k in _WRAPPERS if isinstance(content.get(k), Mapping)), None)
        if key is None:
            break
        others = [str(k) for k in content if k != key]
        note = f"Took the weights from the checkpoint's {key!r}"
        notes.append(note + (f", and left {', '.join(others[:6])}." if others else "."))
        content = content[key]
    raise SourceError(
        "source-no-weights",
        f"{path.name} holds no state dict",
        why=_describe(content),
        hint="save it with torch.save(model.state_dict(), PATH)",
    )


def _describe(content: Any) -> str:
    if isinstance(content, Mapping):
        keys = ", ".join(repr(key) for key in list(content)[:8])
        return f"it is a dict with the keys {keys or '(none)'}, and none of them is one"
    return f"it is of type {type(content).__module__}.{type(content).__qualname__}"


def strip_prefixes(
    state: dict[str, Any], expected: Iterable[str]
) -> tuple[dict[str, Any], list[str]]:
    """Take off what a wrapper put before every name, where the network's names lack it.

    Returns:
        The state dict under the network's names, and notes.
    """
    names = set(expected)
    notes: list[str] = []
    while state and not names & state.keys():
        prefix = next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None)
        if prefix is None:
            break
        state = {key[len(prefix) :]: value for key, value in state.items()}
        notes.append(f"Took the prefix {prefix!r} off the names of the weights.")
    return state, notes


def load_state(path: Path, module: Any, state: dict[str, Any]) -> list[str]:
    """Load a state dict into a module, strictly.

    Every parameter and every persistent buffer comes from the file. A tensor that the module
    shares under two names may be there under one of them.

    Returns:
        Notes on what was converted.

    Raises:
        SourceError: source-weights-mismatch, source-weights-dtype, source-weights-nonfinite.
    """
    state, notes = strip_prefixes(state, module.state_dict())
    own = module.state_dict(keep_vars=True)
    _fill_shared(own, state)
    _fill_counters(own, state)
    _check_names(path, own, state)
    notes += _check_types(path, own, state)
    check_finite(path, named_tensors(module, state))
    try:
        module.load_state_dict(state, strict=True)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise SourceError(
            "source-weights-mismatch",
            f"the weights of {path.name} cannot be loaded into the network",
            why=str(error).strip(),
            hint="check --arch and --arch-arg",
        ) from error
    return notes


def _fill_shared(own: Mapping[str, Any], state: dict[str, Any]) -> None:
    """Give every name of a shared tensor the value that the file has under one of its names."""
    given = {id(own[name]): state[name] for name in own if name in state}
    for name, tensor in own.items():
        if name not in state and id(tensor) in given:
            state[name] = given[id(tensor)]


def _fill_counters(own: Mapping[str, Any], state: dict[str, Any]) -> None:
    # torch before 0.4.1 did not save this counter, and inference does not read it.
    for name, value in own.items():
        if name.endswith("num_batches_tracked") and name not in state:
            state[name] = value


def _check_names(path: Path, own: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} is {list(state[name].shape)}, the network's {list(own[name].shape)}"
        for name in own
        if name in state
        and hasattr(state[name], "shape")
        and tuple(state[name].shape) != tuple(own[name].shape)
    ]
    if not (missing or unexpected or shapes):
        return
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing: {_few(missing)}")
    if unexpected:
        parts.append(f"{len(unexpected)} that the network does not have: {_few(unexpected)}")
    if shapes:
        parts.append(f"{len(shapes)} of another shape: {_few(shapes, '; ')}")
    raise SourceError(
        "source-weights-mismatch",
        f"the weights of {path.name} do not fit the network",
        why="\n".join(parts),
        hint=_meant(missing, unexpected) or "check --arch and --arch-arg: widths, depths, classes",
    )


def _few(names: list[str], separator: str = ", ") -> str:
    return separator.join(names[:4]) + (f"{separator}..." if len(names) > 4 else "")


def _meant(missing: list[str], unexpected: list[str]) -> str:
    for name in missing:
        near = nearest(name, unexpected, likeness=0.7)
        if near:
            return f"the network's {name} may be the file's {near}: did you mean the same?"
    return ""


def _check_types(path: Path, own: Mapping[str, Any], state: Mapping[str, Any]) -> list[str]:
    """Refuse what is no tensor or no number of the same sort; note what is converted."""
    import torch

    converted: dict[str, int] = {}
    for name, value in state.items():
        target = own[name]
        if not isinstance(value, torch.Tensor):
            if isinstance(target, torch.Tensor):
                raise _wrong_type(path, name, type(value).__name__, target.dtype)
            continue  # Extra state of the module's own making: its module takes or refuses it.
        if value.is_quantized or value.is_floating_point() != target.is_floating_point():
            raise _wrong_type(path, name, str(value.dtype), target.dtype)
        if value.dtype != target.dtype:
            step = f"{value.dtype} to {target.dtype}".replace("torch.", "")
            converted[step] = converted.get(step, 0) + 1
    return [f"Converted {count} tensors from {step}." for step, count in converted.items()]


def _wrong_type(path: Path, name: str, found: str, expected: Any) -> SourceError:
    return SourceError(
        "source-weights-dtype",
        f"a tensor of {path.name} has a type that the network cannot take",
        why=f"{name} is {found}, the network's is {expected}",
        hint="give the weights as they were before any quantization",
    )


def _check_plain(path: Path, name: str, tensor: Any) -> None:
    """Refuse tensors whose values are not there as they are used.

    One on the device "meta" has none, a sparse one no place for most, and those of 8 bits are
    meant to be multiplied by scales that are kept elsewhere.
    """
    import torch

    small = tensor.is_floating_point() and tensor.element_size() < 2
    if tensor.is_meta or tensor.layout != torch.strided or small:
        kind = "without values (device meta)" if tensor.is_meta else str(tensor.layout)
        raise SourceError(
            "source-weights-dtype",
            f"a tensor of {path.name} does not hold plain numbers",
            why=f"{name} is {tensor.dtype if small else kind}",
            hint="give the weights dense, in 16 bits or more, as they were before any quantization",
        )


def named_tensors(
    module: Any, state: Mapping[str, Any] | None = None
) -> list[tuple[str, Any, bool]]:
    """Every tensor of a module, or of a state dict for it: name, tensor, whether it was trained."""
    trained = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    if state is None:
        tensors = [*module.named_parameters(), *module.named_buffers()]
    else:
        tensors = [(name, value) for name, value in state.items() if hasattr(value, "isnan")]
    return [(name, tensor, name in trained) for name, tensor in tensors]


def check_finite(path: Path, tensors: Iterable[tuple[str, Any, bool]]) -> None:
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
            hint="the training diverged, or the file is damaged: take an earlier checkpoint",
        )
