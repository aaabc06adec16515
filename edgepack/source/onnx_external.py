"""Check the external data of an ONNX file: tensors in files beside it.

A file name in a model is an untrusted path. Path traversal and links caused a series of CVEs in
onnx (2022-25882 to 2026-34447); onnxruntime follows hard links, and `onnx.load` does not check
sparse tensors. So the tensors of all nodes and subgraphs are checked, and only plain files
beside the model are read.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.errors import SourceError
from edgepack.normalize import tensor_bytes, tensors

if TYPE_CHECKING:
    import torch
    from onnx import ModelProto


def external_files(path: Path, model: ModelProto) -> dict[str, Path]:
    """Return the files of external data by name, after checking them.

    Args:
        path: the ONNX file.
        model: its ModelProto, loaded without external data.

    Raises:
        SourceError: source-external-path for a name that leaves the folder, or a link;
            source-external-missing; source-external-range if a tensor lies outside its file, or
            if its length does not fit its shape.
    """
    files: dict[str, Path] = {}
    sizes: dict[str, int] = {}
    for tensor in tensors(model):
        if tensor.data_location != tensor.EXTERNAL and not tensor.external_data:
            continue
        # {"location": "model.data", "offset": "4096", "length": "9408"}; of a repeated key, two
        # readers could use different values.
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if len(entries) != len(tensor.external_data):
            raise _unsafe(path, tensor.name, "its external data repeats a key")
        name = entries.get("location", "")
        if name not in files:
            files[name], sizes[name] = _check_file(path, tensor.name, name)
        _check_range(path, tensor, name, entries, sizes[name])
    return files


def _check_file(path: Path, tensor: str, name: str) -> tuple[Path, int]:
    if not name or name in (".", "..") or not name.isprintable() or set(name) & set("/\\:"):
        raise _unsafe(path, tensor, f"its location {name!r} is not a plain file name")
    file = path.parent / name
    # O_NOFOLLOW refuses a symbolic link; a hard link is found by its count of names below.
    # Without O_NONBLOCK, opening a named pipe would wait for its writer.
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise SourceError(
            "source-external-missing",
            f"{path.name} has weights in another file, which is missing",
            why=f"{tensor or 'a tensor'} lies in {name}, which is not in {path.parent}",
            hint="put it beside the ONNX file",
        ) from error
    except OSError as error:
        raise _unsafe(
            path, tensor, f"{name} cannot be opened as a plain file: {error.strerror}"
        ) from error
    try:
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise _unsafe(path, tensor, f"{name} is not a plain file")
    if status.st_nlink != 1:
        raise _unsafe(path, tensor, f"{name} is a hard link, one of {status.st_nlink}")
    return file, status.st_size


def _check_range(
    path: Path, tensor: torch.Tensor, name: str, entries: dict[str, str], size: int
) -> None:
    # A weight of shape (8, 3, 3, 3) in float32 takes 864 bytes: {"offset": "4096", "length":
    # "864"} ends at byte 4960.
    try:
        offset = int(entries.get("offset", "0"))
        needed = tensor_bytes(tensor)
        length = int(entries.get("length", str(needed)))
    except (ValueError, KeyError, TypeError) as error:
        raise _range(path, tensor.name, name, f"its range cannot be read: {error}") from error
    if offset < 0 or length < 0 or any(dim < 0 for dim in tensor.dims):
        raise _range(path, tensor.name, name, "it has a negative offset, length or size")
    if length != needed:
        raise _range(
            path, tensor.name, name, f"its shape takes {needed} bytes, its length is {length}"
        )
    if offset + length > size:
        raise _range(
            path, tensor.name, name, f"it ends at byte {offset + length}, the file at {size}"
        )


def _range(path: Path, tensor: str, name: str, why: str) -> SourceError:
    return SourceError(
        "source-external-range",
        f"the external data of {path.name} does not fit it",
        why=f"{tensor or 'a tensor'} in {name}: {why}",
        hint="copy both files again; they must come from one export",
    )


def _unsafe(path: Path, tensor: str, why: str) -> SourceError:
    return SourceError(
        "source-external-path",
        f"the external data of {path.name} is not a plain file beside it",
        why=f"{tensor or 'a tensor'}: {why}",
        hint="save the model with its data in one file of its folder: "
        "onnx.save(model, PATH, save_as_external_data=True)",
    )
