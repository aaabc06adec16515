"""A process that has nothing but what a device has.

The loader runs in an interpreter without site-packages; a folder of links gives it numpy and the
engine and nothing else, so neither torch nor edgepack can be imported, whatever is installed
here. Where the kernel allows it the process also has a network namespace of its own, in which
there is no network.

The loader is edgepack's own copy, and a bundle is data to it: whoever made the bundle runs no code
on this machine. A build alone runs the file that it has just written, through the loader in it.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from edgepack import files, runtime
from edgepack.device.device import Finished
from edgepack.errors import HostError

NO_NETWORK = ("unshare", "--map-root-user", "--net", "--")
FLAGS = ("-S", "-s", "-B")
# What `python3 BUNDLE` does, with the bundle as an argument: Python runs the folder of this file.
MAIN = """\
import sys

from runtime.cli import main

sys.exit(main(sys.argv[2:], sys.argv[1]))
"""

Self = TypeVar("Self", bound="Isolated")


class Isolated:
    """A device on this machine; a context manager, since it owns a temporary folder.

    Args:
        name: what the report calls it.
        interpreter: the command that is Python.
        packages: files and folders that Python may import.
        runs_bundle: execute the loader inside the bundle, as a device does; for a file that this
            process wrote, and for no other.
    """

    emulated = False

    def __init__(
        self,
        name: str,
        interpreter: Sequence[str],
        packages: Iterable[Path],
        *,
        runs_bundle: bool = False,
    ) -> None:
        self.name = name
        self.interpreter = tuple(interpreter)
        self._temporary = files.LockedFolder.create()
        self.folder = self._temporary.path
        importable = self.folder / "packages"
        importable.mkdir()
        for path in packages:
            (importable / path.name).symlink_to(path)
        self._program = () if runs_bundle else (_write_program(self.folder / "loader"),)
        self.network = _without_network()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._temporary.remove()

    def put(self, file: Path) -> str:
        """Nothing to do here: the path itself."""
        return str(file.resolve())

    def run(self, bundle: str, *arguments: str, stdin: Iterable[bytes] = ()) -> Finished:
        """Run a loader's command on a bundle, isolated.

        Raises HostError where no process can start.
        """
        command = [*self.interpreter, *FLAGS, *self._program, bundle, *arguments]
        if self.network == "namespace":
            command = [*NO_NETWORK, *command]
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "PYTHONPATH": str(self.folder / "packages"),
            "PYTHONIOENCODING": "utf-8",
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
        }
        for kept in ("LD_LIBRARY_PATH", "OMP_NUM_THREADS"):
            if kept in os.environ:
                environment[kept] = os.environ[kept]
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            try:
                # It inherits the lock on the folder, which it needs also when edgepack is killed.
                process = self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=out, stderr=err, env=environment,
                    pass_fds=(self._temporary.lock.descriptor,),
                )  # fmt: skip
            except OSError as error:
                raise HostError(
                    "process-failed",
                    "no process could be started for the loader",
                    why=error.strerror or str(error),
                    hint=f"check {self.interpreter[0]}",
                ) from error
            status = _feed(process, stdin)
            out.seek(0)
            err.seek(0)
            return Finished(status, out.read(), err.read().decode("utf-8", "replace"))

    def stop(self) -> None:
        """Kill what runs here; for another thread than that which runs it."""
        if self._process is not None:
            self._process.kill()


def _write_program(folder: Path) -> str:
    """Write the folder that Python runs as edgepack's own loader, and return its path."""
    folder.mkdir()
    (folder / "__main__.py").write_text(MAIN, encoding="ascii")
    # A link, as of the packages, so that what Python compiled of it earlier is used again.
    (folder / "runtime").symlink_to(Path(runtime.__file__).parent)
    return str(folder)


def _without_network() -> str:
    """How the network is kept away: "namespace", or "open" where the kernel refuses one."""
    try:
        probe = subprocess.run([*NO_NETWORK, "true"], capture_output=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "open"
    return "namespace" if probe.returncode == 0 else "open"


def _feed(process: subprocess.Popen[bytes], stdin: Iterable[bytes]) -> int:
    """Write the pieces to a process as it takes them; returns its exit status."""
    with process:
        try:
            # It may end before it has read everything; why, its status and stderr tell.
            with suppress(BrokenPipeError):
                for piece in stdin:
                    process.stdin.write(piece)  # type: ignore[union-attr]
            process.communicate()
        except BaseException:
            process.kill()
            raise
    return process.returncode
