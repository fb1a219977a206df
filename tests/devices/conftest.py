"""A small network as PyTorch has it, its files, and the devices that are set up on this machine.

`make test` sets them up below `.cache`; `pocketdx devices setup` does it by hand. A test that needs one which is not
there is skipped with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from lively import draw, lively_network
from pocketdx_export.backends import BACKENDS, Backend, Outputs, Pixels
from pocketdx_export.deploy import DeployModule
from pocketdx_export.graph import to_onnx
from pocketdx_runtime.image import resize
from pocketdx_runtime.manifest import Manifest, Preprocessing
from pocketdx_train.architectures import IMAGENET_MEAN, IMAGENET_STD

SIZE = 64
KINDS = ("blobs", "stripes")
BY_NAME = {backend.name: backend for backend in BACKENDS}
Answers = Callable[[str, str], Outputs]


@pytest.fixture(scope="session")
def known() -> list[Pixels]:
    """What the network's batch norms, and the int8 file's ranges, come from; of the network's size."""
    return [resize(np.asarray(draw(kind, number)), SIZE) for number in range(24) for kind in KINDS]


@pytest.fixture(scope="session")
def pictures() -> list[Pixels]:
    """Of the network's size and of others, wider and higher, in no order."""
    return [np.asarray(draw(kind, number)) for number in (100, 102, 103) for kind in KINDS]


@pytest.fixture(scope="session")
def module(known: list[Pixels]) -> DeployModule:
    """The full model in PyTorch."""
    preprocessing = Preprocessing(SIZE, IMAGENET_MEAN, IMAGENET_STD)
    return DeployModule(lively_network("mobilenet_v3_small", preprocessing, np.stack(known)), 1.7).eval()


@pytest.fixture(scope="session")
def expected(module: DeployModule, pictures: list[Pixels]) -> Outputs:
    """PyTorch's answers."""
    with torch.inference_mode():
        rows = [module(torch.from_numpy(picture.copy())[None]) for picture in pictures]
    return {
        name: np.concatenate([row[number].numpy() for row in rows])
        for number, name in enumerate(("logits", "probabilities", "embedding"))
    }


@pytest.fixture(scope="session")
def manifest(module: DeployModule) -> Manifest:
    return Manifest(
        name="lively",
        labels=("blobs", "stripes"),
        architecture="mobilenet_v3_small",
        embedding_size=module.network.embedding_size,
        preprocessing=module.network.preprocessing,
        temperature=module.temperature,
    )


@pytest.fixture(scope="session")
def fp32(module: DeployModule, manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's file."""
    path = tmp_path_factory.mktemp("models") / "model.fp32.onnx"
    onnx.save(to_onnx(module, manifest), path)
    return path


@pytest.fixture(scope="session")
def int8(fp32: Path, known: list[Pixels]) -> Path:
    """The same with integer convolutions."""
    path = fp32.with_name("model.int8.onnx")
    quantize(known, fp32, path)
    return path


def quantize(known: list[Pixels], source: Path, target: Path) -> None:
    """onnxruntime's own static quantization: not ours, but integers are computed."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Known(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter([{"image": np.stack(known)}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    quantize_static(
        source,
        target,
        Known(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv", "Gemm", "Add", "Mul"],
    )


@pytest.fixture(scope="session")
def answers(request: pytest.FixtureRequest, manifest: Manifest, pictures: list[Pixels]) -> Answers:
    """What a backend answers, by its name and the file's fixture; asked once."""

    @cache
    def ask(name: str, file: str) -> Outputs:
        with available(name).opened(request.getfixturevalue(file), manifest) as run:
            return run(pictures)

    return ask


def available(name: str) -> Backend:
    """The backend; the test is skipped where it is not set up."""
    backend = BY_NAME[name]
    if why := backend.absent():
        pytest.skip(f"{name}: {why}")
    return backend


@pytest.fixture
def no_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder with nothing set up in it."""
    monkeypatch.setenv("POCKETDX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "devices"
