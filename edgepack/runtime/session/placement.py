"""Placement: the share of the model that an accelerator's provider of onnxruntime really took.

onnxruntime runs whatever a provider does not take on the CPU, silently: one operator without a
kernel copies its tensors from the GPU and back. This module reads which nodes went where.
"""

from __future__ import annotations

from typing import (
    TYPE_CHECKING,
    Dict,
    Iterable,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Protocol,
    Tuple,
)

from ..errors import DeviceError
from ..parity.gates import describe_gate, make_gate
from ..parity.verdict import NOT_GATED

if TYPE_CHECKING:
    from ..bundle.index import Index
    from ..documents import PlacementDocument, Reason

# Setting that makes onnxruntime 1.24 and later record the provider of every node.
RECORD = "session.record_ep_graph_assignment_info"
UNKNOWN = "the share of the provider is unknown: onnxruntime reports it from 1.24 on"


class Session(Protocol):
    """Part of `onnxruntime.InferenceSession` that decides where it runs."""

    def get_providers(self) -> List[str]:
        """Return the names of the engines in use, best first."""

    def disable_fallback(self) -> None:
        """Keep a failed call from being repeated on another engine."""


class Node(NamedTuple):
    """Node of the graph, with the provider that took it."""

    provider: str
    name: str
    kind: str


def read_nodes(session: object) -> Optional[List[Node]]:
    """Return every node of a session that was started with RECORD; None for older releases."""
    read = getattr(session, "get_provider_graph_assignment_info", None)
    if read is None:
        return None
    nodes = []
    for part in read():
        for node in part.get_nodes():
            nodes.append(Node(part.ep_name, node.name, node.op_type))
    return nodes


def require_provider(session: Session, provider: str, version: str, output: str) -> None:
    """Refuse a session without the GPU, for which onnxruntime takes the CPU silently."""
    active = session.get_providers()
    if provider not in active:
        raise DeviceError(
            "engine-provider",
            f"onnxruntime {version} did not start on the GPU",
            why="\n".join(filter(None, (f"it would run in {', '.join(active)}", output))),
            hint="install the CUDA and cuDNN versions that it was built with: "
            "https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html",
        )
    # Nor may it fall back later, when a call fails.
    session.disable_fallback()


def summarise(nodes: Iterable[Node], provider: str, macs: Mapping[str, int]) -> PlacementDocument:
    """Count the nodes, and the multiply-accumulates, that a provider took.

    Args:
        nodes: every node, from `read_nodes`.
        provider: onnxruntime's name of the provider.
        macs: node of the ONNX -> multiply-accumulates; empty if they are unknown.
    """
    total = owned = products = 0
    others: Dict[Tuple[str, str], int] = {}
    for node in nodes:
        total += 1
        if node.provider == provider:
            owned += 1
            products += _count_products(node.name, macs)
        else:
            key = (node.kind, node.provider)
            others[key] = others.get(key, 0) + 1
    share = None
    if macs:
        # A node that onnxruntime renamed beyond recognition counts as not taken.
        share = products / sum(macs.values())
    return {
        "provider": provider,
        "nodes": total,
        "owned": owned,
        "macs_share": share,
        "others": [f"{count} {kind} ({where})" for (kind, where), count in sorted(others.items())],
        "gates": [],
        "passed": True,
    }


def _count_products(name: str, macs: Mapping[str, int]) -> int:
    # A fusion appends its name: "fc" becomes "fc/MatMulAddFusion".
    if name not in macs:
        name = name.rsplit("/", 1)[0]
    return macs.get(name, 0)


def measure_placement(
    session: object, index: Index, doubts: List[Reason]
) -> Optional[PlacementDocument]:
    """Return the share of a model that its provider took, held to the gate of its bundle.

    None if onnxruntime does not report it; if it is gated, that is a doubt.
    """
    bounds = index.gates.get("placement", {})
    nodes, provider = getattr(session, "nodes", None), getattr(session, "provider", "")
    if nodes is None:
        if bounds:
            doubts.append({"code": NOT_GATED, "text": UNKNOWN})
        return None
    placement = summarise(nodes, provider, index.raw.get("macs", {}))
    judge_placement(placement, bounds)
    return placement


def judge_placement(placement: PlacementDocument, bounds: Mapping[str, float]) -> None:
    """Hold a placement to its gate: the share of multiply-accumulates, or of nodes without."""
    if "min_share" not in bounds:
        return
    share = placement["macs_share"]
    if share is None:
        share = placement["owned"] / max(1, placement["nodes"])
    bound = bounds["min_share"]
    gate = make_gate("min_share", placement["provider"], bound, share, share >= bound)
    placement["gates"].append(gate)
    placement["passed"] = gate["passed"]


def describe_placement(placement: Optional[PlacementDocument]) -> List[str]:
    """Return the text of a placement: the share, what ran elsewhere, and the gate."""
    if placement is None:
        return [f"placement: {UNKNOWN}"]
    nodes, owned = placement["nodes"], placement["owned"]
    text = f"placement: {owned} of {nodes} nodes"
    if placement["macs_share"] is not None:
        text += f" and {100 * placement['macs_share']:.4g} % of the multiply-accumulates"
    text += f" in {placement['provider']}"
    if placement["others"]:
        text += f"; elsewhere: {', '.join(placement['others'])}"
    return [text, *["  " + describe_gate(gate) for gate in placement["gates"]]]
