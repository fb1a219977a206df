"""Requests and answers of the Open Inference Protocol V2, as bytes: JSON, and JSON followed by raw tensors.

Sources: the Open Inference Protocol (kserve/open-inference-protocol, ``inference_rest.md``) and Triton's binary
tensor data extension (triton-inference-server/server, ``docs/protocol/extension_binary_data.md``).
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pocketdx_serve.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pocketdx_runtime.model import Model
    from pocketdx_serve.engine import Outputs, Pixels
    from pocketdx_serve.settings import Settings

HEADER_LENGTH: Final = "Inference-Header-Content-Length"
INPUT: Final = "image"
VERSION: Final = "1"
"""The one version that each model has."""
MAX_JSON: Final = 16 * 1024 * 1024
SMALL_JSON: Final = 64 * 1024
"""Bytes of JSON up to which parsing takes less time than handing it to another thread."""
_DATATYPES: Final = {"uint8": "UINT8", "float32": "FP32"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """An output that was asked for, and whether as raw bytes."""

    name: str
    binary: bool


@dataclass(frozen=True, slots=True)
class InferRequest:
    """What is to be done.

    Attributes:
        id: to be repeated in the answer, or None.
        images: encoded ones, or uint8 [H, W, 3]; views of the body.
        outputs: of the model, in the order asked for.
    """

    id: str | None
    images: Sequence[bytes | Pixels]
    outputs: tuple[Wanted, ...]


def json_length(header: str | None, body: bytes) -> int:
    """How many bytes of the body are JSON.

    Raises:
        Problem: 400, the header is not a number within the body; 413, more than is parsed.
    """
    length = len(body)
    if header is not None:
        if not (header.isascii() and header.isdigit()) or int(header[:19]) > len(body):
            raise _bad(f"{HEADER_LENGTH} has to be a number of bytes, at most those of the body")
        length = int(header)
    if length > MAX_JSON:
        raise Problem("too-large", f"more than {MAX_JSON} bytes of JSON; send the tensor as binary data")
    return length


def parse(body: bytes, length: int, model: Model, settings: Settings) -> InferRequest:
    """Read and check a request.

    Args:
        body: JSON, then the raw tensors.
        length: bytes of JSON, of `json_length`.
        model: whose inputs and outputs are allowed.
        settings: limits.

    Raises:
        Problem: 400 malformed or not for this model, 413 past a limit, 422 a picture without pixels.
    """
    try:
        document = json.loads(body[:length])
    except (ValueError, RecursionError):
        raise _bad(f"the body does not begin with JSON; of binary requests {HEADER_LENGTH} says how much") from None
    if not isinstance(document, dict):
        raise _bad("the JSON is not an object")
    given = document.get("id")
    if given is not None and (not isinstance(given, str) or len(given) > 128):
        raise _bad("`id` has to be a string of at most 128 characters")
    tensors = document.get("inputs")
    if not isinstance(tensors, list) or len(tensors) != 1 or not isinstance(tensors[0], dict):
        raise _bad(f"`inputs` has to be a list of one tensor, `{INPUT}`")
    outputs = _wanted(document, model)
    return InferRequest(given, _images(tensors[0], memoryview(body)[length:], model, settings), outputs)


def _images(tensor: Mapping[str, Any], raw: memoryview, model: Model, settings: Settings) -> Sequence[bytes | Pixels]:
    if tensor.get("name") != INPUT:
        raise _bad(f"the one input is called `{INPUT}`")
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not all(type(each) is int and 0 <= each < 2**31 for each in shape):
        raise _bad("`shape` has to be a list of sizes")
    if shape and shape[0] > settings.max_images:
        raise Problem("too-many-images", f"more than {settings.max_images} images; send them in several requests")
    binary = _parameters(tensor).get("binary_data_size")
    if binary is None and len(raw):
        raise _bad(f"{len(raw)} bytes follow the JSON, but no tensor has a `binary_data_size`")
    if binary is not None and (type(binary) is not int or binary != len(raw)):
        raise _bad(f"`binary_data_size` has to be the {len(raw)} bytes that follow the JSON")
    data = raw if binary is not None else tensor.get("data")
    match tensor.get("datatype"):
        case "UINT8":
            return list(_pixels(data, shape, model, settings))
        case "BYTES":
            return _encoded(data, shape, settings)
        case _:
            raise _bad("`datatype` has to be UINT8 [N, H, W, 3], RGB pixels, or BYTES [N], encoded images")


def _pixels(data: Any, shape: list[int], model: Model, settings: Settings) -> Pixels:
    if len(shape) != 4 or shape[3] != 3:
        raise _bad("the shape of UINT8 has to be [N, H, W, 3]")
    _, height, width, _ = shape
    if 0 in shape:
        raise Problem("zero-size", "an image without pixels; send one that has some")
    fixed = model.inputs[0].shape[1:3]
    if any(isinstance(side, int) and side != given for side, given in zip(fixed, shape[1:3], strict=True)):
        raise _bad(f"this model takes only pictures of {fixed[1]} x {fixed[0]} pixels")
    if height * width > settings.max_pixels or max(height, width) > settings.max_side:
        raise Problem("too-large", f"{width} x {height} pixels; the limit is {settings.max_pixels}; scale it down")
    if isinstance(data, memoryview):
        array = np.frombuffer(data, np.uint8)
    else:
        try:
            numbers = np.asarray(data)
        except (ValueError, OverflowError, RecursionError):
            raise _bad("`data` has to be numbers, flat or nested like the shape") from None
        if numbers.dtype.kind not in "iu" or list(numbers.shape) not in ([numbers.size], shape):
            raise _bad("`data` has to be whole numbers from 0 to 255, flat or nested like the shape")
        if numbers.size and not 0 <= int(numbers.min()) <= int(numbers.max()) <= 255:
            raise _bad("`data` has to be whole numbers from 0 to 255")
        array = numbers.astype(np.uint8).ravel()
    if array.size != math.prod(shape):
        raise _bad(f"the shape asks for {math.prod(shape)} values, there are {array.size}")
    return array.reshape(shape)


def _encoded(data: Any, shape: list[int], settings: Settings) -> list[bytes]:
    """Encoded images: each a 4-byte little-endian length and that many bytes, or in JSON a base64 string."""
    if math.prod(shape) > settings.max_images:
        raise Problem("too-many-images", f"more than {settings.max_images} images; send them in several requests")
    images: list[bytes] = []
    if isinstance(data, memoryview):
        at = 0
        while at + 4 <= len(data) and len(images) <= settings.max_images:
            (size,) = struct.unpack_from("<I", data, at)
            images.append(bytes(data[at + 4 : at + 4 + size]))
            at += 4 + size
        if at != len(data):
            raise _bad("BYTES has to be, for each image, its length in 4 bytes (little-endian) and its bytes")
    elif isinstance(data, list) and all(isinstance(each, str) for each in data):
        try:
            images = [base64.b64decode(each, validate=True) for each in data]
        except (binascii.Error, ValueError):
            raise _bad("`data` of BYTES has to be base64 strings") from None
    else:
        raise _bad("`data` of BYTES has to be a list of base64 strings")
    if len(images) != math.prod(shape) or not shape:
        raise _bad(f"the shape is {shape}, there are {len(images)} images")
    if not images:
        raise Problem("empty", "no image; send at least one")
    return images


def _wanted(document: Mapping[str, Any], model: Model) -> tuple[Wanted, ...]:
    default = _parameters(document).get("binary_data_output") is True
    asked = document.get("outputs")
    if not asked:
        return tuple(Wanted(name, default) for name in model.manifest.outputs)
    if not isinstance(asked, list) or not all(isinstance(each, dict) for each in asked):
        raise _bad("`outputs` has to be a list of objects with a `name`")
    wanted: dict[str, Wanted] = {}
    for each in asked:
        name, parameters = each.get("name"), _parameters(each)
        if not isinstance(name, str) or name not in model.manifest.outputs:
            raise Problem("output-missing", f"the outputs are {', '.join(model.manifest.outputs)}")
        if "classification" in parameters or "shared_memory_region" in parameters:
            raise _bad("the classification and shared memory extensions are not supported here")
        wanted[name] = Wanted(name, parameters.get("binary_data", default) is True)
    return tuple(wanted.values())


def _parameters(owner: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = owner.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise _bad("`parameters` has to be an object")
    if "shared_memory_region" in parameters:
        raise _bad("the shared memory extension is not supported here")
    return parameters


def answer(name: str, request: InferRequest, rows: Sequence[Outputs]) -> tuple[bytes, int | None]:
    """The body of an answer.

    Args:
        name: of the model.
        request: what was asked.
        rows: for each image its outputs, float32 [1, ...].

    Returns:
        The body, and the bytes of JSON in it, None if it is JSON alone.
    """
    outputs, raw = [], []
    for wanted in request.outputs:
        array = np.concatenate([row[wanted.name] for row in rows])
        entry: dict[str, Any] = {"name": wanted.name, "datatype": "FP32", "shape": list(array.shape)}
        if wanted.binary:
            raw.append(array.astype("<f4").tobytes())
            entry["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            entry["data"] = array.ravel().tolist()
        outputs.append(entry)
    document: dict[str, Any] = {"model_name": name, "model_version": VERSION, "outputs": outputs}
    if request.id is not None:
        document["id"] = request.id
    head = json.dumps(document, allow_nan=False).encode()
    return b"".join([head, *raw]), len(head) if raw else None


def metadata(name: str, model: Model) -> dict[str, Any]:
    """The model's inputs and outputs; -1 is a free size."""
    shapes = [
        [
            {
                "name": spec.name,
                "datatype": _DATATYPES[spec.dtype],
                "shape": [each if isinstance(each, int) else -1 for each in spec.shape],
            }
            for spec in specs
            if spec.name == INPUT or spec.name in model.manifest.outputs
        ]
        for specs in (model.inputs, model.outputs)
    ]
    return {
        "name": name,
        "versions": [VERSION],
        "platform": "onnxruntime_onnx",
        "inputs": shapes[0],
        "outputs": shapes[1],
        "parameters": {"digest": model.digest, "labels": list(model.manifest.labels)},
    }


def _bad(detail: str) -> Problem:
    return Problem("bad-request", detail)
