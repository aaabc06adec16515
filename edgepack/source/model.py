"""What a trained model is to the rest of the build, wherever it came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgepack.runtime.tensor import Tensor


@dataclass(frozen=True)
class Source:
    """A trained model, loaded.

    Attributes:
        path: the file or folder that it was loaded from.
        kind: "state-dict", "exported-program", "onnx", "hugging-face", "pickled-module" or
            "torchscript".
        digest: SHA-256 over everything that decides what the model computes: its weights, the
            code that was imported for it, its configuration.
        module: the torch module in eval mode, called with its inputs by position, returning a
            tensor or a tuple of tensors; None for ONNX.
        program: the `torch.export.ExportedProgram`, where that is what was given.
        onnx: the ONNX file, where that is what was given.
        inputs: the inputs, where the source itself tells them, and after `source.bind`.
        optional_inputs: names of those among them that the model can do without.
        output_names: names of the outputs in their order, where the source tells them.
        output_kind: "scores" where the source says that it classifies, else None (unknown).
        run: the original model's answer: arrays by input name in, arrays in output order out.
        parameters: number of trained values.
        bytes: size of the weights as given.
        identity: SHA-256 of `digest` and of the model's answers to one sample, after
            `stages.identify`; "" before.
        trusted_pickle: whether code from the file was allowed to run.
        weights: which weights of a checkpoint were taken, and what was left; "" for a file that
            holds nothing else.
        selection: the same, for the report: key, prefix, entries that were left.
        notes: what was found, whole sentences, for the ledger.
        warnings: what the user should know.
    """

    path: Path
    kind: str
    digest: str
    module: Any | None
    program: Any | None
    onnx: Path | None
    inputs: tuple[Tensor, ...] | None
    output_names: tuple[str, ...] | None
    output_kind: str | None
    run: Callable[[Mapping[str, np.ndarray]], tuple[np.ndarray, ...]]
    parameters: int
    bytes: int
    optional_inputs: tuple[str, ...] = ()
    identity: str = ""
    trusted_pickle: bool = False
    weights: str = ""
    selection: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The part of the key of a cached stage that stands for this model."""
        return self.identity or self.digest
