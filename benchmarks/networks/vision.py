"""Networks for pictures and video."""

from __future__ import annotations

from typing import Any

import numpy as np

from networks.network import Network
from networks.samples import DEMO, find_file, read_pictures

IMAGENET = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
UNIT = ([0.0, 0.0, 0.0], [255.0, 255.0, 255.0])


def efficientnet_lite0() -> Network:
    """EfficientNet-Lite0 with its ImageNet weights."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    module = EfficientNet.from_name("efficientnet-lite0").eval()
    module.load_state_dict(torch.load(DEMO / "efficientnet-lite0.pth", weights_only=True))
    return _classifier("depthwise CNN", "real", module, 224, ([127.0] * 3, [128.0] * 3))


def mobilenet_v3() -> Network:
    """Build MobileNetV3-Small: depthwise convolutions, HardSwish, squeeze-and-excitation."""
    import torchvision

    module = torchvision.models.mobilenet_v3_small(weights=None)
    return _random_classifier("CNN with HardSwish", module, 224)


def resnet18() -> Network:
    """Build ResNet-18."""
    import torchvision

    return _random_classifier("residual CNN", torchvision.models.resnet18(weights=None), 224)


def vit() -> Network:
    """Build ViT-Tiny of patch 16."""
    import timm

    module = timm.create_model("vit_tiny_patch16_224", pretrained=False).eval()
    for block in module.blocks:
        block.attn.fused_attn = False
    return _classifier("vision transformer", "random", module, 224, ([127.5] * 3, [127.5] * 3))


def yolo() -> Network:
    """Build YOLOv8n from its description, for 320 pixels."""
    from ultralytics import YOLO

    module = YOLO("yolov8n.yaml").model.float()
    module.model[-1].export = True
    module.model[-1].format = "onnx"
    calibration = {"image": read_pictures("calibration", 64, 320, *UNIT)}
    evaluation = {"image": read_pictures("evaluation", 128, 320, *UNIT)}
    _settle_norms(module, calibration["image"])
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return Network("detector", "random", calibration, evaluation, "detections", module)


def conv3d() -> Network:
    """Build a 3-D residual network for clips of eight frames of 56 pixels."""
    import torch
    from torch import nn

    class Block(nn.Module):
        """Two 3x3x3 convolutions beside a shortcut."""

        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv3d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm3d(outputs),
                nn.ReLU(), nn.Conv3d(outputs, outputs, 3, 1, 1, bias=False),
                nn.BatchNorm3d(outputs),
            )  # fmt: skip
            self.shortcut = nn.Conv3d(inputs, outputs, 1, stride)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.body(x) + self.shortcut(x))

    module = nn.Sequential(
        nn.Conv3d(3, 16, (3, 5, 5), (1, 2, 2), (1, 2, 2), bias=False), nn.BatchNorm3d(16),
        nn.ReLU(), Block(16, 32, 1), Block(32, 64, 2), Block(64, 128, 2),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(128, 101),
    )  # fmt: skip
    calibration = {"clip": _pan(read_pictures("calibration", 64, 72, *IMAGENET))}
    evaluation = {"clip": _pan(read_pictures("evaluation", 128, 72, *IMAGENET))}
    _settle_norms(module, calibration["clip"])
    return Network("3-D CNN", "random", calibration, evaluation, "logits", module)


def crnn() -> Network:
    """PaddleOCR's recogniser of rapidocr, on rendered lines of film reviews."""
    model = find_file(
        "rapidocr-onnxruntime", "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"
    )
    return Network(
        "text recogniser", "real", {"x": _render_lines(64, 0)}, {"x": _render_lines(128, 500)},
        "softmax_11.tmp_0", onnx=model,
    )  # fmt: skip


def _random_classifier(kind: str, module: Any, side: int) -> Network:
    network = _classifier(kind, "random", module, side, IMAGENET)
    _settle_norms(module, network.calibration["image"])
    return network


def _classifier(
    kind: str, weights: str, module: Any, side: int, scale: tuple[list[float], list[float]]
) -> Network:
    calibration = {"image": read_pictures("calibration", 96, side, *scale)}
    evaluation = {"image": read_pictures("evaluation", 160, side, *scale)}
    return Network(kind, weights, calibration, evaluation, "logits", module)


def _settle_norms(module: Any, samples: np.ndarray) -> None:
    """Set batch normalization to the statistics of real samples, so that activations are sane."""
    import torch

    module.train()
    for layer in module.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.reset_running_stats()
            layer.momentum = None
    with torch.no_grad():
        for start in range(0, 64, 32):
            module(torch.from_numpy(samples[start : start + 32]))
    module.eval()


def _pan(pictures: np.ndarray) -> np.ndarray:
    """Move a window of 56 pixels over each picture: [n, 3, 8 frames, 56, 56]."""
    frames = [pictures[:, :, step * 2 : step * 2 + 56, step : step + 56] for step in range(8)]
    return np.ascontiguousarray(np.stack(frames, axis=2))


def _render_lines(count: int, skip: int) -> np.ndarray:
    from PIL import Image, ImageDraw, ImageFont

    from networks.samples import read_reviews

    font = ImageFont.load_default(30)
    lines = np.zeros((count, 3, 48, 320), np.float32)
    for i, text in enumerate(read_reviews(count, skip)):
        line = Image.new("RGB", (320, 48), (255 - i % 60, 250, 240))
        ImageDraw.Draw(line).text((6, 4), text[:24], font=font, fill=(i % 90, 20, 30))
        lines[i] = (np.asarray(line, np.float32).transpose(2, 0, 1) / 255 - 0.5) / 0.5
    return lines
