"""Layers of two builds: the form of each, and its cost where a repair measured it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from edgepack.comparison.rows import Row
from edgepack.report.documents import Report
from edgepack.report.figures import format_decibel

# Details of a stage that list layers -> the form that they have.
_FORMS = {
    "layers_dynamic": "dynamic int8",
    "layers_weights": "int8 weights",
    "layers_float": "float",
    "returned": "float (repair)",
}
_DEFAULT = "int8"


def list_layer_rows(old: Report, new: Report) -> Iterator[Row]:
    """Yield a row for each layer whose form differs, and for each that both repairs measured."""
    forms = _read_forms(old), _read_forms(new)
    for name in dict.fromkeys((*forms[0], *forms[1])):
        before, after = forms[0].get(name, _DEFAULT), forms[1].get(name, _DEFAULT)
        if before != after:
            yield Row("layer", name, before, after, "another form")
    costs = _read_costs(old), _read_costs(new)
    for name, before_db in costs[0].items():
        after_db = costs[1].get(name)
        if after_db is None:
            continue
        change = after_db - before_db
        sign = "−" if change < 0 else "+"
        yield Row(
            "layer", name, format_decibel(before_db), format_decibel(after_db),
            f"{sign}{format_decibel(abs(change))} alone in int8", values=(before_db, after_db),
        )  # fmt: skip


def _read_forms(report: Report) -> dict[str, str]:
    """Return the layers that are not in the usual form, by name."""
    forms: dict[str, str] = {}
    for record in report["ledger"]:
        for key, form in _FORMS.items():
            layers = record["details"].get(key)
            if not isinstance(layers, list):
                continue
            for layer in layers:
                # Quantizers list names with operator and reason, repair lists names.
                name = layer["name"] if isinstance(layer, Mapping) else layer
                forms[str(name)] = form
    return forms


def _read_costs(report: Report) -> dict[str, float]:
    """Return the SNR with each layer alone in int8, by name, from the ranking of a repair."""
    costs = {}
    for record in report["ledger"]:
        ranking = record["details"].get("ranking")
        if not isinstance(ranking, list):
            continue
        for entry in ranking:
            if not isinstance(entry, Mapping) or entry.get("estimated"):
                continue
            if isinstance(entry.get("snr_db"), float):
                costs[str(entry["name"])] = float(entry["snr_db"])
    return costs
