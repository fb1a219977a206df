"""Ready means: the model has answered. Everything else is a 503 that says why."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketdx_runtime.model import Model
from pocketdx_serve.engine import warm_up
from pocketdx_serve.errors import ServeError

Serve = Callable[..., Any]


class Stand:
    """A model with something changed."""

    def __init__(self, inner: Model, **changed: Any) -> None:
        self._inner = inner
        self.__dict__.update(changed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def test_until_the_model_is_loaded_only_the_process_is_alive(serve: Serve, tiny_model_path: Path, jpeg: bytes) -> None:
    may_load = threading.Event()
    model = Model(tiny_model_path, threads=1)
    live = serve(model=Stand(model, load=lambda: may_load.wait(20) and model.load()), ready=False)
    try:
        assert live.client.get("/livez").status_code == 200
        for reply in (live.client.get("/readyz"), live.post("/v1/diagnose", jpeg), live.client.get("/v1/model")):
            assert (reply.status_code, reply.json()["reason"]) == (503, "starting")
            assert int(reply.headers["retry-after"]) >= 1
    finally:
        may_load.set()
    while live.client.get("/readyz").status_code != 200:
        pass
    assert live.post("/v1/diagnose", jpeg).status_code == 200


def test_a_model_that_cannot_be_loaded_never_gets_ready(serve: Serve, tmp_path: Path, jpeg: bytes) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model")
    live = serve(model=Model(path), ready=False)
    while live.client.get("/readyz").json()["reason"] == "starting":
        pass
    reply = live.client.get("/readyz")
    assert (reply.status_code, reply.json()["reason"]) == (503, "failed")
    assert live.post("/v1/diagnose", jpeg).json()["reason"] == "failed"
    assert live.client.get("/livez").status_code == 200


def test_a_model_that_answers_nonsense_does_not_pass_the_warm_up(model: Model) -> None:
    nan = np.full((1, 8), np.nan, np.float32)
    with pytest.raises(ServeError, match=r"tiny\.onnx: answers NaN"):
        warm_up(Stand(model, embed=lambda _images: nan))  # type: ignore[arg-type]


def test_a_server_that_shuts_down_is_not_ready_but_answers_what_arrives(serve: Serve, jpeg: bytes) -> None:
    live = serve()
    live.service.drain()
    reply = live.client.get("/readyz")
    assert (reply.status_code, reply.json()["reason"]) == (503, "draining")
    assert live.client.get("/livez").status_code == 200
    assert live.post("/v1/diagnose", jpeg).status_code == 200


def test_an_output_that_the_model_does_not_have_is_a_404(
    serve: Serve, tiny_model: Any, tmp_path: Path, jpeg: bytes
) -> None:
    path = tmp_path / "plain.onnx"
    path.write_bytes(tiny_model.tiny_model(outputs=("logits", "probabilities")))
    live = serve(model=Model(path, threads=1))
    assert live.post("/v1/diagnose", jpeg).status_code == 200
    reply = live.post("/v1/embed", jpeg)
    assert (reply.status_code, reply.json()["reason"]) == (404, "output-missing")
    assert "`embedding`" in reply.json()["detail"]
