"""The TypeScript core in Node against the Python runtime: the same pixels, the same answers, the same refusals."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pocketdx_runtime.diagnosis import decide
from pocketdx_runtime.image import resize
from pocketdx_runtime.model import Model
from tiny_model import tiny_model, tiny_model_proto
from web_pictures import drawn, encoded

Node = Callable[..., Any]


@pytest.mark.parametrize(
    ("height", "width", "size"), [(300, 400, 224), (97, 61, 224), (224, 500, 224), (1, 700, 32), (33, 32, 32)]
)
def test_the_resize_gives_pillows_pixels_to_the_last_bit(node: Node, height: int, width: int, size: int) -> None:
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    found = node("resize", pixels=pixels.tobytes(), height=height, width=width, size=size)
    np.testing.assert_array_equal(np.array(found, np.uint8), resize(pixels, size).ravel())


def test_the_model_answers_as_in_python(node: Node) -> None:
    data = tiny_model(seed=3)
    pixels = np.random.default_rng(1).integers(0, 256, (45, 70, 3), dtype=np.uint8)
    model = Model(data)
    expected = model.run(pixels[None], list(model.manifest.outputs))
    found = node("outputs", model=data, pixels=pixels.tobytes(), height=45, width=70)
    assert set(found) == set(expected)
    for name, output in found.items():
        assert tuple(output["dims"]) == expected[name].shape
        np.testing.assert_allclose(output["data"], expected[name].ravel(), atol=1e-5)


def test_the_manifest_is_read_out_of_the_file(node: Node) -> None:
    data = tiny_model(("a", "b", "ß"), name="über")
    found = node("manifest", model=data)
    assert found == json.loads(Model(data).manifest.to_json())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"no model", "not a whole ONNX model"),
        (tiny_model()[:-40], "not a whole ONNX model"),
        (b"", "no graph"),
    ],
    ids=["text", "cut off", "empty"],
)
def test_bytes_that_are_no_model_are_refused_with_the_reason(node: Node, data: bytes, said: str) -> None:
    assert said in node("manifest", model=data)["refused"]


def test_a_file_without_a_manifest_or_with_a_newer_one_is_refused(node: Node) -> None:
    proto = tiny_model_proto()
    text = json.loads(proto.metadata_props[0].value)
    proto.metadata_props[0].value = json.dumps({**text, "schema_version": 99})
    assert "newer PocketDx" in node("manifest", model=proto.SerializeToString())["refused"]
    proto.metadata_props[0].value = json.dumps({**text, "labels": ["one"]})
    assert "labels" in node("manifest", model=proto.SerializeToString())["refused"]
    del proto.metadata_props[:]
    assert "without a PocketDx manifest" in node("manifest", model=proto.SerializeToString())["refused"]


def test_it_decides_as_python_does(node: Node) -> None:
    rng = np.random.default_rng(2)
    cases: list[dict[str, Any]] = []
    for labels in (2, 3, 5):
        for _ in range(60):
            drawn_at_random = rng.dirichlet(np.ones(labels)).round(1)  # rounded: ties occur
            thresholds = None if rng.random() < 0.2 else (rng.integers(1, 9, labels) / 10).tolist()
            cases.append({"probabilities": drawn_at_random.tolist(), "thresholds": thresholds})
    expected = [decide(case["probabilities"], case["thresholds"]) for case in cases]
    assert node("decide", cases=cases) == expected
    assert len({*expected}) == 5


def test_numpys_archives_are_read_stored_and_deflated(node: Node) -> None:
    arrays = {
        "a": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
        "b": np.linspace(-1, 1, 7, dtype=np.float32),
        "c": np.array('{"é": 1}'),
    }
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(file, **arrays)  # type: ignore[operator]
        found = node("npz", archive=file.getvalue())
        assert found["a"] == {"dtype": "uint8", "shape": [2, 3, 4], "data": list(range(24))}
        np.testing.assert_array_equal(np.array(found["b"]["data"], np.float32), arrays["b"])
        assert found["c"]["data"] == ['{"é": 1}']
        assert "not a whole .npz" in node("npz", archive=file.getvalue()[:-30])["refused"]


def test_the_self_test_passes_for_the_model_and_fails_for_another(node: Node, bundle: Any) -> None:
    golden = bundle.golden.read_bytes()
    passed = node("selfTest", model=bundle.path.read_bytes(), golden=golden)
    assert passed["passed"]
    assert passed["images"] == 2
    failed = node("selfTest", model=tiny_model(seed=1), golden=golden)
    assert not failed["passed"]
    assert failed["checks"][0]["maxDifference"] > failed["checks"][0]["tolerance"]
    other = node("selfTest", model=tiny_model(("a", "b", "c")), golden=golden)
    assert "another model" in other["refused"]


JPEG = encoded(drawn(60, 40), "JPEG")
PNG = encoded(drawn(60, 40), "PNG")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"hello", "not a picture"),
        (JPEG[:-200], "JPEG file is cut off"),
        (JPEG[:30], "JPEG file is cut off"),
        (PNG[:-12], "PNG file is cut off"),
        (encoded(drawn(60, 40), "WEBP")[:-9], "WebP file is cut off"),
        (encoded(drawn(60, 40).convert("CMYK"), "JPEG"), "CMYK"),
        (encoded(Image.fromarray(np.full((4, 4), 9000, np.uint16)), "PNG"), "16 bits"),
        (encoded(drawn(60, 40), "TIFF"), "TIFF"),
        (encoded(drawn(60, 40), "GIF"), "not a picture that can be read here"),
    ],
    ids=["empty", "text", "cut JPEG", "JPEG header", "cut PNG", "cut WebP", "CMYK", "16 bits", "TIFF", "GIF"],
)
def test_a_picture_that_browsers_read_each_in_their_own_way_is_refused(node: Node, data: bytes, said: str) -> None:
    assert said in node("picture", file=data)["refused"]


def test_colour_profiles_are_cut_out_and_nothing_else(node: Node, tmp_path: Path) -> None:
    profile = b"no real profile, but long " * 40
    for kind in ("JPEG", "PNG", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        tagged = encoded(drawn(60, 40), kind, icc_profile=profile, **options)
        assert Image.open(io.BytesIO(tagged)).info["icc_profile"] == profile
        found = bytes.fromhex(node("picture", file=tagged)["hex"])
        clean = Image.open(io.BytesIO(found))
        assert "icc_profile" not in clean.info
        np.testing.assert_array_equal(np.asarray(clean), np.asarray(Image.open(io.BytesIO(tagged))))
    plain = encoded(drawn(60, 40), "JPEG")
    assert bytes.fromhex(node("picture", file=plain)["hex"]) == plain
