"""The addresses of the API."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic_core import to_json

from pocketdx_serve import docs
from pocketdx_serve.body import RAW_TYPES, Upload
from pocketdx_serve.downloads import Download, etag_of
from pocketdx_serve.engine import Engine
from pocketdx_serve.metrics import CONTENT_TYPE
from pocketdx_serve.problems import KINDS, MEDIA_TYPE, Problem
from pocketdx_serve.replies import WholeResponse
from pocketdx_serve.schemas import (
    Diagnoses,
    Embeddings,
    ModelEntry,
    ModelInfo,
    ModelList,
    Status,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pocketdx_serve.engine import Answer, Refused
    from pocketdx_serve.models import Blob, Loaded
    from pocketdx_serve.service import Service
    from pocketdx_serve.workers import Asking, Job

T = TypeVar("T")
_BINARY: Final = {"type": "string", "format": "binary"}
_FILE: Final[dict[str, Any]] = {"content": {"application/octet-stream": {"schema": _BINARY}}}
IMAGE_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "description": "One or many images as multipart/form-data (`image` or `images`, as often as needed), "
        "or one image as the body itself. JPEG, PNG, WebP, BMP, TIFF; HEIC and DICOM where the server has "
        "them.",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "image": {**_BINARY, "description": "One image."},
                        "images": {"type": "array", "items": _BINARY, "description": "More images."},
                    },
                }
            },
            **{media_type: {"schema": _BINARY} for media_type in ("image/*", *RAW_TYPES)},
        },
    }
}


def document_problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The refusals of a route, for the OpenAPI document."""
    meaning = {
        401: "No API key, or not a known one.",
        400: "Nothing sent, or a body that cannot be read.",
        404: "No such model, or it has no such output or file.",
        408: "The body came too slowly.",
        413: "Too many bytes, pixels or images.",
        416: "The range begins past the end.",
        415: "Not an image format, or a content type, that is read here.",
        422: "An image that is cut off or damaged.",
        429: "This key has sent too much: try again after Retry-After seconds.",
        503: "Not ready, or full: try again after Retry-After seconds.",
        504: "No answer in time.",
    }
    # Not FastAPI's "model": that would document application/json.
    schema = {"$ref": "#/components/schemas/ProblemDetails"}
    return {
        status: {
            "description": meaning[status],
            "content": {MEDIA_TYPE: {"schema": schema, "examples": _problem_examples(status)}},
        }
        for status in statuses
    }


def _problem_examples(status: int) -> dict[str, Any]:
    return {
        kind.reason: {
            "summary": kind.title,
            "value": Problem(kind.reason, kind.title).document("9d1f0c2e5b7a4f63"),
        }
        for kind in KINDS.values()
        if kind.status == status
    }


_IMAGE_PROBLEMS: Final = document_problems(400, 401, 404, 408, 413, 415, 422, 429, 503, 504)


images = APIRouter(prefix="/v1", tags=["images"])
api = APIRouter(prefix="/v1")
health = APIRouter(tags=["health"])
monitoring = APIRouter()


def service_of(request: Request) -> Service:
    """The service of the app that got ``request``."""
    service: Service = request.app.state.service
    return service


ModelName = Annotated[str | None, Query(alias="model", description="Which model; the first one served if not given.")]


@images.post(
    "/diagnose",
    summary="Diagnose images",
    response_model=Diagnoses,
    responses=_IMAGE_PROBLEMS,
    openapi_extra=IMAGE_BODY,
)
async def diagnose(request: Request, model: ModelName = None) -> Response:
    """Label, calibrated probabilities and labels above their thresholds, for each image in the order sent.

    If an image is refused, the whole request is; `errors` then lists every image at fault.
    """
    loaded, answers = await _examine(request, model, "probabilities", Engine.diagnose)
    results = [
        {
            "label": answer.value.label,
            "probability": answer.value.probability,
            "probabilities": answer.value.probabilities,
            "above_threshold": answer.value.above_threshold,
        }
        for answer in answers
    ]
    return _reply(loaded, results, answers)


@images.post(
    "/embed",
    summary="Embed images",
    response_model=Embeddings,
    responses=_IMAGE_PROBLEMS,
    openapi_extra=IMAGE_BODY,
)
async def embed(request: Request, model: ModelName = None) -> Response:
    """L2-normalised embedding of each image in the order sent, for search by similarity."""
    loaded, answers = await _examine(request, model, "embedding", Engine.embed)
    return _reply(loaded, [{"embedding": answer.value.tolist()} for answer in answers], answers)


@api.get("/models", tags=["model"], summary="The served models", responses=document_problems(401))
async def models(request: Request) -> ModelList:
    """Every model by the name that `?model=` takes, the default first."""
    service_of(request).admit(request)
    return ModelList(
        models=[
            ModelEntry(name=slot.name, state=slot.state.value, digest=slot.loaded.model.digest if slot.loaded else None)
            for slot in service_of(request).models
        ]
    )


@api.get("/model", tags=["model"], summary="The served model", responses=document_problems(401, 404, 503))
async def model_info(request: Request, model: ModelName = None) -> ModelInfo:
    """The model file's digest and manifest: labels, preprocessing, calibration, metrics, intended use."""
    service_of(request).admit(request)
    opened = service_of(request).models.find(model).get().model
    return ModelInfo(digest=opened.digest, manifest=opened.manifest)


@api.head("/model/file", include_in_schema=False)
@api.get(
    "/model/file",
    tags=["model"],
    summary="The model file itself",
    response_class=Response,
    responses={
        200: {"content": {"application/octet-stream": {"schema": _BINARY}}},
        **document_problems(401, 404, 416, 503),
    },
)
async def model_file(request: Request, model: ModelName = None) -> Response:
    """The .onnx file, for a device that runs it itself.

    ETag is the SHA-256 that `/v1/model` calls digest; ask again with If-None-Match, resume with Range.
    """
    service_of(request).admit(request)
    return _download(request, service_of(request).models.find(model).get().file, "model file")


@api.head("/model/golden", include_in_schema=False)
@api.get(
    "/model/golden",
    tags=["model"],
    summary="Golden inputs for a self-test",
    response_class=Response,
    responses={
        200: {"content": {"application/octet-stream": {"schema": _BINARY}}},
        **document_problems(401, 404, 416, 503),
    },
)
async def model_golden(request: Request, model: ModelName = None) -> Response:
    """The bundle's golden.npz: pictures, and what the full model answered, for a self-test on any device.

    404 where the model was served without one beside it.
    """
    service_of(request).admit(request)
    return _download(request, service_of(request).models.find(model).get().golden, "golden.npz beside the model")


@health.head("/livez", include_in_schema=False)
@health.get("/livez", summary="Is the process alive?", responses=document_problems(503))
async def livez(request: Request) -> Status:
    """200 while the server works at all; 503 when every worker is wedged and a restart is the remedy."""
    service_of(request).check_alive()
    return Status(status="alive")


@health.head("/readyz", include_in_schema=False)
@health.get("/readyz", summary="May it be asked?", responses=document_problems(503))
async def readyz(request: Request) -> Status:
    """200 once every model has passed its self-test; 503 before, and while the server shuts down.

    A full queue does not make the server unready: it answers 503 with Retry-After to what it cannot take.
    """
    service_of(request).check_ready()
    return Status(status="ready")


@monitoring.get(
    "/metrics",
    tags=["health"],
    summary="Metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    """Counts and times in Prometheus' text format; needs no key."""
    return Response(service_of(request).metrics.text(), headers={"Content-Type": CONTENT_TYPE})


async def root(_request: Request) -> Response:
    """Send a person with a browser to the documentation."""
    return RedirectResponse("/docs")


@health.get("/docs", include_in_schema=False)
async def documentation(request: Request) -> Response:
    """The documentation for people."""
    page = docs.render(request.app.openapi(), base=str(request.base_url).rstrip("/"))
    return HTMLResponse(page, headers={"Content-Security-Policy": docs.CSP})


async def _examine(
    request: Request,
    name: str | None,
    output: str,
    examiner: Callable[[Engine, bytes, Job[Answer[T] | Refused]], Asking[Answer[T] | Refused]],
) -> tuple[Loaded, list[Answer[T]]]:
    """The model that answered, and its answers for the images of a request."""
    service = service_of(request)
    who = service.admit(request, images=1)
    slot = service.models.find(name)
    loaded = slot.get()
    if output not in loaded.model.manifest.outputs:
        raise Problem("output-missing", f"{loaded.model.name} was exported without `{output}`")
    service.check_room()
    notes = request.state.notes
    upload = Upload(service.held, service.settings, request)
    try:
        sent = await upload.images()
        notes["images"] = len(sent)
        service.owe(who, len(sent) - 1)
        works = [service.work(partial(examiner, loaded.engine, data), data, who, loaded) for data in sent]
        return loaded, await service.examine(slot.name, works, request.receive)
    finally:
        notes["bytes"] = upload.size
        upload.release()


def _download(request: Request, blob: Blob | None, what: str) -> Response:
    if blob is None:
        raise Problem("file-missing", f"the server has no {what}")
    # "private": where there are keys, what one was let have is not for a proxy to give to others.
    headers = {"Cache-Control": "private, no-cache"}
    return Download(blob.data, etag_of(blob.digest), "application/octet-stream", request.headers, headers)


def _reply(loaded: Loaded, results: Sequence[object], answers: Sequence[Answer[Any]]) -> Response:
    """The JSON of `Diagnoses` or `Embeddings`; what the model says is checked already, to check it again takes time."""
    body = to_json({"model": loaded.reference, "results": results})
    return WholeResponse(body, ((b"server-timing", server_timing(answers).encode()),))


def server_timing(answers: Sequence[Answer[Any]]) -> str:
    """A Server-Timing header (milliseconds; the longest wait, and the sums of the work)."""
    queue = max([answer.queue for answer in answers]) * 1000
    decode = sum([answer.decode for answer in answers]) * 1000
    inference = sum([answer.inference for answer in answers]) * 1000
    return f"queue;dur={queue:.2f}, decode;dur={decode:.2f}, inference;dur={inference:.2f}"
