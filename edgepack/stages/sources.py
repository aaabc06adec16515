"""Sources of samples in the record: their preprocessing, and the names of their classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from edgepack.data import Classes
from edgepack.data.samples import Samples
from edgepack.data.stream import SampleStream
from edgepack.errors import DataError
from edgepack.listing import join_names

# Names of classes in one line.
_SHOWN = 5


def fill_class_names(samples: Samples, classes: Classes) -> Samples:
    """Return samples with the names of the model's classes, unless they have names themselves."""
    if isinstance(samples, SampleStream) and classes.names and not samples.class_names:
        return replace(samples, class_names=classes.names)
    return samples


def check_class_names(samples: Mapping[str, Samples]) -> None:
    """Refuse sets whose labels count different classes.

    Without a folder for one of the classes, the indices of all later ones are shifted.
    """
    first: tuple[str, tuple[str, ...]] | None = None
    for role, stream in samples.items():
        if not isinstance(stream, SampleStream) or not stream.class_names:
            continue
        if first is not None and first[1] != stream.class_names:
            ours, theirs = set(first[1]), set(stream.class_names)
            different = sorted(ours ^ theirs) or list(stream.class_names)
            raise DataError(
                "classes-differ",
                f"the {first[0]} and the {role} samples have different classes",
                why=f"{len(ours)} and {len(theirs)}; not in both, or at another index: "
                f"{join_names(different, _SHOWN)}",
                hint="state the classes of the model in its order: --classes FILE, or in the "
                "manifest [classes] names",
            )
        first = first or (role, stream.class_names)


def describe_sources(samples: Mapping[str, Samples]) -> Iterator[str]:
    """Yield the classes of the samples in sentences, each once."""
    sentences: dict[str, None] = {}
    for stream in samples.values():
        if isinstance(stream, SampleStream) and stream.class_names:
            names = join_names(stream.class_names, _SHOWN)
            sentences[f"{len(stream.class_names)} classes: {names}"] = None
    yield from sentences


def detail_sources(samples: Mapping[str, Samples]) -> dict[str, object]:
    """Return the preprocessing and the classes as JSON values; empty without any."""
    details: dict[str, object] = {}
    for stream in samples.values():
        if not isinstance(stream, SampleStream):
            continue
        if stream.preprocessing is not None:
            details["preprocessing"] = stream.preprocessing.to_json()
        if stream.class_names:
            details["classes"] = list(stream.class_names)
    return details
