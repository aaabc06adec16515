"""`serve`: answer requests over HTTP, and show a page for the browser."""

from __future__ import annotations

import signal
import socket
import threading
from typing import Callable, Sequence

from ..bundle.archive import Archive
from ..bundle.index import read_index
from ..errors import DeviceError, InputError
from ..model import open_model
from ..serve.server import Server
from ..serve.service import Service
from ..streams import print_error

# Seconds that an inference may still take once the server stops.
GRACE = 5.0
# Seconds after which a signal is noticed at the latest.
POLL = 0.2


def serve(
    path: str,
    started: Callable[[str, int], None],
    *,
    host: str,
    port: int,
    names: Sequence[str],
    max_bytes: int,
    threads: int = 0,
    variant: str = "",
) -> None:
    """Serve the model until SIGINT or SIGTERM.

    Args:
        path: the bundle.
        started: called with the address of the page and the port, once requests are accepted.
        host: address to listen on.
        port: 0 takes a free one.
        names: host names that requests may state, besides IP addresses, localhost and this
            machine's.
        max_bytes: largest body of a request.
        threads: threads within an operator; 0 takes every physical core.
        variant: the name of the variant to run; "" for the best that fits.

    Raises InputError if the address cannot be used.
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with Archive(path) as archive:
        index = read_index(archive)
        model = open_model(archive, index, threads, variant=variant)
    if model.preprocessing is not None:
        # Both now, not at the first request: the bundle may be moved or replaced by then.
        from .. import prediction  # noqa: F401
        from ..preprocess import feed  # noqa: F401

        try:
            model.preprocessing.versions()
        except DeviceError as error:
            # Requests with tensors are answered all the same.
            print_error(str(error))
    machine = socket.gethostname().lower()
    service = Service(model, index.name)
    allowed = frozenset({machine, f"{machine}.local", *(name.lower() for name in names)})
    try:
        server = Server((host, port), service.answer, allowed, max_bytes)
    except (OSError, OverflowError) as error:
        raise InputError(
            "address-unusable",
            f"the server cannot listen on {host}, port {port}",
            why=str(error),
            hint="python3 BUNDLE serve --port 0 takes a free port",
        ) from error
    with server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        address = f"[{host}]" if ":" in host else host
        started(f"http://{address}:{server.server_port}/", server.server_port)
        # The system may deliver a signal to any thread, which does not wake this one, and Python
        # runs the handler in this one alone.
        while not stop.wait(POLL):
            pass
        server.shutdown()
        service.finish(GRACE)
