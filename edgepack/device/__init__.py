"""Where a bundle runs, behind one interface."""

from edgepack.device.device import Device, Finished, ask
from edgepack.device.local import Local

__all__ = ["Device", "Finished", "Local", "ask"]
