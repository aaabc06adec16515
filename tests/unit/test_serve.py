"""`python3 BUNDLE serve`: the Open Inference Protocol, raw samples, and what is refused."""

from __future__ import annotations

import http.client
import io
import json
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from email.message import Message
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgepack import bundle, load
from edgepack.runtime.preprocess.code import Code, CodeInput, Function
from edgepack.runtime.serve.server import CONNECTIONS, Refusal, Request, Response, Server
from edgepack.runtime.serve.service import Service
from support.bundle_cases import run_bundle
from support.serving import Served, infer_request, serve, serving, words_contents

INFER = "/v2/models/linear/infer"
ROWS = np.random.default_rng(5).normal(size=(3, 8)).astype(np.float32)


def picture(colour: tuple[int, int, int], form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(stream, form)
    return stream.getvalue()


@pytest.fixture(scope="module")
def service(linear_bundle: Path) -> Service:
    return Service(load(linear_bundle, threads=1), "linear")


def test_the_documents_are_those_of_the_protocol(served_linear: Served) -> None:
    assert served_linear.json("/v2/health/live") == {"live": True}
    assert served_linear.json("/v2/health/ready")["ready"]
    server = served_linear.json("/v2")
    assert server == {"name": "edgepack", "version": "", "extensions": ["binary_tensor_data"]}
    assert served_linear.json("/v2/models/linear") == {
        "name": "linear",
        "platform": "onnxruntime",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 8]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
    }
    assert served_linear.json("/v2/models/linear/ready") == {"name": "linear", "ready": True}


def test_json_gives_the_bits_of_the_loader(served_linear: Served, linear_bundle: Path) -> None:
    request = json.loads(infer_request(ROWS))
    request["id"] = "forty-two"
    answer = served_linear.json(INFER, json.dumps(request).encode())
    (output,) = answer["outputs"]
    assert (answer["id"], answer["model_name"]) == ("forty-two", "linear")
    assert (output["name"], output["datatype"], output["shape"]) == ("y", "FP32", [3, 3])
    values = np.array(output["data"], np.float32).reshape(3, 3)
    np.testing.assert_array_equal(values, load(linear_bundle)(x=ROWS)["y"])
    assert answer["parameters"]["milliseconds"] > 0


def test_binary_tensors_give_the_same_bits(served_linear: Served, linear_bundle: Path) -> None:
    data = ROWS.astype("<f4").tobytes()
    head = {
        "inputs": [{"name": "x", "shape": [3, 8], "datatype": "FP32",
                    "parameters": {"binary_data_size": len(data)}}],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
    }  # fmt: skip
    text = json.dumps(head).encode()
    length = str(len(text))
    status, body, headers = served_linear.ask(
        INFER, text + data, Inference_Header_Content_Length=length
    )
    assert status == 200, body
    size = int(headers["Inference-Header-Content-Length"])
    (output,) = json.loads(body[:size])["outputs"]
    assert output["parameters"] == {"binary_data_size": 36}
    values = np.frombuffer(body[size:], "<f4").reshape(output["shape"])
    np.testing.assert_array_equal(values, load(linear_bundle)(x=ROWS)["y"])


def change(**changes: object) -> bytes:
    """A valid request with other values in its input."""
    request = json.loads(infer_request(ROWS[:1]))
    request["inputs"][0].update(changes)
    return json.dumps(request).encode()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "it is not JSON"),
        (b"\xff{}", "it is not JSON"),
        (b"[]", "'inputs' is missing"),
        (b'{"inputs": [1]}', "inputs[0]: the key 'name' is missing"),
        (b'{"inputs": [], "inputs": []}', "a key is repeated"),
        (b"[" * 5000 + b"]" * 5000, "nested deeper"),
        (change(data=[0] * 7 + [float("nan")]), "NaN is not a JSON number"),
        (change(data=[0] * 7 + [1e39]), "out of the range of FP32"),
        (change(data=[0] * 7 + [None]), "the data are not FP32"),
        (change(data=[0] * 7 + ["1"]), "the data are not FP32"),
        (change(data=[True] * 8), "the data are not FP32"),
        (change(data=[0] * 7 + [[1]]), "inputs[0]: "),
        (change(data=[0] * 9), "cannot reshape"),
        (change(shape=[8]), "x is float32:8"),
        (change(shape=[1, -8]), "negative"),
        (change(shape=[1, 8.0]), "not a whole number"),
        (change(shape=[1] * 100 + [8]), "inputs[0]: "),
        (change(shape=[10**20, 8]), "inputs[0]: "),
        (change(name="z"), "x is missing; z is unknown"),
        (change(datatype="BYTES"), "'BYTES' is not supported"),
        (change(datatype="INT8", data=[300] * 8), "out of the range of INT8"),
        (change(datatype="INT64", data=[1.5] * 8), "the data are not INT64"),
        (change(datatype="FP64"), "x is float64:1,8"),
        (change(parameters={"shared_memory_region": "a"}), "not supported"),
        (change(parameters={"binary_data_size": 32}), "0 bytes are there"),
        (change(parameters={"binary_data_size": -1}), "0 bytes are there"),
        (infer_request(ROWS)[:-1] + b', "outputs": [{"name": "z"}]}', "'z' is unknown"),
        (infer_request(ROWS)[:-1] + b', "outputs": [7]}', "'name' is missing"),
        (infer_request(ROWS)[:-1] + b', "id": 7}', "id: it has the wrong type"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_refused_with_its_reason(
    body: bytes, reason: str, served_linear: Served
) -> None:
    status, data, _ = served_linear.ask(INFER, body)
    document = json.loads(data)
    assert (status, set(document)) == (400, {"error"})
    assert reason in document["error"]


def test_no_mutated_request_fails_inside(service: Service) -> None:
    """Each is answered, or refused as the client's fault."""
    generator = random.Random(0)
    source = infer_request(ROWS[:1])
    pieces = [
        b"null",
        b"[",
        b"}",
        b"1e999",
        b'"',
        b"-",
        b"9" * 30,
        b"\\ud800",
        b"{}",
        b"\x00",
        b"true",
    ]
    statuses = set()
    for _ in range(2000):
        body = bytearray(source)
        for _ in range(generator.randint(1, 3)):
            start = generator.randrange(len(body))
            body[start : start + generator.randint(0, 12)] = generator.choice(pieces)
        try:
            response = service.answer(Request("POST", INFER, Message(), bytes(body)))
            statuses.add(response.status)
        except Refusal as refusal:
            statuses.add(refusal.status)
    assert statuses == {200, 400}


def test_an_infinite_answer_is_told_and_returned_as_bytes(served_linear: Served) -> None:
    largest = np.full((1, 8), np.finfo(np.float32).max, np.float32)
    status, body, _ = served_linear.ask(INFER, infer_request(largest))
    assert status == 500
    assert "has NaN or an infinity" in json.loads(body)["error"]
    request = json.loads(infer_request(largest))
    request["parameters"] = {"binary_data_output": True}
    status, body, headers = served_linear.ask(INFER, json.dumps(request).encode())
    assert status == 200
    size = int(headers["Inference-Header-Content-Length"])
    assert not np.isfinite(np.frombuffer(body[size:], "<f4")).all()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/other", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404),
        ("GET", "//etc/passwd", 404),
        ("GET", INFER, 405),
        ("POST", "/v2", 405),
        ("POST", "/predict", 404),
        ("PUT", INFER, 501),
        ("OPTIONS", INFER, 501),
        ("GET", "/" + "a" * 70_000, 414),
        ("HEAD", "/v2", 200),
    ],
)
def test_addresses_and_methods(method: str, path: str, status: int, served_linear: Served) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served_linear.port, timeout=20)
    connection.request(method, path)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    assert response.status == status
    assert response.headers["Content-Type"] == "application/json"
    assert (method == "HEAD") == (body == b"")
    if status >= 400:
        assert json.loads(body)["error"]
    assert not [name for name in response.headers if name.startswith("Access-Control")]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "localhost.evil.example:80"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": "localhost:9"}, 200),
        ({"Host": "[::1]:80"}, 200),
        ({"Host": "edge.example"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:9", "Origin": "http://localhost:9"}, 200),
    ],
)
def test_pages_of_others_are_refused(
    headers: dict[str, str], status: int, service: Service
) -> None:
    """A name of an attacker's may be made to point here, and a page may post to any address."""
    with own_server(service, names=frozenset({"edge.example"})) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
        connection.request("POST", INFER, infer_request(ROWS), headers)
        response = connection.getresponse()
        response.read()
        connection.close()
    assert response.status == status


@contextmanager
def own_server(
    service: Service, *, names: frozenset[str] = frozenset(), seconds: float = 30.0
) -> Iterator[Server]:
    """A server in this process, with limits of the test."""
    server = Server(("127.0.0.1", 0), service.answer, names, 4096, seconds)
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def exchange(port: int, *parts: bytes, pause: float = 0.0) -> bytes:
    """Send parts of a request, and return all that comes back."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        received = b""
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
            while piece := connection.recv(1 << 16):
                received += piece
        except ConnectionError:
            pass
        return received


HEAD = b"POST /v2/models/linear/infer HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (HEAD + b"Content-Length: 4097\r\n\r\n" + b"x" * 4097, b"413"),
        (HEAD + b"Content-Length: 99999999999999999999\r\n\r\n", b"400"),
        (HEAD + b"Content-Length: -1\r\n\r\n", b"400"),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", b"400"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"411"),
        (HEAD + b"Inference-Header-Content-Length: x\r\nConnection: close\r\n\r\n", b"400"),
        (HEAD + b"A: b\r\n" * 200 + b"\r\n", b"431"),
        # The start of a TLS handshake.
        (b"\x16\x03\x01\x02\x00\x01\xfc\r\n\r\n", b"400"),
        (b"POST / HTTP/9.9\r\n\r\n", b"505"),
    ],
)
def test_wrong_headers(head: bytes, status: bytes, service: Service) -> None:
    with own_server(service) as server:
        assert exchange(server.server_port, head).split(b" ")[1] == status


def test_a_slow_client_is_cut_off(service: Service) -> None:
    """It sends a byte at a time, which no limit on a single read would notice."""
    with own_server(service, seconds=0.4) as server:
        started = time.monotonic()
        slow = [bytes([byte]) for byte in HEAD[:40]]
        assert exchange(server.server_port, *slow, pause=0.1) == b""
        body = [HEAD + b"Content-Length: 4000\r\n\r\n", *[b"x"] * 40]
        exchange(server.server_port, *body, pause=0.1)
        assert time.monotonic() - started < 4
        assert exchange(server.server_port, HEAD + b"Connection: close\r\n\r\n").startswith(b"HTTP")


def test_one_connection_too_many_is_refused(service: Service) -> None:
    with own_server(service) as server:
        address = ("127.0.0.1", server.server_port)
        idle = [socket.create_connection(address, timeout=20) for _ in range(CONNECTIONS)]
        assert b" 503 " in exchange(server.server_port, b"GET /v2 HTTP/1.1\r\n\r\n")
        for connection in idle:
            connection.close()
        wait_until(lambda: exchange(server.server_port, b"GET /v2 HTTP/1.0\r\nHost: ::1\r\n\r\n"))


def wait_until(attempt: Callable[[], bytes]) -> None:
    deadline = time.monotonic() + 10
    while b" 403 " not in attempt():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_sixteen_clients_get_their_own_answers(served_linear: Served, linear_bundle: Path) -> None:
    samples = np.random.default_rng(7).normal(size=(16, 1, 8)).astype(np.float32)
    expected = [load(linear_bundle)(x=sample)["y"] for sample in samples]

    def ask(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", served_linear.port, timeout=60)
        for _ in range(20):
            connection.request("POST", INFER, infer_request(samples[number]))
            output = json.loads(connection.getresponse().read())["outputs"][0]
            values = np.array(output["data"], np.float32).reshape(1, 3)
            np.testing.assert_array_equal(values, expected[number])
        connection.close()

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(16)))


@pytest.mark.parametrize("colour", range(3))
def test_a_picture_gets_names(colour: int, served_colours: Served) -> None:
    pixel = [20, 20, 20]
    pixel[colour] = 230
    answer = served_colours.json("/predict", picture((pixel[0], pixel[1], pixel[2])))
    names = [entry["name"] for entry in answer["top"]]
    assert names[0] == ("red", "green", "blue")[colour]
    assert answer["top"][0]["probability"] > 0.9
    assert min(answer["milliseconds"].values()) > 0


@pytest.mark.parametrize("body", [b"", b"no picture", picture((9, 9, 9), "JPEG")[:200]])
def test_what_is_no_picture_is_refused(body: bytes, served_colours: Served) -> None:
    status, data, _ = served_colours.ask("/predict", body)
    assert status == 400
    assert json.loads(data)["error"]


@pytest.mark.parametrize(
    ("text", "name"),
    [("so good \U0001f60d", "favourable"), ("\u202e bad \u05d4 bad good", "unfavourable")],
)
def test_a_text_gets_names(text: str, name: str, served_words: Served) -> None:
    body = json.dumps({"text": text}, ensure_ascii=False).encode()
    assert served_words.json("/predict", body)["top"][0]["name"] == name
    assert served_words.json("/model")["raw"] == "text"


@pytest.mark.parametrize(
    ("body", "remedy"),
    [
        (b"good", 'send {"text": "..."}'),
        (b'{"text": 7}', 'send {"text": "..."}'),
        (b'{"texts": "good"}', 'send {"text": "..."}'),
        (b'{"text": ""}', "remove it"),
        (b'{"text": ["good", "bad"]}', "pass one text"),
        (b'{"text": ["good"]}', "pass one text"),
    ],
)
def test_what_is_no_text_is_refused_with_a_remedy(
    body: bytes, remedy: str, served_words: Served
) -> None:
    status, data, _ = served_words.ask("/predict", body)
    assert status == 400
    assert remedy in json.loads(data)["error"]


def test_two_texts_are_a_list(tmp_path: Path) -> None:
    path = tmp_path / "pair.edgepack"
    bundle.write(path, words_contents(pair=True))
    service = Service(load(path, threads=1), "words")

    def ask(document: object) -> Response:
        body = json.dumps(document).encode()
        return service.answer(Request("POST", "/predict", Message(), body))

    top = json.loads(ask({"text": ["good", "good bad"]}).body)["top"]
    assert [entry["score"] for entry in top] == [6, 3]
    for text in ("good", ["good"], ["good", 7], ["a", "b", "c"]):
        with pytest.raises(Refusal) as caught:
            ask({"text": text})
        assert caught.value.status == 400


PREPARE = b"""
import numpy as np

def prepare(data):
    return np.array([[data.count(b"+"), data.count(b"-")]]).clip(0, 1) * [1, 2]
"""
DECODE = b"""
def decode(outputs):
    return [{"mood": float(outputs["scores"][0, 1] - outputs["scores"][0, 0])}]
"""


def test_the_bundle_s_own_functions_prepare_and_decode(tmp_path: Path) -> None:
    path = tmp_path / "own.edgepack"
    inputs = (CodeInput("ids", "int64", 2),)
    contents = replace(
        words_contents(),
        preprocessing=Code(Function("prepare.py", PREPARE, "prepare"), inputs),
        postprocessing=Function("decode.py", DECODE, "decode"),
    )
    bundle.write(path, contents)
    with serve(path) as served:
        # A bundle that is served may be moved.
        path = path.rename(tmp_path / "moved.edgepack")
        assert served.json("/model")["raw"] == "code"
        assert served.json("/predict", b"+ and +")["result"] == {"mood": 3.0}
        assert served.json("/predict", b"- ?")["result"] == {"mood": -3.0}
    # Edgepack's own loader runs no code of a bundle.
    service = Service(load(path, threads=1), "words")
    with pytest.raises(Refusal, match="only the bundle itself runs it"):
        service.answer(Request("POST", "/predict", Message(), b"+"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_stops_quietly_and_starts_again_on_the_same_port(
    number: signal.Signals, linear_bundle: Path
) -> None:
    with serve(linear_bundle) as first:
        first.json("/v2")
        # A client that stays connected must not delay the end.
        with socket.create_connection(("127.0.0.1", first.port), timeout=20):
            started = time.monotonic()
            assert first.stop(number) == 0
            assert time.monotonic() - started < 8
    with serve(linear_bundle, "--port", str(first.port)) as second:
        assert second.port == first.port
        assert second.json("/v2/health/live") == {"live": True}


def test_a_port_in_use_is_named(served_linear: Served, linear_bundle: Path) -> None:
    done = run_bundle(linear_bundle, "serve", "--port", str(served_linear.port))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error[address-unusable]: ")
    assert "in use" in done.stderr


def test_the_page_admits_nothing_but_itself(served_linear: Served) -> None:
    status, body, headers = served_linear.ask("/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert b"http" not in body.replace(b"http-equiv", b"")


def test_an_exception_inside_is_no_end(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Request) -> Response:
        raise MemoryError("not enough")

    server = Server(("127.0.0.1", 0), fail, frozenset(), 100)
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        request = b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        for _ in range(2):
            assert b'{"error": "internal error: MemoryError"}' in exchange(
                server.server_port, request
            )
        server.shutdown()
        thread.join()
    assert "error: MemoryError: not enough" in capsys.readouterr().err


def test_the_build_host_serves_it_by_its_own_loader(colours: Path) -> None:
    command = [sys.executable, "-m", "edgepack", "serve", str(colours), "--port", "0", "--json"]
    with serving(*command) as served:
        answer = served.json("/predict", picture((20, 20, 230)))
        assert answer["top"][0]["name"] == "blue"
        assert served.stop() == 0
