"""Detect the format of a model from its contents; the suffix is ignored.

Nothing is unpickled, and neither torch nor onnx is imported.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Literal

from edgepack.errors import SourceError
from edgepack.runtime.plain import open_plain
from edgepack.source.archive import open_checked, read_entry, require_stored
from edgepack.source.shards import MAX_INDEX
from edgepack.spec.suggestions import nearest

Format = Literal[
    "checkpoint",  # torch.save, as a zip archive or in the layout before 1.6
    "safetensors",
    "sharded-checkpoint",  # the index of weights in several files
    "exported-program",
    "torchscript",
    "onnx",
    "hugging-face",
]

MAX_SAFETENSORS_HEADER = 100_000_000
"""The format's own limit for its header, in bytes."""

# torch.save before 1.6 starts with this pickled number (torch.serialization.MAGIC_NUMBER).
_LEGACY_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")

_TAKEN = (
    "edgepack takes a state dict (.pt, .pth, .safetensors) with --arch, a torch.export program "
    "(.pt2), an ONNX file, or a Hugging Face folder"
)

# Formats of files that are passed by mistake: offset, magic bytes, description, hint.
_FOREIGN: tuple[tuple[int, bytes, str, str], ...] = (
    (4, b"TFL3", "a TensorFlow Lite model", "convert it with tf2onnx, or start from the original"),
    (0, b"GGUF", "a GGUF file", "use the original weights instead"),
    (0, b"\x89HDF\r\n", "an HDF5 file (Keras)", "convert it with tf2onnx"),
    (0, b"ftrt", "a TensorRT engine", "use the ONNX file that it was built from"),
    (0, b"\x7fELF", "a compiled program or library", "use the model that it was built from"),
    (0, b"\x93NUMPY", "a NumPy array", "samples go to --calibration and --evaluation"),
    (0, b"\x1f\x8b", "a gzip file", "unpack it first"),
    (257, b"ustar", "a tar archive", "unpack it first"),
    (0, b"version https://git-lfs", "a Git LFS pointer", "run: git lfs pull"),
    (0, b"<!DOCTYPE html", "a web page", "the download did not give the model: fetch it again"),
    (0, b"<html", "a web page", "the download did not give the model: fetch it again"),
)


def recognise(path: Path) -> Format:
    """Return the format of the model at `path`.

    Raises:
        SourceError: source-missing, source-unreadable, source-empty, source-truncated,
            source-archive-unsafe, source-folder, source-pickle, source-unknown.
    """
    if not path.exists():
        reason = "no such file or folder"
        if path.is_symlink():
            reason += ", only a dangling link"
        raise SourceError(
            "source-missing",
            f"there is no model at {path}",
            why=reason,
            hint=_suggest_similar(path) or "check the path",
        )
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise SourceError("source-unknown", f"{path} is neither a file nor a folder", hint=_TAKEN)
    try:
        size = path.stat().st_size
        with open_plain(path) as file:
            head = file.read(512)
            if size == 0:
                raise SourceError(
                    "source-empty",
                    f"{path.name} is empty",
                    why="the file has 0 bytes",
                    hint="save the model again; a full disk leaves such files",
                )
            if head.startswith(b"PK\x03\x04"):
                return _zip(path)
            return _stream(path, file, head, size)
    except OSError as error:
        raise SourceError(
            "source-unreadable",
            f"{path} cannot be read",
            why=str(error.strerror or error),
            hint="check its permissions",
        ) from error


# Usual suffixes of models, for suggestions alone.
_SUFFIXES = (".onnx", ".pt2", ".pt", ".pth", ".ckpt", ".tar", ".bin", ".safetensors", ".ts")


def _suggest_similar(path: Path) -> str:
    """Suggest a file of a similar name beside the missing one."""
    names = []
    try:
        for entry in path.parent.iterdir():
            # A log or a report of a similar name is not a model.
            if entry.suffix in _SUFFIXES or entry.is_dir():
                names.append(entry.name)
    except OSError:
        return f"the folder {path.parent} cannot be listed"
    near = nearest(path.name, names)
    if not near:
        return ""
    return f"did you mean {path.parent / near}?"


def _folder(path: Path) -> Format:
    names = sorted(entry.name for entry in path.iterdir())
    if "config.json" in names:
        return "hugging-face"
    kind = "not a Hugging Face folder: it has no config.json"
    hint = "use the model's file, or a folder written by save_pretrained"
    index = _first_ending(names, ".index.json")
    if "saved_model.pb" in names:
        kind, hint = "a TensorFlow SavedModel", "convert it with tf2onnx and use the ONNX file"
    elif index:
        hint = f"use {path / index} with --arch, or a folder written by save_pretrained"
    raise SourceError(
        "source-folder",
        f"the folder {path} is {kind}",
        why=f"it holds: {_shorten(names, 6) or 'nothing'}",
        hint=hint,
    )


def _first_ending(names: Sequence[str], *ends: str) -> str:
    """Return the first name with one of the ends; "" if there is none."""
    return next((name for name in names if name.endswith(ends)), "")


def _shorten(names: Sequence[str], limit: int) -> str:
    text = ", ".join(names[:limit])
    if len(names) > limit:
        text += ", ..."
    return text


def _zip(path: Path) -> Format:
    # TorchScript compresses its code, and nothing else that torch writes is compressed.
    with open_checked(path, stored_only=False) as archive:
        names = archive.namelist()
        # All entries of a torch archive lie in one folder, named after the file that was saved:
        # net/data.pkl, net/data/0, net/version.
        root = names[0].partition("/")[0] if names else ""
        inside = set()
        for name in names:
            folder, _, entry = name.partition("/")
            if folder != root:
                raise _unknown_zip(path, names)
            inside.add(entry)
        if "archive_format" in inside:
            return _read_declared(path, archive, f"{root}/archive_format")
        if "constants.pkl" in inside and any(name.startswith("code/") for name in inside):
            return "torchscript"
        if "data.pkl" in inside:
            require_stored(path, archive)
            return "checkpoint"
    raise _unknown_zip(path, names)


def _unknown_zip(path: Path, names: Sequence[str]) -> SourceError:
    """Return the error for an archive that torch did not write."""
    kind, hint = "a zip archive of another kind", _TAKEN
    if "serialized_exported_program.json" in names:
        kind = "a torch.export program in the layout before torch 2.8"
        hint = "load it with the torch that saved it, and save it again with torch 2.11 or later"
    elif "bundle.json" in names:
        kind, hint = "already an edgepack bundle", f"run it: python3 {path.name} info"
    elif names and all(name.endswith(".npy") for name in names):
        kind, hint = "a NumPy archive", "samples go to --calibration and --evaluation"
    elif _first_ending(names, "config.json", ".safetensors", ".onnx", ".pt"):
        hint = "unpack it first, and use the file or folder inside"
    return SourceError(
        "source-unknown",
        f"{path.name} is {kind}",
        why=f"its entries: {_shorten(names, 4) or 'none'}",
        hint=hint,
    )


def _read_declared(path: Path, archive: zipfile.ZipFile, entry: str) -> Format:
    """Return the format that a torch archive declares."""
    declared = b"..."
    if archive.getinfo(entry).file_size <= 16:
        declared = read_entry(archive, entry, path.name)
    if declared.strip() == b"pt2":
        return "exported-program"
    raise SourceError(
        "source-unknown",
        f"{path.name} is a torch archive of an unknown format",
        why=f"its archive_format says {declared!r}, not 'pt2'",
        hint=_TAKEN,
    )


def _stream(path: Path, file: BinaryIO, head: bytes, size: int) -> Format:
    if _is_safetensors(path, file, head, size):
        return "safetensors"
    if head[:1] == b"\x80":
        # torch.save writes PROTO n, LONG1 10, then the magic number: 80 02 8A 0A 6C FC 9C 46 ...
        if head[2:4] == b"\x8a\x0a" and head[4:14] == _LEGACY_MAGIC:
            return "checkpoint"
        if len(head) < 14 or head[1] in range(2, 6):
            raise SourceError(
                "source-pickle",
                f"{path.name} is a plain Python pickle, not a file that torch.save wrote",
                why="loading a pickle can run any code; it was not loaded",
                hint="if you trust it, load it, and torch.save(model.state_dict(), PATH)",
            )
    for offset, magic, kind, hint in _FOREIGN:
        # Case is ignored for the sake of <!doctype HTML>.
        if head[offset : offset + len(magic)].lower() == magic.lower():
            raise SourceError(
                "source-unknown", f"{path.name} is {kind}", why="its first bytes say so", hint=hint
            )
    # JSON and protobuf have no magic bytes, so they are parsed, and come last.
    if head[:1] == b"{" and _is_index(file, size):
        return "sharded-checkpoint"
    if _is_onnx(path, file, size):
        return "onnx"
    raise SourceError(
        "source-unknown",
        f"{path.name} is not a model in a supported format",
        why=f"it has {size} bytes and starts with {head[:16]!r}",
        hint=_TAKEN,
    )


def _is_safetensors(path: Path, file: BinaryIO, head: bytes, size: int) -> bool:
    """Return True if an 8-byte length and a JSON object open the file; truncation is an error."""
    # 8 bytes: length n of the header, little-endian
    # n bytes: {"conv.weight": {"dtype": "F32", "shape": [8, 3], "data_offsets": [0, 96]}, ...}
    # the data, up to the largest end in data_offsets
    if len(head) < 9 or head[8:9] != b"{":
        return False
    (length,) = struct.unpack("<Q", head[:8])
    if not 2 <= length <= MAX_SAFETENSORS_HEADER:
        return False
    end = 8 + length
    if end <= size:
        file.seek(8)
        try:
            end += _data_bytes(file.read(length))
        except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
            raise SourceError(
                "source-corrupt",
                f"{path.name} starts like a safetensors file, but its header is broken",
                why=f"{type(error).__name__}: {error}",
                hint="save or download it again",
            ) from error
    if end > size:
        raise SourceError(
            "source-truncated",
            f"{path.name} is a safetensors file whose end is missing",
            why=f"its header describes {end} bytes, the file has {size}",
            hint="copy or download it again",
        )
    return True


def _data_bytes(header: bytes) -> int:
    """Return the number of bytes after a safetensors header: the largest end of a tensor's data."""
    content = json.loads(header)
    content.pop("__metadata__", None)
    return max((entry["data_offsets"][1] for entry in content.values()), default=0)


def _is_index(file: BinaryIO, size: int) -> bool:
    """Return True if a JSON file names the files of a sharded checkpoint."""
    if size > MAX_INDEX:
        return False
    file.seek(0)
    try:
        # The file may have grown since its size was taken.
        content = json.loads(file.read(MAX_INDEX))
    except (ValueError, RecursionError):
        return False
    return isinstance(content.get("weight_map"), dict)


# Fields of onnx.ModelProto by number, with their wire types (onnx.proto3).
_MODEL_FIELDS = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
_IR_VERSION, _GRAPH, _OPSETS = 1, 7, 8


def _is_onnx(path: Path, file: BinaryIO, size: int) -> bool:
    """Return True if the file's top-level protobuf fields are those of a ModelProto."""
    # A field is a tag, field number << 3 | wire type, then a varint: the value of wire type 0,
    # the length of the content of wire type 2. ir_version 10 is the bytes 08 0A.
    fields: set[int] = set()
    position = 0
    while position < size:
        file.seek(position)
        window = file.read(20)
        try:
            tag, used = _varint(window, 0)
            value, used = _varint(window, used)
        except IndexError:
            return False
        field, wire = tag >> 3, tag & 7
        if _MODEL_FIELDS.get(field) != wire:
            return False
        fields.add(field)
        position += used
        if wire == 2:
            position += value
    if position > size and {_IR_VERSION, _GRAPH} <= fields:
        raise SourceError(
            "source-truncated",
            f"{path.name} is an ONNX file whose end is missing",
            why=f"its fields describe {position} bytes, the file has {size}",
            hint="copy or download it again",
        )
    return position == size and {_IR_VERSION, _GRAPH, _OPSETS} <= fields


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Return a base-128 number and the position after it. Raises IndexError if it has no end."""
    # The low 7 bits come first, and the top bit says that more follow: AC 02 is 0x2C + (2 << 7).
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise IndexError
