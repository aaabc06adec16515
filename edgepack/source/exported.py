"""Load a `torch.export` program (.pt2) without running code from the file.

`torch.export.load` unpickles sample inputs and evaluates strings (see `program`). So the archive
is opened here first: the entries that a program needs are checked and written to a new archive,
and torch reads only that one.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack import files
from edgepack.errors import SourceError
from edgepack.runtime.tensor import Dim, Tensor
from edgepack.source.archive import open_checked, read_entry
from edgepack.source.digest import Digest
from edgepack.source.eager import count_parameters, name_outputs, torch_run
from edgepack.source.model import Source
from edgepack.source.program import check_payload, clean_program, corrupt, unsafe
from edgepack.source.torch_host import import_torch
from edgepack.source.weights import check_finite

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

MAX_JSON = 256 << 20
"""Largest description of a program that is parsed, in bytes."""

# Entries of a .pt2 archive, without the folder that all of them are in:
#     archive_format, archive_version        "pt2", "0"
#     models/model.json                      the graph, as nested JSON
#     data/weights/weight_0, ...             bytes of one parameter or buffer each
#     data/weights/model_weights_config.json names, types and shapes of these
#     data/constants/...                     the same for tensors that are not parameters
#     data/sample_inputs/model.pt            a pickle, which is never read here
_PROGRAM = "models/model.json"
_WEIGHTS = "data/weights/model_weights_config.json"
_CONSTANTS = "data/constants/model_constants_config.json"
_SAMPLES = "data/sample_inputs/model.pt"
_REQUIRED = ("archive_format", "archive_version", _PROGRAM, _WEIGHTS, _CONSTANTS)
_PAYLOAD = re.compile(r"data/(weights/weight|constants/tensor)_\d+")
_IGNORED = re.compile(r"\.data/\w+|byteorder|version|\.format_version|\.storage_alignment|extra/.*")


def load_exported(path: Path) -> Source:
    """Load a torch.export program.

    Raises:
        SourceError: source-truncated, source-archive-unsafe, source-corrupt,
            source-exported-compiled, source-exported-unsafe, source-exported-objects,
            source-exported-operator, source-exported-several, source-exported-version,
            source-exported-inputs, source-stateful, source-output-unsupported,
            source-weights-nonfinite, source-unsafe-environment.
    """
    torch = import_torch("A torch.export program")
    from torch.export.pt2_archive._package import load_pt2

    from edgepack.source.positional import TreeModule

    digest = Digest("exported-program")
    digest.text("torch", torch.__version__)
    with files.temporary_folder() as folder:
        clean = folder / "model.pt2"
        _rewrite(path, clean, digest)
        try:
            program = load_pt2(str(clean)).exported_programs["model"]
        except Exception as error:
            raise SourceError(
                "source-exported-version",
                f"torch {torch.__version__} cannot load the program {path.name}",
                why=f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}",
                hint="export the network again with this torch, or install the torch that saved it",
            ) from error
    _check_stateless(path, program)
    # The signature lists every leaf of the arguments; only tensors are inputs of the model.
    inputs, leaves = _inputs(path, program)
    # Buffers may hold -inf, as attention masks do; parameters must be finite.
    parameters = dict(program.named_parameters())
    tensors = [*program.state_dict.items(), *program.constants.items()]
    check_finite(path, ((name, tensor, name in parameters) for name, tensor in tensors))
    module = TreeModule(program.module(), program.call_spec.in_spec, leaves)
    return Source(
        path=path,
        kind="exported-program",
        digest=digest.hexdigest(),
        module=module,
        program=program,
        onnx=None,
        inputs=inputs,
        output_names=_output_names(program),
        output_kind=None,
        run=torch_run(module, inputs),
        parameters=count_parameters(program),
        bytes=path.stat().st_size,
        notes=(f"Loaded a torch.export program of {len(program.graph.nodes)} nodes.",),
    )


def _rewrite(path: Path, clean: Path, digest: Digest) -> None:
    """Copy the checked parts of an archive into a new one, and into the digest."""
    from torch.export.pt2_archive._package import PT2ArchiveWriter

    with open_checked(path) as archive, PT2ArchiveWriter(str(clean)) as writer:
        # All entries are in one folder: net/models/model.json is entered as models/model.json.
        entries = {name.split("/", 1)[1]: name for name in archive.namelist()}
        _check_entries(path.name, archive, entries)
        # The tables name their tensors without the folder: "weight_0".
        payloads = frozenset(name.rpartition("/")[2] for name in entries if _is_payload(name))
        # torch insists on sample inputs; empty ones are not unpickled.
        writer.write_bytes(_SAMPLES, b"")
        for name in sorted(entries):
            if not _is_payload(name) and name not in _REQUIRED:
                continue
            data = _read(archive, entries[name], path.name)
            if name == _PROGRAM:
                data = clean_program(data, path.name)
            elif name in (_WEIGHTS, _CONSTANTS):
                check_payload(data, path.name, name, payloads)
            writer.write_bytes(name, data)
            digest.data(name, data)


def _is_payload(name: str) -> bool:
    return _PAYLOAD.fullmatch(name) is not None


def _read(archive: zipfile.ZipFile, name: str, file: str) -> bytes:
    if name.endswith(".json") and archive.getinfo(name).file_size > MAX_JSON:
        raise corrupt(file, f"{name} is larger than {MAX_JSON} bytes")
    return read_entry(archive, name, file)


def _check_entries(file: str, archive: zipfile.ZipFile, entries: dict[str, str]) -> None:
    """Refuse unknown entries and entries that hold code."""
    for name in entries:
        if _is_payload(name) or _IGNORED.fullmatch(name):
            continue
        if name in _REQUIRED or name == _SAMPLES:
            continue
        if name.startswith("models/"):
            raise SourceError(
                "source-exported-several",
                f"{file} holds more than one program, or one under another name",
                why=f"it has {name}",
                hint="save one program: torch.export.save(program, PATH)",
            )
        if name.startswith("data/aotinductor/") or name.endswith((".so", ".cpp", ".o", ".cubin")):
            raise SourceError(
                "source-exported-compiled",
                f"{file} holds compiled code (AOTInductor)",
                why=f"it has {name}, which torch would load as a library",
                hint="use the program that torch.export.save writes, not the compiled package",
            )
        if "/custom_obj_" in name or "/opaque_obj_" in name:
            raise SourceError(
                "source-exported-objects",
                f"{file} holds custom objects",
                why=f"it has {name}, which torch would unpickle",
                hint="export the network without custom classes",
            )
        raise unsafe(file, f"it has an unexpected entry: {name[:80]!r}")
    for name in _REQUIRED:
        if name not in entries:
            raise corrupt(file, f"the entry {name} is missing")
    order = b"little"
    if "byteorder" in entries:
        order = _read(archive, entries["byteorder"], file)
    if order != b"little":
        raise corrupt(file, f"its byte order is {order!r}, not little-endian")


def _check_stateless(path: Path, program: ExportedProgram) -> None:
    """Refuse a program that writes to its buffers, as one exported in training mode does."""
    signature = program.graph_signature
    changed = set(signature.buffers_to_mutate.values())
    # In-place operators such as add_ mark the argument that they write to in their schema:
    #     add_.Tensor(Tensor(a!) self, Tensor other) -> Tensor(a!)
    for node in program.graph.nodes:
        arguments = getattr(getattr(node.target, "_schema", None), "arguments", ())
        for argument, value in zip(arguments, node.args, strict=False):
            is_write = argument.alias_info is not None and argument.alias_info.is_write
            if is_write and getattr(value, "name", None) in signature.inputs_to_buffers:
                changed.add(signature.inputs_to_buffers[value.name])
    if changed:
        raise SourceError(
            "source-stateful",
            f"{path.name} keeps state between calls",
            why=f"it writes to {', '.join(sorted(changed))[:200]}",
            hint="export it in eval mode; make its state an input and an output of forward",
        )


def _inputs(
    path: Path, program: ExportedProgram
) -> tuple[tuple[Tensor, ...], tuple[torch.Tensor, ...]]:
    """Return the inputs, and every leaf of the program's arguments, as `TreeModule` takes them.

    The inputs have the exported shapes; a symbol becomes a named axis. An optional argument that
    was None at export stays None: forward(x, mask=None) gives the leaves (TENSOR, None).
    """
    import torch

    from edgepack.source.positional import TreeModule

    values = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            values[node.name] = node.meta.get("val")
    axes: dict[str, str] = {}
    inputs = []
    leaves: list[torch.Tensor] = []
    for name in program.graph_signature.user_inputs:
        value = values.get(name) if isinstance(name, str) else name
        if name is None:
            leaves.append(None)
            continue
        if not isinstance(value, torch.Tensor):
            raise SourceError(
                "source-exported-inputs",
                f"{path.name} has an input that is not a tensor",
                why=f"{name!r} is of type {type(value).__name__}",
                hint="export the network with tensors as its only inputs",
            )
        shape = []
        for axis, size in enumerate(value.shape):
            shape.append(_dim(name, axis, size, axes))
        inputs.append(Tensor(name, str(value.dtype).removeprefix("torch."), tuple(shape)))
        leaves.append(TreeModule.TENSOR)
    return tuple(inputs), tuple(leaves)


def _dim(tensor: str, axis: int, size: object, names: dict[str, str]) -> Dim:
    """Return a fixed size, or the name of the axis for a symbol; equal symbols share a name.

    The inputs x and y of shapes (s0, 3, s1) and (s0, s2) get the axes ("batch", 3, "x_dim2") and
    ("batch", "y_dim1").
    """
    if isinstance(size, int):
        return size
    symbol = str(size)
    if symbol not in names:
        is_batch = axis == 0 and "batch" not in names.values()
        names[symbol] = "batch" if is_batch else f"{tensor}_dim{axis}"
    return names[symbol]


def _output_names(program: ExportedProgram) -> tuple[str, ...] | None:
    """Return the keys of a dict of outputs, without those that are None at every call."""
    import torch

    # A program has the tree of its answer but no answer, so the tree is filled with stand-ins:
    # the leaves ("logits", None) of {"logits": ..., "loss": ...} give {"logits": [], "loss": None}.
    leaves = []
    for output in program.graph_signature.user_outputs:
        leaves.append(None if output is None else torch.empty(0))
    return name_outputs(torch.utils._pytree.tree_unflatten(leaves, program.call_spec.out_spec))
