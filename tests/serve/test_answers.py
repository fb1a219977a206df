"""What a good request gets."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketdx_runtime.model import Model
from pocketdx_serve.schemas import Diagnoses, Embeddings, ProblemDetails

Picture = Callable[..., bytes]


def as_json(diagnosis: Any) -> dict[str, Any]:
    return {
        "label": diagnosis.label,
        "probability": diagnosis.probability,
        "probabilities": dict(diagnosis.probabilities),
        "above_threshold": list(diagnosis.above_threshold),
    }


@pytest.mark.parametrize("content_type", ["image/jpeg", "image/anything", "application/octet-stream"])
def test_a_raw_image_gets_exactly_the_answer_of_the_model_in_process(
    live: Any, model: Model, jpeg: bytes, content_type: str
) -> None:
    reply = live.post("/v1/diagnose", jpeg, content_type)
    assert reply.status_code == 200, reply.text
    assert reply.json()["results"] == [as_json(model.diagnose([jpeg])[0])]
    assert reply.json()["model"] == {
        "name": model.manifest.name,
        "digest": model.digest,
        "precision": model.manifest.precision,
        "intended_use": model.manifest.intended_use,
    }
    Diagnoses.model_validate(reply.json())


def test_a_body_without_a_content_type_is_taken_for_an_image(live: Any, jpeg: bytes) -> None:
    request = live.client.build_request("POST", "/v1/diagnose", content=jpeg)
    assert "content-type" not in request.headers
    assert live.client.send(request).status_code == 200


@pytest.mark.parametrize("field", ["image", "images"])
def test_a_form_with_many_images_is_answered_in_the_order_sent(
    live: Any, model: Model, make_picture: Picture, field: str
) -> None:
    pictures = [make_picture(seed, kind=kind) for seed, kind in enumerate(["JPEG", "PNG", "WEBP", "BMP", "TIFF"])]
    reply = live.client.post("/v1/diagnose", files=[(field, (f"{n}", data)) for n, data in enumerate(pictures)])
    assert reply.status_code == 200, reply.text
    expected = [as_json(each) for each in model.diagnose(pictures)]
    assert len({json.dumps(each) for each in expected}) == len(pictures), "the pictures should differ"
    assert reply.json()["results"] == expected


def test_an_embedding_arrives_to_the_last_bit(live: Any, model: Model, make_picture: Picture) -> None:
    pictures = [make_picture(seed) for seed in range(3)]
    reply = live.client.post("/v1/embed", files=[("image", ("x", data)) for data in pictures])
    sent = np.array([each["embedding"] for each in reply.json()["results"]], dtype=np.float32)
    np.testing.assert_array_equal(sent, model.embed(pictures))
    Embeddings.model_validate(reply.json())


def test_sixty_four_requests_at_once_get_the_answers_of_the_model_in_process(
    serve: Callable[..., Any], model: Model, make_picture: Picture
) -> None:
    live = serve(threads=2)
    pictures = [make_picture(seed, size=(64 + seed, 48 + 2 * seed)) for seed in range(64)]
    with ThreadPoolExecutor(64) as pool:
        replies = list(pool.map(lambda data: live.post("/v1/diagnose", data), pictures))
    assert {reply.status_code for reply in replies} == {200}
    answers = [reply.json()["results"][0] for reply in replies]
    assert answers == [as_json(each) for each in model.diagnose(pictures)]


def test_the_model_is_described_by_its_manifest_and_digest(live: Any, model: Model) -> None:
    reply = live.client.get("/v1/model").json()
    assert reply == {"digest": model.digest, "manifest": model.manifest.to_dict()}


def test_health_checks_answer_get_and_head(live: Any) -> None:
    for path, status in (("/livez", "alive"), ("/readyz", "ready")):
        assert live.client.get(path).json() == {"status": status}
        head = live.client.head(path)
        assert (head.status_code, head.content) == (200, b"")


def test_a_reply_says_where_the_time_went(live: Any, jpeg: bytes) -> None:
    timing = live.post("/v1/diagnose", jpeg).headers["server-timing"]
    spent = {name: float(ms) for name, ms in (each.split(";dur=") for each in timing.split(", "))}
    assert list(spent) == ["queue", "decode", "inference"]
    assert all(0 <= ms < 10_000 for ms in spent.values())
    assert spent["decode"] > 0


def test_a_harmless_request_id_is_returned(live: Any) -> None:
    reply = live.client.get("/livez", headers={"X-Request-ID": "ward-7.scan_12"})
    assert reply.headers["x-request-id"] == "ward-7.scan_12"


@pytest.mark.parametrize("bad", ["", "x" * 129, "a b", "<script>", "a;b", "é"])
def test_a_request_id_that_could_do_harm_is_replaced(live: Any, bad: str) -> None:
    given = [live.client.get("/livez", headers={"X-Request-ID": bad.encode()}).headers["x-request-id"] for _ in "12"]
    assert all(len(each) == 32 and set(each) <= set("0123456789abcdef") for each in given)
    assert given[0] != given[1]


@pytest.mark.parametrize("path", ["/v1/model", "/livez", "/docs", "/openapi.json", "/nowhere"])
def test_every_response_carries_the_security_headers_and_none_for_other_origins(live: Any, path: str) -> None:
    headers = live.client.get(path, headers={"Origin": "https://elsewhere.example"}).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["content-security-policy"].startswith("default-src 'none'; frame-ancestors 'none'")
    assert "server" not in headers
    assert not [name for name in headers if name.startswith("access-control")]


def test_a_preflight_of_another_origin_gets_no_permission(live: Any) -> None:
    asked = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
    reply = live.client.options("/v1/diagnose", headers=asked)
    assert reply.status_code == 405
    assert not [name for name in reply.headers if name.startswith("access-control")]


def test_openapi_documents_bodies_answers_and_problems(live: Any) -> None:
    document = live.client.get("/openapi.json").json()
    assert {"/v1/diagnose", "/v1/embed", "/v1/models", "/v1/model", "/v1/model/file", "/livez"} <= set(
        document["paths"]
    )
    diagnose = document["paths"]["/v1/diagnose"]["post"]
    assert {"multipart/form-data", "image/*", "application/dicom"} <= set(diagnose["requestBody"]["content"])
    for status in ("400", "413", "415", "422", "503", "504"):
        content = diagnose["responses"][status]["content"]["application/problem+json"]
        assert content["schema"] == {"$ref": "#/components/schemas/ProblemDetails"}
        for example in content["examples"].values():
            assert ProblemDetails.model_validate(example["value"]).status == int(status)


def test_every_reference_in_openapi_leads_somewhere(live: Any) -> None:
    document = live.client.get("/openapi.json").json()

    def references(node: Any) -> list[str]:
        if isinstance(node, dict):
            own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
            return own + [each for value in node.values() for each in references(value)]
        return [each for value in node for each in references(value)] if isinstance(node, list) else []

    names = {each.removeprefix("#/components/schemas/") for each in references(document)}
    assert {"Diagnoses", "ProblemDetails", "Manifest"} <= names <= set(document["components"]["schemas"])


def test_the_documentation_page_needs_no_internet_and_runs_no_script(live: Any) -> None:
    reply = live.client.get("/docs")
    assert reply.headers["content-type"].startswith("text/html")
    seen: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            seen.append(tag)
            links = [value for name, value in attrs if name in ("src", "href", "action")]
            assert all(link == "/openapi.json" for link in links), links

    Reader().feed(reply.text)
    assert "style" in seen
    assert not {"script", "link", "img", "iframe"} & set(seen)
    assert "@import" not in reply.text
    assert "url(" not in reply.text
    assert "POST /v1/diagnose" in reply.text


def test_without_a_built_page_the_root_leads_to_the_documentation(serve: Callable[..., Any], tmp_path: Path) -> None:
    reply = serve(web=tmp_path).client.get("/", follow_redirects=True)
    assert (reply.status_code, reply.url.path) == (200, "/docs")


def test_the_pages_style_is_the_one_its_policy_allows(live: Any) -> None:
    import base64
    import hashlib

    reply = live.client.get("/docs")
    style = reply.text.split("<style>")[1].split("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in reply.headers["content-security-policy"]


def test_real_images_get_the_answers_of_the_model_in_process(live: Any, model: Model, shared_data: Path) -> None:
    for folder in ("chest-xray/test/PNEUMONIA", "breast-ultrasound/benign", "blood-smear/test/WBC"):
        paths = sorted((shared_data / folder).iterdir())[:8]
        reply = live.client.post("/v1/diagnose", files=[("image", path.read_bytes()) for path in paths])
        assert reply.status_code == 200, reply.text
        assert reply.json()["results"] == [as_json(each) for each in model.diagnose(paths)]
