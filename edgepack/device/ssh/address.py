"""Addresses of ssh devices, ssh://USER@HOST:PORT/PATH, and the rules for their parts."""

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
# ssh passes host and user on to ProxyCommand and to its own options, so neither may begin with a
# dash: -oProxyCommand=... as a host would run a command on this machine.
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+(%[A-Za-z0-9_.-]+)?\]")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@-]*")
_PYTHON = re.compile(r"[A-Za-z0-9_./+~][A-Za-z0-9_./+~-]*")


@dataclass(frozen=True)
class Address:
    """Address of a device.

    Attributes:
        host: a name, an alias of the user's ssh_config, or an address; IPv6 in brackets.
        user: name of the user; "" for the ssh_config's.
        port: number of the port; 0 for the ssh_config's.
        path: path of a file or folder there; "" for none; relative to the home if it begins with
            "~/".
    """

    host: str
    user: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        """Return the URL without the path."""
        user = f"{self.user}@" if self.user else ""
        port = f":{self.port}" if self.port else ""
        return f"ssh://{user}{self.host}{port}"


@dataclass(frozen=True)
class Settings:
    """Settings for the use of a device.

    Attributes:
        config: ssh_config to read instead of the user's; None for the user's.
        python: the device's Python: a name on its PATH, or a path there.
        timeout: limit in seconds of one command on the device, and of one attempt to send a file.
        keep: leave sent files on the device, to be reused by the next command.

    Raises SpecError if `python` needs quoting in a shell.
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
                why="only letters, digits and _ . / + ~ - are allowed, and no leading dash",
                hint="--python python3.11, or --python ~/venv/bin/python3",
            )


def parse(url: str, *, path: bool = False) -> Address:
    """Parse an address.

    Args:
        url: the address as the user wrote it.
        path: require a path, percent-encoded, with `/~/` for the home; if False, refuse one.

    Raises SpecError if it is malformed, or contains a password, a query or a fragment.
    """
    # ssh://pi@cam:2222/~/m.edgepack gives Address("cam", "pi", 2222, "~/m.edgepack");
    # ssh://cam/opt/m%20v2.edgepack gives Address("cam", "", 0, "/opt/m v2.edgepack").
    form = f"{FORM}/PATH" if path else FORM
    if not url.startswith("ssh://"):
        raise _refuse(url, "it does not begin with ssh://", form)
    if any(ord(character) < 32 or ord(character) == 127 for character in url):
        raise _refuse(url, "it has a control character", f"{form}; %0A encodes a newline")
    if "?" in url or "#" in url:
        raise _refuse(url, "it has a query or a fragment", f"{form}; %3F, %23 in PATH")
    parts = _PARTS.fullmatch(url)
    if parts is None:
        raise _refuse(url, "not a valid URL", form)
    user, host, port = parts["user"], parts["host"], parts["port"]
    if user is not None and ":" in user:
        # The message may end up in a log, so it leaves out the password.
        url = url.replace(user, user.partition(":")[0] + ":...", 1)
        hint = f"ssh-copy-id {host}, then {form}, to log in with a key or an agent"
        raise _refuse(url, "it contains a password", hint)
    if user is not None and not _USER.fullmatch(user):
        raise _refuse(url, f"{user!r} is not a valid user name", form)
    if not host:
        raise _refuse(url, "it has no host", form)
    if not _HOST.fullmatch(host):
        raise _refuse(url, f"{host!r} is not a valid host name", form)
    if port is not None and not (re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 65536):
        raise _refuse(url, f"{port!r} is not a valid port", form)
    if path:
        decoded = _decode_path(url, parts["path"] or "", form)
    elif (parts["path"] or "").strip("/"):
        raise _refuse(url, "it has a path, and the address of a device has none", form)
    else:
        decoded = ""
    return Address(host, user or "", int(port or 0), decoded)


def _decode_path(url: str, encoded: str, form: str) -> str:
    """Decode the path after the host."""
    if re.search("%(?![0-9A-Fa-f]{2})", encoded):
        raise _refuse(url, "its path has a % without two hex digits", f"{form}; %25 encodes %")
    try:
        decoded = unquote_to_bytes(encoded).decode("utf-8")
    except UnicodeDecodeError:
        raise _refuse(url, "its path is not UTF-8", form) from None
    if not decoded or decoded == "/" or "\0" in decoded:
        raise _refuse(url, "it has no path on the device", f"{form}, or {FORM}/~/PATH")
    if decoded.startswith("/~/"):
        return decoded[1:]
    return decoded


def _refuse(url: str, why: str, form: str) -> SpecError:
    return SpecError(
        "device-url", f"{url!r} is not a valid address of a device", why=why, hint=form
    )
