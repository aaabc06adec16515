"""One connection to a device, shared by every command: the system's ssh and sftp.

The user's ssh_config, keys, agent and host key checking hold as they are; nothing is asked, and
nothing waits without end.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Timer
from typing import IO, Any, cast

from edgepack.device.ssh import faults
from edgepack.device.ssh.address import Address, Settings
from edgepack.device.ssh.command import PLAIN, by_hand, command, options, private_folder
from edgepack.errors import HostError, SpecError
from edgepack.runtime.plain import NOT_PLAIN

# Seconds after the device's own limit, and for a goodbye.
GRACE, GOODBYE = 15, 10
# What a verb does, as its errors tell it; `run` does what the bundle is told.
DOING = {
    "look": "looking at what is there",
    "append": "sending a file",
    "settle": "checking a file",
    "place": "putting a file in its place",
    "clean": "cleaning up",
}


@dataclass(frozen=True)
class Reply:
    """What a command on the device gave: its answer, and what it printed meanwhile."""

    answer: dict[str, Any]
    stdout: bytes
    stderr: str


class Link:
    """The connection to a device; opened by the first command, and again where it was cut.

    Args:
        address: of the device.
        settings: how it is used.

    Raises HostError where this machine has no ssh.
    """

    def __init__(self, address: Address, settings: Settings) -> None:
        if shutil.which("ssh") is None:
            raise HostError(
                "ssh-missing",
                f"{address} cannot be reached from this machine",
                why="there is no ssh on PATH",
                hint="apt-get install openssh-client",
            )
        _require_config(settings.config)
        self.address, self.settings = address, settings
        self._private = private_folder()
        self.folder = self._private.path
        self.opened = False

    def call(self, verb: str, *, stdin: Iterable[bytes] | None = None, **arguments: Any) -> Reply:
        """Run a function of `remote.py` on the device.

        Args:
            verb: its name.
            stdin: what it reads there; None where it reads nothing.
            arguments: of it, as JSON values.

        Raises LinkDown where there is no link or it was cut, and DeviceError for the rest.
        """
        token = secrets.token_hex(16)
        python = self.settings.python
        line, program = command(python, token, {"verb": verb, **arguments})
        doing = DOING.get(verb) or f"running `{arguments['arguments'][1]}`"
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            status, late = self._exchange(line, program, stdin, out, err)
            out.seek(0)
            err.seek(0)
            printed, said = out.read(), err.read().decode("utf-8", "replace")
        if late:
            raise faults.late(self.address, doing, self.settings.timeout)
        mark = f"\n{token}".encode()
        _, begun, rest = printed.partition(mark + b"\n")
        stdout, ended, last = rest.rpartition(mark + b" ")
        said = said.rpartition(f"\n{token}\n")[2]
        self.opened = self.opened or bool(begun)
        # A cut may also go through the answer.
        if ended and b"\n" in last:
            answer = json.loads(last.splitlines()[0])
            if "refused" in answer:
                raise faults.refused(self.address, answer["refused"])
            if answer.get("late"):
                raise faults.late(self.address, doing, self.settings.timeout)
            return Reply(answer, stdout, said)
        if begun:
            raise faults.lost(self.address, doing, said)
        if found := re.search(mark + rb" (absent|old (\S+))\n", printed):
            if found[2]:
                raise faults.old_python(self.address, python, found[2].decode("utf-8", "replace"))
            raise faults.no_python(self.address, python)
        if status == 255 or status < 0:
            raise faults.unconnected(self.address, by_hand(self.address, self.settings), said)
        said = printed.decode("utf-8", "replace") + said
        raise faults.mute(self.address, by_hand(self.address, self.settings), status, said)

    def _exchange(
        self,
        line: str,
        program: bytes,
        stdin: Iterable[bytes] | None,
        out: IO[bytes],
        err: IO[bytes],
    ) -> tuple[int, bool]:
        """Run ssh; returns its exit status, and whether it had to be ended."""
        host = self.address.host.strip("[]")
        process, pipe = self._start(["ssh", *self._options(), "--", host, line], out, err)
        late = Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = Timer(self.settings.timeout + GRACE, end)
        timer.daemon = True
        timer.start()
        try:
            # It may end before it has read everything; what it said tells why.
            with suppress(BrokenPipeError):
                pipe.write(program)
                for piece in stdin or ():
                    pipe.write(piece)
                pipe.flush()
                if stdin is not None:
                    pipe.close()
            process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            timer.cancel()
            with suppress(BrokenPipeError):
                pipe.close()
        return process.returncode, late.is_set()

    def upload(self, file: Path, path: str, watch: Callable[[int], None]) -> bool:
        """Send what the device lacks of a file, by sftp; whether it says that it did.

        Args:
            file: here.
            path: there, of what it has of it already.
            watch: told how many bytes are read, every now and then.
        """
        host = self.address.host
        if not (shutil.which("sftp") and PLAIN.fullmatch(path)):
            return False
        link = self.folder / "file"
        link.unlink(missing_ok=True)
        link.symlink_to(file)
        until = time.monotonic() + self.settings.timeout
        with tempfile.TemporaryFile() as out:
            arguments = ["sftp", *self._options(), "-b", "-", "--", host]
            process, pipe = self._start(arguments, out, subprocess.STDOUT)
            try:
                with suppress(BrokenPipeError), pipe:
                    pipe.write(f"put -a {link} {path}\n".encode("ascii"))
                while process.poll() is None and time.monotonic() < until:
                    watch(_position(process.pid, file))
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(0.1)
            finally:
                process.kill()
                process.wait()
        return process.returncode == 0

    def close(self) -> None:
        """Close the connection."""
        goodbye = ["ssh", *self._options(), "-O", "exit", "--", self.address.host.strip("[]")]
        with suppress(subprocess.TimeoutExpired, OSError):
            subprocess.run(
                goodbye,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=GOODBYE,
            )
        self._private.remove()

    def _options(self) -> list[str]:
        return options(self.address, self.settings, self.folder)

    def _start(
        self, command: list[str], out: IO[bytes], err: IO[bytes] | int
    ) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
        """Start a program, and the pipe into it; Ctrl-C is for edgepack alone, which cleans up."""
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=out, stderr=err, start_new_session=True
        )
        return process, cast("IO[bytes]", process.stdin)


def _position(process: int, file: Path) -> int:
    """How far a process has read a file; 0 where the system does not tell."""
    with suppress(OSError):
        for descriptor in Path(f"/proc/{process}/fd").iterdir():
            if descriptor.readlink() == file:
                told = Path(f"/proc/{process}/fdinfo/{descriptor.name}").read_text(encoding="ascii")
                return int(told.split("pos:")[1].split()[0])
    return 0


def _require_config(path: Path | None) -> None:
    """Refuse what ssh would wait for. Raises SpecError."""
    if path is not None and path.exists() and not path.is_file():
        raise SpecError(
            "spec-unreadable",
            f"{path} cannot be read",
            why=NOT_PLAIN,
            hint="check the path after --ssh-config",
        )
