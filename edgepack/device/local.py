"""This machine, in a process that has nothing but what a device has.

The loader runs in an interpreter without site-packages; a folder of links gives it numpy and the
engine and nothing else, so neither torch nor edgepack can be imported, whatever is installed
here. Where the kernel allows it the process also has a network namespace of its own, in which
there is no network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from types import TracebackType

from edgepack.device.device import Finished
from edgepack.errors import HostError, missing_package

PACKAGES = ("numpy", "onnxruntime")
NO_NETWORK = ("unshare", "--map-root-user", "--net", "--")


def _top_level(package: str) -> set[Path]:
    """Files and folders that a distribution put at the top of site-packages."""
    try:
        found = metadata.distribution(package)
    except metadata.PackageNotFoundError as error:
        raise missing_package(package, "all", "running a bundle on this machine") from error
    names = {path.parts[0] for path in found.files or () if path.parts[0] not in ("..", "bin")}
    return {Path(str(found.locate_file(name))) for name in names if name != "__pycache__"}


class Local:
    """This machine as a device; a context manager, since it owns a temporary folder."""

    name = "this machine"

    def __init__(self, python: str = sys.executable) -> None:
        self._python = python
        self._folder = Path(tempfile.mkdtemp(prefix="edgepack-device-"))
        for path in {path for package in PACKAGES for path in _top_level(package)}:
            (self._folder / path.name).symlink_to(path)
        self.network = self._without_network()

    def __enter__(self) -> Local:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _without_network(self) -> str:
        """How the network is kept away: "namespace", or "open" where the kernel refuses one."""
        try:
            probe = subprocess.run([*NO_NETWORK, "true"], capture_output=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return "open"
        return "namespace" if probe.returncode == 0 else "open"

    def put(self, file: Path) -> str:
        """Nothing to do here: the path itself."""
        return str(file.resolve())

    def run(self, bundle: str, *arguments: str, stdin: Iterable[bytes] = ()) -> Finished:
        """Run a command of a bundle, isolated. Raises HostError where no process can start."""
        command = [self._python, "-S", "-s", "-B", bundle, *arguments]
        if self.network == "namespace":
            command = [*NO_NETWORK, *command]
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "PYTHONPATH": str(self._folder),
            "PYTHONIOENCODING": "utf-8",
            "HOME": str(self._folder),
            "LANG": "C.UTF-8",
        }
        for kept in ("LD_LIBRARY_PATH", "OMP_NUM_THREADS"):
            if kept in os.environ:
                environment[kept] = os.environ[kept]
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            try:
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=out, stderr=err, env=environment
                )
            except OSError as error:
                raise HostError(
                    "process-failed",
                    "no process could be started for the loader",
                    why=error.strerror or str(error),
                    hint=f"check {self._python}",
                ) from error
            status = _feed(process, stdin)
            out.seek(0)
            err.seek(0)
            return Finished(status, out.read(), err.read().decode("utf-8", "replace"))


def _feed(process: subprocess.Popen[bytes], stdin: Iterable[bytes]) -> int:
    """Write the pieces to a process as it takes them; returns its exit status."""
    with process:
        try:
            for piece in stdin:
                process.stdin.write(piece)  # type: ignore[union-attr]
            # Leaving the block closes the pipe and waits.
        except BrokenPipeError:
            # It ended before it had read everything; why, its status and stderr tell.
            pass
        except BaseException:
            process.kill()
            raise
        process.communicate()
    return process.returncode
