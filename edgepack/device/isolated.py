"""Processes isolated to the packages of a device.

The loader runs in an interpreter without site-packages. A folder of links provides numpy, the
engine and the decoder of the bundle's raw data, and nothing else, so neither torch nor edgepack can
be imported even if they are installed on this host. If the kernel allows it, the process also runs
in an empty network namespace.

The loader is edgepack's own copy and reads a bundle as data, so the bundle's author runs no code on
this machine. Only a build executes a bundle: the file that it has just written.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, TypeVar

from edgepack import files, runtime
from edgepack.device.device import Finished
from edgepack.device.packages import PACKAGES, find_packages
from edgepack.errors import HostError

NO_NETWORK = ("unshare", "--map-root-user", "--net", "--")
# Without site-packages, without the user's site-packages, and without writing .pyc files.
FLAGS = ("-S", "-s", "-B")
# __main__.py of the folder that Python runs: the same as `python3 BUNDLE`, with the bundle as an
# argument.
MAIN = """\
import sys

from runtime.cli import main

sys.exit(main(sys.argv[2:], sys.argv[1]))
"""

Self = TypeVar("Self", bound="Isolated")
# Returns the files and folders of some packages.
ListFiles = Callable[[Iterable[str]], Iterable[Path]]


class Isolated:
    """Device on this machine; a context manager, since it owns a temporary folder.

    Args:
        name: the device's name for the report.
        interpreter: the command that runs Python.
        list_files: returns the files and folders of some packages, which Python may then import.
        runs_bundle: execute the loader inside the bundle, as a device does; only for a file that
            this process wrote.
    """

    emulated = False

    def __init__(
        self,
        name: str,
        interpreter: Sequence[str],
        list_files: ListFiles,
        *,
        runs_bundle: bool = False,
    ) -> None:
        self.name = name
        self.interpreter = tuple(interpreter)
        self._temporary = files.LockedFolder.create()
        self.folder = self._temporary.path
        (self.folder / "packages").mkdir()
        self._list_files = list_files
        self._linked: set[str] = set()
        self._link(PACKAGES)
        self._program: tuple[str, ...] = ()
        if not runs_bundle:
            self._program = (_write_program(self.folder / "loader"),)
        self.network = _probe_network()
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

    def _link(self, packages: Iterable[str]) -> None:
        """Let Python import packages. Raises HostError if one is missing."""
        absent = set(packages) - self._linked
        for path in self._list_files(sorted(absent)):
            (self.folder / "packages" / path.name).symlink_to(path)
        self._linked |= absent

    def put(self, file: Path) -> str:
        """Return the path of a file, which is on this machine already."""
        return str(file.resolve())

    def run(self, bundle: str, *arguments: str, stdin: Iterable[bytes] = ()) -> Finished:
        """Run a loader's command on a bundle, isolated.

        Raises HostError if no process can start, or a package that the bundle needs is missing.
        """
        self._link(find_packages(bundle))
        # unshare --map-root-user --net -- python -S -s -B LOADER BUNDLE verify --json
        command = [*self.interpreter, *FLAGS, *self._program, bundle, *arguments]
        if self.network == "namespace":
            command = [*NO_NETWORK, *command]
        # Files rather than pipes for the output: the loader can then write any amount while its
        # standard input is still being fed.
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = self._start(command, stdin=subprocess.PIPE, stdout=out, stderr=err)
            status = _feed(process, stdin)
            out.seek(0)
            err.seek(0)
            return Finished(status, out.read(), err.read().decode("utf-8", "replace"))

    def serve(self, bundle: str, *arguments: str, stdout: int) -> int:
        """Run a loader's command that uses the network, until it ends or a signal ends it.

        Args:
            bundle: its file on this machine.
            arguments: of the loader.
            stdout: descriptor for its result; its messages go to this process's standard error.

        Returns its exit status. Raises HostError if no process can start, or a package that the
        bundle needs is missing.
        """
        self._link(find_packages(bundle))
        command = [*self.interpreter, *FLAGS, *self._program, bundle, *arguments]
        process = self._start(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=None)
        try:
            return process.wait()
        # A signal is how a server ends, so it is passed on and is no error.
        except (KeyboardInterrupt, SystemExit):
            process.terminate()
            return process.wait()

    def _start(
        self,
        command: Sequence[str],
        *,
        stdin: int,
        stdout: IO[bytes] | int,
        stderr: IO[bytes] | None,
    ) -> subprocess.Popen[bytes]:
        """Start a process that sees the device's packages alone."""
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "PYTHONPATH": str(self.folder / "packages"),
            "PYTHONIOENCODING": "utf-8",
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
        }
        for variable in ("LD_LIBRARY_PATH", "OMP_NUM_THREADS"):
            if variable in os.environ:
                environment[variable] = os.environ[variable]
        try:
            # The process inherits the lock on the folder, which it still needs if edgepack is
            # killed.
            self._process = subprocess.Popen(
                command, stdin=stdin, stdout=stdout, stderr=stderr, env=environment,
                pass_fds=(self._temporary.lock.descriptor,),
            )  # fmt: skip
        except OSError as error:
            raise HostError(
                "process-failed",
                "no process could be started for the loader",
                why=error.strerror or str(error),
                hint=f"check {self.interpreter[0]}",
            ) from error
        return self._process

    def stop(self) -> None:
        """Kill the running process; called from another thread than `run`."""
        if self._process is not None:
            self._process.kill()


def _write_program(folder: Path) -> str:
    """Write the folder that Python runs as edgepack's own loader, and return its path."""
    folder.mkdir()
    (folder / "__main__.py").write_text(MAIN, encoding="ascii")
    # A link, as for the packages, so that Python reuses the files that it compiled earlier.
    (folder / "runtime").symlink_to(Path(runtime.__file__).parent)
    return str(folder)


def _probe_network() -> str:
    """Return "namespace" if a process can be cut off from the network, else "open"."""
    # Containers and hardened kernels refuse namespaces to unprivileged users.
    try:
        subprocess.run([*NO_NETWORK, "true"], capture_output=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "open"
    return "namespace"


def _feed(process: subprocess.Popen[bytes], stdin: Iterable[bytes]) -> int:
    """Write the pieces to a process as it reads them and return its exit status."""
    with process:
        try:
            # The process may end before it has read everything; its status and stderr say why.
            with suppress(BrokenPipeError):
                for piece in stdin:
                    process.stdin.write(piece)  # type: ignore[union-attr]
            process.communicate()
        except BaseException:
            process.kill()
            raise
    return process.returncode
