"""The errors of the loader, and the root of every error that edgepack raises.

EdgepackError                exit 2: could not run
├── BundleError              the file is not an intact bundle
├── DeviceError              this device cannot run the bundle
├── InputError               the input does not fit the model
└── GateError                exit 1: the bundle ran and missed a gate
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .documents import ErrorDocument


class EdgepackError(Exception):
    """Error that is shown to the user with its cause and a remedy.

    Args:
        code: stable identifier, lower case with hyphens; scripts may match on it.
        what: one sentence that names the failure.
        why: the cause, with the values that were measured or read.
        hint: the next thing for the user to do.
    """

    exit_code = 2

    def __init__(self, code: str, what: str, *, why: str = "", hint: str = "") -> None:
        # Pickle rebuilds an exception from these arguments and then restores its attributes, so
        # the error can cross to another process.
        super().__init__(code, what)
        self.code = code
        self.what = what
        self.why = why
        self.hint = hint

    def __str__(self) -> str:
        # A file name may contain a newline: joining the lines keeps it from imitating the
        # "why:" or "hint:" line.
        lines = [f"error[{self.code}]: {' '.join(self.what.splitlines())}"]
        for label, text in (("why: ", self.why), ("hint:", self.hint)):
            if text:
                first, *rest = text.splitlines()
                lines.append(f"  {label} {first}")
                lines.extend("        " + line for line in rest)
        return "\n".join(lines)

    def to_json(self) -> ErrorDocument:
        """Return the four fields for `--json`."""
        return {"code": self.code, "what": self.what, "why": self.why, "hint": self.hint}


class BundleError(EdgepackError):
    """Not an intact bundle."""


class DeviceError(EdgepackError):
    """Bundle that this device cannot run."""


class InputError(EdgepackError):
    """Input that does not fit the model."""


class GateError(EdgepackError):
    """Gate that was missed by a bundle that ran."""

    exit_code = 1
