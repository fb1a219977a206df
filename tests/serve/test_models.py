"""Several models at once, and files that change while they are served."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pocketdx_runtime.model import Model
from pocketdx_serve.errors import ServeError
from pocketdx_serve.models import named
from tests_wait import wait_for

Serve = Callable[..., Any]


@pytest.fixture
def write(tmp_path: Path, tiny_model: Any) -> Callable[..., Path]:
    """``write("a.onnx", seed=1)``: a model file, replaced by renaming as a careful operator does."""

    def make(name: str, **options: Any) -> Path:
        path = tmp_path / name
        aside = tmp_path / f".{name}"
        aside.write_bytes(tiny_model.tiny_model(**options))
        return aside.replace(path)

    return make


def test_several_models_answer_by_name_and_the_first_by_default(serve: Serve, write: Any, jpeg: bytes) -> None:
    paths = {"chest": write("a.onnx", seed=1), "skin": write("b.onnx", seed=2, labels=("BENIGN", "MALIGNANT"))}
    models = {name: Model(path, threads=1) for name, path in paths.items()}
    live = serve(model=models)
    answers = {name: model.diagnose([jpeg])[0].probability for name, model in models.items()}
    for query, name in (("", "chest"), ("?model=chest", "chest"), ("?model=skin", "skin")):
        reply = live.post(f"/v1/diagnose{query}", jpeg).json()
        assert reply["results"][0]["probability"] == answers[name]
        assert reply["model"]["digest"] == models[name].digest
    assert [each["name"] for each in live.client.get("/v1/models").json()["models"]] == ["chest", "skin"]
    assert live.client.get("/v1/model?model=skin").json()["manifest"]["labels"] == ["BENIGN", "MALIGNANT"]
    assert live.client.get("/v2/models/skin").json()["parameters"]["digest"] == models["skin"].digest
    missing = live.post("/v1/diagnose?model=eye", jpeg)
    assert (missing.status_code, missing.json()["reason"]) == (404, "model-missing")
    assert "chest, skin" in missing.json()["detail"]


def test_one_of_several_models_that_fails_keeps_the_server_unready(serve: Serve, write: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    live = serve(model={"good": Model(write("a.onnx")), "bad": Model(tmp_path / "bad.onnx")}, ready=False)
    wait_for(lambda: live.client.get("/readyz").json()["reason"] == "failed")
    assert live.client.get("/v1/model?model=good").status_code == 200


def test_names_come_from_the_files_or_from_the_user_and_must_differ(tmp_path: Path) -> None:
    assert named(("a/chest.fp32.onnx", "skin=b/chest.fp32.onnx")) == {
        "chest.fp32": "a/chest.fp32.onnx",
        "skin": "b/chest.fp32.onnx",
    }
    assert named(("weird name (2).onnx",)) == {"weird-name-2": "weird name (2).onnx"}
    with pytest.raises(ServeError, match=r"two models named m: a/m\.onnx and b/m\.onnx; name one of them"):
        named(("a/m.onnx", "b/m.onnx"))


def test_a_changed_file_is_taken_up_without_a_request_lost(serve: Serve, write: Any, jpeg: bytes) -> None:
    path = write("m.onnx", seed=1)
    live = serve(model=Model(path, threads=1), reload_interval=0.02)
    before = Model(path).load().digest
    done = threading.Event()
    seen: list[tuple[int, str]] = []

    def ask() -> None:
        while not done.is_set():
            reply = live.post("/v1/diagnose", jpeg)
            seen.append((reply.status_code, reply.json().get("model", {}).get("digest", "")))

    asking = [threading.Thread(target=ask) for _ in range(4)]
    for each in asking:
        each.start()
    try:
        wait_for(lambda: len(seen) > 20)
        write("m.onnx", seed=2)
        after = Model(path).load().digest
        wait_for(lambda: any(digest == after for _, digest in seen))
        wait_for(lambda: live.client.get("/v1/model").json()["digest"] == after)
    finally:
        done.set()
        for each in asking:
            each.join()
    assert {status for status, _ in seen} == {200}
    assert {digest for _, digest in seen} == {before, after}
    assert live.client.get("/v1/model/file").content == path.read_bytes()
    assert f'pocketdx_model_info{{digest="{before}"' not in live.client.get("/metrics").text


def test_a_bad_new_file_changes_nothing_and_a_good_one_after_it_is_taken_up(
    serve: Serve, write: Any, jpeg: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = write("m.onnx", seed=1)
    live = serve(model=Model(path, threads=1), reload_interval=0.02)
    before = live.client.get("/v1/model").json()["digest"]
    path.write_bytes(path.read_bytes()[:-200])
    failed = 'pocketdx_reloads_total{outcome="failed",what="m"} 1.0'
    wait_for(lambda: failed in live.client.get("/metrics").text)
    assert live.client.get("/v1/model").json()["digest"] == before
    assert live.post("/v1/diagnose", jpeg).status_code == 200
    assert live.client.get("/readyz").status_code == 200
    assert "m.onnx: not an ONNX model" in caplog.text
    path.unlink()
    assert live.post("/v1/diagnose", jpeg).status_code == 200
    write("m.onnx", seed=2)
    wait_for(lambda: live.client.get("/v1/model").json()["digest"] != before)
    assert failed in live.client.get("/metrics").text, "the bad file was tried once"


def test_a_new_file_that_fails_its_self_test_is_not_taken_up(serve: Serve, write: Any, write_golden: Any) -> None:
    path = write("m.onnx", seed=1)
    write_golden(path.with_name("golden.npz"), Model(path))
    live = serve(model=Model(path, threads=1), reload_interval=0.02)
    before = live.client.get("/v1/model").json()["digest"]
    write("m.onnx", seed=2)
    wait_for(lambda: 'outcome="failed",what="m"} 1.0' in live.client.get("/metrics").text)
    assert live.client.get("/v1/model").json()["digest"] == before
    write_golden(path.with_name("golden.npz"), Model(path))
    wait_for(lambda: live.client.get("/v1/model").json()["digest"] != before)
