"""Raw reference samples: the arrays that this device makes of them, against the build host's."""

from __future__ import annotations

import hashlib
from math import gcd
from typing import TYPE_CHECKING, Dict, Iterator, List, Mapping, Sequence, Tuple

import numpy as np

from ..bundle.arrays import read_arrays, unreadable_reference
from ..bundle.index import check_file
from ..parity.parts import SNR_LIMIT
from .feed import join_feeds
from .kinds import open_preprocessing

if TYPE_CHECKING:
    from ..bundle.archive import Archive
    from ..bundle.index import Index
    from ..bundle.raw import RawReference
    from ..documents import Gate, Question
    from .protocol import Preprocessing

# Elements of a sample's array that the bundle holds, to measure how far another array is off.
PROBE = 512
# SNR in dB of the answers where another decoder made slightly different arrays: int8 CNNs on
# photographs of another JPEG decoder reach 23 dB.
INEXACT_DB = 20.0

# Largest arrays of all reference samples together, since a picture of a few kB can become a GB.
MAX_BYTES = 1 << 30
# Largest probe.
MOST = 1e100


def digest(array: np.ndarray) -> str:
    """Return the SHA-256 of an array: type, shape and values, with the lowest byte first."""
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    data = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode("ascii"))
    data.update(array.tobytes())
    return data.hexdigest()


def probe(array: np.ndarray) -> np.ndarray:
    """Return about PROBE elements of an array, spread over all of its axes.

    A picture of (1, 3, 224, 224) has 150,528 elements. Every 294th would always lie in one of 16
    columns, since 294 and 224 share the factor 14; every 295th reaches all of them.
    """
    step = max(1, array.size // PROBE)
    while gcd(step, array.size) > 1:
        step += 1
    return np.ascontiguousarray(array.reshape(-1)[::step])


def raw_feeds(archive: Archive, index: Index, most: int = 0) -> Iterator[Dict[str, np.ndarray]]:
    """Yield the feeds that this device makes of the raw reference samples.

    Args:
        archive: the open bundle.
        index: of it.
        most: the maximum number of samples; 0 for all.
    """
    raw, preprocessing = require_raw(archive, index)
    per_feed = len(raw.files) // index.reference.samples
    names_of_inputs = {tensor.name for tensor in index.inputs}
    size = 0
    for i in range(min(most or index.reference.samples, index.reference.samples)):
        # A fixed batch of 2: feed 0 is made of the files 0 and 1, feed 1 of 2 and 3.
        names = raw.files[i * per_feed : (i + 1) * per_feed]
        feeds = [preprocessing.prepare(check_file(archive, index, name), name) for name in names]
        feed = join_feeds(feeds)
        if set(feed) != names_of_inputs:
            raise unreadable_reference(
                f"the preprocessing makes {sorted(feed)}, not the model's inputs"
            )
        size += sum(array.nbytes for array in feed.values())
        if size > MAX_BYTES:
            raise unreadable_reference(
                f"the arrays of {i + 1} samples have more than {MAX_BYTES:,} bytes"
            )
        yield feed


def require_raw(archive: Archive, index: Index) -> Tuple[RawReference, Preprocessing]:
    """Return the raw reference and the preprocessing of a bundle that has both."""
    preprocessing = open_preprocessing(archive, index)
    # `index.parse` refuses raw samples without a preprocessing.
    if index.reference.raw is None or preprocessing is None:
        raise ValueError("the bundle has no raw samples")
    return index.reference.raw, preprocessing


def judge_feeds(
    archive: Archive, index: Index, feeds: Sequence[Mapping[str, np.ndarray]]
) -> Tuple[Question, List[bool]]:
    """Compare this device's arrays with the build host's.

    They must have the same bits. Only if another version of a decoder made them, an SNR is enough.

    Args:
        archive: the open bundle.
        index: of it.
        feeds: of the first reference samples.

    Returns the third question of `verify`, and for each sample True if all its arrays have the
    same bits.
    """
    raw, preprocessing = require_raw(archive, index)
    # Pillow 11 here and at the build must agree to the bit; 13 here has the bound in dB.
    here = preprocessing.versions()
    equal = [True] * len(feeds)
    gates: List[Gate] = []
    for number, tensor in enumerate(index.inputs):
        arrays = [feed[tensor.name] for feed in feeds]
        here_equal = [digest(a) == expected for a, expected in zip(arrays, raw.sha256[number])]
        equal = [before and now for before, now in zip(equal, here_equal)]
        same = all(here_equal)
        if same or here == raw.versions or not raw.probes:
            gates.append(_make_gate("bit_exact", tensor.name, True, same, same))
        least = preprocessing.least_db
        if not same and raw.probes and least is not None:
            probes = _read_probes(archive, index, raw.probes[number])
            # A noise of that size in a sample without contrast has the smallest SNR that passes.
            floor = preprocessing.noise**2 * 10.0 ** (least / 10.0)
            worst = _find_worst(probes, arrays, floor)
            note = _compare_versions(here, raw.versions)
            gates.append(_make_gate("input_db", tensor.name, least, worst, worst >= least, note))
    question: Question = {
        "on": "reference",
        "samples": len(feeds),
        "outputs": {},
        "metric": None,
        "gates": gates,
        "passed": all(gate["passed"] for gate in gates),
    }
    return question, equal


def relax(bounds: Mapping[str, float]) -> Dict[str, float]:
    """Return the gates of fidelity for inputs that are not those of the build host."""
    return {"snr_db": min(bounds.get("snr_db", INEXACT_DB), INEXACT_DB)}


def _find_worst(probes: np.ndarray, arrays: Sequence[np.ndarray], floor: float) -> float:
    """Return the smallest SNR in dB of a sample.

    Args:
        probes: of the build host's arrays.
        arrays: of this device.
        floor: smallest variance of a sample, for those without contrast.
    """
    worst = SNR_LIMIT
    shortest = min(probe(array).size for array in arrays)
    if len(arrays) == len(probes) and probes.shape[1] != shortest:
        # Fewer probes than the build writes would leave elements unchecked.
        return -SNR_LIMIT
    for expected, array in zip(probes.astype(np.float64), arrays):
        # Of arrays that differ in size, the probes have the length of the smallest.
        values = probe(array).astype(np.float64)[: expected.size]
        # Arrays of another size have nothing in common, and NaN differs from every number.
        if values.shape != expected.shape or not np.isfinite(values).all():
            return -SNR_LIMIT
        noise = float(np.mean((values - expected) ** 2))
        if noise:
            share = max(floor, float(np.var(expected))) / noise
            worst = min(worst, 10.0 * np.log10(max(share, 10.0 ** (-SNR_LIMIT / 10.0))))
    return float(worst)


def _read_probes(archive: Archive, index: Index, name: str) -> np.ndarray:
    (array,) = read_arrays(archive, index, [name], index.reference.samples)
    if array.ndim != 2 or not array.size:
        raise unreadable_reference(f"{name}: its shape is {array.shape}")
    # A NaN is neither near a number nor far from it, and squares of more would overflow.
    if not (np.abs(array.astype(np.float64)) <= MOST).all():
        raise unreadable_reference(f"{name}: not all of its values are finite")
    return array


def _compare_versions(here: Mapping[str, str], build: Mapping[str, str]) -> str:
    """Return the packages that differ: `pillow 9.5.0 here, 13.0.0 at the build`."""
    parts = []
    for name in sorted({*here, *build}):
        if here.get(name) != build.get(name):
            parts.append(f"{name} {here.get(name)} here, {build.get(name)} at the build")
    return "; ".join(parts)


def _make_gate(
    name: str, output: str, bound: float, measured: float, passed: bool, note: str = ""
) -> Gate:
    return {
        "name": name,
        "output": f"preprocessing of {output}",
        "bound": bound,
        "measured": measured,
        "passed": passed,
        "note": note if passed else "",
    }
