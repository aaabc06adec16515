"""Arrays in the bundle, read without trust in them."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, List, Sequence

import numpy as np

from ..errors import BundleError
from .index import check_file

if TYPE_CHECKING:
    from .archive import Archive
    from .index import Index


def read_arrays(
    archive: Archive, index: Index, names: Sequence[str], rows: int
) -> List[np.ndarray]:
    """Read .npy entries after checking their hashes; never unpickles.

    Raises BundleError if one is damaged, or does not have `rows` rows.
    """
    arrays = []
    for name in names:
        stream = io.BytesIO(check_file(archive, index, name))
        try:
            array = np.lib.format.read_array(stream, allow_pickle=False)
            # bool, signed and unsigned integers, floats
            if array.dtype.kind not in "biuf":
                raise ValueError(f"its elements are {array.dtype}, not numbers")
            if array.shape[:1] != (rows,):
                raise ValueError(f"its shape is {array.shape} for {rows} samples")
            arrays.append(array)
        except Exception as error:  # numpy reads a header with Python's tokenizer and parser
            raise unreadable_reference(f"{name}: {str(error) or type(error).__name__}") from error
    return arrays


def unreadable_reference(why: str) -> BundleError:
    """Return the error for reference samples that no build writes."""
    return BundleError(
        "bundle-reference",
        "the bundle's reference samples cannot be read",
        why=why,
        hint="copy the bundle again from the build host",
    )
