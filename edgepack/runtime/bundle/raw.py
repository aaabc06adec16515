"""Entry of the raw reference samples in `bundle.json`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Mapping, Tuple

from ..strict_json import Reader

if TYPE_CHECKING:
    from ..documents import RawEntry

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class RawReference:
    """Raw reference samples, and what the build host made of them.

    Attributes:
        files: entries of the raw samples. Sample 0 is the first of them; with a fixed batch of 2,
            the first two.
        sha256: per input, the hash of each sample's array, see `preprocess.reference.digest`.
        probes: per input, the .npy entry with some elements of each sample's array; empty if every
            device makes the same arrays.
        versions: of the packages that made the arrays.
    """

    files: Tuple[str, ...]
    sha256: Tuple[Tuple[str, ...], ...]
    probes: Tuple[str, ...]
    versions: Mapping[str, str]

    def to_json(self) -> RawEntry:
        """Return the entry of `bundle.json`."""
        return {
            "files": list(self.files),
            "sha256": [list(hashes) for hashes in self.sha256],
            "probes": list(self.probes),
            "versions": dict(self.versions),
        }


def read_raw_reference(reader: Reader, inputs: int, samples: int) -> RawReference:
    """Read the entry of `to_json`. Raises BundleError if it does not fit inputs and samples."""

    def hashes(element: Reader) -> Tuple[str, ...]:
        if not isinstance(element.value, list) or len(element.value) != samples:
            raise element.fault("it does not have one hash per sample")
        for value in element.value:
            if not isinstance(value, str) or not _SHA256.match(value):
                raise element.fault(f"{value!r} is not a hash")
        return tuple(element.value)

    versions = reader.at("versions")
    raw = RawReference(
        reader.each("files", Reader.text),
        reader.each("sha256", hashes),
        reader.each("probes", Reader.text),
        {name: versions.get(name, str) for name in versions.value},
    )
    # 16 pictures are 8 samples of a model with a fixed batch of 2; 15 would be none.
    if not raw.files or len(raw.files) % samples:
        raise reader.fault(f"{len(raw.files)} files are not a multiple of {samples} samples")
    # A conversion that gives the same bits everywhere, such as a tokenizer, has no probes.
    if len(raw.sha256) != inputs or len(raw.probes) not in (0, inputs):
        raise reader.fault("it does not have one entry per input")
    return raw
