"""Engines: from ONNX to what runs on the device. One module each, one line in the table."""

from __future__ import annotations

from types import ModuleType

from edgepack.engine import onnxruntime

ENGINES: dict[str, ModuleType] = {"onnxruntime": onnxruntime}
