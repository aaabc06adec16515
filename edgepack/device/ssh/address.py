"""ssh://USER@HOST:PORT/PATH: where a device is reached, and what may stand in such a URL."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_to_bytes

from edgepack.errors import SpecError

FORM = "ssh://[USER@]HOST[:PORT]"
_PARTS = re.compile(
    r"ssh://(?:(?P<user>[^/]*)@)?(?P<host>\[[^]/@]*\]|[^]:/@[]*)(?::(?P<port>[^/@]*))?(?P<path>/.*)?"
)
# ssh hands these on to ProxyCommand and to its own options; none may begin with a dash.
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+(%[A-Za-z0-9_.-]+)?\]")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@-]*")
_PYTHON = re.compile(r"[A-Za-z0-9_./+~][A-Za-z0-9_./+~-]*")


@dataclass(frozen=True)
class Address:
    """Where a device is reached.

    Attributes:
        host: a name, an alias of the user's ssh_config, or an address; IPv6 in brackets.
        user: "" for whom the ssh_config says.
        port: 0 for the one that the ssh_config says.
        path: of a file or folder there; "" for none; from the home where it begins with "~/".
    """

    host: str
    user: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        """As a URL, without the path."""
        user = f"{self.user}@" if self.user else ""
        port = f":{self.port}" if self.port else ""
        return f"ssh://{user}{self.host}{port}"


@dataclass(frozen=True)
class Settings:
    """How a device is used.

    Attributes:
        config: the ssh_config to read in place of the user's; None for the user's.
        python: the device's Python: a name on its PATH, or a path there.
        timeout: seconds that one command on the device may take, and one attempt to send a file.
        keep: whether what was sent stays there for the next time.

    Raises SpecError where `python` is nothing that a shell takes as it is.
    """

    config: Path | None = None
    python: str = "python3"
    timeout: float = 600.0
    keep: bool = False

    def __post_init__(self) -> None:
        if not _PYTHON.fullmatch(self.python):
            raise SpecError(
                "device-python-name",
                f"{self.python!r} cannot be the device's Python",
                why="it takes letters, digits and _ . / + ~ -, and does not begin with a dash",
                hint="--python python3.11, or --python ~/venv/bin/python3",
            )


def parse(url: str, *, path: bool = False) -> Address:
    """Read an address.

    Args:
        url: as the user wrote it.
        path: whether a path must follow; percent-encoded, `/~/` for the home. None may, else.

    Raises SpecError where it is malformed, or holds a password, a query or a fragment.
    """
    form = FORM + ("/PATH" if path else "")
    if not url.startswith("ssh://"):
        raise _refuse(url, "it does not begin with ssh://", form)
    if any(ord(character) < 32 or ord(character) == 127 for character in url):
        raise _refuse(url, "it holds a control character", f"{form}; %0A stands for a newline")
    if "?" in url or "#" in url:
        raise _refuse(url, "a query or a fragment means nothing here", f"{form}; %3F, %23 in PATH")
    found = _PARTS.fullmatch(url)
    if found is None:
        raise _refuse(url, "it has not the form of a URL", form)
    user, host, port = found["user"], found["host"], found["port"]
    if user is not None and ":" in user:
        # Not to be repeated in a log.
        url = url.replace(user, user.partition(":")[0] + ":...", 1)
        hint = f"ssh-copy-id {host}, then {form}: keys and agents are ssh's"
        raise _refuse(url, "it holds a password", hint)
    if user is not None and not _USER.fullmatch(user):
        raise _refuse(url, f"{user!r} is no user's name", form)
    if not host:
        raise _refuse(url, "it names no host", form)
    if not _HOST.fullmatch(host):
        raise _refuse(url, f"{host!r} is no host's name", form)
    if port is not None and not (re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 65536):
        raise _refuse(url, f"{port!r} is no port", form)
    return Address(host, user or "", int(port or 0), _path(url, found["path"] or "", form, path))


def _path(url: str, written: str, form: str, wanted: bool) -> str:
    """What follows the host, decoded."""
    if not wanted:
        if written.strip("/"):
            raise _refuse(url, "it names a path, and a device has none", form)
        return ""
    if re.search("%(?![0-9A-Fa-f]{2})", written):
        raise _refuse(url, "its path has a % that encodes nothing", f"{form}; %25 stands for %")
    try:
        decoded = unquote_to_bytes(written).decode("utf-8")
    except UnicodeDecodeError:
        raise _refuse(url, "its path is not UTF-8", form) from None
    if not decoded or decoded == "/" or "\0" in decoded:
        raise _refuse(url, "it names no path on the device", f"{form}, or {FORM}/~/PATH")
    return decoded[1:] if decoded.startswith("/~/") else decoded


def _refuse(url: str, why: str, form: str) -> SpecError:
    return SpecError("device-url", f"{url!r} is no address of a device", why=why, hint=form)
