"""Interface of every kind of preprocessing.

Types alone: import them for type checkers, and bundles carry none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Dict, Mapping, Optional, Protocol, Tuple

if TYPE_CHECKING:
    import numpy as np

# Returns the contents of an entry of the bundle by its name.
ReadFile = Callable[[str], bytes]


class Preprocessing(Protocol):
    """Conversion of one raw sample to a feed of the model.

    The build host and the device run the same code. Only numpy is imported with a kind's
    module; `prepare` imports the packages that decode.
    """

    @property
    def takes_text(self) -> bool:
        """True if a string is a sample itself, and not the path of a file."""

    @property
    def least_db(self) -> Optional[float]:
        """SNR in dB that arrays reach if another version of a package made them.

        None if every version makes the same arrays.
        """

    @property
    def noise(self) -> float:
        """RMS error of an element that versions of a package may differ by; 0 for none."""

    def prepare(self, data: bytes, name: str = "") -> Dict[str, np.ndarray]:
        """Return a feed of one sample, with the batch axis.

        Args:
            data: the raw sample, such as the contents of a JPEG.
            name: of the sample, for messages.

        Raises InputError if the data are damaged or cannot be used, DeviceError if a package is
        missing.
        """

    def versions(self) -> Dict[str, str]:
        """Return the versions of the packages that decide the arrays, by name.

        Raises DeviceError if a package is missing.
        """

    def requirements(self) -> Tuple[str, ...]:
        """Return the lines of requirements.txt for the device, besides numpy and the engine."""

    def files(self) -> Mapping[str, bytes]:
        """Return the entries of the bundle that it reads, by name; below `preprocess/`."""

    def to_json(self) -> Dict[str, object]:
        """Return the document, with the key `kind`."""
