"""A device that is reached through ssh."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from edgepack import signing
from edgepack.device.device import Finished, ask
from edgepack.device.ssh.address import Address, Settings
from edgepack.device.ssh.faults import LinkDown
from edgepack.device.ssh.link import Link
from edgepack.device.ssh.transfer import Sent, send
from edgepack.errors import BundleError, DeviceError
from edgepack.runtime.bundle import checksum

Self = TypeVar("Self", bound="Ssh")


class Ssh:
    """A device; a context manager, since it leaves neither files there nor a connection.

    Nothing is connected before the first file or command.

    Args:
        address: of it.
        settings: how it is used.
        tell: told in words what goes on.

    Raises HostError where this machine has no ssh.
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
        # What could not be deleted there, in words.
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
        litter = [*self._folders, *([] if self.settings.keep else self._files)]
        try:
            if litter:
                self.link.call("clean", paths=litter)
        except DeviceError as fault:
            self.left = f"left on {self.name}, for {fault.what}:\n" + "\n".join(litter)
        finally:
            self.link.close()

    def tell(self, text: str) -> None:
        """Tell what goes on here."""
        self._tell(f"{self.name}: {text}")

    def put(self, file: Path) -> str:
        """Send a file; returns its path there, where it has its own name.

        Raises DeviceError; its codes stand in `faults` and `transfer`.
        """
        return self.send(file).path

    def run(self, bundle: str, *arguments: str, stdin: Iterable[bytes] = ()) -> Finished:
        """Run a command of a bundle with the device's Python.

        Raises DeviceError where it took too long, and LinkDown where the link was cut meanwhile.
        """
        stream = None if stdin == () else stdin
        self.tell(f"running `{arguments[0]}`")
        reply = self.link.call(
            "run",
            arguments=[bundle, *arguments],
            seconds=self.settings.timeout,
            stream=stream is not None,
            stdin=stream,
        )
        return Finished(reply.answer["status"], reply.stdout, reply.stderr)

    def send(self, file: Path, place: str = "") -> Sent:
        """Send a file to edgepack's own folder there, or beside a place, where `publish` puts it.

        Raises DeviceError; a file that came in part stays for the next command.
        """
        before = list(self._files)
        try:
            sent = send(self.link, file.resolve(), place, self._files.extend, self.tell)
        except LinkDown:
            self._files = before
            raise
        if not place:
            self._folders.append(sent.path.rpartition("/")[0])
        return sent

    def publish(self, sent: Sent, signature: str = "") -> None:
        """Put a file that was sent in its place, by one rename; then its hash and signature."""
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
    place: str,
    *,
    threads: int = 0,
    prove: bool = True,
    digest: str = "",
    signature: str = "",
) -> dict[str, Any]:
    """Put a bundle at a place on a device, where it appears only once it is proved there.

    Args:
        device: where to.
        bundle: an intact bundle.
        place: of the file there, or a folder for it; from the home where it begins with "~/".
        threads: threads within an operator; 0 takes every physical core.
        prove: verify it first, on the device, as the very bytes that then get their name.
        digest: SHA-256 that the file must still have; "" for any.
        signature: text of the signature to put beside it; "" for none.

    Returns {"device", "path", "sha256", "bytes", "sent" (bytes), "verdict", "shipped"}. Where the
    verdict is a failure nothing is shipped, and what was at the place is untouched.

    Raises BundleError where the file changed since it was checked.
    """
    sent = device.send(bundle, place)
    if digest and sent.digest != digest:
        raise BundleError(
            "bundle-changed",
            f"the bundle changed while it was shipped: {bundle}",
            why=f"its SHA-256 was {digest} and is {sent.digest}",
            hint="ship it once whatever writes it is done",
        )
    verdict = ask(device, sent.path, "verify", f"--threads={threads}")[0] if prove else None
    shipped = verdict is None or bool(verdict["passed"])
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
