"""Comparison of two bundles of one model: size, latency, quality, gates and layers."""

from edgepack.comparison.compare import Comparison, Tolerances, compare
from edgepack.comparison.render import render_comparison

__all__ = ["Comparison", "Tolerances", "compare", "render_comparison"]
