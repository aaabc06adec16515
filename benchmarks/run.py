"""Run every benchmark in turn; each prints its table and writes it to results/. Then the page."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
# Modules that measure nothing.
OTHERS = ("page.py", "record.py", "run.py")


def main() -> None:
    """Run them in turn: two at once would measure each other."""
    for path in sorted(FOLDER.glob("*.py")):
        if path.name not in OTHERS:
            print(f"== {path.name}", flush=True)
            subprocess.run([sys.executable, str(path)], check=True)
    subprocess.run([sys.executable, str(FOLDER / "page.py")], check=True)


if __name__ == "__main__":
    main()
