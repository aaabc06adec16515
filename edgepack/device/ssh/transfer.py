"""A file comes to a device whole, however often the link is cut."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgepack import files
from edgepack.device.ssh.faults import LinkDown
from edgepack.device.ssh.link import Link
from edgepack.errors import DeviceError

# Attempts in a row that brought less than STEP bytes, after which it is given up.
TRIES, STEP = 3, 1 << 16


@dataclass(frozen=True)
class Sent:
    """A file on a device, its SHA-256 checked there.

    Attributes:
        path: where it is.
        part: the same, where it is still to be put in its place.
        final: its place.
        bytes: that had to be sent.
        digest: its SHA-256, in hexadecimal.
    """

    path: str
    part: str
    final: str
    bytes: int
    digest: str


def send(
    link: Link,
    file: Path,
    place: str,
    note: Callable[[list[str]], None],
    tell: Callable[[str], None],
) -> Sent:
    """Send a file; what is there of it already is not sent again.

    Args:
        link: to the device.
        file: here.
        place: there; "" for edgepack's own folder.
        note: told of the files there that are to be deleted in the end.
        tell: told in words how far it is.

    Raises LinkDown with the code `transfer-cut` where it is given up, and DeviceError.
    """
    digest, size = files.sha256(file), file.stat().st_size
    lost, mended, by_sftp = 0, False, True
    have, first = -STEP, -1
    while True:
        try:
            tell("looking at what is there")
            found = link.call("look", place=place, name=file.name, digest=digest, size=size).answer
            part, final = ("" if found["whole"] else found["part"]), found["final"]
            # What this command is to delete: never what stands at a place of the user's.
            note([*([part] if part else []), *([] if place else [final])])
            first = found["have"] if first < 0 else first
            lost = 0 if found["have"] - have >= STEP else lost + 1
            have = found["have"]
            if have < size and lost >= TRIES:
                raise _given_up(link, have, size)
            # Where a login shell prints or sftp is not installed, it brings nothing.
            by_sftp = by_sftp and not lost
            if have < size and not _attempt(link, file, part, have, by_sftp, tell):
                continue
            name = "" if place else file.name
            settled = link.call("settle", part=part, final=final, digest=digest, name=name).answer
            if settled["held"]:
                return Sent(settled["path"], part if place else "", final, size - first, digest)
            if mended:
                raise DeviceError(
                    "transfer-damaged",
                    f"{link.address} does not keep what it is sent",
                    why=f"twice the file had another SHA-256 there than {digest[:16]}",
                    hint="check its storage",
                )
            # What was there before was of no use.
            mended, have, first = True, -STEP, -1
        except LinkDown as down:
            lost += 1
            if not link.opened or down.code == "transfer-cut":
                raise
            if lost >= TRIES:
                raise _given_up(link, max(have, 0), size) from down
            tell(f"the link was cut; attempt {lost + 1} of {TRIES}")
            time.sleep(lost)


def _attempt(
    link: Link, file: Path, part: str, have: int, by_sftp: bool, tell: Callable[[str], None]
) -> bool:
    """Send the rest once; whether it seems to have come."""
    size = file.stat().st_size

    def watch(position: int) -> None:
        tell(f"sending {file.name}: {max(position, have) / size:.0%} of {size / 1e6:.1f} MB")

    watch(have)
    if by_sftp:
        return link.upload(file, part, watch)
    try:
        link.call("append", part=part, offset=have, stdin=_rest(file, have, watch))
    except DeviceError as error:
        # What came in that time is there; more may come.
        if error.code == "device-timeout":
            return False
        raise
    return True


def _rest(file: Path, offset: int, watch: Callable[[int], None]) -> Iterator[bytes]:
    """A file's bytes from an offset on, piece by piece."""
    with file.open("rb") as source:
        source.seek(offset)
        while piece := source.read(STEP):
            yield piece
            watch(source.tell())


def _given_up(link: Link, have: int, size: int) -> LinkDown:
    return LinkDown(
        "transfer-cut",
        f"the file could not be sent to {link.address}",
        why=f"the link was cut again and again; {TRIES} times in a row nothing more came through\n"
        f"{have:,} of {size:,} bytes are there",
        hint="when the link is better, the same command goes on where this one stopped",
    )
