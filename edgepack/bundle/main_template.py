"""Entry point of a bundle, in syntax that any Python 3 (and 2) can parse."""

import json
import os
import sys


def refuse(code, what, why, hint):
    """Report an error before the loader can, and exit with status 2."""
    error = {"code": code, "what": what, "why": why, "hint": hint}
    text = "error[%(code)s]: %(what)s\n  why:  %(why)s\n  hint: %(hint)s\n" % error
    write(sys.stderr, text)
    if "--json" in sys.argv:
        write(sys.stdout, json.dumps({"error": error}, sort_keys=True) + "\n")
    # Python would flush once more at exit, and return 120 if a stream cannot be written.
    os._exit(2)


def write(stream, text):
    """Write to a stream that may be closed, or full."""
    try:
        stream.write(text)
        stream.flush()
    except (AttributeError, EnvironmentError):
        pass


if sys.version_info < (3, 8):
    refuse(
        "device-python",
        "this Python is older than the bundle needs",
        "it needs 3.8 or newer; this is %d.%d" % sys.version_info[:2],
        "run it with a newer python3",
    )

# Python does not check hashes on import, and an exception would exit with 1, the status of a missed
# gate.
try:
    from runtime.cli import main
except Exception:  # noqa: BLE001
    refuse(
        "bundle-damaged",
        "the loader in this bundle cannot be imported",
        repr(sys.exc_info()[1]),
        "fetch the bundle again from where it was built, and check it: sha256sum -c BUNDLE.sha256",
    )

sys.exit(main())
