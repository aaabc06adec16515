"""Bundle that is at the default output path already: only the same content may replace it."""

from __future__ import annotations

from pathlib import Path

from edgepack.context import SampleSets
from edgepack.errors import BundleError, HostError
from edgepack.proof.job import describe_provenance
from edgepack.request import Request
from edgepack.runtime.bundle.archive import Archive
from edgepack.runtime.bundle.index import Index, read_index
from edgepack.source.model import Source

# Parts of the provenance, as an error names them.
_PARTS = {"source": "another model", "samples": "other samples", "chain": "another chain"}


def check_existing(request: Request) -> None:
    """Refuse to replace a file that is not a bundle. Raises HostError `output-exists`."""
    _read_existing(request)


def check_provenance(request: Request, source: Source, samples: SampleSets) -> None:
    """Refuse to replace a bundle of another model, other samples or another chain.

    Called before the hours of a build, since its content digest is known only at the end.

    Raises HostError `output-exists`.
    """
    index = _read_existing(request)
    if index is None:
        return
    before: object = index.raw.get("provenance")
    if not isinstance(before, dict):
        before = {}
    provenance = describe_provenance(request, source, samples)
    changed = [text for key, text in _PARTS.items() if before.get(key) != provenance[key]]
    if changed:
        raise _make_error(request.output, f"it is of {' and '.join(changed)}")


def check_content(request: Request, content_digest: str) -> None:
    """Refuse to replace a bundle with other content. Raises HostError `output-exists`."""
    index = _read_existing(request)
    if index is not None and index.content_digest != content_digest:
        before, now = index.content_digest[:16], content_digest[:16]
        raise _make_error(request.output, f"its content is {before}, the new one's {now}")


def _read_existing(request: Request) -> Index | None:
    """Return the index of the bundle at the default path; None if there is none.

    A path that the user states, or any with `--force`, may be overwritten, and is not read.
    """
    if request.overwrite or not request.output.exists():
        return None
    try:
        # The index alone: a bundle with a damaged entry is replaced by the same content.
        with Archive(str(request.output)) as archive:
            return read_index(archive)
    except BundleError as error:
        raise _make_error(request.output, f"it is not an intact bundle: {error.what}") from error


def _make_error(path: Path, why: str) -> HostError:
    return HostError(
        "output-exists",
        f"{path} exists, and holds something else than this build would write",
        why=why,
        hint="--force (in Python, force=True) overwrites it; --output FILE.edgepack writes "
        "another file",
    )
