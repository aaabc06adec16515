"""The first file that Python runs in a bundle; in syntax that any Python 3 (and 2) can read."""

import sys

if sys.version_info < (3, 8):
    sys.stderr.write(
        "error[device-python]: this Python is older than the bundle needs\n"
        "  why:  it needs 3.8 or newer; this is %d.%d\n"
        "  hint: run it with a newer python3\n" % sys.version_info[:2]
    )
    sys.exit(2)

try:
    from runtime.cli import main
except Exception as error:  # noqa: BLE001
    # Python would end with 1, which means a missed gate, and checks no hash of what it imports.
    why = "%s: %s" % (type(error).__name__, error)
    what = "the loader in this bundle cannot be imported"
    hint = (
        "fetch the bundle again from where it was built, and check it: sha256sum -c BUNDLE.sha256"
    )
    if "--json" in sys.argv[1:]:
        import json

        told = {"code": "bundle-damaged", "what": what, "why": why, "hint": hint}
        sys.stdout.write(json.dumps({"error": told}) + "\n")
    sys.stderr.write("error[bundle-damaged]: %s\n  why:  %s\n  hint: %s\n" % (what, why, hint))
    sys.exit(2)

sys.exit(main())
