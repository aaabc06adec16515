"""Devices that are reached through ssh; they need sshd and Python 3.8 or newer."""

from edgepack.device.ssh.address import Address, Settings, parse
from edgepack.device.ssh.device import Ssh, ship

__all__ = ["Address", "Settings", "Ssh", "parse", "ship"]
