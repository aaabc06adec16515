"""Reading a bundle without running it."""

from __future__ import annotations

from pathlib import Path

from edgepack.errors import BundleError
from edgepack.runtime.bundle.archive import Archive
from edgepack.runtime.bundle.index import check_file, read_index
from edgepack.runtime.strict_json import parse

REPORT = "report/report.json"
# Larger reports are rejected before they are parsed.
MAX_BYTES = 16 << 20


def read_report(path: Path) -> dict[str, object]:
    """Read the report in an intact bundle: strict JSON, not yet validated against its schema.

    Raises BundleError if there is no report, if it cannot be read, or if it belongs to another
    bundle.
    """
    with Archive(str(path)) as archive:
        index = read_index(archive)
        if REPORT not in index.files:
            raise BundleError(
                "bundle-without-report",
                "the bundle has no report",
                why=f"{REPORT} is not in it",
                hint="build it again",
            )
        # The digest in the report ties it to the contents of this bundle.
        top = parse(check_file(archive, index, REPORT), _fault, MAX_BYTES)
        if top.at("bundle").get("content_digest", str) != index.content_digest:
            raise _fault("bundle.content_digest", "the report belongs to another bundle")
        report: dict[str, object] = top.value
        return report


def _fault(path: str, why: str) -> BundleError:
    # An empty path stands for the document itself.
    if path:
        why = f"{path}: {why}"
    return BundleError(
        "bundle-report",
        "the report in the bundle cannot be read",
        why=why,
        hint="fetch the bundle again from where it was built",
    )
