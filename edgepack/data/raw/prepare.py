"""Raw samples on the build host, converted by the code that devices run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import DataError, missing_package
from edgepack.runtime.errors import DeviceError, InputError
from edgepack.runtime.plain import read_plain

if TYPE_CHECKING:
    from edgepack.runtime.preprocess.protocol import Preprocessing

# Extra of edgepack that installs what a kind of data needs.
_EXTRAS = {"pillow": "pictures", "tokenizers": "text", "soundfile": "audio"}


def read_file(path: Path) -> bytes:
    """Return the contents of a file of samples. Raises DataError if it cannot be read."""
    try:
        return read_plain(path)
    except OSError as error:
        raise DataError(
            "samples-unreadable",
            f"{path} cannot be read",
            why=error.strerror or str(error),
            hint="check the file and its permissions",
        ) from error


def prepare(preprocessing: Preprocessing, data: bytes, name: str) -> dict[str, np.ndarray]:
    """Convert raw data to a feed of one sample, with the errors of the build host.

    Args:
        preprocessing: the conversion.
        data: the raw sample.
        name: of the sample, for messages.

    Raises as `host_errors` does.
    """
    with host_errors(preprocessing):
        return preprocessing.prepare(data, name)


@contextmanager
def host_errors(preprocessing: Preprocessing) -> Iterator[None]:
    """Turn the errors of a preprocessing into those of the build host.

    Raises:
        DataError: the data are damaged or cannot be used; the code is that of the device.
        HostError: a package is missing.
    """
    try:
        yield
    except InputError as error:
        raise DataError(error.code, error.what, why=error.why, hint=error.hint) from error
    except DeviceError as error:
        if not preprocessing.requirements():
            raise
        # "pillow>=8" is the requirement of the package pillow.
        package = preprocessing.requirements()[0].partition(">")[0]
        raise missing_package(package, _EXTRAS[package], "Reading these samples") from error
