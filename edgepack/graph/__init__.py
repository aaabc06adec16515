"""torch to ONNX, simplification, checks, and running a graph on the host."""

from edgepack.graph.agreement import floor_db
from edgepack.graph.check import check_dynamic_axes, check_feeds
from edgepack.graph.export import export_module, export_program, export_traced
from edgepack.graph.macs import count_by_node, macs
from edgepack.graph.opset import load_onnx
from edgepack.graph.run import Runner
from edgepack.graph.signature import rename_outputs, signature
from edgepack.graph.simplify import simplify
from edgepack.graph.stats import GraphStats, signed_activations, stats

__all__ = [
    "GraphStats",
    "Runner",
    "check_dynamic_axes",
    "check_feeds",
    "count_by_node",
    "export_module",
    "export_program",
    "export_traced",
    "floor_db",
    "load_onnx",
    "macs",
    "rename_outputs",
    "signature",
    "signed_activations",
    "simplify",
    "stats",
]
