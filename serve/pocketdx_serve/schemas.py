"""What the API sends, as types: they make the JSON and the OpenAPI document."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from pocketdx_runtime.manifest import Manifest

Probability = Annotated[float, Field(ge=0, le=1)]


class _Out(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class ModelRef(_Out):
    """Which model answered."""

    name: Annotated[str, Field(description="Name in the model's manifest.", examples=["chest-xray"])]
    digest: Annotated[str, Field(description="SHA-256 of the model file.", examples=["9f2c…"])]
    precision: Annotated[str, Field(examples=["fp32"])]
    intended_use: Annotated[str, Field(examples=["Research use only. Not a medical device."])]


class ImageDiagnosis(_Out):
    """The answer for one image."""

    label: Annotated[str, Field(description="The most probable label.", examples=["PNEUMONIA"])]
    probability: Annotated[Probability, Field(description="Of that label, calibrated.", examples=[0.97])]
    probabilities: Annotated[
        dict[str, Probability],
        Field(description="Of every label.", examples=[{"NORMAL": 0.03, "PNEUMONIA": 0.97}]),
    ]
    above_threshold: Annotated[
        list[str], Field(description="Labels at or above the model's thresholds.", examples=[["PNEUMONIA"]])
    ]


class Diagnoses(_Out):
    """One diagnosis for each image, in the order they were sent."""

    model: ModelRef
    results: list[ImageDiagnosis]


class ImageEmbedding(_Out):
    """The embedding of one image."""

    embedding: Annotated[
        list[float],
        Field(description="L2-normalised: the dot product of two is their cosine.", examples=[[0.6, -0.8]]),
    ]


class Embeddings(_Out):
    """One embedding for each image, in the order they were sent."""

    model: ModelRef
    results: list[ImageEmbedding]


class ModelInfo(_Out):
    """What the served model file says about itself."""

    digest: Annotated[str, Field(description="SHA-256 of the model file.", examples=["9f2c…"])]
    manifest: Manifest


class ModelEntry(_Out):
    """One of the served models."""

    name: Annotated[str, Field(description="What `?model=` and /v2/models/ take.", examples=["chest"])]
    state: Annotated[str, Field(examples=["ready"])]
    digest: Annotated[str | None, Field(description="SHA-256 of its file, once loaded.", examples=["9f2c…"])]


class ModelList(_Out):
    """The served models, the default first."""

    models: list[ModelEntry]


class Status(_Out):
    """The answer of a health check that passed."""

    status: Annotated[str, Field(examples=["ok"])]


class ImageFaultOut(_Out):
    """One image at fault."""

    index: Annotated[int, Field(description="0-based position in the request.", ge=0)]
    reason: Annotated[str, Field(examples=["truncated"])]
    detail: Annotated[str, Field(examples=["truncated JPEG; export it again from the source"])]


class ProblemDetails(_Out):
    """Why there is no result (RFC 9457)."""

    type: Annotated[str, Field(examples=["urn:pocketdx:problem:truncated"])]
    title: Annotated[str, Field(examples=["The image is cut off"])]
    status: Annotated[int, Field(examples=[422])]
    detail: Annotated[str, Field(examples=["truncated JPEG; export it again from the source"])]
    reason: Annotated[str, Field(description="Stable code; programs may match on it.", examples=["truncated"])]
    request_id: Annotated[str, Field(description="Also in X-Request-ID and in the log.")]
    errors: Annotated[list[ImageFaultOut], Field(description="The images at fault, if any.")] = []
