"""The report's shape, and that it may not contradict itself."""

from __future__ import annotations

import json

import pytest
from jsonschema import Draft202012Validator

from edgepack.report import encode, figures, model, validate
from edgepack.runtime.parity import gates, metrics
from support import report_cases as cases


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(model.schema())


@pytest.mark.parametrize("make", [cases.passed, cases.failed, cases.unverified, cases.hostile])
def test_examples_are_valid(make) -> None:
    validate(make())


def test_encoded_is_the_same_report() -> None:
    report = cases.hostile()
    data = encode(report)
    assert json.loads(data) == report
    assert data.endswith(b"}\n")


def test_encode_refuses_what_json_lacks() -> None:
    with pytest.raises(ValueError, match="JSON"):
        encode({"snr_db": float("inf")})


def test_the_snr_limit_is_the_runtimes() -> None:
    assert figures.SNR_LIMIT == metrics.SNR_LIMIT


def test_what_the_runtime_measures_fits_the_schema() -> None:
    import numpy as np

    from edgepack.runtime.parity.parts import Part
    from edgepack.runtime.tensor import Tensor

    values = np.linspace(-1, 1, 12, dtype=np.float32).reshape(1, 12)
    outputs = metrics.compare(
        [Tensor("logits", "float32", (1, 12), "scores")],
        {"logits": [Part(None, (), 1.0)]},
        [([values], [values * 1.01])],
    )
    bounds = {"snr_db": 30.0, "cosine": 0.9, "agreement": 0.9, "bit_exact": True}
    judged = gates.judge(bounds, outputs)
    report = cases.failed()
    report["quality"] = {
        "on": "reference",
        "samples": 1,
        "outputs": outputs,
        "metric": None,
        "gates": judged,
        "passed": all(gate["passed"] for gate in judged),
    }
    validate(report)
