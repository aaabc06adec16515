"""Auction: candidates for the form of the model on the device, and the choice among them.

candidate   a graph with the variant that would run it
forms       the candidates of a build
mixed       layers that stay float, by the times that `nodes` measures
cost        interface of what a candidate costs: time on this machine, instructions elsewhere
instructions  counts on the target's emulated CPUs
halving     time, in processes of their own, cheap turns first
decision    the winner, and the reasons of the others
stage       the stage of the build
"""

from edgepack.stages.auction.candidate import Candidate
from edgepack.stages.auction.cost import CostModel
from edgepack.stages.auction.stage import hold_auction

__all__ = ["Candidate", "CostModel", "hold_auction"]
