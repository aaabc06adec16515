"""A device that is reached through ssh: with sshd and Python 3.8 it has all that is needed."""

from edgepack.device.ssh.address import Address, Settings, parse
from edgepack.device.ssh.device import Ssh, ship

__all__ = ["Address", "Settings", "Ssh", "parse", "ship"]
