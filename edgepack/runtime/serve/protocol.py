"""Open Inference Protocol, version 2: requests and responses of inference over REST.

A request is a JSON object. With the binary tensor data extension the values of some tensors follow
it as bytes, and a header gives the length of the JSON:

    {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0.5, 1]}]}

    {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32",
                 "parameters": {"binary_data_size": 8}}]}<8 bytes, little-endian>
"""

from __future__ import annotations

import json
from io import BytesIO
from itertools import chain
from typing import Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from ..bundle.index import DTYPES
from ..errors import DeviceError, EdgepackError, InputError
from ..strict_json import Reader, parse
from ..tensor import Tensor

EXTENSION = "binary_tensor_data"
JSON_LENGTH = "Inference-Header-Content-Length"
# Kinds of numpy's types that a JSON array may have, by the kind of the tensor: 1 is a valid float,
# but 1.5 is not a valid integer, and true is not a number.
_KINDS = {"f": "fiu", "i": "iu", "u": "iu", "b": "b"}


class Request(NamedTuple):
    """Request for one inference.

    Attributes:
        id: identifier that the response repeats; None for none.
        inputs: arrays by input name.
        outputs: requested outputs in order: True returns one as bytes, False as JSON.
    """

    id: Optional[str]
    inputs: Dict[str, np.ndarray]
    outputs: Mapping[str, bool]


def datatype(dtype: str) -> str:
    """Return the protocol's name of an element type: float32 is FP32, uint8 is UINT8."""
    return dtype.replace("float", "fp").upper()


_DTYPES = {datatype(dtype): dtype for dtype in DTYPES}


def describe_tensor(tensor: Tensor) -> Dict[str, object]:
    """Return the metadata of an input or output; a dynamic axis is -1."""
    shape = [-1 if isinstance(dim, str) else dim for dim in tensor.shape]
    return {"name": tensor.name, "datatype": datatype(tensor.dtype), "shape": shape}


def read_request(body: bytes, json_length: Optional[int], outputs: Sequence[Tensor]) -> Request:
    """Read a request for an inference. Raises InputError for an invalid one.

    Args:
        body: of the HTTP request.
        json_length: of the JSON at its start; None if it is JSON alone.
        outputs: of the model; a request that names none asks for all.
    """
    length = len(body) if json_length is None else json_length
    if length > len(body):
        raise _fault(JSON_LENGTH, f"it is {length}, but the body has {len(body)} bytes")
    top = parse(body[:length], _fault, length, encoding="utf-8")
    binary = BytesIO(body[length:])
    inputs: Dict[str, np.ndarray] = {}
    for name, array in top.each("inputs", lambda reader: _read_input(reader, binary)):
        if name in inputs:
            raise _fault("inputs", f"two of them are named {name!r}")
        inputs[name] = array
    rest = binary.read()
    if rest:
        raise _fault("inputs", f"{len(rest)} bytes follow the last binary tensor")
    request_id = top.get("id", str) if "id" in top.value else None
    return Request(request_id, inputs, _read_outputs(top, outputs))


def read_text(body: bytes) -> Union[str, Tuple[str, ...]]:
    """Return the text of {"text": "..."}, or the texts of a list in its place.

    Raises InputError if it is anything else.
    """
    top = parse(body, _fault_in_text, len(body), encoding="utf-8")
    if isinstance(top.get("text", str, list), str):
        return top.get("text", str)
    return top.each("text", Reader.text)


def _fault_in_text(path: str, why: str) -> EdgepackError:
    error = _fault(path, why)
    error.hint = 'send {"text": "..."}, for a pair {"text": ["...", "..."]}'
    return error


def _fault(path: str, why: str) -> EdgepackError:
    return InputError("request-invalid", "the request is invalid", why=f"{path}: {why}".strip(": "))


def _parameters(reader: Reader, *names: str) -> Reader:
    """Return the parameters of a tensor, of which only some are supported."""
    if "parameters" not in reader.value:
        return Reader({}, reader.path, _fault)
    parameters = reader.at("parameters")
    for name in parameters.value:
        if name not in names:
            raise parameters.fault(f"{name!r} is not supported")
    return parameters


def _read_input(reader: Reader, binary: BytesIO) -> Tuple[str, np.ndarray]:
    name, kind = reader.get("name", str), reader.get("datatype", str)
    if kind not in _DTYPES:
        raise reader.fault(f"the datatype {kind!r} is not supported")
    dtype = np.dtype(_DTYPES[kind])
    shape = reader.each("shape", Reader.number)
    if min(shape, default=0) < 0:
        raise reader.fault("the shape has a negative size")
    parameters = _parameters(reader, "binary_data_size")
    try:
        if parameters.value:
            values = _read_bytes(parameters, binary, dtype)
        else:
            values = _convert(reader.get("data", list), dtype)
        return name, values.reshape(shape)
    # The size does not fit the shape, or the lists are ragged.
    except (ValueError, OverflowError) as error:
        raise reader.fault(str(error)) from error


def _read_bytes(parameters: Reader, binary: BytesIO, dtype: np.dtype) -> np.ndarray:
    size = parameters.get("binary_data_size", int)
    data = binary.read(max(size, 0))
    if len(data) != size:
        raise parameters.fault(f"binary_data_size is {size}, but {len(data)} bytes are there")
    if dtype.kind == "b":
        # Any other byte than 0 is true, but numpy's own bools are 0 and 1.
        return np.frombuffer(data, np.uint8).astype(bool)
    return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype)


def _convert(values: List[object], dtype: np.dtype) -> np.ndarray:
    """Convert nested lists of numbers or bools without loss. Raises ValueError if they do not fit.

    If numpy were told the type, it would silently take 1.5 for 1, null for NaN and "2" for 2.
    """
    # An array of texts has the length of the longest in each element: 1 MB of JSON with a text of
    # 1,000 letters would take 1 GB.
    if _has_texts(values):
        raise ValueError(f"the data are not {datatype(dtype.name)}")
    natural = np.array(values)
    if natural.size and natural.dtype.kind not in _KINDS[dtype.kind]:
        raise ValueError(f"the data are not {datatype(dtype.name)}")
    with np.errstate(over="ignore"):
        array = natural.astype(dtype)
    # 300 wraps around in int8, and 1e300 overflows in float32.
    exact = dtype.kind == "f" or np.array_equal(array, natural)
    if not exact or not np.isfinite(array).all():
        raise ValueError(f"a value is out of the range of {datatype(dtype.name)}")
    return array


def _has_texts(values: List[object]) -> bool:
    """Return True if nested lists hold anything besides numbers and bools."""
    kinds = set(map(type, values))
    while list in kinds:
        below = [value for value in values if isinstance(value, list)]
        if not kinds <= {list, int, float, bool}:
            return True
        values = list(chain.from_iterable(below))
        kinds = set(map(type, values))
    return not kinds <= {int, float, bool}


def _read_outputs(top: Reader, outputs: Sequence[Tensor]) -> Mapping[str, bool]:
    binary = False
    # Parameters of the whole request may be of other extensions.
    if "parameters" in top.value and "binary_data_output" in top.at("parameters").value:
        binary = top.at("parameters").get("binary_data_output", bool)
    names = [tensor.name for tensor in outputs]
    if not top.value.get("outputs"):
        return dict.fromkeys(names, binary)
    requested: Dict[str, bool] = {}
    for name, as_bytes in top.each("outputs", lambda reader: _read_output(reader, binary)):
        if name not in names or name in requested:
            raise _fault("outputs", f"{name!r} is unknown or repeated; there are {names}")
        requested[name] = as_bytes
    return requested


def _read_output(reader: Reader, binary: bool) -> Tuple[str, bool]:
    name = reader.get("name", str)
    parameters = _parameters(reader, "binary_data")
    if parameters.value:
        binary = parameters.get("binary_data", bool)
    return name, binary


def encode_response(
    model: str, request: Request, outputs: Mapping[str, np.ndarray], milliseconds: float
) -> Tuple[bytes, Optional[int]]:
    """Return the body of a response, and the length of its JSON if bytes follow it.

    Raises DeviceError if an output that is requested as JSON has NaN or an infinity.
    """
    tensors, binary = [], []
    for name, as_bytes in request.outputs.items():
        array = outputs[name]
        entry: Dict[str, object] = {
            "name": name,
            "datatype": datatype(array.dtype.name),
            "shape": list(array.shape),
        }
        # The bytes follow the JSON in the order of the outputs, with the lowest byte first.
        if as_bytes:
            data = array.astype(array.dtype.newbyteorder("<")).tobytes()
            entry["parameters"] = {"binary_data_size": len(data)}
            binary.append(data)
        else:
            entry["data"] = _to_list(name, array)
        tensors.append(entry)
    document: Dict[str, object] = {
        "model_name": model,
        "outputs": tensors,
        "parameters": {"milliseconds": round(milliseconds, 3)},
    }
    if request.id is not None:
        document["id"] = request.id
    text = json.dumps(document, allow_nan=False).encode()
    if not binary:
        return text, None
    return b"".join([text, *binary]), len(text)


def _to_list(name: str, array: np.ndarray) -> List[object]:
    if not np.isfinite(array).all():
        raise not_finite(f"the output {name}")
    values: List[object] = array.ravel().tolist()
    return values


def not_finite(name: str) -> DeviceError:
    """Return the error for an answer that JSON cannot hold."""
    return DeviceError(
        "output-not-finite",
        "the model's answer has NaN or an infinity, which JSON cannot hold",
        why=f"in {name}",
        hint='/v2 returns it with "parameters": {"binary_data": true} in the output',
    )
