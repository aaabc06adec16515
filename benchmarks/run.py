"""Run every benchmark, one after another; each prints its table and writes it to results/."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def main() -> None:
    """Run them in turn: two at once would measure each other."""
    for path in sorted(FOLDER.glob("*.py")):
        if path.name not in (Path(__file__).name, "record.py"):
            print(f"== {path.name}", flush=True)
            subprocess.run([sys.executable, str(path)], check=True)


if __name__ == "__main__":
    main()
