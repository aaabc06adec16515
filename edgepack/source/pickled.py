"""Load files that hold code: pickled modules and TorchScript archives.

Both are refused, with instructions for saving the weights alone, unless the user trusts the file.
"""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.errors import SourceError
from edgepack.listing import join_names
from edgepack.source.archive import read_entry
from edgepack.source.code import add_code
from edgepack.source.digest import Digest
from edgepack.source.eager import count_parameters, flatten_outputs, torch_run
from edgepack.source.hooks import fix_normalized_weights, set_export_mode
from edgepack.source.model import Source
from edgepack.source.outline import weights_expression
from edgepack.source.precision import cast_to_float32
from edgepack.source.shards import total_bytes
from edgepack.source.states import LISTED, Selection
from edgepack.source.torch_host import import_torch
from edgepack.source.unsaved import add_state
from edgepack.source.weights import check_finite, named_tensors

if TYPE_CHECKING:
    from torch import nn

# Names in a file of plain weights: torch's own types and functions that rebuild tensors.
_PLAIN_MODULES = ("torch", "torch._utils", "torch.storage", "torch._tensor")
_PLAIN_NAMES = ("collections.OrderedDict",)

_HOW_TO_SAVE = """\
if you trust it, trust this one file: --trust-pickle
or load it in Python and save the weights alone, for --arch package.module:factory:
    import torch
    content = torch.load({path!r}, map_location="cpu", weights_only=False)
    torch.save({weights}, "weights.pt")"""

_HOW_TO_SAVE_SCRIPT = """\
if you trust it, trust this one file: --trust-pickle
or save the weights alone, for --arch package.module:factory:
    import torch
    model = torch.jit.load({path!r}, map_location="cpu")
    torch.save(model.state_dict(), "weights.pt")"""


def refuse_pickle(path: Path, names: list[str]) -> SourceError:
    """Return the error for a torch.save file that needs more than `weights_only` allows.

    Args:
        path: the file.
        names: the classes and functions that loading it would call.
    """
    return SourceError(
        "source-pickled-module",
        f"{path.name} holds pickled objects besides weights; they can run any code",
        why=f"loading it would run or build: {join_names(names, LISTED)}; none of it was run",
        hint=_HOW_TO_SAVE.format(path=str(path), weights=weights_expression(_pickles(path))),
    )


def refuse_torchscript(path: Path) -> SourceError:
    """Return the error for a TorchScript archive."""
    return SourceError(
        "source-torchscript",
        f"{path.name} is a TorchScript archive; it can run any code",
        why="torch says to treat it as a program, and deprecates the format since 2.11; "
        "none of it was run",
        hint=_HOW_TO_SAVE_SCRIPT.format(path=str(path)),
    )


def code_names(path: Path) -> list[str]:
    """List the classes and functions named by a torch.save file, without those of plain weights.

    The pickle's opcodes are read, none is executed. The list is empty if they cannot be read.
    """
    # GLOBAL has both names as its argument; STACK_GLOBAL takes the last two strings:
    #     SHORT_BINUNICODE 'posix', SHORT_BINUNICODE 'system', STACK_GLOBAL
    names: dict[str, None] = {}
    for data in _pickles(path):
        strings: list[str] = []
        try:
            for opcode, argument, _ in pickletools.genops(data):
                if opcode.name in ("GLOBAL", "INST"):
                    names[str(argument).replace(" ", ".", 1)] = None
                elif opcode.name == "STACK_GLOBAL" and len(strings) >= 2:
                    names[f"{strings[-2]}.{strings[-1]}"] = None
                elif isinstance(argument, str):
                    strings.append(argument)
        except (ValueError, IndexError, UnicodeDecodeError):
            continue  # A broken pickle is refused anyway; only its names are unknown.
    for name in list(names):
        if name in _PLAIN_NAMES or name.rpartition(".")[0] in _PLAIN_MODULES:
            del names[name]
    return list(names)


def _pickles(path: Path) -> list[bytes]:
    """Return the pickles of a file of torch.save, in either layout."""
    pickles = []
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith("/data.pkl"):
                    pickles.append(read_entry(archive, name, path.name))
        return pickles
    # The layout before torch 1.6 is one pickle after another: magic, protocol, system, object.
    data = path.read_bytes()
    position = 0
    for _ in range(4):
        try:
            *_, (_, _, stop) = pickletools.genops(data[position:])
        except (ValueError, IndexError):
            break
        if stop is None:
            break
        pickles.append(data[position : position + stop + 1])
        position += stop + 1
    return pickles


def from_pickle(path: Path, module: nn.Module, selection: Selection | None = None) -> Source:
    """Return the source for a module that was unpickled with the user's consent.

    Args:
        path: the file.
        module: the module.
        selection: its position in a checkpoint; None if the file holds nothing else.
    """
    import_torch("A pickled module")
    module.eval()
    notes = [f"Unpickled a {type(module).__module__}.{type(module).__qualname__}."]
    notes += fix_normalized_weights(module)
    notes += set_export_mode(module)
    notes += cast_to_float32(module)
    module.register_forward_hook(flatten_outputs)
    check_finite(path, named_tensors(module))
    digest = Digest("pickled-module")
    digest.file("weights", path)
    digest.text("key", selection.key if selection else "")
    add_code(digest, (), (), module)
    add_state(digest, module)
    return module_source(
        path,
        "pickled-module",
        digest.hexdigest(),
        module,
        trusted=True,
        notes=tuple(notes),
        selection=selection,
    )


def load_torchscript(path: Path, *, trust_pickle: bool) -> Source:
    """Load a TorchScript archive.

    Raises:
        SourceError: source-torchscript without the user's consent, source-corrupt if torch
            cannot load it, source-weights-nonfinite.
    """
    if not trust_pickle:
        raise refuse_torchscript(path)
    torch = import_torch("A TorchScript archive")
    try:
        module = torch.jit.load(str(path), map_location="cpu")
    except (RuntimeError, ValueError) as error:
        raise SourceError(
            "source-corrupt",
            f"torch cannot load the TorchScript archive {path.name}",
            why=str(error).strip().splitlines()[0],
            hint="save it again, or use a .pt2 file",
        ) from error
    module.eval()
    notes = (f"Loaded the TorchScript archive of {module.original_name}.",)
    check_finite(path, named_tensors(module))
    digest = Digest("torchscript")
    digest.text("torch", torch.__version__)
    digest.file("weights", path)
    return module_source(
        path,
        "torchscript",
        digest.hexdigest(),
        module,
        trusted=True,
        notes=notes,
    )


def module_source(
    path: Path,
    kind: str,
    digest: str,
    module: nn.Module,
    *,
    trusted: bool,
    notes: tuple[str, ...],
    selection: Selection | None = None,
    shards: tuple[Path, ...] = (),
    size: int | None = None,
) -> Source:
    """Return the source for a torch module with unknown inputs and outputs.

    Args:
        path: the file.
        kind: as `Source.kind`.
        digest: as `Source.digest`.
        module: the network, in eval mode.
        trusted: True if code from the file was allowed to run.
        notes: for the ledger.
        selection: the weights taken from a checkpoint.
        shards: the files with the weights, if `path` is their index.
        size: bytes of the weights; None for the size of the files.
    """
    account, selection_json, warnings = "", None, []
    if trusted:
        warnings.append(trust_warning(path))
    if selection:
        account, selection_json = selection.describe(), selection.to_json()
        warnings += selection.warnings(path.name)
    if account:
        notes = (account, *notes)
    if size is None:
        size = total_bytes(shards or (path,))
    return Source(
        path=path,
        kind=kind,
        digest=digest,
        module=module,
        program=None,
        onnx=None,
        inputs=None,
        output_names=None,
        output_kind=None,
        run=torch_run(module),
        parameters=count_parameters(module),
        bytes=size,
        trusted_pickle=trusted,
        weights=account,
        selection=selection_json,
        notes=notes,
        warnings=tuple(warnings),
    )


def trust_warning(path: Path) -> str:
    """Return the warning about a trusted file."""
    return f"Code from {path.name} was allowed to run, because --trust-pickle was given."
