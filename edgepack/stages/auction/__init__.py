"""Auction: candidates for the form of the model on the device, and the choice among them.

candidate   a graph with the engine that would run it
cost        interface of what a candidate costs: time on this machine, instructions elsewhere
"""

from edgepack.stages.auction.candidate import Candidate
from edgepack.stages.auction.cost import CostModel

__all__ = ["Candidate", "CostModel"]
