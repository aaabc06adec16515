"""From an exporter's exception to the cause and the line of the model's source."""

from __future__ import annotations

import linecache
import re
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_TEXT_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')
_TOOLS = ("torch", "onnx", "onnxscript", "onnx_ir", "onnxruntime", "onnxsim", "sympy")
_OPERATOR = re.compile(r"No ONNX function found for .*?op='([^']+)'")
_HERE = str(Path(__file__).parent)

# What torch calls it (exception's type or words of its message); what it is; what to do.
_CAUSES: tuple[tuple[str, str, str], ...] = (
    (
        "GuardOnDataDependentSymNode",
        "the path through the model depends on a tensor's values, an exported graph has one path",
        "choose with torch.where instead of if, or take the decision out of forward()",
    ),
    (
        "mutat",
        "the model changes a list, a dict or a buffer that it was given, a graph cannot",
        "return new tensors instead of changing an argument in place",
    ),
    (
        "No ONNX function found",
        "an operator has no ONNX form",
        "write it with operators that have one, or give edgepack an ONNX file",
    ),
    (
        ".numpy()",
        "the model leaves torch for numpy, the exporter cannot follow it there",
        "use torch's own operators in forward()",
    ),
    (
        "Constraints violated",
        "an axis that shall be dynamic is tied to one size or to another axis",
        "declare the axis fixed in --input, or give axes that must be equal the same name",
    ),
)


def model_line(error: BaseException) -> str | None:
    """Where in the model's source the error arose, as `file:line in function: code`.

    The innermost frame that belongs neither to torch and the exporter, nor to Python's library,
    nor to edgepack.graph; frames are taken from the error and all its causes, from the torch
    node that was being translated, and at last from the message's own text.
    """
    for cause in _chain(error):
        for found in reversed(traceback.extract_tb(cause.__traceback__)):
            if is_model_file(found.filename):
                return describe_frame(found.filename, found.lineno or 0, found.name)
    texts = [_node_stack(cause) for cause in _chain(error)] + [str(c) for c in _chain(error)]
    for text in texts:
        for filename, line, function in reversed(_TEXT_FRAME.findall(text)):
            if is_model_file(filename):
                return describe_frame(filename, int(line), function)
    return None


def innermost_model_frame(stack: Sequence[traceback.FrameSummary]) -> str | None:
    """The last frame of a stack inside `forward` that is the model's own, as `model_line`."""
    # Frames before torch's first one are the caller's, not the model's.
    first_tool = next((i for i, f in enumerate(stack) if "/torch/" in f.filename), len(stack))
    for frame in reversed(stack[first_tool:]):
        if is_model_file(frame.filename):
            return describe_frame(frame.filename, frame.lineno or 0, frame.name)
    return None


def explain(error: BaseException) -> tuple[str, str]:
    """The cause in one line and what to do about it."""
    chain = list(_chain(error))
    text = "\n".join(f"{type(cause).__name__}: {cause}" for cause in chain)
    for word, cause, hint in _CAUSES:
        if word in text:
            operator = _OPERATOR.search(text)
            return (f"{cause}: {operator.group(1)}" if operator else cause), hint
    root = chain[-1]
    lines = [line.strip() for line in _ANSI.sub("", str(root)).splitlines() if line.strip()]
    reason = f"{type(root).__name__}: {lines[0] if lines else 'no message'}"[:300]
    return reason, "change that line, or give edgepack an ONNX file exported in your own way"


def is_model_file(filename: str) -> bool:
    """Whether a source file may be the model's: no tool's, no library's of Python, not ours."""
    if filename.startswith(("<", _HERE)):
        return False
    path = filename.replace("\\", "/")
    for packages in ("/site-packages/", "/dist-packages/"):
        if packages in path:
            return path.split(packages, 1)[1].split("/", 1)[0] not in _TOOLS
    return not filename.startswith(sysconfig.get_paths()["stdlib"])


def describe_frame(filename: str, line: int, function: str) -> str:
    """`file:line in function: code`, the file relative to the working directory if it is in it."""
    path = Path(filename)
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    code = linecache.getline(filename, line).strip()
    return f"{path}:{line} in {function}" + (f": {code}" if code else "")


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        # Only "raise ... from": what was being handled meanwhile is another story.
        current = current.__cause__


def _node_stack(error: BaseException) -> str:
    """The stack that torch noted for the node that the exporter was translating."""
    import torch

    text = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        node: Any = frame.f_locals.get("node")
        if isinstance(node, torch.fx.Node):
            text = node.stack_trace or text
    return text
