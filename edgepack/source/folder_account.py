"""Account of a Hugging Face folder for the cache, so that a later build need not load it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from edgepack.source.digest import Digest
from edgepack.source.huggingface import check_folder, load_huggingface
from edgepack.source.model import Source
from edgepack.source.torch_host import check_environment
from edgepack.spec.tensors import parse

if TYPE_CHECKING:
    from edgepack.runtime.tensor import Tensor


# Weights in formats that are never read; some folders hold them beside the safetensors.
_UNREAD = frozenset(
    {".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".pt", ".pth", ".tflite"}
)


class FolderAccount(TypedDict):
    """Facts of a loaded folder, in the cache's form; the fields of `Source` without the network."""

    digest: str
    inputs: list[str]
    optional_inputs: list[str]
    output_names: list[str] | None
    output_kind: str | None
    class_names: list[str]
    parameters: int
    bytes: int
    notes: list[str]
    warnings: list[str]


def hash_folder(path: Path) -> str:
    """Return the SHA-256 of all files of a folder: weights, configurations, vocabularies.

    Raises SourceError as `check_folder` does.
    """
    check_folder(path)
    check_environment()
    digest = Digest("folder")
    files = []
    for entry in sorted(path.rglob("*")):
        if entry.suffix not in _UNREAD and entry.is_file():
            files.append(entry)
    digest.files("file", [(str(file.relative_to(path)), file) for file in files])
    return digest.hexdigest()


def describe_folder(source: Source) -> FolderAccount:
    """Return the account of a loaded folder."""
    return {
        "digest": source.digest,
        "inputs": list(map(str, source.inputs or ())),
        "optional_inputs": list(source.optional_inputs),
        "output_names": None if source.output_names is None else list(source.output_names),
        "output_kind": source.output_kind,
        "class_names": list(source.class_names),
        "parameters": source.parameters,
        "bytes": source.bytes,
        "notes": list(source.notes),
        "warnings": list(source.warnings),
    }


def restore_huggingface(path: Path, account: FolderAccount) -> Source:
    """Return the source of a folder by its account; the network is loaded on first use."""

    @cache
    def load() -> Source:
        return load_huggingface(path)

    inputs: tuple[Tensor, ...] = tuple(map(parse, account["inputs"]))
    names = account["output_names"]
    return Source(
        path=path,
        kind="hugging-face",
        digest=account["digest"],
        module=None,
        program=None,
        onnx=None,
        inputs=inputs,
        optional_inputs=tuple(account["optional_inputs"]),
        output_names=None if names is None else tuple(names),
        output_kind=account["output_kind"],
        class_names=tuple(account["class_names"]),
        run=lambda feeds: load().run(feeds),
        parameters=account["parameters"],
        bytes=account["bytes"],
        deferred=load,
        notes=tuple(account["notes"]),
        warnings=tuple(account["warnings"]),
    )
