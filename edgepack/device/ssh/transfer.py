"""Transfer of a file to a device, which resumes after each cut of the link."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgepack import files
from edgepack.device.ssh.faults import LinkDown
from edgepack.device.ssh.link import Link
from edgepack.errors import DeviceError

# Consecutive attempts with less than STEP bytes of progress before the transfer is given up.
TRIES, STEP = 3, 1 << 16


@dataclass(frozen=True)
class Sent:
    """File on a device, with its SHA-256 verified there.

    Attributes:
        path: current path.
        part: the same path if the file is still to be renamed; else "".
        final: path after the renaming.
        bytes: number of bytes that had to be sent.
        digest: SHA-256, in hexadecimal.
    """

    path: str
    part: str
    final: str
    bytes: int
    digest: str


def send(
    link: Link,
    file: Path,
    target: str,
    note: Callable[[list[str]], None],
    tell: Callable[[str], None],
) -> Sent:
    """Send a file, except the part of it that the device already has.

    Args:
        link: connection to the device.
        file: the local file.
        target: path on the device; "" for edgepack's own folder.
        note: called with paths on the device that are to be deleted in the end.
        tell: called with each progress message.

    Raises LinkDown with the code `transfer-cut` after too many attempts, and DeviceError.
    """
    # Each round asks for the state, sends the missing bytes and verifies the file:
    #   look -> have 0        send all; the link is cut after 3 MB
    #   look -> have 3 MB     progress, so the failures start from 0 again; send the rest
    #   settle -> held        done
    # A file with a wrong SHA-256 is deleted by `settle` and sent once more from the start.
    digest, size = files.sha256(file), file.stat().st_size
    failures, restarted, by_sftp = 0, False, True
    have, first = -STEP, -1
    while True:
        try:
            tell("checking for an existing file")
            state = link.call("look", place=target, name=file.name, digest=digest, size=size).answer
            part, final = state["part"], state["final"]
            if state["whole"]:
                part = ""
            # Files to delete in the end; a file at the user's own path is never among them.
            note([path for path in (part, "" if target else final) if path])
            if first < 0:
                first = state["have"]
            failures += 1
            if state["have"] - have >= STEP:
                failures = 0
            have = state["have"]
            if have < size and failures >= TRIES:
                raise _give_up(link, have, size)
            # sftp transfers nothing if it is not installed or the login shell prints text.
            by_sftp = by_sftp and not failures
            if have < size and not _attempt(link, file, part, have, by_sftp, tell):
                continue
            name = "" if target else file.name
            result = link.call("settle", part=part, final=final, digest=digest, name=name).answer
            if result["held"]:
                return Sent(result["path"], part if target else "", final, size - first, digest)
            if restarted:
                raise DeviceError(
                    "transfer-damaged",
                    f"{link.address} does not store the file intact",
                    why=f"its SHA-256 there differed twice from {digest[:16]}",
                    hint="check its storage",
                )
            # The partial file was damaged, so the transfer starts again from 0.
            restarted, have, first = True, -STEP, -1
        except LinkDown as down:
            failures += 1
            if not link.opened or down.code == "transfer-cut":
                raise
            if failures >= TRIES:
                raise _give_up(link, max(have, 0), size) from down
            tell(f"the link was cut; attempt {failures + 1} of {TRIES}")
            time.sleep(failures)


def _attempt(
    link: Link, file: Path, part: str, have: int, by_sftp: bool, tell: Callable[[str], None]
) -> bool:
    """Try to send the missing end once; return True if it seems complete."""
    size = file.stat().st_size

    def watch(position: int) -> None:
        tell(f"sending {file.name}: {max(position, have) / size:.0%} of {size / 1e6:.1f} MB")

    watch(have)
    if by_sftp:
        return link.upload(file, part, watch)
    try:
        link.call("append", part=part, offset=have, stdin=_rest(file, have, watch))
    except DeviceError as error:
        # The bytes that arrived in time are stored, so another attempt can continue.
        if error.code == "device-timeout":
            return False
        raise
    return True


def _rest(file: Path, offset: int, watch: Callable[[int], None]) -> Iterator[bytes]:
    """Read a file from an offset on, piece by piece."""
    with file.open("rb") as source:
        source.seek(offset)
        while piece := source.read(STEP):
            yield piece
            watch(source.tell())


def _give_up(link: Link, have: int, size: int) -> LinkDown:
    return LinkDown(
        "transfer-cut",
        f"the file could not be sent to {link.address}",
        why=f"{TRIES} consecutive attempts made no progress\n{have:,} of {size:,} bytes are there",
        hint="run the same command again when the link is better; the transfer resumes",
    )
