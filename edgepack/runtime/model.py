"""`load`: from a bundle to something that can be called."""

from __future__ import annotations

import os
from typing import Any, Dict, Mapping, Tuple

import numpy as np

from . import device
from .archive import Archive, own_bundle
from .errors import BundleError, DeviceError, InputError
from .index import Index, check_file, read_index
from .onnx_session import ENGINE, OnnxSession
from .tensor import Tensor


class Model:
    """A model, loaded from its bundle: `outputs = model(image=array)`.

    Attributes:
        index: the bundle's index.
        inputs: name, element type and shape of every input.
        outputs: the same of every output.
    """

    def __init__(self, index: Index, session: OnnxSession) -> None:
        self.index = index
        self.inputs: Tuple[Tensor, ...] = index.inputs
        self.outputs: Tuple[Tensor, ...] = index.outputs
        self._session = session

    def __call__(self, **inputs: np.ndarray) -> Dict[str, np.ndarray]:
        """One inference, inputs by name; returns the outputs by name.

        Raises InputError where an input is missing, unknown, or of another type or shape.
        """
        return self.run(inputs)

    def run(self, inputs: Mapping[str, np.ndarray]) -> Dict[str, np.ndarray]:
        """The same, for input names that are not Python identifiers.

        Raises InputError likewise, and DeviceError where the engine fails on inputs that fit.
        """
        try:
            for array in inputs.values():
                # The one thing that the engine does not check: it would take the bytes as they
                # stand and answer nonsense.
                if not array.dtype.isnative:
                    raise TypeError("the bytes of a value stand in the other order")
            return self._session.run(inputs)
        except Exception as error:
            # The engine checks what it is fed, so the good call pays for no second check; only
            # a failed one is looked at, to say what was wrong with it.
            fault = explain(inputs, self.inputs)
            if fault is not None:
                raise fault from error
            raise DeviceError(
                "engine-failed",
                "{} failed on inputs that fit the model".format(ENGINE),
                why=str(error).strip(),
                hint="python3 BUNDLE verify tells whether the bundle runs here at all; a batch of "
                "another size may need less memory",
            ) from error


def explain(inputs: Mapping[str, Any], expected: Tuple[Tensor, ...]) -> "InputError | None":
    """What is wrong with a feed; None where nothing is."""
    names = [tensor.name for tensor in expected]
    signature = "the model takes " + "; ".join(map(str, expected))
    unknown = sorted(set(inputs) - set(names))
    missing = [name for name in names if name not in inputs]
    if unknown or missing:
        told = ["{} is missing".format(n) for n in missing]
        told += ["{} is unknown".format(n) for n in unknown]
        return InputError(
            "input-names", "the inputs do not fit", why="; ".join(told), hint=signature
        )
    sizes: Dict[str, int] = {}
    for tensor in expected:
        array = inputs[tensor.name]
        found = "{} is {}".format(tensor.name, _describe(array))
        if not isinstance(array, np.ndarray) or array.dtype != np.dtype(tensor.dtype):
            return InputError(
                "input-type", "an input has the wrong type", why=found, hint=signature
            )
        fits = array.ndim == tensor.rank and all(
            (sizes.setdefault(dim, size) if isinstance(dim, str) else dim) == size
            for dim, size in zip(tensor.shape, array.shape)
        )
        if not fits:
            return InputError(
                "input-shape", "an input has the wrong shape", why=found, hint=signature
            )
    return None


def _describe(array: Any) -> str:
    if isinstance(array, np.ndarray):
        order = "" if array.dtype.isnative else " in the other byte order"
        return "{}:{}{}".format(array.dtype.name, ",".join(map(str, array.shape)), order)
    return "a {}".format(type(array).__name__)


def open_model(
    archive: Archive, index: Index, threads: int = 0, *, any_arch: bool = False
) -> Model:
    """Check that this device fits, prove the model's bytes, and start its engine."""
    device.require(index.device, device.describe(), any_arch=any_arch)
    engine = index.device.get("engine", ENGINE)
    if engine != ENGINE:
        raise BundleError(
            "bundle-engine",
            "the bundle asks for an engine that this loader does not have",
            why="it asks for {!r}; this loader has {}".format(engine, ENGINE),
            hint="build it with a version of edgepack that ships this engine's loader",
        )
    data = check_file(archive, index, index.model)
    versions = str(index.device.get("engine_version", ""))
    return Model(index, OnnxSession(data, versions=versions, threads=threads))


def load(path: "str | os.PathLike[str] | None" = None, *, threads: int = 0) -> Model:
    """Load a bundle.

    Args:
        path: the .edgepack file; without it, the bundle that this loader came in.
        threads: threads within an operator; 0 takes every physical core.

    Raises BundleError where the file is not intact, DeviceError where this device cannot run it.
    """
    with Archive(os.fspath(path) if path is not None else own_bundle()) as archive:
        return open_model(archive, read_index(archive), threads)
