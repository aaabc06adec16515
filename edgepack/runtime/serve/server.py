"""HTTP server with bounded connections, request sizes and times.

It answers browsers only under names that cannot be made to point here by somebody else's DNS, and
only to pages of its own: no page on the web can reach the model through a visitor's browser.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from socketserver import TCPServer
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    FrozenSet,
    Mapping,
    NamedTuple,
    Optional,
    Tuple,
)
from urllib.parse import urlsplit

from ..streams import print_error

if TYPE_CHECKING:
    from email.message import Message

JSON = "application/json"
# Connections at a time. Each has a thread, and one that is idle waits for its next request.
CONNECTIONS = 64
# Requests at a time whose bodies are in memory; the others wait in their sockets.
BODIES = 4
# Seconds to send a request, to wait for a turn, and to receive the response.
SECONDS = 30.0
# Bytes of a refused body that are read and dropped. A client that is still sending when the
# connection closes would report a broken pipe in place of the refusal.
_DROPPED = 1 << 28
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


class Request(NamedTuple):
    """Request whose headers have been checked.

    Attributes:
        method: GET, HEAD or POST.
        path: as it was sent, without the query.
        headers: by name, in any case.
        body: empty if there is none.
    """

    method: str
    path: str
    headers: Message
    body: bytes


class Response(NamedTuple):
    """Response to a request.

    Attributes:
        status: HTTP's status code.
        body: its bytes.
        content_type: of the body.
        headers: more of them.
    """

    status: int
    body: bytes
    content_type: str = JSON
    headers: Mapping[str, str] = {}


def encode(status: int, document: object, headers: Optional[Mapping[str, str]] = None) -> Response:
    """Return a response with a JSON document."""
    return Response(status, json.dumps(document, allow_nan=False).encode(), JSON, headers or {})


class Refusal(Exception):
    """Request that gets no answer.

    Args:
        status: HTTP's status code.
        reason: text for the client.
        headers: of the response.
    """

    def __init__(self, status: int, reason: str, headers: Optional[Mapping[str, str]] = None):
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.headers = headers or {}


# May raise Refusal.
Answer = Callable[[Request], Response]


class Server(ThreadingHTTPServer):
    """Server that gives each connection a thread, within limits.

    Args:
        address: host and port; port 0 takes a free one.
        answer: called for each request, in several threads at a time.
        names: host names that a request may state, besides IP addresses and localhost.
        max_bytes: largest body.
        seconds: to send a request, to wait for a turn, and to receive the response.

    Raises OSError if the address cannot be bound.
    """

    daemon_threads = True
    request_queue_size = CONNECTIONS

    def __init__(
        self,
        address: Tuple[str, int],
        answer: Answer,
        names: FrozenSet[str],
        max_bytes: int,
        seconds: float = SECONDS,
    ) -> None:
        self.answer, self.names = answer, names
        self.max_bytes, self.seconds = max_bytes, seconds
        self.bodies = threading.BoundedSemaphore(BODIES)
        self._connections = threading.BoundedSemaphore(CONNECTIONS)
        # Connection -> time by which its client has to have sent or received something whole.
        self._deadlines: Dict[socket.socket, float] = {}
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, Handler)

    def server_bind(self) -> None:
        """Bind the address; `HTTPServer` would ask DNS for its name, which can take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def set_deadline(self, connection: socket.socket, waits: bool) -> None:
        """Start the clock of a connection that waits for its client, or stop it."""
        self._deadlines.pop(connection, None)
        if waits:
            self._deadlines[connection] = time.monotonic() + self.seconds

    def service_actions(self) -> None:
        """Close the connections whose time is over; called twice a second."""
        now = time.monotonic()
        for connection, deadline in list(self._deadlines.items()):
            if deadline < now:
                # Its thread reads the end of the stream, or fails to write, and ends.
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection, or refuse one too many."""
        if not self._connections.acquire(blocking=False):
            with suppress(OSError):
                request.sendall(b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self._connections.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection, in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._deadlines.pop(request, None)
            self._connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report an exception of a connection; that its client has gone is none."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            print_error(f"error: {type(error).__name__}: {error}")


class Handler(BaseHTTPRequestHandler):
    """Connection of one client."""

    protocol_version = "HTTP/1.1"
    server: Server

    def version_string(self) -> str:
        """Return the header Server, without the version of Python."""
        return "edgepack"

    def log_message(self, *_: object) -> None:
        """Print nothing: `_respond` prints one line for each request."""

    def handle_one_request(self) -> None:
        """Read a request and answer it, while the connection's clock runs."""
        self.server.set_deadline(self.connection, True)
        super().handle_one_request()

    def send_error(self, code: int, message: Any = None, explain: Any = None) -> None:
        """Refuse a request that `http.server` cannot read."""
        self.close_connection = True
        # Without a version that it can read, the base class would send no status line.
        self.request_version = self.protocol_version
        text = message or self.responses[code][0]
        self._send(encode(code, {"error": str(text)}))

    def do_GET(self) -> None:
        """Answer a request for a page or a document."""
        self._respond()

    do_HEAD = do_POST = do_GET

    def _respond(self) -> None:
        started = time.monotonic()
        try:
            response = self._answer()
        except Refusal as refusal:
            response = encode(refusal.status, {"error": refusal.reason}, refusal.headers)
        except Exception as error:  # noqa: BLE001
            print_error(f"error: {type(error).__name__}: {error}")
            response = encode(500, {"error": f"internal error: {type(error).__name__}"})
        self._send(response)
        milliseconds = 1000 * (time.monotonic() - started)
        print_error(f"{self.command} {self.path} {response.status} {milliseconds:.1f} ms")

    def _answer(self) -> Response:
        self._require_own_page()
        length, path = self._body_length(), self.path.partition("?")[0]
        if self.command != "POST":
            self._drop(length)
            return self.server.answer(Request(self.command, path, self.headers, b""))
        self.server.set_deadline(self.connection, False)
        if not self.server.bodies.acquire(timeout=self.server.seconds):
            self._drop(length)
            raise Refusal(503, "the server is busy", {"Retry-After": "1"})
        try:
            self.server.set_deadline(self.connection, True)
            body = self.rfile.read(length)
            self.server.set_deadline(self.connection, False)
            if len(body) < length:
                self.close_connection = True
                raise Refusal(400, f"the body ended after {len(body)} of {length} bytes")
            return self.server.answer(Request(self.command, path, self.headers, body))
        finally:
            self.server.bodies.release()

    def _require_own_page(self) -> None:
        """Raise Refusal if the request may come from a page that this server did not send."""
        # An attacker's name can be made to point to 127.0.0.1 once its page is loaded, and then
        # the browser takes this server for that page's own. An IP address cannot.
        host = self.headers.get("Host", "")
        if not _is_trusted(host, self.server.names):
            self._drop(self._body_length())
            raise Refusal(
                403, f"the host name {host!r} is not allowed; allow it with --allow-host NAME"
            )
        origin = self.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != host:
            self._drop(self._body_length())
            raise Refusal(403, f"pages of {origin!r} may not use this server")

    def _body_length(self) -> int:
        lengths = self.headers.get_all("Content-Length", ["0"])
        for name in ("Transfer-Encoding", "Content-Encoding"):
            if name in self.headers:
                self.close_connection = True
                raise Refusal(411, f"send the body as it is, with Content-Length and no {name}")
        if len(lengths) != 1 or not re.match(r"[0-9]{1,15}\Z", lengths[0]):
            self.close_connection = True
            raise Refusal(400, "Content-Length is not one number")
        length = int(lengths[0])
        if length > self.server.max_bytes:
            self._drop(length)
            raise Refusal(
                413,
                f"the body has {length} bytes; at most {self.server.max_bytes} are allowed: "
                "see --max-request",
            )
        return length

    def _drop(self, length: int) -> None:
        """Read a body and forget it, and close the connection after the response."""
        if not length:
            return
        self.close_connection = True
        self.server.set_deadline(self.connection, True)
        left = min(length, _DROPPED)
        while left > 0:
            piece = self.rfile.read(min(left, 1 << 16))
            if not piece:
                return
            left -= len(piece)

    def _send(self, response: Response) -> None:
        self.server.set_deadline(self.connection, True)
        self.send_response(response.status)
        headers = {
            "Content-Type": response.content_type,
            "Content-Length": str(len(response.body)),
            **_HEADERS,
            **response.headers,
        }
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)


def _is_trusted(host: str, names: FrozenSet[str]) -> bool:
    """Return True for the header Host of an IP address, of localhost, or of an allowed name."""
    try:
        # "[::1]:8080" has the hostname "::1".
        name = urlsplit("//" + host).hostname or ""
        if name == "localhost" or name in names:
            return True
        ip_address(name)
    except ValueError:
        return False
    return True
