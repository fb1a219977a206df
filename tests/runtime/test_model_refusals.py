"""Model files that are refused: each with its name, what is wrong and what to do."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pocketdx_runtime import Model
from pocketdx_runtime.errors import ManifestError, ModelError

PIXELS = np.random.default_rng(0).integers(0, 256, (1, 70, 90, 3), dtype=np.uint8)


def test_a_path_without_a_file_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nothing\.onnx: no such file; make one with `pocketdx export`$"):
        Model(tmp_path / "nothing.onnx")
    with pytest.raises(ModelError, match=r": a folder; give the \.onnx file in it$"):
        Model(tmp_path)


def test_a_device_is_never_read(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^/dev/zero: a pipe, socket or device; give a regular file$"):
        Model("/dev/zero")


@pytest.mark.parametrize("settings", [{"threads": 0}, {"threads": -1}, {"batch_size": 0}])
def test_settings_below_1_are_a_value_error(model_bytes: bytes, settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="start at 1"):
        Model(model_bytes, **settings)


def refusal(data: bytes, tmp_path: Path) -> str:
    """The one line with which a file is refused."""
    path = tmp_path / "broken.onnx"
    path.write_bytes(data)
    with pytest.raises((ModelError, ManifestError)) as refused:
        Model(path).load()
    message = str(refused.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(99)])
def test_a_file_that_is_not_onnx_is_refused(data: bytes, tmp_path: Path) -> None:
    assert "not an ONNX model, or a damaged one" in refusal(data, tmp_path)


def test_a_cut_file_is_refused_wherever_it_is_cut(model_bytes: bytes, tmp_path: Path) -> None:
    for end in range(0, len(model_bytes), 97):
        refusal(model_bytes[:end], tmp_path)


def test_a_file_without_manifest_is_refused(tiny: ModuleType, tmp_path: Path) -> None:
    proto = tiny.tiny_model_proto()
    del proto.metadata_props[:]
    message = refusal(proto.SerializeToString(), tmp_path)
    assert "without a PocketDx manifest" in message
    assert "`pocketdx export`" in message


def test_a_broken_manifest_is_refused_with_the_field(tiny: ModuleType, tmp_path: Path) -> None:
    proto = tiny.tiny_model_proto()
    proto.metadata_props[0].value = proto.metadata_props[0].value.replace('"temperature": 1.0', '"temperature": 0')
    assert "temperature is 0.0" in refusal(proto.SerializeToString(), tmp_path)


def test_weights_in_another_file_are_refused_even_if_it_is_there(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(tiny.tiny_model_proto(), path, save_as_external_data=True, location="w.bin", size_threshold=100)
    assert (tmp_path / "w.bin").stat().st_size > 0
    monkeypatch.chdir(tmp_path)  # where onnxruntime would look for it
    for source in (path, path.read_bytes()):
        with pytest.raises(ModelError, match=r"its weights lie in other files.*`pocketdx export`$"):
            Model(source).load()


def test_an_operator_that_onnxruntime_does_not_know_is_refused(tiny: ModuleType, tmp_path: Path) -> None:
    proto = tiny.tiny_model_proto()
    proto.graph.node[7].op_type = "Frobnicate"
    message = refusal(proto.SerializeToString(), tmp_path)
    assert "cannot run it" in message
    assert "Frobnicate" in message
    assert "pip install --upgrade onnxruntime" in message


def image_input(proto: onnx.ModelProto, name: str, dtype: int, shape: list[Any]) -> None:
    proto.graph.input[0].CopyFrom(helper.make_tensor_value_info(name, dtype, shape))
    if name != "image":
        proto.graph.node[0].input[0] = name


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "complaint"),
    [
        ("photo", TensorProto.UINT8, ["N", "H", "W", 3], "expected the one input 'image', found photo"),
        ("image", TensorProto.FLOAT, ["N", "H", "W", 3], "input 'image' is float32 [N, H, W, 3], expected uint8"),
        ("image", TensorProto.INT8, ["N", "H", "W", 3], "input 'image' is int8 [N, H, W, 3], expected uint8"),
        ("image", TensorProto.UINT8, [1, "H", "W", 3], "input 'image' is uint8 [1, H, W, 3]"),
        ("image", TensorProto.UINT8, ["N", 64, 64, 3], "input 'image' is uint8 [N, 64, 64, 3]"),
        ("image", TensorProto.UINT8, ["N", "H", "W", 4], None),
    ],
)
def test_an_input_other_than_the_manifest_promises_is_refused(
    tiny: ModuleType, tmp_path: Path, name: str, dtype: int, shape: list[Any], complaint: str | None
) -> None:
    proto = tiny.tiny_model_proto()
    image_input(proto, name, dtype, shape)
    message = refusal(proto.SerializeToString(), tmp_path)
    # Four channels contradict the graph itself, so onnxruntime is the first to say so.
    assert (complaint or "cannot run it") in message


def with_manifest(tiny: ModuleType, proto: onnx.ModelProto, **fields: Any) -> bytes:
    """The graph as it is under a manifest that says something else."""
    tiny.tiny_manifest(**fields).write_to(proto)
    return proto.SerializeToString()


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"labels": "ABC"}, "output 'logits' is float32 [N, 2], expected float32 [N, 3]"),
        ({"embedding_size": 576}, "output 'embedding' is float32 [N, 8], expected float32 [N, 576]"),
        (
            {"outputs": ("logits", "novelty")},
            "its manifest lists the output 'novelty', which the graph does not have",
        ),
    ],
)
def test_outputs_other_than_the_manifest_promises_are_refused(
    tiny: ModuleType, tmp_path: Path, fields: dict[str, Any], complaint: str
) -> None:
    message = refusal(with_manifest(tiny, tiny.tiny_model_proto(), **fields), tmp_path)
    assert complaint in message
    assert message.endswith("export it again with `pocketdx export`")


def test_preprocessing_without_antialias_is_refused(tiny: ModuleType, tmp_path: Path) -> None:
    spec = tiny.Preprocessing(32, tiny.MEAN, tiny.STD, antialias=False)
    assert "no antialias" in refusal(tiny.tiny_model(preprocessing=spec), tmp_path)


def test_an_output_that_the_model_does_not_have_is_named(tiny: ModuleType) -> None:
    scores_only = Model(tiny.tiny_model(outputs=("logits",), embedding_size=0))
    assert scores_only.run(PIXELS, ["logits"])["logits"].shape == (1, 2)
    with pytest.raises(ModelError, match="no output 'probabilities' in it, it has logits"):
        scores_only.diagnose(PIXELS)
    for pictures in (PIXELS, []):
        with pytest.raises(ModelError, match="no output 'embedding'"):
            scores_only.embed(pictures)


def test_an_answer_that_is_not_a_number_is_an_error_not_a_diagnosis(tiny: ModuleType) -> None:
    proto = tiny.tiny_model_proto()
    for each in proto.graph.initializer:
        if each.name == "temperature":
            each.raw_data = np.array(np.nan, np.float32).tobytes()
    with pytest.raises(ModelError, match=r"^<bytes>: its probabilities are not finite numbers"):
        Model(proto.SerializeToString()).diagnose(PIXELS)


def test_onnxruntimes_own_log_stays_off_the_users_terminal(tiny: ModuleType, tmp_path: Path) -> None:
    proto = tiny.tiny_model_proto()
    proto.graph.initializer.append(helper.make_tensor("unused", TensorProto.FLOAT, [1], [0.0]))  # a warning
    (tmp_path / "warns.onnx").write_bytes(proto.SerializeToString())
    proto.graph.node[7].op_type = "Frobnicate"  # an error
    (tmp_path / "fails.onnx").write_bytes(proto.SerializeToString())
    code = (
        "import numpy as np\n"
        "from pocketdx_runtime import Model, ModelError\n"
        "pixels = np.zeros((1, 9, 9, 3), np.uint8)\n"
        "Model('warns.onnx').run(pixels, ['logits'])\n"
        "try:\n    Model('fails.onnx').load()\n"
        "except ModelError:\n    print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("refused\n", "")
