"""Instructions of one inference on an emulated CPU, by class: a repeatable figure, and not time."""

from edgepack.device.instructions.counts import Counted, Counts, count
from edgepack.device.instructions.plugin import countable

__all__ = ["Counted", "Counts", "count", "countable"]
