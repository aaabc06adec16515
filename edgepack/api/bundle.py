"""Bundle on this host: its report, its verdict, and the model in it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from edgepack import bundle, device
from edgepack.comparison import Comparison, Tolerances, compare, render_comparison
from edgepack.data.python.convert import is_array, to_array
from edgepack.device import ssh
from edgepack.errors import GateError
from edgepack.report import validate
from edgepack.report.card import list_facts, render_card
from edgepack.report.documents import Report
from edgepack.runtime.documents import Question, Reason, Verdict
from edgepack.runtime.model import Model, load
from edgepack.runtime.parity.verdict import PASS

if TYPE_CHECKING:
    from edgepack.runtime.prediction import Prediction


_WIDTH = 100


class UnverifiedWarning(UserWarning):
    """Build that ended with the verdict UNVERIFIED."""


@dataclass(frozen=True)
class Verification:
    """Verdict of one device on a bundle; true if it is PASS.

    Attributes:
        device: name of the device.
        document: the verdict, as `verify --json` prints it.
    """

    device: str
    document: Verdict

    @property
    def verdict(self) -> str:
        """Return "PASS", "FAIL" or "UNVERIFIED"."""
        return self.document["verdict"]

    @property
    def reasons(self) -> Sequence[Reason]:
        """Return the reasons for any other verdict than PASS."""
        return self.document["reasons"]

    @property
    def quality(self) -> Question:
        """Return the distance of the optimized model from the original."""
        return self.document["quality"]

    @property
    def fidelity(self) -> Question:
        """Return the distance of this device's answers from the build host's."""
        return device.require_fidelity(self.document)

    def __bool__(self) -> bool:
        return self.verdict == PASS

    def __repr__(self) -> str:
        # UNVERIFIED on haswell
        #   calibrated on or judged by random samples: ...
        lines = [f"{self.verdict} on {self.device}"]
        for reason in self.reasons:
            lines.append(f"  {reason['text']}")
        return "\n".join(lines)


@dataclass(frozen=True, repr=False)
class BundleComparison:
    """Comparison of two bundles; true if the newer one did not regress.

    Attributes:
        comparison: its rows, notes and latencies.
    """

    comparison: Comparison

    @property
    def regressions(self) -> Sequence[str]:
        """Return the regressions beyond their tolerances, in words."""
        return [row.describe() for row in self.comparison.regressions]

    def to_json(self) -> dict[str, object]:
        """Return the comparison as `edgepack compare --json` prints it."""
        return self.comparison.to_json()

    def __bool__(self) -> bool:
        return not self.comparison.regressions

    def __repr__(self) -> str:
        text = io.StringIO()
        render_comparison(self.comparison, Console(file=text, width=_WIDTH, highlight=False))
        return text.getvalue().rstrip()


class Bundle:
    """Bundle in a file.

    Attributes:
        path: the file.
        report: the report of its build, as JSON values.
    """

    def __init__(self, path: Path, report: Report) -> None:
        self.path = path
        self.report = report

    @property
    def verdict(self) -> str:
        """Return the build's verdict: "PASS", "FAIL" or "UNVERIFIED"."""
        return self.report["verdict"]

    @cached_property
    def model(self) -> Model:
        """Return the model, loaded on first use in the engine that fits this machine.

        Raises DeviceError if the bundle is for another device.
        """
        return load(self.path)

    def __call__(self, *arrays: object, **inputs: object) -> dict[str, np.ndarray]:
        """Run one inference: inputs by position or by name in, outputs by name out."""
        return self.model(*arrays, **inputs)

    def predict(self, data: object, *, top: int = 5) -> Prediction:
        """Return the answer to one sample, with its likeliest classes by name.

        Args:
            data: an array or a tensor, arrays by input name, or what the bundle's preprocessing
                takes: the path of a picture, its bytes, a text.
            top: the maximum number of classes.
        """
        # A torch tensor, on a GPU perhaps, becomes an array; keys that are no inputs are left for
        # the model to refuse.
        if isinstance(data, Mapping):
            arrays = {}
            for tensor in self.model.inputs:
                if tensor.name in data:
                    arrays[tensor.name] = to_array(data[tensor.name], tensor.dtype, tensor.name)
            data = {**data, **arrays}
        elif is_array(data):
            data = to_array(data, None, "the sample")
        return self.model.predict(data, top=top)

    def verify(self, *, on: str = "", emulate: str = "", threads: int = 0) -> Verification:
        """Verify the bundle again, on this machine or on another device.

        Args:
            on: ssh://[USER@]HOST[:PORT] of a device.
            emulate: name of a CPU to emulate.
            threads: threads within an operator; 0 takes every physical core.

        Raises EdgepackError if the device cannot run it; a missed gate is a verdict.
        """
        # The file may have changed since it was opened, so it is checked again.
        with bundle.admit(self.path) as admitted, _open_device(on, emulate) as host:
            remote = host.put(admitted.path)
            verdict = device.verify_bundle(host, remote, f"--threads={threads}")
            return Verification(host.name, verdict)

    def compare(
        self, old: Bundle | str | Path, *, timed: bool = True, tolerances: Tolerances | None = None
    ) -> BundleComparison:
        """Compare this bundle with an older one of the same model and target.

        Args:
            old: the older bundle, or its path.
            timed: measure both latencies by turns, if the bundles run on this machine.
            tolerances: changes that are not a regression; None for those of `edgepack compare`.

        Raises SpecError if the two cannot replace each other.
        """
        path = old.path if isinstance(old, Bundle) else Path(old)
        return BundleComparison(compare(path, self.path, tolerances, timed=timed))

    def __repr__(self) -> str:
        head = f"Bundle({str(self.path)!r}): {self.verdict}"
        lines = [head]
        for label, text in list_facts(self.report):
            lines.append(f"  {label}: {text}" if label else f"  {text}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return render_card(self.report)


class RejectedError(GateError):
    """Gates that a build missed.

    Attributes:
        bundle: the rejected bundle, for inspection.
        report: the report of the build.
    """

    def __init__(self, error: GateError, rejected: Bundle) -> None:
        super().__init__(error.code, error.what, why=error.why, hint=error.hint)
        self.bundle = rejected
        self.report = rejected.report


def open_bundle(path: str | Path) -> Bundle:
    """Open a bundle that exists, without running its code.

    Raises BundleError if it is not intact or has no report, ReportError if the report is wrong.
    """
    path = Path(path)
    with bundle.admit(path) as admitted:
        report = validate(bundle.read_report(admitted.path))
        # A report cannot state the size and hash of the file that it is in.
        report["bundle"]["bytes"] = admitted.size
        report["bundle"]["sha256"] = admitted.sha256
    return Bundle(path, report)


def _open_device(
    on: str, emulate: str
) -> AbstractContextManager[device.Local | device.Ssh | device.Emulated]:
    if on:
        return device.Ssh(ssh.parse(on), ssh.Settings(), lambda _: None)
    if emulate:
        return device.Emulated(emulate)
    return device.Local()
