"""Cause and line of the model's source behind an exporter's exception."""

from __future__ import annotations

import linecache
import re
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import NodeProto

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_TEXT_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')
_TOOLS = ("torch", "onnx", "onnxscript", "onnx_ir", "onnxruntime", "onnxsim", "sympy")
_OPERATOR = re.compile(r"No ONNX function found for .*?op='([^']+)'")
_HERE = str(Path(__file__).parent)

# Type or words of torch's exception, the cause in plain words, and the remedy.
_CAUSES: tuple[tuple[str, str, str], ...] = (
    (
        "GuardOnDataDependentSymNode",
        "the path through the model depends on a tensor's values, but a graph has one path",
        "choose with torch.where instead of if, or take the decision out of forward()",
    ),
    (
        "mutat",
        "the model changes a list, a dict or a buffer in place, which a graph cannot do",
        "return new tensors instead of changing an argument in place",
    ),
    (
        "No ONNX function found",
        "an operator has no ONNX form",
        "replace it with operators that have one, or pass edgepack an ONNX file",
    ),
    (
        ".numpy()",
        "the model computes in numpy, which the exporter cannot follow",
        "use torch's own operators in forward()",
    ),
    (
        "Constraints violated",
        "a dynamic axis is tied to one size or to another axis",
        "declare the axis fixed in --input, or give axes of equal size the same name",
    ),
)


def model_line(error: BaseException) -> str | None:
    """Locate an error in the model's source, as `file:line in function: code`.

    The result is the innermost frame outside torch, the exporter, Python's library and
    edgepack.graph. Frames are taken from the error and all its causes, then from the torch node
    that was being translated, and last from the text of the message.
    """
    for cause in _chain(error):
        for frame in reversed(traceback.extract_tb(cause.__traceback__)):
            if is_model_file(frame.filename):
                return describe_frame(frame.filename, frame.lineno or 0, frame.name)
    for text in (*map(_node_stack, _chain(error)), *map(str, _chain(error))):
        for filename, line, function in reversed(_TEXT_FRAME.findall(text)):
            if is_model_file(filename):
                return describe_frame(filename, int(line), function)
    return None


def innermost_model_frame(stack: Sequence[traceback.FrameSummary]) -> str | None:
    """Return the model's last frame of a stack inside `forward`, formatted as in `model_line`."""
    # A stack reads: edgepack, torch (Module.__call__), the model's forward, torch again. Frames
    # before the first one of torch belong to the caller, not to the model.
    first_tool = len(stack)
    for index, frame in enumerate(stack):
        if "/torch/" in frame.filename:
            first_tool = index
            break
    for frame in reversed(stack[first_tool:]):
        if is_model_file(frame.filename):
            return describe_frame(frame.filename, frame.lineno or 0, frame.name)
    return None


def explain(error: BaseException) -> tuple[str, str]:
    """Return the cause in one line and a hint."""
    chain = list(_chain(error))
    text = "\n".join(f"{type(cause).__name__}: {cause}" for cause in chain)
    for word, cause, hint in _CAUSES:
        if word in text:
            operator = _OPERATOR.search(text)
            if operator:
                cause = f"{cause}: {operator.group(1)}"
            return cause, hint
    root = chain[-1]
    message = _ANSI.sub("", str(root)).strip()
    first = "no message"
    if message:
        first = message.splitlines()[0].strip()
    reason = f"{type(root).__name__}: {first}"[:300]
    return reason, "change that line, or export the model yourself and pass the ONNX file"


def is_model_file(filename: str) -> bool:
    """Return True unless a source file belongs to a tool, Python's library or edgepack.graph."""
    if filename.startswith(("<", _HERE)):
        return False
    # Other packages, such as timm, may define the model: ".../site-packages/timm/layers/mlp.py".
    path = filename.replace("\\", "/")
    for packages in ("/site-packages/", "/dist-packages/"):
        if packages in path:
            return path.split(packages, 1)[1].split("/", 1)[0] not in _TOOLS
    return not filename.startswith(sysconfig.get_paths()["stdlib"])


def describe_frame(filename: str, line: int, function: str) -> str:
    """Format a frame as `file:line in function: code`.

    A file below the working directory is written relative to it.
    """
    path = Path(filename)
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    code = linecache.getline(filename, line).strip()
    location = f"{path}:{line} in {function}"
    return f"{location}: {code}" if code else location


def _chain(error: BaseException) -> Iterator[BaseException]:
    visited: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in visited:
        visited.add(id(current))
        yield current
        # Follow `raise ... from` only: an exception in __context__ need not be a cause.
        current = current.__cause__


def _node_stack(error: BaseException) -> str:
    """Return the stack that torch recorded for the node that the exporter was translating."""
    import torch

    text = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        # torch.onnx calls its node "node" in the frames that translate it.
        node: NodeProto = frame.f_locals.get("node")
        if isinstance(node, torch.fx.Node):
            text = node.stack_trace or text
    return text
