"""Make the model of one peer: python prepare.py PEER NETWORK-FOLDER OUTPUT."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rivals.feeds import read_feeds

SAMPLES = 64


def copy(network: Path, output: Path) -> None:
    """Take the float32 model as it is."""
    shutil.copyfile(network / "model.onnx", output)


def copy_program(network: Path, output: Path) -> None:
    """Take PyTorch's exported program."""
    shutil.copyfile(network / "module.pt2", output)


def quantize_by_defaults(network: Path, output: Path) -> None:
    """Quantize with onnxruntime's quantize_static as it is called without options."""
    _quantize_static(network, output, {})


def quantize_best(network: Path, output: Path) -> None:
    """Quantize with unsigned activations and signed weights per channel."""
    from onnxruntime.quantization import QuantType

    options = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    _quantize_static(network, output, {**options, "per_channel": True})


def _quantize_static(network: Path, output: Path, options: dict[str, Any]) -> None:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Calibration feeds, one at a time."""

        def __init__(self) -> None:
            self._feeds = read_feeds(network / "calibration.npz", SAMPLES)

        def get_next(self) -> Any:
            """Return the next feed, or None."""
            return next(self._feeds, None)

    prepared = output.with_suffix(".prepared.onnx")
    quant_pre_process(str(network / "model.onnx"), str(prepared), skip_symbolic_shape=True)
    quantize_static(str(prepared), str(output), Reader(), **options)
    prepared.unlink()


def quantize_dynamic(network: Path, output: Path) -> None:
    """Quantize with onnxruntime's quantize_dynamic as it is called without options."""
    from onnxruntime.quantization import quantize_dynamic as quantize

    quantize(str(network / "model.onnx"), str(output))


def nncf_default(network: Path, output: Path) -> None:
    """Quantize with NNCF's defaults, for OpenVINO."""
    _nncf(network, output, {})


def nncf_mixed(network: Path, output: Path) -> None:
    """Quantize with NNCF's preset MIXED: asymmetric activations."""
    import nncf

    _nncf(network, output, {"preset": nncf.QuantizationPreset.MIXED})


def nncf_accuracy(network: Path, output: Path) -> None:
    """Quantize with NNCF's accuracy control: a drop of 1 % of the agreement with float32."""
    import nncf
    import numpy as np
    import openvino as ov

    model = ov.Core().read_model(str(network / "model.onnx"))
    feeds = list(read_feeds(network / "calibration.npz", SAMPLES))
    compiled = ov.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    answers = [compiled(feed)[0].argmax(-1) for feed in feeds]
    pairs = list(zip(feeds, answers, strict=True))

    def validate(candidate: Any, samples: Any) -> tuple[float, None]:
        hits = [float(np.mean(candidate(feed)[0].argmax(-1) == top)) for feed, top in samples]
        return float(np.mean(hits)), None

    quantized = nncf.quantize_with_accuracy_control(
        model, nncf.Dataset(feeds), nncf.Dataset(pairs), validate, max_drop=0.01,
        subset_size=SAMPLES,
    )  # fmt: skip
    ov.save_model(quantized, str(output), compress_to_fp16=False)


def _nncf(network: Path, output: Path, options: dict[str, Any]) -> None:
    import nncf
    import openvino as ov

    model = ov.Core().read_model(str(network / "model.onnx"))
    feeds = list(read_feeds(network / "calibration.npz", SAMPLES))
    quantized = nncf.quantize(model, nncf.Dataset(feeds), subset_size=SAMPLES, **options)
    ov.save_model(quantized, str(output), compress_to_fp16=False)


def main() -> None:
    """Make the model under its final name only when it is complete."""
    maker, network, output = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    globals()[maker](network, output)


if __name__ == "__main__":
    main()
