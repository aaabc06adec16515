"""Errors for the messages of ssh and of the device.

Codes: device-unreachable, device-unknown-host, device-host-key, device-host-key-changed,
device-denied, device-ssh-config, device-shell, device-no-python, device-python, device-timeout,
device-link-lost, device-disk-full, device-unwritable, device-path, device-failed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from edgepack.device.ssh.address import Address
from edgepack.errors import DeviceError


class LinkDown(DeviceError):
    """No link to the device, or a link that was cut; a later attempt may succeed."""


# Pattern in ssh's standard error, code, error and hint; the first match counts. ssh's own lines
# become the error's `why`.
_SSH_MESSAGES = (
    (
        r"HOST IDENTIFICATION HAS CHANGED|^Host key for .* has changed",
        "device-host-key-changed",
        "has another host key than before",
        "find out why; after a reinstallation, ssh-keygen -R removes the old key",
    ),
    (
        r"Host key verification failed|No \S+ host key is known",
        "device-host-key",
        "has no known host key",
        "check its key and accept it once: ssh {arguments}",
    ),
    (
        r"Permission denied \(|Too many authentication failures|No supported authentication",
        "device-denied",
        "does not let this user in without a password",
        "ssh-copy-id {arguments}; edgepack never prompts for a password",
    ),
    (
        r"Could not resolve hostname|Name or service not known",
        "device-unknown-host",
        "has a host name that cannot be resolved",
        "check the name, or set its HostName in your ssh_config",
    ),
    (
        r"[Bb]ad configuration option|bad configuration options|Can't open user config file"
        r"|Bad owner or permissions on|no argument after keyword|unsupported option|line \d+: ",
        "device-ssh-config",
        "cannot be reached: ssh rejects its configuration",
        "ssh {arguments}",
    ),
)
_SPACE = ("ENOSPC", "EDQUOT", "EFBIG")
_DENIED = ("EACCES", "EPERM", "EROFS")
_PATH = ("ENOENT", "ENOTDIR", "EEXIST", "EISDIR", "ENAMETOOLONG")


def unconnected(address: Address, arguments: str, stderr: str) -> DeviceError:
    """Return the error for a connection that was not established.

    Args:
        address: address of the device.
        arguments: arguments of ssh for the user to try, for the hint.
        stderr: standard error of ssh.
    """
    # The warning of a changed host key is framed in lines of @, which are dropped.
    lines = [line.strip() for line in stderr.splitlines() if line.strip(" @\r")]
    why = "\n".join(lines[-6:]) or "ssh printed no message"
    for pattern, code, what, hint in _SSH_MESSAGES:
        if re.search(pattern, stderr, re.MULTILINE):
            hint = hint.format(arguments=arguments)
            return DeviceError(code, f"{address} {what}", why=why, hint=hint)
    return LinkDown(
        "device-unreachable",
        f"{address} cannot be reached",
        why=why,
        hint=f"check that it is switched on, and that this works: ssh {arguments} true",
    )


def lost(address: Address, doing: str, stderr: str) -> LinkDown:
    """Return the error for a link that was cut during a command, which gives no verdict."""
    return LinkDown(
        "device-link-lost",
        f"the link to {address} was lost while {doing}",
        why=stderr.strip()[-600:] or "the link ended before the device answered",
        hint="the bundle was neither accepted nor rejected; try again",
    )


def late(address: Address, doing: str, seconds: float) -> DeviceError:
    """Return the error for a command that took too long."""
    return DeviceError(
        "device-timeout",
        f"{address} took too long: {doing}",
        why=f"the limit is {seconds:g} s; the command was ended there",
        hint="--timeout SECONDS",
    )


def no_python(address: Address, python: str) -> DeviceError:
    """Return the error for a device without a Python of that name."""
    return DeviceError(
        "device-no-python",
        f"{address} has no {python}",
        why=f"{python} is not on the PATH of commands run through ssh",
        hint="install Python 3.8 or newer there, or pass its path: --python PATH",
    )


def old_python(address: Address, python: str, version: str) -> DeviceError:
    """Return the error for a Python that is too old for any bundle."""
    return DeviceError(
        "device-python",
        f"the Python of {address} is too old",
        why=f"bundles need 3.8 or newer; {python} is {version}",
        hint="pass the path of a newer one: --python PATH",
    )


def mute(address: Address, arguments: str, status: int, output: str) -> DeviceError:
    """Return the error for a device that accepted the login but did not run the command."""
    return DeviceError(
        "device-shell",
        f"{address} did not run a command with its Python",
        why="\n".join([f"exit status {status}", *output.strip().splitlines()[-6:]]),
        hint=f"this should print hello: ssh {arguments} echo hello",
    )


def refused(address: Address, faults: Sequence[Mapping[str, str]]) -> DeviceError:
    """Return the error for an operation that the device's system refused.

    Args:
        address: address of the device.
        faults: {"errno", "text", "path"} of each folder that was tried.
    """
    # "~/.cache/edgepack: Permission denied", one line per folder; an errno alone has no path.
    kinds = {fault["errno"] for fault in faults}
    why = "\n".join(": ".join(filter(None, (fault["path"], fault["text"]))) for fault in faults)
    for names, code, what, hint in (
        (_SPACE, "device-disk-full", "has no space for the file", "free space there"),
        (_DENIED, "device-unwritable", "has no writable folder", "check permissions"),
        (_PATH, "device-path", "has no such path for the file", "create the folder there first"),
    ):
        if kinds & set(names):
            return DeviceError(code, f"{address} {what}", why=why, hint=hint)
    return DeviceError(
        "device-failed",
        f"{address} could not complete a file operation",
        why=why,
        hint="check the path on the device",
    )
