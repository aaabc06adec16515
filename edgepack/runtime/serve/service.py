"""Answers of the server: the page, the model's description, and inference."""

from __future__ import annotations

import base64
import hashlib
import pkgutil
import re
import threading
import time
from contextlib import nullcontext
from typing import Callable, ContextManager, Dict, Tuple
from urllib.parse import unquote

from ..errors import EdgepackError, InputError
from ..model import Model
from .protocol import (
    EXTENSION,
    JSON_LENGTH,
    describe_tensor,
    encode_response,
    not_finite,
    read_request,
    read_text,
)
from .server import JSON, Refusal, Request, Response, encode

BINARY = "application/octet-stream"


class Service:
    """One model behind its addresses.

    Args:
        model: the model.
        name: its name in the protocol's addresses.
    """

    def __init__(self, model: Model, name: str) -> None:
        self._model = model
        self._name = name
        # One inference at a time: each takes every core, and so several would take longer.
        self._turn = threading.Lock()
        self._page = make_page()
        base = f"v2/models/{name}"
        # Path without its outer slashes -> method and function.
        self._routes: Dict[str, Tuple[str, Callable[[Request], Response]]] = {
            "": ("GET", lambda _: self._page),
            "model": ("GET", self._describe),
            "v2": ("GET", self._describe_server),
            "v2/health/live": ("GET", lambda _: encode(200, {"live": True})),
            "v2/health/ready": ("GET", lambda _: encode(200, {"live": True, "ready": True})),
            base: ("GET", self._describe_model),
            f"{base}/ready": ("GET", lambda _: encode(200, {"name": name, "ready": True})),
            f"{base}/infer": ("POST", self._infer),
        }
        if model.preprocessing is not None:
            self._routes["predict"] = ("POST", self._predict)

    def finish(self, seconds: float) -> None:
        """Wait for the running inference, so long at most."""
        self._turn.acquire(timeout=seconds)

    def answer(self, request: Request) -> Response:
        """Return the response to a request. Raises Refusal."""
        path = unquote(request.path).strip("/")
        if path not in self._routes:
            raise Refusal(404, f"there is nothing at {path!r}; the model is {self._name!r}")
        method, act = self._routes[path]
        if request.method.replace("HEAD", "GET") != method:
            raise Refusal(405, f"{path!r} takes {method} only", {"Allow": method})
        try:
            return act(request)
        except EdgepackError as error:
            status = 400 if isinstance(error, InputError) else 500
            raise Refusal(status, _format_error(error)) from error

    def _describe(self, _: Request) -> Response:
        """Return what the page shows of the model."""
        index, choice = self._model.index, self._model.choice
        document = {
            "name": self._name,
            "target": index.target,
            "engine": choice.require_variant().engine,
            "content_digest": index.content_digest,
            "inputs": [describe_tensor(tensor) for tensor in index.inputs],
            "outputs": [{**describe_tensor(t), "kind": t.kind} for t in index.outputs],
            "classes": self._model.class_names,
            "raw": None,
        }
        preprocessing = self._model.preprocessing
        if preprocessing is not None and index.preprocessing is not None:
            document["raw"] = index.preprocessing.value["kind"]
            # A function of the user's, of the kind "code", may take texts, too.
            if preprocessing.takes_text:
                document["raw"] = "text"
            document["pair"] = index.preprocessing.value.get("pair", False)
        return encode(200, document)

    def _describe_server(self, _: Request) -> Response:
        version = str(self._model.index.raw.get("tools", {}).get("edgepack", ""))
        return encode(200, {"name": "edgepack", "version": version, "extensions": [EXTENSION]})

    def _describe_model(self, _: Request) -> Response:
        document = {
            "name": self._name,
            "platform": self._model.choice.require_variant().engine,
            "inputs": [describe_tensor(tensor) for tensor in self._model.inputs],
            "outputs": [describe_tensor(tensor) for tensor in self._model.outputs],
        }
        return encode(200, document)

    def _predict(self, request: Request) -> Response:
        """Answer a raw sample: the bytes of a file, or {"text": "..."}, or a list of two texts."""
        preprocessing, index = self._model.preprocessing, self._model.index
        if preprocessing is not None and preprocessing.takes_text:
            sample: object = read_text(request.body)
        else:
            sample = request.body
        turn_to_prepare: ContextManager[object] = nullcontext()
        if index.preprocessing is not None and index.preprocessing.value["kind"] == "code":
            # Decoders run side by side, but nothing is known of a function of the user's.
            turn_to_prepare = self._turn
        with turn_to_prepare:
            started = time.perf_counter()
            feed = self._model.preprocess(sample)
            prepared = time.perf_counter()
        with self._turn:
            turn = time.perf_counter()
            prediction = self._model.predict(feed)
            ended = time.perf_counter()
        document = prediction.to_json()
        document["milliseconds"] = {
            "prepare": round(1000 * (prepared - started), 3),
            "model": round(1000 * (ended - turn), 3),
        }
        try:
            return encode(200, document)
        except ValueError as error:
            raise not_finite("the prediction") from error

    def _infer(self, request: Request) -> Response:
        length = request.headers.get(JSON_LENGTH)
        if length is not None and not re.match(r"[0-9]{1,15}\Z", length):
            raise Refusal(400, f"{JSON_LENGTH} is not a number")
        inference = read_request(
            request.body, None if length is None else int(length), self._model.outputs
        )
        with self._turn:
            started = time.perf_counter()
            outputs = self._model.run(inference.inputs)
            milliseconds = 1000 * (time.perf_counter() - started)
        body, json_length = encode_response(self._name, inference, outputs, milliseconds)
        if json_length is None:
            return Response(200, body, JSON)
        return Response(200, body, BINARY, {JSON_LENGTH: str(json_length)})


def _format_error(error: EdgepackError) -> str:
    return "; ".join(filter(None, (f"{error.what}: {error.why}".rstrip(": "), error.hint)))


def make_page() -> Response:
    """Return the page, with a policy that admits its own style and script and nothing else."""
    # `get_data` reads from a folder and from a bundle. The page holds no data: its script fetches
    # the model's description.
    page = (pkgutil.get_data(__package__, "page.html") or b"").decode("utf-8")
    sources = {}
    for tag in ("style", "script"):
        text = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        sources[tag] = f"{tag}-src 'sha256-{digest}'"
    policy = (
        f"default-src 'none'; {sources['style']}; {sources['script']}; connect-src 'self'; "
        "img-src blob: data:; media-src blob:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy}
    return Response(200, page.encode(), "text/html; charset=utf-8", headers)
