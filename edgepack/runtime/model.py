"""`load`: from a bundle to something that can be called."""

from __future__ import annotations

import os
import warnings
from typing import Dict, Mapping, Protocol, Tuple

import numpy as np

from .bundle.archive import Archive, own_bundle
from .bundle.engines import CUDA, ONNXRUNTIME, TENSORRT
from .bundle.index import Index, check_file, read_index
from .device import machine
from .device.here import Here, find_sealed
from .device.variants import Choice, aloud, choose, standing_in
from .errors import DeviceError, EdgepackError

# Not once a call has failed: the bundle may have been moved or replaced by then.
from .session.feeds import explain, ties
from .tensor import Tensor


class Session(Protocol):
    """A model in its engine."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> Dict[str, np.ndarray]:
        """One inference: arrays by input name in, arrays by output name out."""


class Model:
    """A model, loaded from its bundle: `outputs = model(image=array)`.

    Attributes:
        index: the bundle's index.
        inputs: name, element type and shape of every input.
        outputs: the same of every output.
        choice: the variant that runs, and why no better one does.
    """

    def __init__(self, index: Index, session: Session, choice: Choice) -> None:
        self.index = index
        self.choice = choice
        self.inputs: Tuple[Tensor, ...] = index.inputs
        self.outputs: Tuple[Tensor, ...] = index.outputs
        self._session = session
        self._ties = ties(index.inputs)
        self._dtypes = {tensor.name: np.dtype(tensor.dtype) for tensor in index.inputs}

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
            # The two things that the engine does not check. It would take bytes in the other order
            # as they are, and crash on text that is no text;
            for name, dtype in self._dtypes.items():
                if inputs[name].dtype != dtype:
                    raise TypeError("an input has another element type")
            # and a batch of 1 beside one of 2 goes through whatever repeats the shorter.
            for one, axis, other, place in self._ties:
                if inputs[one].shape[axis] != inputs[other].shape[place]:
                    raise TypeError("two axes of one name differ in size")
            return self._session.run(inputs)
        except Exception as error:
            # The engine checks what it is fed, so the good call pays for no second check; only
            # a failed one is looked at, to say what was wrong with it.
            fault = explain(inputs, self.inputs)
            if fault is not None:
                raise fault from error
            if isinstance(error, EdgepackError):
                raise
            raise DeviceError(
                "engine-failed",
                "{} failed on inputs that fit the model".format(self.choice.taken().engine),
                why=str(error).strip(),
                hint="python3 BUNDLE verify tells whether the bundle runs here at all; a batch of "
                "another size may need less memory",
            ) from error


def open_model(
    archive: Archive,
    index: Index,
    threads: int = 0,
    *,
    stand_in: bool = False,
    variant: str = "",
) -> Model:
    """Take the best variant that fits this device, prove its bytes, and start its engine.

    Args:
        archive: the open bundle.
        index: of it.
        threads: threads within an operator; 0 takes every physical core.
        stand_in: this is the build host and stands in for the device: its processor may be another,
            and the ONNX runs in onnxruntime on the CPU.
        variant: the name of the one that is to run; "" for the best.

    Raises BundleError where the file is not intact, DeviceError where this device cannot run it,
    InputError where there is no such variant.
    """
    here = Here(index)
    machine.require(index.device, here, any_arch=stand_in)
    if stand_in:
        choice = standing_in(index, here)
        return Model(index, _start(choice, archive, index, threads), choice)
    sealed = find_sealed(archive.path, index)
    refused: Dict[str, DeviceError] = {}
    while True:
        choice = choose(index, here, sealed, only=variant, refused=refused)
        name = choice.taken().name
        try:
            return Model(index, _start(choice, archive, index, threads), choice)
        except DeviceError as error:
            # What does not start does not fit; the next is tried, and this one's reason told.
            refused[name] = error


def _start(choice: Choice, archive: Archive, index: Index, threads: int) -> Session:
    variant = choice.taken()
    if variant.engine != TENSORRT:
        from .session.onnx_session import OnnxSession

        model = check_file(archive, index, index.model)
        for_gpu = variant.engine == ONNXRUNTIME and index.variants[0].on_gpu
        if for_gpu:
            from .session.rounding import rounded

            # The CPU takes a GPU's place, and would leave out the roundings of fp16; its integer
            # kernels would saturate where a GPU's do not.
            model = rounded(model)
        session = OnnxSession(model, threads=threads, cuda=variant.engine == CUDA, literal=for_gpu)
        session.require_signature(index.inputs, index.outputs)
        return session
    from .session.tensorrt_session import TensorrtSession

    if choice.sealed is not None:
        engine = choice.sealed.read("engine.plan")
    else:
        engine = check_file(archive, index, str(variant.file))
    return TensorrtSession(engine, index.inputs, index.outputs, index.engine_options.dla_core)


def load(
    path: "str | os.PathLike[str] | None" = None, *, threads: int = 0, variant: str = ""
) -> Model:
    """Load a bundle.

    Args:
        path: the .edgepack file; without it, the bundle that this loader came in.
        threads: threads within an operator; 0 takes every physical core.
        variant: the name of the variant that is to run; "" for the best that fits.

    Warns where it is not the engine that the bundle was made for. Raises BundleError where the
    file is not intact, DeviceError where this device cannot run it.
    """
    with Archive(os.fspath(path) if path is not None else own_bundle()) as archive:
        model = open_model(archive, read_index(archive), threads, variant=variant)
    if model.choice.fallback:
        warnings.warn("\n".join(aloud(model.choice.to_json())), RuntimeWarning, stacklevel=2)
    return model
