"""A real sshd on this machine, and devices behind it that lack one thing or another.

The Host that the client's ssh_config names says, by SetEnv, which device answers: a folder with
what is on its PATH, its home, and what its login shell does first.
"""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
SFTP_SERVER = "/usr/lib/openssh/sftp-server"
MISSING = "apt-get install openssh-server openssh-client"

# As a login shell does it: first its start files, then what it was told.
FORCE = """\
#!/bin/bash
device={devices}/$DEVICE
export HOME="$device/home" PATH="$device/bin" TMPDIR="$device/tmp"
cd "$HOME"
if [ -e "$device/rc" ]; then . "$device/rc"; fi
case "$SSH_ORIGINAL_COMMAND" in
  *sftp-server*) exec {sftp} ;;
  *) exec /bin/sh -c "$SSH_ORIGINAL_COMMAND" ;;
esac
"""
SSHD_CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey "{folder}/host_key"
AuthorizedKeysFile "{folder}/key.pub"
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
PidFile none
AcceptEnv DEVICE
Subsystem sftp {sftp}
ForceCommand "{folder}/force"
"""
# What every device has on its PATH besides Python.
PROGRAMS = ("sh", "cat", "env", "uname", "sleep")


class Server:
    """sshd, and an ssh_config whose Hosts are its devices.

    Args:
        folder: an empty one for all that it keeps.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.devices = folder / "devices"
        self.config = folder / "ssh_config"
        self.port = free_port()
        for name in ("host_key", "other_host_key", "key", "other_key"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
        host_key = " ".join((folder / "host_key.pub").read_text().split()[:2])
        other = " ".join((folder / "other_host_key.pub").read_text().split()[:2])
        (folder / "known_hosts").write_text(f"edgepack-test {host_key}\n")
        (folder / "changed_hosts").write_text(f"edgepack-test {other}\n")
        force = folder / "force"
        force.write_text(FORCE.format(devices=shlex.quote(str(self.devices)), sftp=SFTP_SERVER))
        force.chmod(0o755)
        text = SSHD_CONFIG.format(folder=folder, port=self.port, sftp=SFTP_SERVER)
        (folder / "sshd_config").write_text(text)
        self.config.touch()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start sshd, and wait until it answers."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [str(SSHD), "-D", "-e", "-f", str(self.folder / "sshd_config")], stderr=log
            )
        until = time.monotonic() + 20
        while time.monotonic() < until:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        pytest.fail(f"sshd does not start: {(self.folder / 'log').read_text()}")

    def stop(self) -> None:
        """End sshd."""
        if self._process:
            self._process.terminate()
            self._process.wait()

    def logins(self) -> int:
        """How many connections were let in so far."""
        return (self.folder / "log").read_text().count("Accepted publickey")

    def device(
        self, name: str, python: str | None = None, rc: str = "", **options: str | int
    ) -> Path:
        """Add a device; returns its folder.

        Args:
            name: what the ssh_config calls it.
            python: what its `python3` does, as lines of sh; None where it has none.
            rc: what its login shell does first.
            options: of the ssh_config, in place of those that reach it.
        """
        folder = self.devices / name
        for part in ("bin", "home", "tmp"):
            (folder / part).mkdir(parents=True)
        for program in PROGRAMS:
            (folder / "bin" / program).symlink_to(str(shutil.which(program)))
        if python is not None:
            script = folder / "bin" / "python3"
            script.write_text(f"#!/bin/sh\n{python}\n")
            script.chmod(0o755)
        if rc:
            (folder / "rc").write_text(rc)
        self.reach(name, name, **options)
        return folder

    def reach(self, name: str, device: str, **options: str | int) -> None:
        """Add a Host to the ssh_config that leads to a device."""
        lines = {
            "HostName": "127.0.0.1",
            "Port": self.port,
            "User": pwd.getpwuid(os.geteuid()).pw_name,
            "HostKeyAlias": "edgepack-test",
            "UserKnownHostsFile": f'"{self.folder / "known_hosts"}"',
            "GlobalKnownHostsFile": "none",
            "IdentityFile": f'"{self.folder / "key"}"',
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "SetEnv": f"DEVICE={device}",
            **options,
        }
        with self.config.open("a") as file:
            file.write(f"Host {name}\n")
            file.writelines(f"  {key} {value}\n" for key, value in lines.items())


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """sshd with the devices `host`, whose Python is this one, and `empty`, which has none."""
    if not (SSHD and shutil.which("ssh") and Path(SFTP_SERVER).exists()):
        pytest.skip(f"no sshd here: {MISSING}")
    made = Server(tmp_path_factory.mktemp("sshd"))
    made.device("host", host_python())
    made.device("empty")
    made.start()
    with pytest.MonkeyPatch.context() as patch:
        for command in ("VERIFY", "BENCH", "SHIP"):
            patch.setenv(f"EDGEPACK_{command}_SSH_CONFIG", str(made.config))
        yield made
    made.stop()


def host_python(*flags: str, packages: str = "") -> str:
    """A `python3` that is this very one, with other packages if any are named."""
    path = f"PYTHONPATH={shlex.quote(packages)} " if packages else ""
    return f'{path}exec {shlex.join([sys.executable, *flags])} "$@"'


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


class Proxy:
    """A link that is cut: each connection passes so many bytes towards the device, then none.

    Args:
        port: of the device.
        limits: bytes for each connection, the last for all that follow; None for a sound one.
    """

    def __init__(self, port: int, *limits: int | None) -> None:
        self._to, self._limits = port, limits
        self.connections = 0
        self._silent = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                limit = self._limits[min(self.connections, len(self._limits) - 1)]
                self.connections += 1
                device = socket.create_connection(("127.0.0.1", self._to))
                self._open += [client, device]
                for source, sink, most in ((client, device, limit), (device, client, None)):
                    threading.Thread(
                        target=self._pass,
                        args=(source, sink, most, self.connections),
                        daemon=True,
                    ).start()

    def _pass(
        self, source: socket.socket, sink: socket.socket, most: int | None, number: int
    ) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 14):
                while number <= self._silent:
                    time.sleep(0.1)
                # 0.4 MB a second: a link outlives the start of a program, on a busy machine too.
                time.sleep(len(data) / 4e5)
                if most is not None:
                    data, most = data[:most], most - len(data[:most])
                sink.sendall(data)
                if most == 0:
                    break
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Cut what is open now."""
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def silence(self) -> None:
        """Pass nothing more through what is open now, and let nobody know."""
        self._silent = self.connections

    def close(self) -> None:
        """Cut all, and take nothing more."""
        self._listener.close()
        self._silent = 0
        self.cut()


@contextmanager
def proxy(port: int, *limits: int | None) -> Iterator[Proxy]:
    """A Proxy for a while."""
    made = Proxy(port, *limits)
    try:
        yield made
    finally:
        made.close()
