"""Looking into a bundle without running it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgepack.errors import BundleError
from edgepack.runtime.bundle.archive import Archive
from edgepack.runtime.bundle.index import check_all, check_file, read_index

REPORT = "report/report.json"
PAGE = "report/report.html"


def check(path: Path) -> None:
    """Refuse what is not an intact bundle, before Python is told to run it.

    Raises BundleError. That the file is intact does not tell who made it.
    """
    with Archive(str(path)) as archive:
        check_all(archive, read_index(archive))


def inspect(path: Path) -> dict[str, Any]:
    """Index, report and page of a bundle, every hash checked; nothing of it is run.

    Returns {"index", "report", "html" (bytes)}. Raises BundleError where it is not intact.
    """
    with Archive(str(path)) as archive:
        index = read_index(archive)
        check_all(archive, index)
        for name in (REPORT, PAGE):
            if name not in index.files:
                raise BundleError(
                    "bundle-without-report",
                    "the bundle has no report",
                    why=f"{name} is not in it",
                    hint="build it again",
                )
        page = check_file(archive, index, PAGE)
        try:
            document = json.loads(check_file(archive, index, REPORT))
        except (ValueError, RecursionError) as error:
            raise BundleError(
                "bundle-report",
                "the report in the bundle cannot be read",
                why=str(error),
                hint="fetch the bundle again from where it was built",
            ) from error
    return {"index": dict(index.raw), "report": document, "html": page}
