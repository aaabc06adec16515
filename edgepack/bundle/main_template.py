"""The first file that Python runs in a bundle; in syntax that any Python 3 (and 2) can read."""

import sys

if sys.version_info < (3, 8):
    sys.stderr.write(
        "error[device-python]: this Python is older than the bundle needs\n"
        "  why:  it needs 3.8 or newer; this is %d.%d\n"
        "  hint: run it with a newer python3\n" % sys.version_info[:2]
    )
    sys.exit(2)

from runtime.cli import main

sys.exit(main())
