"""Every network of the benchmark by name, the cheap ones first."""

from __future__ import annotations

from networks import sequences, vision
from networks.network import Maker

NETWORKS: dict[str, Maker] = {
    "mlp": sequences.mlp,
    "crepe-tiny": sequences.crepe,
    "gru": sequences.gru,
    "lstm": sequences.lstm,
    "mobilenet-v3": vision.mobilenet_v3,
    "conv3d": vision.conv3d,
    "efficientnet-lite0": vision.efficientnet_lite0,
    "crnn": vision.crnn,
    "minilm": sequences.minilm,
    "resnet18": vision.resnet18,
    "vit-tiny": vision.vit,
    "yolov8n": vision.yolo,
}
