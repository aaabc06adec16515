"""Command lines of ssh and sftp: their options, and the single command run on a device."""

from __future__ import annotations

import json
import os
import re
import shlex
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from edgepack import files
from edgepack.device.ssh.address import Address, Settings
from edgepack.errors import HostError

# Seconds to connect, and between keep-alive messages; the third unanswered one cuts the link.
CONNECT, ALIVE = 15, 5
# Seconds that the connection stays open after its last command, also if edgepack was killed.
IDLE = 60
# On the command line, since these must override the ssh_config.
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
# Paths that ssh, its configuration and sftp all accept without quoting.
PLAIN = re.compile(r"[A-Za-z0-9_./@+-]+")
# Longest path of a Unix socket, less the suffix that ssh appends while it creates one.
LONGEST = 107 - 17
REMOTE = Path(__file__).with_name("remote.py")
# Reads the program from standard input, and leaves the rest of the input to the program. It must
# also parse on Pythons that are too old for the program.
_READ = (
    "import sys;sys.path.pop(0);import os;"
    'os.write(1,("\\n%s old %s\\n"%(sys.argv[2],sys.version.split()[0])).encode())'
    "and sys.exit() if sys.version_info<(3,8) else 0;n=int(sys.argv[3]);s=bytes();"
    'exec("while len(s)<n: s+=os.read(0,n-len(s)) or sys.exit(9)");exec(s)'
)
# Safe with any login shell: the text between the single quotes has no other single quote, no
# newline and no backslash that a shell would interpret. Its arguments are
#   $1 Python, $2 token, $3 size of the program, $4 the reader above
_COMMAND = (
    'exec sh -c \'p=$(command -v "$1") || {{ echo; echo "$2 absent"; exit; }}; '
    'exec "$p" -E -s -S -c "$4" "$p" "$2" "$3"\' sh {python} {token} {size} \'{read}\''
)


def command(python: str, token: str, request: Mapping[str, object]) -> tuple[str, bytes]:
    """Return the command for ssh to run, and the program to write to its standard input.

    Args:
        python: the device's Python.
        token: random text that marks the answer in the output.
        request: {"verb", and its arguments}; see `remote.main`.
    """
    call = f"\nmain({json.dumps(request)!r})\n"
    program = (REMOTE.read_text(encoding="utf-8") + call).encode()
    return _COMMAND.format(python=python, token=token, size=len(program), read=_READ), program


def options(address: Address, settings: Settings, folder: Path) -> list[str]:
    """Return the options of ssh and of sftp.

    Args:
        address: address of the device.
        settings: settings for its use.
        folder: folder for the socket of the connection that all commands share.
    """
    # ssh and sftp share no short options for user and port (-p and -P), but both take -o.
    assignments = [
        *OPTIONS,
        f"ConnectTimeout={max(1, min(CONNECT, int(settings.timeout)))}",
        f"ControlPath={folder}/c",
    ]
    if address.user:
        assignments.append(f"User={address.user}")
    if address.port:
        assignments.append(f"Port={address.port}")
    words = []
    if settings.config:
        words += ["-F", str(settings.config)]
    for assignment in assignments:
        words += ["-o", assignment]
    return words


def format_arguments(address: Address, settings: Settings) -> str:
    """Format the arguments of ssh for a message, so that users can reach the device themselves."""
    words = []
    if settings.config:
        words += ["-F", shlex.quote(str(settings.config))]
    if address.port:
        words += ["-p", str(address.port)]
    user = f"{address.user}@" if address.user else ""
    return " ".join([*words, f"{user}{address.host.strip('[]')}"])


def private_folder() -> files.LockedFolder:
    """Create a folder for a connection's socket, with a short name that needs no quoting.

    Raises HostError if no folder can be created.
    """
    for base in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):  # noqa: S108
        if base and PLAIN.fullmatch(base) and len(f"{base}/.edgepack-12345678/c") <= LONGEST:
            with suppress(OSError):
                return files.LockedFolder.create(Path(base))
    raise HostError(
        "folder-missing",
        "no folder can be made for the connection to a device",
        why="$XDG_RUNTIME_DIR, $TMPDIR and /tmp are not writable, or have long or unusual names",
        hint="set TMPDIR to a folder with a short name",
    )
