"""Connection to a device, shared by all commands, through the system's ssh and sftp.

The user's ssh_config, keys, agent and host key checking apply unchanged. There are no prompts, and
every wait has a limit.
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
from edgepack.device.ssh.command import PLAIN, command, format_arguments, options, private_folder
from edgepack.errors import HostError, SpecError
from edgepack.runtime.plain import NOT_PLAIN

# Seconds after the device's own limit before ssh is killed, and to close the connection.
GRACE, GOODBYE = 15, 10
# Activity of each verb for error messages; `run` names the bundle's command.
DOING = {
    "look": "checking for an existing file",
    "append": "sending a file",
    "settle": "checking a file",
    "place": "renaming a file",
    "clean": "cleaning up",
}


@dataclass(frozen=True)
class Reply:
    """Answer of a command on the device, with the output of the bundle that it ran."""

    answer: dict[str, Any]
    stdout: bytes
    stderr: str


class Link:
    """Connection to a device, opened by the first command and reopened after a cut.

    Args:
        address: address of the device.
        settings: settings for its use.

    Raises HostError if this machine has no ssh.
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
            verb: name of the function.
            stdin: its standard input; None for none.
            arguments: its keyword arguments, as JSON values.

        Raises LinkDown if there is no link or it was cut, and DeviceError for other failures.
        """
        # The output on the device is, with a token of 32 hex digits in place of TOKEN:
        #   a banner of the login shell
        #   TOKEN                        begin of the output that counts
        #   the bundle's standard output
        #   TOKEN {"status": 0}          end, with the answer
        token = secrets.token_hex(16)
        python = self.settings.python
        line, program = command(python, token, {"verb": verb, **arguments})
        doing = DOING.get(verb) or f"running `{arguments['arguments'][1]}`"
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            status, late = self._exchange(line, program, stdin, out, err)
            out.seek(0)
            err.seek(0)
            output, stderr = out.read(), err.read().decode("utf-8", "replace")
        if late:
            raise faults.late(self.address, doing, self.settings.timeout)
        mark = f"\n{token}".encode()
        _, begin, rest = output.partition(mark + b"\n")
        stdout, end, last = rest.rpartition(mark + b" ")
        stderr = stderr.rpartition(f"\n{token}\n")[2]
        self.opened = self.opened or bool(begin)
        # The link may be cut in the middle of the answer, which then has no newline.
        if end and b"\n" in last:
            answer = json.loads(last.splitlines()[0])
            if "refused" in answer:
                raise faults.refused(self.address, answer["refused"])
            if answer.get("late"):
                raise faults.late(self.address, doing, self.settings.timeout)
            return Reply(answer, stdout, stderr)
        if begin:
            raise faults.lost(self.address, doing, stderr)
        if refusal := re.search(mark + rb" (absent|old (\S+))\n", output):
            if refusal[2]:
                version = refusal[2].decode("utf-8", "replace")
                raise faults.old_python(self.address, python, version)
            raise faults.no_python(self.address, python)
        manual = format_arguments(self.address, self.settings)
        # 255 is ssh's own failure; any other status is that of the command on the device.
        if status == 255 or status < 0:
            raise faults.unconnected(self.address, manual, stderr)
        text = output.decode("utf-8", "replace") + stderr
        raise faults.mute(self.address, manual, status, text)

    def _exchange(
        self,
        line: str,
        program: bytes,
        stdin: Iterable[bytes] | None,
        out: IO[bytes],
        err: IO[bytes],
    ) -> tuple[int, bool]:
        """Run ssh and return its exit status, and True if it was killed at the time limit."""
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
            # ssh may end before it has read everything; its standard error says why.
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
        """Send the missing end of a file by sftp; return True if sftp reports success.

        Args:
            file: the local file.
            path: path of the partial file on the device.
            watch: called periodically with the number of bytes read.
        """
        # sftp's batch commands have their own quoting, so the local file gets a plain name by a
        # link, and a path on the device that would need quoting is sent by `append` instead.
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
        """Start a program and return it with the pipe to its standard input."""
        # In a session of its own, so that Ctrl-C interrupts edgepack alone, which then cleans up.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=out, stderr=err, start_new_session=True
        )
        return process, cast("IO[bytes]", process.stdin)


def _position(process: int, file: Path) -> int:
    """Return a process's position in a file; 0 if the system does not provide it."""
    # /proc/PID/fdinfo/3 begins with "pos:\t1048576".
    with suppress(OSError):
        for descriptor in Path(f"/proc/{process}/fd").iterdir():
            if descriptor.readlink() == file:
                info = Path(f"/proc/{process}/fdinfo/{descriptor.name}").read_text(encoding="ascii")
                return int(info.split("pos:")[1].split()[0])
    return 0


def _require_config(path: Path | None) -> None:
    """Refuse a configuration that ssh would wait for, such as a pipe. Raises SpecError."""
    if path is not None and path.exists() and not path.is_file():
        raise SpecError(
            "spec-unreadable",
            f"{path} cannot be read",
            why=NOT_PLAIN,
            hint="check the path after --ssh-config",
        )
