"""Count of the instructions of one inference on an emulated CPU: repeatable, but not a time."""

from edgepack.device.instructions.counts import Counted, Counts, count, count_models
from edgepack.device.instructions.plugin import countable

__all__ = ["Counted", "Counts", "count", "count_models", "countable"]
