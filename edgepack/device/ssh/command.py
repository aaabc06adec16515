"""How ssh and sftp are called: their options, and the one command that a device ever sees."""

from __future__ import annotations

import json
import os
import re
import shlex
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgepack import files
from edgepack.device.ssh.address import Address, Settings
from edgepack.errors import HostError

# Seconds: for a connection, and between signs of life, three of which may fail.
CONNECT, ALIVE = 15, 5
# Seconds that the connection outlives its last command, and so an edgepack that was killed.
IDLE = 60
# Told on the command line, since the ssh_config may say otherwise and must not here.
OPTIONS = (
    "BatchMode=yes",
    f"ServerAliveInterval={ALIVE}",
    "ServerAliveCountMax=3",
    "LogLevel=ERROR",
    "ControlMaster=auto",
    f"ControlPersist={IDLE}",
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "ForwardX11=no",
    "PermitLocalCommand=no",
    "RemoteCommand=none",
    "RequestTTY=no",
)
# What a path may hold that ssh, its configuration and sftp all take as it is.
PLAIN = re.compile(r"[A-Za-z0-9_./@+-]+")
# The longest name of a socket, less what ssh puts behind it while it makes one.
LONGEST = 107 - 17
REMOTE = Path(__file__).with_name("remote.py")
# Reads the program from standard input, and leaves the rest of it to the program. A Python that
# is too old for the program still reads this.
_READ = (
    "import sys;sys.path.pop(0);import os;"
    'os.write(1,("\\n%s old %s\\n"%(sys.argv[2],sys.version.split()[0])).encode())'
    "and sys.exit() if sys.version_info<(3,8) else 0;n=int(sys.argv[3]);s=bytes();"
    'exec("while len(s)<n: s+=os.read(0,n-len(s)) or sys.exit(9)");exec(s)'
)
# Whatever the login shell is, it finds nothing here to change: all that stands between the single
# quotes has no other, no newline and no backslash that any of them would take.
_COMMAND = (
    'exec sh -c \'p=$(command -v "$1") || {{ echo; echo "$2 absent"; exit; }}; '
    'exec "$p" -E -s -S -c "$4" "$p" "$2" "$3"\' sh {python} {token} {size} \'{read}\''
)


def command(python: str, token: str, request: Mapping[str, Any]) -> tuple[str, bytes]:
    """What ssh is to run, and the program that it is to read first.

    Args:
        python: the device's.
        token: what its answer is known by.
        request: {"verb", and its arguments}; see `remote.main`.
    """
    call = f"\nmain({json.dumps(request)!r})\n"
    program = (REMOTE.read_text(encoding="utf-8") + call).encode()
    return _COMMAND.format(python=python, token=token, size=len(program), read=_READ), program


def options(address: Address, settings: Settings, folder: Path) -> list[str]:
    """The options of ssh and of sftp.

    Args:
        address: of the device.
        settings: how it is used.
        folder: for the socket of the connection that all commands share.
    """
    told = [
        *OPTIONS,
        f"ConnectTimeout={max(1, min(CONNECT, int(settings.timeout)))}",
        f"ControlPath={folder}/c",
        *([f"User={address.user}"] if address.user else []),
        *([f"Port={address.port}"] if address.port else []),
    ]
    file = ["-F", str(settings.config)] if settings.config else []
    return [*file, *(word for option in told for word in ("-o", option))]


def by_hand(address: Address, settings: Settings) -> str:
    """The arguments of ssh with which the user reaches the same device."""
    file = f"-F {shlex.quote(str(settings.config))} " if settings.config else ""
    port = f"-p {address.port} " if address.port else ""
    user = f"{address.user}@" if address.user else ""
    return f"{file}{port}{user}{address.host.strip('[]')}"


def private_folder() -> files.LockedFolder:
    """Make a folder for a connection's socket, whose name is short and holds nothing unusual.

    Raises HostError where none can be made.
    """
    for base in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):  # noqa: S108
        if base and PLAIN.fullmatch(base) and len(f"{base}/.edgepack-12345678/c") <= LONGEST:
            with suppress(OSError):
                return files.LockedFolder.create(Path(base))
    raise HostError(
        "folder-missing",
        "no folder can be made for the connection to a device",
        why="neither $XDG_RUNTIME_DIR nor $TMPDIR nor /tmp takes one",
        hint="set TMPDIR to a folder with a short name",
    )
