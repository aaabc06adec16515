"""Program that runs notebooks in one kernel, each import of torch once, and prints the results.

    python -W ignore run_notebooks.py FOLDER NOTEBOOK ...

A process of its own, since the client leaves sockets open for the garbage collector. Prints a JSON
object: by notebook, its cells with their outputs, or the error that stopped it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import nbformat
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError


def main(folder: str, paths: list[str]) -> None:
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=folder)
    results: dict[str, object] = {}
    for path in map(Path, paths):
        notebook = nbformat.read(path, as_version=4)
        client = NotebookClient(notebook, km=manager, timeout=100)
        try:
            asyncio.run(client.async_execute(reset_kc=True, cleanup_kc=False))
            results[path.stem] = notebook.cells
        except CellExecutionError as error:
            results[path.stem] = str(error)
    manager.shutdown_kernel(now=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
