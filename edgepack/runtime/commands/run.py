"""`run`: compute the outputs of the bundle on a file of samples."""

from __future__ import annotations

import os
import zipfile
from typing import Dict, List, Sequence, Tuple

import numpy as np

from ..bundle.archive import Archive
from ..bundle.index import Index, read_index
from ..device.variants import Choice
from ..errors import InputError
from ..model import open_model
from ..plain import file_mode, open_plain, require_plain
from ..session.feeds import feeds, whole_feeds
from ..temporary import create_file, sweep
from .verify import reference_feeds, run_calls


def read_npz(path: str) -> Dict[str, np.ndarray]:
    """Read all arrays of an .npz, by name; never unpickles. Raises InputError if it cannot."""
    try:
        stream = open_plain(path)
    except OSError as error:
        raise InputError(
            "samples-unreadable",
            f"the samples cannot be read: {path}",
            why=error.strerror or str(error),
            hint="check the path: it must name an .npz file that you may read",
        ) from error
    try:
        with stream as file:
            # numpy takes anything else for a pickle, and advises to load it unsafely.
            if not file.read(6).startswith((b"PK", b"\x93NUMPY")):
                raise ValueError("it is neither an .npz nor an .npy file")
            file.seek(0)
            loaded = np.load(file, allow_pickle=False)
            if not hasattr(loaded, "files"):
                raise ValueError("it is a single array, not an .npz")
            repeated = sorted({name for name in loaded.files if loaded.files.count(name) > 1})
            if repeated:
                raise ValueError(f"it has two arrays named {', '.join(repeated)}")
            arrays = {name: loaded[name] for name in loaded.files}
        # An entry that is not an array (a note, a README) is loaded as bytes: skip it.
        return {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}
    except Exception as error:  # numpy, tokenize, zipfile and lzma share no base for broken files
        raise InputError(
            "samples-unreadable",
            f"the samples cannot be read: {path}",
            why=str(error) or type(error).__name__,
            hint="store one array per input in an .npz: numpy.savez(file, name=array)",
        ) from error


def write_npz(path: str, arrays: Dict[str, np.ndarray]) -> None:
    """Write an .npz atomically: into a temporary file beside it, then fsync and rename."""
    folder = os.path.dirname(os.path.abspath(path))
    try:
        require_plain(path)
        sweep(folder)
        temporary, descriptor = create_file(folder)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            # numpy.savez would mistake an output named `file` for its first parameter.
            with zipfile.ZipFile(file, "w", allowZip64=True) as archive:
                for name, array in arrays.items():
                    with archive.open(name + ".npy", "w", force_zip64=True) as entry:
                        np.lib.format.write_array(entry, array, allow_pickle=False)
            # Otherwise a power cut after the rename could leave an empty file.
            file.flush()
            os.fsync(file.fileno())
            os.chmod(temporary, file_mode())
            # The file is still open and so still locked: no sweep removes it before the rename.
            os.replace(temporary, path)
    except OSError as error:
        os.unlink(temporary)
        raise _unwritable(path, error) from error
    except BaseException:
        os.unlink(temporary)
        raise


def _unwritable(path: str, error: OSError) -> InputError:
    return InputError(
        "output-unwritable",
        f"the outputs cannot be written: {path}",
        why=error.strerror or str(error),
        hint="check the folder, its permissions and its free space",
    )


def run(
    path: str,
    source: str = "",
    threads: int = 0,
    *,
    stand_in: bool = False,
    variant: str = "",
) -> Tuple[Dict[str, np.ndarray], Choice]:
    """Compute the outputs of the bundle, by name, with samples along axis 0.

    Args:
        path: the bundle.
        source: an .npz of samples; empty for the bundle's reference samples.
        threads: threads within an operator; 0 takes every physical core.
        stand_in: this is the build host and stands in for the device.
        variant: the name of the variant to run; "" for the best that fits.

    Returns the outputs and the chosen variant. An output whose first axis is not the batch gains
    an axis with one row per call.
    """
    with Archive(path) as archive:
        index = read_index(archive)
        model = open_model(archive, index, threads, stand_in=stand_in, variant=variant)
        if not source:
            answers = run_calls(model, reference_feeds(archive, index))
            return _columns(index, answers, stack=True), model.choice
        arrays = read_npz(source)
        answers = run_calls(model, feeds(arrays, index.inputs))
        return _columns(index, answers, stack=whole_feeds(arrays, index.inputs)), model.choice


def _columns(
    index: Index, answers: Sequence[Sequence[np.ndarray]], stack: bool
) -> Dict[str, np.ndarray]:
    # Calls of 32 and 8 samples give scores of shapes (32, 10) and (8, 10), which concatenate to
    # (40, 10); an output without the batch, of shape (3,), is stacked to (2, 3).
    batch_axes = {tensor.shape[0] for tensor in index.inputs if tensor.shape}
    columns: Dict[str, np.ndarray] = {}
    for i, tensor in enumerate(index.outputs):
        column: List[np.ndarray] = [outputs[i] for outputs in answers]
        batched = bool(tensor.shape) and tensor.shape[0] in batch_axes
        if not column:
            continue
        join = np.concatenate if batched and not stack else np.stack
        try:
            columns[tensor.name] = join(column)
        except ValueError as error:
            raise InputError(
                "output-ragged",
                "the outputs of several samples differ in shape",
                why=f"{tensor.name}: {error}",
                hint="run samples of one size at a time",
            ) from error
    return columns
