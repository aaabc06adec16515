"""The errors of the loader, and the root of every error that edgepack raises.

EdgepackError                exit 2: could not run
├── BundleError              the file is not an intact bundle
├── DeviceError              this device cannot run the bundle
├── InputError               what was fed does not fit the model's inputs
└── GateError                exit 1: it ran, and a gate was missed
"""

from __future__ import annotations

from typing import Dict


class EdgepackError(Exception):
    """Something that the user must know: what happened, why, and what to do.

    Args:
        code: stable identifier, lower case with hyphens; scripts may match on it.
        what: one sentence, what could not be done.
        why: the cause, with the values that were found.
        hint: the next thing to do.
    """

    exit_code = 2

    def __init__(self, code: str, what: str, *, why: str = "", hint: str = "") -> None:
        # With these two, and the rest from its attributes, a copy is made in another process.
        super().__init__(code, what)
        self.code = code
        self.what = what
        self.why = why
        self.hint = hint

    def __str__(self) -> str:
        # One line, so that no name in it can pass for a line of its own.
        lines = ["error[{}]: {}".format(self.code, " ".join(self.what.splitlines()))]
        for label, text in (("why: ", self.why), ("hint:", self.hint)):
            if text:
                first, *rest = text.splitlines()
                lines.append("  {} {}".format(label, first))
                lines.extend("        " + line for line in rest)
        return "\n".join(lines)

    def to_json(self) -> Dict[str, str]:
        """The same four fields, for `--json`."""
        return {"code": self.code, "what": self.what, "why": self.why, "hint": self.hint}


class BundleError(EdgepackError):
    """The file is not an intact bundle."""


class DeviceError(EdgepackError):
    """This device cannot run the bundle."""


class InputError(EdgepackError):
    """What was fed does not fit the model's inputs."""


class GateError(EdgepackError):
    """The bundle ran, and a gate was missed."""

    exit_code = 1
