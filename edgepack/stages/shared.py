"""Stages up to the original model's answers, which all targets of one command share."""

from __future__ import annotations

from dataclasses import dataclass

from edgepack import passes
from edgepack.context import Context, Reference, SampleSets
from edgepack.ledger import Ledger, Record
from edgepack.request import Request
from edgepack.runtime.tensor import Tensor
from edgepack.source.model import Source
from edgepack.stages.original import run_original
from edgepack.stages.samples import calibrates, open_samples
from edgepack.stages.source import check_module, load_source, resolve_inputs


@dataclass(frozen=True)
class _Account:
    """Part of a ledger: records of stages, and the warnings that they gave."""

    records: tuple[Record, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Opened:
    """Trained model with its inputs and samples.

    Attributes:
        source: the trained model.
        inputs: of the model.
        samples: calibration, training and evaluation.
    """

    source: Source
    inputs: tuple[Tensor, ...]
    samples: SampleSets


class SharedStages:
    """Results of the first build of a command, reused by its builds for other targets.

    The stages after these are shared through the cache, whose keys name what a target decides:
    the export of two targets with one opset is computed once.
    """

    def __init__(self) -> None:
        # What the results were computed for, and their parts of the first build's ledger.
        self._roles: tuple[object, ...] = ()
        self._opened: tuple[Opened, _Account] | None = None
        self._answered: tuple[tuple[Source, Reference], _Account] | None = None

    def open(self, context: Context) -> Opened:
        """Load the model and open the samples, or repeat an earlier build's results."""
        roles = _describe_roles(context.request)
        if roles != self._roles:
            self._roles, self._opened, self._answered = roles, None, None
        if self._opened is not None:
            opened, account = self._opened
            # This target may be the first whose chain has passes on the module.
            check_module(context.request, opened.source)
            context.ledger.repeat(account.records, account.warnings)
            return opened
        mark = _Mark(context.ledger)
        source = load_source(context)
        source, inputs = resolve_inputs(context, source)
        opened = Opened(source, inputs, open_samples(context, source, inputs))
        # The ledgers of later builds repeat these records, so that each report is complete.
        self._opened = opened, mark.read()
        return opened

    def run_original(self, context: Context, opened: Opened) -> tuple[Source, Reference]:
        """Run the original model, or repeat an earlier build's results."""
        if self._answered is not None:
            result, account = self._answered
            context.ledger.repeat(account.records, account.warnings)
            return result
        mark = _Mark(context.ledger)
        result = run_original(context, opened.source, opened.inputs, opened.samples)
        self._answered = result, mark.read()
        return result


class _Mark:
    """Position in a ledger, from which its later entries are read."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._records, self._warnings = len(ledger.records), len(ledger.warnings)

    def read(self) -> _Account:
        """Return the entries since this object was created."""
        records = tuple(self._ledger.records[self._records :])
        return _Account(records, tuple(self._ledger.warnings[self._warnings :]))


def _describe_roles(request: Request) -> tuple[object, ...]:
    """Return what these stages read of a target and its chain.

    One command states the same model and samples for all targets. A chain decides which of the
    samples are read, and the target's gates which metrics of the original are refused.
    """
    return (
        calibrates(request),
        bool(passes.list_passes_needing("training", request.chain)),
        request.generates_inputs,
        tuple(sorted(request.quality)),
        tuple(sorted(request.metric_gates)),
    )
