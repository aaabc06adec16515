"""The trained model in the form that the rest of the build uses, independent of its format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgepack.ledger import SelectionDocument
from edgepack.runtime.tensor import Tensor

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram


@dataclass(frozen=True)
class Source:
    """A trained model, loaded.

    Attributes:
        path: the file or folder that it was loaded from.
        kind: "state-dict" (also for a module in memory), "exported-program", "onnx",
            "hugging-face", "pickled-module" or "torchscript".
        digest: SHA-256 over everything that determines the model's answers: its weights, its
            imported code, its configuration.
        module: the torch module in eval mode, called with its inputs by position, returning a
            tensor or a tuple of tensors; None for ONNX.
        program: the `torch.export.ExportedProgram`; None for other formats.
        onnx: the ONNX file; None for other formats.
        inputs: the inputs, if the file defines them, and after `source.bind`; None for unknown.
        optional_inputs: names of those among them that the model can do without.
        output_names: names of the outputs in their order; None if the file does not define them.
        output_kind: "scores" if the file says that the model classifies; None for unknown.
        run: the original model's answer: arrays by input name in, arrays in output order out.
        parameters: number of trained values.
        bytes: size of the weights in the file.
        deferred: loads the model on first use, if an earlier build's account of it sufficed so far;
            `module` is None then. None for a model that is loaded.
        weights_digest: SHA-256 of the weights alone, the same for any file that holds them; "" if
            `digest` identifies the model as well.
        identity: SHA-256 of `digest` and of the model's answers to a few samples, after
            `stages.identify`; "" before.
        trusted_pickle: True if code from the file was allowed to run.
        weights: account of the weights taken from a checkpoint and of the entries left; "" for
            a file that holds nothing else.
        selection: the same, for the report: key, prefix, entries that were left.
        class_names: names of the classes, by their index; empty if the file has none.
        notes: sentences for the ledger.
        warnings: messages for the user.
    """

    path: Path
    kind: str
    digest: str
    module: nn.Module | None
    program: ExportedProgram | None
    onnx: Path | None
    inputs: tuple[Tensor, ...] | None
    output_names: tuple[str, ...] | None
    output_kind: str | None
    run: Callable[[Mapping[str, np.ndarray]], tuple[np.ndarray, ...]]
    parameters: int
    bytes: int
    optional_inputs: tuple[str, ...] = ()
    deferred: Callable[[], Source] | None = None
    weights_digest: str = ""
    identity: str = ""
    trusted_pickle: bool = False
    weights: str = ""
    selection: SelectionDocument | None = None
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def has_network(self) -> bool:
        """True if there is a torch module, loaded or not."""
        return self.module is not None or self.deferred is not None

    @property
    def network(self) -> nn.Module | None:
        """The torch module, loaded now if that was deferred; None for ONNX."""
        if self.deferred is not None:
            return self.deferred().module
        return self.module

    @property
    def published_digest(self) -> str:
        """SHA-256 of the model for the bundle: of its weights, else of its file.

        The code of a network is not in it, since a bundle contains the graph that it computes:
        a module in memory and its weights in a file give the same bundle.
        """
        return self.weights_digest or self.digest

    @property
    def key(self) -> str:
        """Key of this model in the cache's keys of stages."""
        return self.identity or self.digest
