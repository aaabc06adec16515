"""Device that is reached through ssh."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from edgepack import signing
from edgepack.device.device import Finished, verify_bundle
from edgepack.device.ssh.address import Address, Settings
from edgepack.device.ssh.faults import LinkDown
from edgepack.device.ssh.link import Link
from edgepack.device.ssh.transfer import Sent, send
from edgepack.errors import BundleError, DeviceError
from edgepack.runtime.bundle import checksum
from edgepack.runtime.parity.verdict import PASS, UNVERIFIED

Self = TypeVar("Self", bound="Ssh")


class Ssh:
    """Device; a context manager that removes its files there and closes the connection.

    The connection is opened by the first file or command.

    Args:
        address: address of the device.
        settings: settings for its use.
        tell: called with each progress message.

    Raises HostError if this machine has no ssh.
    """

    emulated = False

    def __init__(
        self,
        address: Address,
        settings: Settings | None = None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.name = str(address)
        self.settings = settings or Settings()
        self.link = Link(address, self.settings)
        self._tell = tell
        # Warning about files that could not be deleted there; "" if there are none.
        self.left = ""
        self._folders: list[str] = []
        self._files: list[str] = []

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        paths = list(self._folders)
        if not self.settings.keep:
            paths += self._files
        try:
            if paths:
                self.link.call("clean", paths=paths)
        except DeviceError as fault:
            self.left = f"files left on {self.name}, since {fault.what}:\n" + "\n".join(paths)
        finally:
            self.link.close()

    def tell(self, text: str) -> None:
        """Report progress on this device."""
        self._tell(f"{self.name}: {text}")

    def put(self, file: Path) -> str:
        """Send a file and return its path there, which ends in the file's own name.

        Raises DeviceError with the codes listed in `faults` and `transfer`.
        """
        return self.send(file).path

    def run(self, bundle: str, *arguments: str, stdin: Iterable[bytes] = ()) -> Finished:
        """Run a command of a bundle with the device's Python.

        Raises DeviceError if it takes too long, and LinkDown if the link is cut meanwhile.
        """
        # Without input of its own, the command's standard input serves as its lifeline.
        stream = stdin != ()
        self.tell(f"running `{arguments[0]}`")
        reply = self.link.call(
            "run",
            arguments=[bundle, *arguments],
            seconds=self.settings.timeout,
            stream=stream,
            stdin=stdin if stream else None,
        )
        return Finished(reply.answer["status"], reply.stdout, reply.stderr)

    def send(self, file: Path, target: str = "") -> Sent:
        """Send a file to edgepack's own folder, or to a temporary name beside `target`.

        `publish` renames the latter to `target`.

        Raises DeviceError; a partial file stays there for the next command to complete.
        """
        before = list(self._files)
        try:
            sent = send(self.link, file.resolve(), target, self._files.extend, self.tell)
        except LinkDown:
            self._files = before
            raise
        if not target:
            self._folders.append(sent.path.rpartition("/")[0])
        return sent

    def publish(self, sent: Sent, signature: str = "") -> None:
        """Rename a sent file to its final path, then write its checksum and signature."""
        name = sent.final.rpartition("/")[2]
        beside = {
            checksum.SUFFIX: checksum.encode_checksum(sent.digest, name).decode(
                "utf-8", "surrogateescape"
            ),
            signing.SUFFIX: signature,
        }
        self.link.call("place", part=sent.part, final=sent.final, beside=beside)
        if sent.part:
            self._files = [path for path in self._files if path != sent.part]


def ship(
    device: Ssh,
    bundle: Path,
    path: str,
    *,
    threads: int = 0,
    prove: bool = True,
    allow_unverified: bool = False,
    digest: str = "",
    signature: str = "",
) -> dict[str, Any]:
    """Ship a bundle to a path on a device; it appears there only after it has been verified.

    Args:
        device: the device.
        bundle: an intact bundle.
        path: of the file there, or a folder for it; relative to the home if it begins with
            "~/".
        threads: threads within an operator; 0 takes every physical core.
        prove: verify the sent bytes on the device before they are renamed.
        allow_unverified: ship also if the verdict there is UNVERIFIED.
        digest: SHA-256 that the file must still have; "" for any.
        signature: text of the signature to write beside it; "" for none.

    Returns {"device", "path", "sha256", "bytes", "sent" (bytes), "verdict", "shipped"}. Unless the
    verdict is PASS nothing is shipped, and an older file at the path stays untouched.

    Raises BundleError if the file changed since it was checked.
    """
    sent = device.send(bundle, path)
    if digest and sent.digest != digest:
        raise BundleError(
            "bundle-changed",
            f"the bundle changed while it was shipped: {bundle}",
            why=f"its SHA-256 was {digest} and is {sent.digest}",
            hint="ship it after the process that writes it has finished",
        )
    verdict = None
    if prove:
        verdict = verify_bundle(device, sent.path, f"--threads={threads}")
    accepted = {PASS}
    if allow_unverified:
        accepted.add(UNVERIFIED)
    shipped = verdict is None or verdict["verdict"] in accepted
    if shipped:
        device.publish(sent, signature)
    return {
        "device": device.name,
        "path": sent.final,
        "sha256": sent.digest,
        "bytes": bundle.stat().st_size,
        "sent": sent.bytes,
        "verdict": verdict,
        "shipped": shipped,
    }
