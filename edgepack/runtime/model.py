"""`load`: turn a bundle into a callable model."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Callable, Dict, Mapping, Optional, Protocol, Sequence, Tuple

import numpy as np

from .bundle.archive import Archive, own_bundle
from .bundle.engines import CUDA, ONNXRUNTIME, TENSORRT
from .bundle.index import Index, check_file, read_index, read_names
from .device import machine
from .device.device_info import device_info, find_sealed
from .device.variants import Choice, choose, choose_stand_in, format_fallback
from .errors import DeviceError, EdgepackError
from .origin import is_own

# Imported up front, not once a call has failed: the bundle may be moved or replaced by then.
from .session.feeds import find_fault, tied_axes
from .tensor import Tensor

if TYPE_CHECKING:
    from .prediction import Prediction
    from .preprocess.protocol import Preprocessing


class Session(Protocol):
    """A model in its engine."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> Dict[str, np.ndarray]:
        """Run one inference: arrays by input name in, arrays by output name out."""


class Model:
    """Model loaded from its bundle: `outputs = model(image=array)`.

    Attributes:
        index: the bundle's index.
        inputs: name, element type and shape of every input.
        outputs: the same of every output.
        choice: the variant that runs, and the reasons against better ones.
        preprocessing: conversion of raw data to the inputs; None for a model that takes arrays.
        class_names: names of the classes, by their index; empty if they are not known.
        postprocess: the user's function that decodes the outputs; None for none.
        session: the model in its engine.
    """

    def __init__(
        self,
        index: Index,
        session: Session,
        choice: Choice,
        preprocessing: Optional[Preprocessing] = None,
        class_names: Sequence[str] = (),
        postprocess: Optional[Callable[[object], object]] = None,
    ) -> None:
        self.index = index
        self.choice = choice
        self.inputs: Tuple[Tensor, ...] = tuple(index.inputs)
        self.outputs: Tuple[Tensor, ...] = tuple(index.outputs)
        self.preprocessing = preprocessing
        self.class_names = tuple(class_names)
        self.postprocess = postprocess
        self.session = session
        # Both are needed in every call, so they are computed once.
        self._ties = tied_axes(index.inputs)
        self._dtypes = {tensor.name: np.dtype(tensor.dtype) for tensor in index.inputs}

    def __call__(self, *arrays: object, **inputs: object) -> Dict[str, np.ndarray]:
        """Run one inference on inputs by position or by name; return the outputs by name.

        Inputs are arrays, tensors of torch, or lists, which take the input's element type.

        Raises InputError if an input is missing, unknown, or of another type or shape.
        """
        for position, array in enumerate(arrays):
            # One array too many gets a name that the model does not have, and is refused by it.
            name = "argument %d" % (position + 1)
            if position < len(self.inputs) and self.inputs[position].name not in inputs:
                name = self.inputs[position].name
            inputs[name] = array
        return self.run({name: self._convert(name, value) for name, value in inputs.items()})

    def _convert(self, name: str, value: object) -> np.ndarray:
        """Return an array of a tensor or a list; anything else is returned as it is."""
        if hasattr(value, "detach"):
            return np.asarray(value.detach().cpu())
        if not isinstance(value, (list, tuple, int, float)) or name not in self._dtypes:
            return value  # type: ignore[return-value]
        array = np.asarray(value)
        converted = array.astype(self._dtypes[name])
        # 0.5 is not an integer, 300 not a uint8: `run` refuses the type of the list itself.
        if converted.dtype.kind != "f" and not np.array_equal(converted, array):
            return array
        return converted

    def __repr__(self) -> str:
        return "Model(%s for %s in %s: %s -> %s)" % (
            self.index.name,
            self.index.target,
            self.choice.require_variant().engine,
            "; ".join(map(str, self.inputs)),
            "; ".join(map(str, self.outputs)),
        )

    def run(self, inputs: Mapping[str, np.ndarray]) -> Dict[str, np.ndarray]:
        """Run one inference; takes input names that are not Python identifiers too.

        Raises InputError as a call does, and DeviceError if the engine fails on inputs that fit.
        """
        try:
            # The engine leaves two faults unchecked. It would read a big-endian array as if it
            # were little-endian, and crash on strings;
            for name, dtype in self._dtypes.items():
                if inputs[name].dtype != dtype:
                    raise TypeError("an input has another element type")
            # and a batch of 1 beside a batch of 2 passes every operator that broadcasts.
            for name, axis, second, second_axis in self._ties:
                if inputs[name].shape[axis] != inputs[second].shape[second_axis]:
                    raise TypeError("two axes of one name differ in size")
            return self.session.run(inputs)
        except Exception as error:
            # The engine checks its feeds, so a valid call pays for no second check; a failed call
            # is examined to name the input that is wrong.
            fault = find_fault(inputs, self.inputs)
            if fault is not None:
                raise fault from error
            if isinstance(error, EdgepackError):
                raise
            raise DeviceError(
                "engine-failed",
                f"{self.choice.require_variant().engine} failed on inputs that fit the model",
                why=str(error).strip(),
                hint="python3 BUNDLE verify shows if the bundle runs here at all; a smaller batch "
                "may need less memory",
            ) from error

    def preprocess(self, data: object) -> Dict[str, np.ndarray]:
        """Return the feed of a raw sample, or of several in a list; arrays pass through.

        Args:
            data: the path of a file, its bytes, or a text if the model takes texts.

        Raises InputError if the data cannot be read or used.
        """
        from .prediction import make_feed

        return make_feed(data, self.inputs, self.preprocessing)

    def predict(self, data: object, *, top: int = 5) -> Prediction:
        """Return the outputs for one sample, and its likeliest classes by name.

        Args:
            data: one sample, as `preprocess` takes it; arrays with or without a batch axis of 1.
            top: the maximum number of classes.

        Raises InputError as `preprocess` and `run` do.
        """
        from .prediction import (
            Prediction,
            decode,
            fill_batch,
            find_top,
            make_single,
            split_outputs,
        )

        feed = make_single(self.preprocess(data), self.inputs, self.outputs)
        feed = fill_batch(feed, self.inputs)
        outputs = split_outputs(self.run(feed), self.outputs, self.inputs)
        if self.postprocess is not None:
            result = decode(self.postprocess, outputs)
            return Prediction(outputs, (), result, True, self.class_names)
        return Prediction(outputs, find_top(outputs, self.outputs, self.class_names, top))


def open_model(
    archive: Archive,
    index: Index,
    threads: int = 0,
    *,
    stand_in: bool = False,
    variant: str = "",
) -> Model:
    """Choose the best variant that fits this device, check its bytes, and start its engine.

    Args:
        archive: the open bundle.
        index: of it.
        threads: threads within an operator; 0 takes every physical core.
        stand_in: this is the build host and stands in for the device: its processor may differ,
            and the ONNX runs in onnxruntime on the CPU.
        variant: the name of the variant to run; "" for the best.

    Raises BundleError if the file is not intact, DeviceError if this device cannot run it,
    InputError if there is no such variant.
    """
    device = device_info(index)
    machine.require(index.device, device, any_arch=stand_in)
    if stand_in:
        choice = choose_stand_in(index, device)
        return _make_model(archive, index, choice, threads)
    # The module is compiled at every start, so only where a choice is sealed.
    if not (threads or variant or index.on_gpu) and os.path.exists(archive.path + ".tuned"):
        from .device.tuned import prefer_tuned

        index = prefer_tuned(archive.path, index, device)
    # Each round removes one variant from the choice, so the loop ends: at the latest
    # `choice.require_variant` raises once none is left.
    sealed = find_sealed(archive.path, index)
    refused: Dict[str, DeviceError] = {}
    while True:
        choice = choose(index, device, sealed, only=variant, refused=refused)
        name = choice.require_variant().name
        try:
            return _make_model(archive, index, choice, threads)
        except DeviceError as error:
            # A variant that does not start does not fit: record the reason and try the next one.
            refused[name] = error


def _make_model(archive: Archive, index: Index, choice: Choice, threads: int) -> Model:
    session = _start(choice, archive, index, threads)
    preprocessing: Optional[Preprocessing] = None
    class_names: Tuple[str, ...] = ()
    if index.preprocessing is not None:
        from .preprocess.kinds import open_preprocessing

        preprocessing = open_preprocessing(archive, index)
    if index.classes is not None:
        class_names = read_names(archive, index, index.classes)
    postprocess: Optional[Callable[[object], object]] = None
    if index.postprocessing is not None:
        from .preprocess.code import Function

        postprocess = Function.read(
            index.postprocessing,
            lambda name: check_file(archive, index, name),
            is_own(archive.path),
        )
    return Model(index, session, choice, preprocessing, class_names, postprocess)


def _start(choice: Choice, archive: Archive, index: Index, threads: int) -> Session:
    variant = choice.require_variant()
    if variant.engine == CUDA:
        from .session.onnx_session import OnnxSession

        model = check_file(archive, index, index.model)
        session = OnnxSession(model, threads=threads, cuda=True)
        session.require_signature(index.inputs, index.outputs)
        return session
    if variant.engine != TENSORRT:
        from .session.cpu import open_session

        model = check_file(archive, index, index.model)
        for_gpu = variant.engine == ONNXRUNTIME and index.variants[0].on_gpu
        if for_gpu:
            from .session.rounding import round_halves

            # A CPU that replaces a GPU must round like one: by default onnxruntime skips the
            # roundings of fp16, and its integer kernels saturate differently.
            model = round_halves(model)
        return open_session(
            variant.engine,
            model,
            index.inputs,
            index.outputs,
            variant.settings,
            threads=threads,
            literal=for_gpu,
        )
    from .session.tensorrt_session import TensorrtSession

    if choice.sealed is not None:
        engine = choice.sealed.read("engine.plan")
    else:
        engine = check_file(archive, index, str(variant.file))
    return TensorrtSession(engine, index.inputs, index.outputs, index.engine_options.dla_core)


def load(
    path: "str | os.PathLike[str] | None" = None, *, threads: int = 0, variant: str = ""
) -> Model:
    """Load a bundle and start the best variant that fits this device.

    Args:
        path: the .edgepack file; None for the bundle that contains this loader.
        threads: threads within an operator; 0 takes every physical core.
        variant: the name of the variant to run; "" for the best that fits.

    Warns if the model runs in another engine than the bundle was built for. Raises BundleError if
    the file is not intact, DeviceError if this device cannot run it.
    """
    if path is None:
        path = own_bundle()
    bundle = os.fspath(path)
    with Archive(bundle) as archive:
        model = open_model(archive, read_index(archive), threads, variant=variant)
    if model.choice.fallback:
        warnings.warn(
            "\n".join(format_fallback(model.choice.to_json())), RuntimeWarning, stacklevel=2
        )
    return model
