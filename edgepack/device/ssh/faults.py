"""What ssh and the device said, as errors.

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
    """There is no link to the device, or it was cut; it may be there again in a moment."""


# What ssh says on standard error; the first that fits. The message's own words are the why.
_SAID = (
    (
        r"HOST IDENTIFICATION HAS CHANGED|^Host key for .* has changed",
        "device-host-key-changed",
        "is not the one that it was: its host key has changed",
        "find out why; if it was installed anew, ssh-keygen -R forgets the old key",
    ),
    (
        r"Host key verification failed|No \S+ host key is known",
        "device-host-key",
        "is not known to ssh yet",
        "look at its key and accept it, once: ssh {arguments}",
    ),
    (
        r"Permission denied \(|Too many authentication failures|No supported authentication",
        "device-denied",
        "does not let this user in without a password",
        "ssh-copy-id {arguments}; passwords are never asked for",
    ),
    (
        r"Could not resolve hostname|Name or service not known",
        "device-unknown-host",
        "has a name that leads nowhere",
        "check the name, or give it a HostName in your ssh_config",
    ),
    (
        r"[Bb]ad configuration option|bad configuration options|Can't open user config file"
        r"|Bad owner or permissions on|no argument after keyword|unsupported option|line \d+: ",
        "device-ssh-config",
        "is not reached: ssh does not take its configuration",
        "ssh {arguments}",
    ),
)
_SPACE = ("ENOSPC", "EDQUOT", "EFBIG")
_DENIED = ("EACCES", "EPERM", "EROFS")
_PLACE = ("ENOENT", "ENOTDIR", "EEXIST", "EISDIR", "ENAMETOOLONG")


def unconnected(address: Address, arguments: str, said: str) -> DeviceError:
    """The error for a connection that did not come about.

    Args:
        address: of the device.
        arguments: of ssh, that reach it by hand.
        said: what ssh wrote on standard error.
    """
    lines = [line.strip() for line in said.splitlines() if line.strip(" @\r")]
    why = "\n".join(lines[-6:]) or "ssh said nothing"
    for pattern, code, what, hint in _SAID:
        if re.search(pattern, said, re.MULTILINE):
            hint = hint.format(arguments=arguments)
            return DeviceError(code, f"{address} {what}", why=why, hint=hint)
    return LinkDown(
        "device-unreachable",
        f"{address} cannot be reached",
        why=why,
        hint=f"check that it is on, and that this works: ssh {arguments} true",
    )


def lost(address: Address, doing: str, said: str) -> LinkDown:
    """The error for a link that was cut while something ran: that is no verdict."""
    return LinkDown(
        "device-link-lost",
        f"the link to {address} was lost while {doing}",
        why=said.strip()[-600:] or "it ended before the device had answered",
        hint="this tells nothing about the bundle; try again",
    )


def late(address: Address, doing: str, seconds: float) -> DeviceError:
    """The error for a command that took too long."""
    return DeviceError(
        "device-timeout",
        f"{address} took too long: {doing}",
        why=f"it may take {seconds:g} s; it was ended there",
        hint="--timeout SECONDS",
    )


def no_python(address: Address, python: str) -> DeviceError:
    """The error for a device without a Python of that name."""
    return DeviceError(
        "device-no-python",
        f"{address} has no {python}",
        why=f"{python} is not on the PATH that a command through ssh has there",
        hint="install Python 3.8 or newer there, or name one: --python PATH",
    )


def old_python(address: Address, python: str, version: str) -> DeviceError:
    """The error for a device whose Python cannot run any bundle."""
    return DeviceError(
        "device-python",
        f"the Python of {address} is older than every bundle needs",
        why=f"it needs 3.8 or newer; {python} is {version}",
        hint="name a newer one: --python PATH",
    )


def mute(address: Address, arguments: str, status: int, said: str) -> DeviceError:
    """The error for a device that let us in, and did not do what it was told."""
    return DeviceError(
        "device-shell",
        f"{address} did not run a command with its Python",
        why="\n".join([f"exit status {status}", *said.strip().splitlines()[-6:]]),
        hint=f"this should print hello: ssh {arguments} echo hello",
    )


def refused(address: Address, faults: Sequence[Mapping[str, str]]) -> DeviceError:
    """The error for what the device's system refused.

    Args:
        faults: {"errno", "text", "path"}, one for each folder that was tried.
    """
    kinds = {fault["errno"] for fault in faults}
    why = "\n".join(
        f"{fault['path']}: {fault['text']}" if fault["path"] else fault["text"] for fault in faults
    )
    for names, code, what, hint in (
        (_SPACE, "device-disk-full", "has no room for the file", "make room there"),
        (_DENIED, "device-unwritable", "lets the file be written nowhere", "check permissions"),
        (_PLACE, "device-path", "has no such place for the file", "make the folder there first"),
    ):
        if kinds & set(names):
            return DeviceError(code, f"{address} {what}", why=why, hint=hint)
    return DeviceError("device-failed", f"{address} could not do it", why=why, hint="look there")
