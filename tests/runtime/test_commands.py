"""``pocketdx predict``, ``embed``, ``inspect`` and ``selftest`` as a user meets them."""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pocketdx_runtime import Interval, Model, Thresholds

Cli = Callable[..., Any]


def strict(text: str) -> Any:
    """JSON that any reader takes: no NaN, and nothing before or after it."""

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


# --- predict ---------------------------------------------------------------------------------------------------


def test_predict_prints_an_aligned_table_in_the_order_given(pocketdx: Cli, model_path: Path, pictures: Path) -> None:
    status, out, err = pocketdx("predict", model_path, pictures / "b.png", pictures)
    assert (status, err) == (0, "")
    header, *rows = out.splitlines()
    assert header == "label      probability  file"
    files = [row[24:] for row in rows]
    assert files == [str(pictures / name) for name in ("b.png", "a.png", "b.png", "sub/c.PNG")]
    for row, answer in zip(rows, Model(model_path).diagnose([Path(file) for file in files]), strict=True):
        assert row.split()[0] == answer.label
        assert float(row.split()[1]) == pytest.approx(answer.probability, abs=5e-5)
        assert row.index("0.") == header.index("file") - 8


def test_predict_json_is_json_and_complete(pocketdx: Cli, model_path: Path, pictures: Path) -> None:
    status, out, err = pocketdx("predict", model_path, pictures, "--json")
    assert (status, err) == (0, "")
    document = strict(out)
    assert set(document) == {"model", "results", "errors"}
    assert document["model"]["sha256"] == Model(model_path).digest
    assert document["model"]["labels"] == ["NORMAL", "PNEUMONIA"]
    assert "Not a medical device" in document["model"]["intended_use"]
    assert document["errors"] == []
    answer = Model(model_path).diagnose([pictures / "a.png"])[0]
    assert document["results"][0] == {
        "file": str(pictures / "a.png"),
        "label": answer.label,
        "probability": pytest.approx(answer.probability, abs=1e-6),
        "probabilities": pytest.approx(dict(answer.probabilities), abs=1e-6),
        "above_threshold": [answer.label],
    }


@pytest.mark.parametrize("threads", [1, 2])
def test_one_bad_image_among_many_is_reported_and_the_others_answered(
    pocketdx: Cli, model_path: Path, pictures: Path, make_png: Callable[..., bytes], threads: int
) -> None:
    (pictures / "aa.png").write_bytes(make_png()[:-50])
    arguments = ("predict", model_path, pictures, pictures / "missing.jpg", "--threads", threads)
    status, out, err = pocketdx(*arguments)
    assert status == 2
    assert [row.split("/")[-1] for row in out.splitlines()[1:]] == ["a.png", "b.png", "c.PNG"]
    cut, missing, summary = err.splitlines()
    assert cut.startswith(f"error: {pictures}/aa.png: truncated")
    assert missing == f"error: {pictures}/missing.jpg: no such file; check the path"
    assert summary == "error: 2 of 5 images could not be read"

    status, out, _ = pocketdx(*arguments, "--json")
    assert status == 2
    document = strict(out)
    assert [Path(each["file"]).name for each in document["results"]] == ["a.png", "b.png", "c.PNG"]
    reasons = {Path(each["file"]).name: each["reason"] for each in document["errors"]}
    assert reasons == {"aa.png": "truncated", "missing.jpg": "not-found"}


def test_a_single_bad_image_is_one_line(pocketdx: Cli, model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    status, _, err = pocketdx("predict", model_path, tmp_path / "empty.png")
    assert status == 2
    assert err.startswith(f"error: {tmp_path}/empty.png: ")
    assert err.count("\n") == 1


def test_an_empty_folder_is_one_line_and_nothing_else(pocketdx: Cli, model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    status, out, err = pocketdx("predict", model_path, tmp_path / "empty")
    assert (status, out) == (2, "")
    assert err == f"error: {tmp_path}/empty: no images in this folder; give one that holds some\n"


@pytest.mark.parametrize("command", ["predict", "inspect", "embed", "selftest"])
@pytest.mark.parametrize("damage", ["missing", "folder", "text", "cut", "no manifest"])
def test_a_bad_model_file_is_one_line_before_anything_else(
    pocketdx: Cli, tiny: ModuleType, tmp_path: Path, pictures: Path, command: str, damage: str
) -> None:
    path = tmp_path / "bad.onnx"
    proto = tiny.tiny_model_proto()
    whole = proto.SerializeToString()
    del proto.metadata_props[:]
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        data = {"text": b"hello", "cut": whole[:-999], "no manifest": proto.SerializeToString()}[damage]
        path.write_bytes(data)
    more = {"predict": [pictures], "embed": [pictures, "--out", tmp_path / "out.npz"]}.get(command, [])
    status, out, err = pocketdx(command, path, *more)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {path}: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "out.npz").exists()


def test_thresholds_decide_the_label_that_is_printed(
    pocketdx: Cli, tiny: ModuleType, tmp_path: Path, pictures: Path
) -> None:
    data = tiny.tiny_model(thresholds=Thresholds((0.999, 0.001), "by hand"))
    (tmp_path / "model.onnx").write_bytes(data)
    _, out, _ = pocketdx("predict", tmp_path / "model.onnx", pictures)
    assert [row.split()[0] for row in out.splitlines()[1:]] == ["PNEUMONIA"] * 3


# --- embed -----------------------------------------------------------------------------------------------------


def test_embed_writes_vectors_and_names(pocketdx: Cli, model_path: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "vectors.npz"
    assert pocketdx("embed", model_path, pictures, "--out", out) == (0, f"{out}: 3 x 8\n", "")
    with np.load(out, allow_pickle=False) as arrays:
        assert set(arrays.files) == {"embedding", "files", "model_sha256"}
        assert arrays["embedding"].dtype == np.float32
        files = [Path(each) for each in arrays["files"]]
        assert files == [pictures / "a.png", pictures / "b.png", pictures / "sub/c.PNG"]
        assert str(arrays["model_sha256"]) == Model(model_path).digest
        np.testing.assert_allclose(arrays["embedding"], Model(model_path).embed(files), atol=1e-6)


def test_embed_json_prints_the_vectors(pocketdx: Cli, model_path: Path, pictures: Path) -> None:
    status, out, err = pocketdx("embed", model_path, pictures / "a.png", "--json")
    assert (status, err) == (0, "")
    (result,) = strict(out)["results"]
    assert result["file"] == str(pictures / "a.png")
    np.testing.assert_allclose(result["embedding"], Model(model_path).embed([pictures / "a.png"])[0], atol=1e-6)


def test_embed_never_overwrites_unless_forced(pocketdx: Cli, model_path: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "vectors.npz"
    out.write_text("precious")
    status, stdout, err = pocketdx("embed", model_path, pictures, "--out", out)
    assert (status, stdout) == (2, "")
    assert err == f"error: {out}: exists already; choose another name, or --force to replace it\n"
    assert out.read_text() == "precious"
    assert pocketdx("embed", model_path, pictures, "--out", out, "--force").status == 0
    assert np.load(out)["embedding"].shape == (3, 8)


def test_embed_leaves_a_bad_image_out_and_says_so(
    pocketdx: Cli, model_path: Path, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "b.png").write_bytes(b"not a picture")
    status, _, err = pocketdx("embed", model_path, pictures, "--out", tmp_path / "vectors.npz")
    assert status == 2
    assert f"error: {pictures}/b.png: " in err
    assert [Path(each).name for each in np.load(tmp_path / "vectors.npz")["files"]] == ["a.png", "c.PNG"]


def test_embed_writes_nothing_when_no_image_is_good(pocketdx: Cli, model_path: Path, tmp_path: Path) -> None:
    status, out, _ = pocketdx("embed", model_path, tmp_path / "missing.png", "--out", tmp_path / "vectors.npz")
    assert (status, out) == (2, "")
    assert not (tmp_path / "vectors.npz").exists()


def test_embed_asks_where_to_put_the_vectors(pocketdx: Cli, model_path: Path, pictures: Path) -> None:
    status, out, err = pocketdx("embed", model_path, pictures)
    assert (status, out) == (2, "")
    assert "give --out FILE.npz, or --json" in err


def test_embed_with_a_model_without_embedding_is_one_line(
    pocketdx: Cli, tiny: ModuleType, tmp_path: Path, pictures: Path
) -> None:
    (tmp_path / "model.onnx").write_bytes(tiny.tiny_model(outputs=("logits",), embedding_size=0))
    status, out, err = pocketdx("embed", tmp_path / "model.onnx", pictures, "--json")
    assert (status, out) == (2, "")
    assert "no output 'embedding' in it" in err
    assert err.count("\n") == 1


# --- inspect ---------------------------------------------------------------------------------------------------


def test_inspect_shows_what_the_file_says(pocketdx: Cli, tiny: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(
        tiny.tiny_model(
            thresholds=Thresholds((0.4, 0.6), "youden on validation"),
            metrics={"test/auc": Interval(0.975, 0.961, 0.985)},
            conformal_quantile=0.93,
            intended_use="Research \x1b[31monly",
        )
    )
    status, out, err = pocketdx("inspect", path)
    assert (status, err) == (0, "")
    facts = dict(line.split("  ", 1) for line in out.splitlines())
    facts = {name: text.strip() for name, text in facts.items()}
    assert facts["labels"] == "NORMAL, PNEUMONIA"
    assert facts["answer"] == "by thresholds: NORMAL 0.4, PNEUMONIA 0.6 (youden on validation)"
    assert facts["metric test/auc"] == "0.9750 (0.9610 to 0.9850)"
    assert facts["input"] == "image uint8 [N, H, W, 3]"
    assert "squash to 32 x 32, bilinear, antialiased" in facts["preprocessing"]
    assert facts["conformal quantile"] == "0.93"
    assert facts["novelty cut-off"] == "not set"
    assert facts["SHA-256"] == Model(path).digest
    assert facts["use"] == "Research \\x1b[31monly"  # a file may not drive the terminal


def test_inspect_json_holds_the_manifest(pocketdx: Cli, model_path: Path) -> None:
    status, out, err = pocketdx("inspect", model_path, "--json")
    assert (status, err) == (0, "")
    document = strict(out)
    assert document["manifest"] == Model(model_path).manifest.to_dict()
    assert document["bytes"] == model_path.stat().st_size
    assert document["inputs"] == [{"name": "image", "dtype": "uint8", "shape": ["N", "H", "W", 3]}]
    assert [each["name"] for each in document["outputs"]] == ["logits", "probabilities", "embedding"]


# --- selftest --------------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path, tiny: ModuleType, model_path: Path) -> Path:
    """A folder with a model and golden.npz."""
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    tolerances = {"fp32": dict.fromkeys(("logits", "probabilities", "embedding"), 1e-4)}
    np.savez(
        tmp_path / "golden.npz",
        image_0000=image,
        tolerances=np.array(json.dumps(tolerances)),
        **tiny.reference(image),
    )
    return tmp_path


def test_selftest_finds_the_golden_file_beside_the_model_and_passes(pocketdx: Cli, bundle: Path) -> None:
    status, out, err = pocketdx("selftest", bundle / "model.onnx")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[-1] == "passed"
    assert "onnxruntime" in lines[1]
    assert [line.split()[0] for line in lines if line.endswith("passed")][:3] == [
        "logits",
        "probabilities",
        "embedding",
    ]


def test_selftest_fails_with_status_1_and_says_where(pocketdx: Cli, bundle: Path, tiny: ModuleType) -> None:
    (bundle / "model.onnx").write_bytes(tiny.tiny_model(seed=1))
    status, out, err = pocketdx("selftest", bundle / "model.onnx")
    assert (status, err) == (1, "")
    assert out.splitlines()[-1] == "FAILED"
    status, out, err = pocketdx("selftest", bundle / "model.onnx", "--json")
    assert (status, err) == (1, "")
    document = strict(out)
    assert document["passed"] is False
    assert all(each["max_difference"] > each["tolerance"] for each in document["checks"] if not each["passed"])


def test_selftest_json_of_an_answer_that_is_not_a_number_has_no_nan(
    pocketdx: Cli, bundle: Path, tiny: ModuleType
) -> None:
    proto = tiny.tiny_model_proto()
    for each in proto.graph.initializer:
        if each.name == "temperature":
            each.raw_data = np.array(math.nan, np.float32).tobytes()
    (bundle / "model.onnx").write_bytes(proto.SerializeToString())
    status, out, _ = pocketdx("selftest", bundle / "model.onnx", "--json")
    assert status == 1
    by_name = {each["output"]: each for each in strict(out)["checks"]}
    assert by_name["probabilities"]["max_difference"] is None
    assert by_name["probabilities"]["passed"] is False
    assert by_name["logits"]["passed"] is True


def test_selftest_writes_this_machines_own_answers_for_parity(
    pocketdx: Cli, bundle: Path, tmp_path: Path, tiny: ModuleType
) -> None:
    out = tmp_path / "phone.json"
    assert pocketdx("selftest", bundle / "model.onnx", "--out", out).status == 0
    report = strict(out.read_text())
    assert report["passed"] is True
    assert report["sha256"] == hashlib.sha256((bundle / "model.onnx").read_bytes()).hexdigest()
    assert report["golden_sha256"] == hashlib.sha256((bundle / "golden.npz").read_bytes()).hexdigest()
    assert set(report["answers"]) == {"logits", "probabilities", "embedding"}
    with np.load(bundle / "golden.npz") as golden:
        np.testing.assert_allclose(report["answers"]["logits"], golden["logits"], atol=1e-4)
    assert {"cpu", "flags", "software"} <= set(report["machine"])

    before = out.read_bytes()
    again = pocketdx("selftest", bundle / "model.onnx", "--out", out)
    assert again.status == 2
    assert "exists already" in again.err
    assert out.read_bytes() == before
    (bundle / "model.onnx").write_bytes(tiny.tiny_model(seed=1))
    assert pocketdx("selftest", bundle / "model.onnx", "--out", out, "--force").status == 1
    assert strict(out.read_text())["passed"] is False


def test_selftest_takes_a_golden_file_from_elsewhere(pocketdx: Cli, bundle: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.npz"
    (bundle / "golden.npz").rename(moved)
    status, _, err = pocketdx("selftest", bundle / "model.onnx")
    assert status == 2
    assert err.startswith(f"error: {bundle}/golden.npz: cannot be read: No such file")
    assert pocketdx("selftest", bundle / "model.onnx", "--golden", moved).status == 0
