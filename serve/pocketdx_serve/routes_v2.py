"""The addresses of the Open Inference Protocol V2; ``tensors`` has its bytes."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from fastapi import APIRouter, Request, Response

from pocketdx_serve import tensors
from pocketdx_serve.body import Upload
from pocketdx_serve.problems import Problem
from pocketdx_serve.routes import document_problems, server_timing, service_of

if TYPE_CHECKING:
    from pocketdx_serve.models import Loaded
    from pocketdx_serve.service import Service
    from pocketdx_serve.tensors import InferRequest

EXTENSIONS: Final = ("binary_tensor_data",)
_OBJECT: Final = {"type": "object"}
_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "description": "One input, `image`: UINT8 [N, H, W, 3], RGB pixels of any size, or BYTES [N], encoded images "
        "(base64 strings in JSON). Tensors may follow the JSON as raw bytes; Inference-Header-Content-Length then "
        "says how long the JSON is. Without `outputs` the answer has all of them.",
        "content": {
            "application/json": {
                "schema": _OBJECT,
                "example": {
                    "inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [200, 180, 170]}],
                    "outputs": [{"name": "probabilities"}],
                },
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    },
    "parameters": [
        {
            "name": tensors.HEADER_LENGTH,
            "in": "header",
            "required": False,
            "schema": {"type": "integer", "minimum": 0},
            "description": "Bytes of JSON in a body that goes on with raw tensors.",
        }
    ],
}
v2 = APIRouter(prefix="/v2", tags=["open inference protocol"])


@v2.get("", summary="Server metadata", responses=document_problems(401))
async def server(request: Request) -> dict[str, Any]:
    """Name, version and the extensions of the protocol that are spoken here."""
    service_of(request).admit(request)
    return {"name": "pocketdx", "version": version("pocketdx"), "extensions": list(EXTENSIONS)}


@v2.get("/health/live", summary="Is the process alive?", responses=document_problems(503))
async def live(request: Request) -> dict[str, Any]:
    """As /livez."""
    service_of(request).check_alive()
    return {"live": True}


@v2.get("/health/ready", summary="May it be asked?", responses=document_problems(503))
async def ready(request: Request) -> dict[str, Any]:
    """As /readyz."""
    service_of(request).check_ready()
    return {"ready": True}


@v2.get("/models/{name}", summary="A model's metadata", responses=document_problems(401, 404, 503))
@v2.get("/models/{name}/versions/{number}", include_in_schema=False)
async def model(request: Request, name: str, number: str = tensors.VERSION) -> dict[str, Any]:
    """Inputs and outputs, with -1 for free sizes; `parameters` has the file's digest and the labels."""
    service_of(request).admit(request)
    return tensors.metadata(name, _loaded(service_of(request), name, number).model)


@v2.get("/models/{name}/ready", summary="May a model be asked?", responses=document_problems(404, 503))
@v2.get("/models/{name}/versions/{number}/ready", include_in_schema=False)
async def model_ready(request: Request, name: str, number: str = tensors.VERSION) -> dict[str, Any]:
    """200 once the model has passed its self-test."""
    _loaded(service_of(request), name, number)
    return {"name": name, "ready": True}


@v2.post(
    "/models/{name}/infer",
    summary="Run a model",
    response_class=Response,
    responses={
        200: {"content": {"application/json": {"schema": _OBJECT}, "application/octet-stream": {}}},
        **document_problems(400, 401, 404, 408, 413, 415, 422, 429, 503, 504),
    },
    openapi_extra=_BODY,
)
@v2.post("/models/{name}/versions/{number}/infer", include_in_schema=False)
async def infer(request: Request, name: str, number: str = tensors.VERSION) -> Response:
    """The graph's own outputs for a batch of pictures, each worked on by itself, on all threads."""
    service = service_of(request)
    who = service.admit(request, images=1)
    loaded = _loaded(service, name, number)
    service.check_room()
    notes = request.state.notes
    upload = Upload(service.held, service.settings, request)
    try:
        body = await upload.body()
        asked = await _parsed(service, loaded, body, request)
        notes["images"] = len(asked.images)
        service.owe(who, len(asked.images) - 1)
        outputs = [wanted.name for wanted in asked.outputs]
        if service.audit is not None and "probabilities" in loaded.model.manifest.outputs:
            outputs = list({*outputs, "probabilities"})  # the log has a verdict for every image
        works = [
            service.work(partial(loaded.engine.infer, image, outputs), image, who, loaded) for image in asked.images
        ]
        answers = await service.examine(name, works, request.receive)
    finally:
        notes["bytes"] = upload.size
        upload.release()
    content, head = tensors.answer(name, asked, [answer.value for answer in answers])
    headers = {"Server-Timing": server_timing(answers)}
    if head is None:
        return Response(content, media_type="application/json", headers=headers)
    return Response(
        content, media_type="application/octet-stream", headers={**headers, tensors.HEADER_LENGTH: str(head)}
    )


async def _parsed(service: Service, loaded: Loaded, body: bytes, request: Request) -> InferRequest:
    """The request; much JSON is parsed by the pool, as it takes longer than other requests should wait."""
    length = tensors.json_length(request.headers.get(tensors.HEADER_LENGTH), body)
    parse = partial(tensors.parse, body, length, loaded.model, service.settings)
    return parse() if length <= tensors.SMALL_JSON else await service.offload(parse)


def _loaded(service: Service, name: str, number: str) -> Loaded:
    slot = service.models.find(name)
    if number != tensors.VERSION:
        raise Problem("model-missing", f"every model here has the one version {tensors.VERSION}")
    return slot.get()
