"""The networks are torchvision's, and pretrained weights fit or are refused in one line."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from pocketdx_runtime.manifest import Preprocessing
from pocketdx_train.architectures import ARCHITECTURES, IMAGENET_MEAN, IMAGENET_STD, Network, initialise
from pocketdx_train.errors import CheckpointError, TrainError

Weights = dict[str, torch.Tensor]


def network(architecture: str = "mobilenet_v3_small", classes: int = 3, dropout: float = 0.2) -> Network:
    torch.manual_seed(0)
    preprocessing = Preprocessing(64, IMAGENET_MEAN, IMAGENET_STD)
    return Network(architecture, classes, preprocessing, dropout=dropout).eval()


def imagenet_weights(architecture: str = "mobilenet_v3_small") -> Weights:
    """What a published file holds: 1000 classes."""
    torch.manual_seed(1)
    state: Weights = torchvision.models.get_model(architecture, weights=None).state_dict()
    return state


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_network_is_torchvisions_with_its_normalisation_before_it(architecture: str) -> None:
    made = network(architecture)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.inference_mode():
        expected = made.backbone((pixels / 255 - mean) / std)
        features = made.features(made.normalise(pixels))
        assert torch.allclose(made(pixels), expected, atol=1e-5)
        assert torch.allclose(made.classify(features), expected, atol=1e-5)
    assert features.shape == (2, made.embedding_size)
    assert made(pixels.float()).shape == (2, 3)


def test_dropout_is_the_one_asked_for() -> None:
    found = [layer.p for layer in network(dropout=0.35).modules() if isinstance(layer, torch.nn.Dropout)]
    assert found == [0.35]


def test_an_unknown_architecture_is_refused_with_those_there_are() -> None:
    with pytest.raises(TrainError, match="resnet18: no such architecture; choose one of mobilenet_v2, "):
        network("resnet18")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pretrained_weights_fill_all_but_the_last_layer(architecture: str, tmp_path: Path) -> None:
    weights = imagenet_weights(architecture)
    path = tmp_path / "weights.safetensors"
    save_file(weights, path)
    made = network(architecture)
    last = ARCHITECTURES[architecture].last
    before = {name: value.clone() for name, value in made.backbone.state_dict().items()}
    initialise(made, str(path))
    for name, value in made.backbone.state_dict().items():
        assert torch.equal(value, before[name] if name.startswith(f"{last}.") else weights[name]), name


def test_published_files_without_batch_counters_fit(tmp_path: Path) -> None:
    weights = {name: value for name, value in imagenet_weights().items() if not name.endswith("num_batches_tracked")}
    save_file(weights, tmp_path / "weights.safetensors")
    initialise(network(), str(tmp_path / "weights.safetensors"))


def refused(weights: object) -> str:
    with pytest.raises(CheckpointError) as error:
        initialise(network(), str(weights))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_weights_of_another_architecture_are_refused_with_a_tensor_that_differs(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    save_file(imagenet_weights("mobilenet_v3_large"), path)
    assert refused(path).startswith(f"{path}: not weights of mobilenet_v3_small (")
    wide = imagenet_weights()
    wide["features.0.0.weight"] = torch.zeros(8, 3, 3, 3)
    save_file(wide, path)
    assert "(1 tensors differ, such as features.0.0.weight)" in refused(path)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_pickle_is_refused_whatever_its_name(legacy: bool, tmp_path: Path) -> None:
    for name in ("weights.pth", "weights.safetensors"):
        torch.save(imagenet_weights(), tmp_path / name, _use_new_zipfile_serialization=not legacy)
        assert refused(tmp_path / name) == (
            f"{tmp_path / name}: a pickle, which can run code; save it again with safetensors"
        )


def test_truncated_weights_and_missing_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(imagenet_weights(), path)
    for size in (path.stat().st_size // 2, 100, 4, 0):
        os.truncate(path, size)
        assert refused(path).startswith(f"{path}: not a whole safetensors file")
    assert "no such weights file; give a .safetensors file" in refused(tmp_path / "no.safetensors")


def test_imagenet_weights_are_torchvisions_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = torchvision.models.get_weight(ARCHITECTURES["mobilenet_v3_small"].imagenet).url
    downloaded = tmp_path / "hub" / "checkpoints" / url.rsplit("/", 1)[1]
    downloaded.parent.mkdir(parents=True)
    weights = imagenet_weights()
    torch.save(weights, downloaded)
    made = network()
    initialise(made, "imagenet")
    assert torch.equal(made.backbone.features[0][0].weight, weights["features.0.0.weight"])


def test_a_download_that_fails_is_one_line_with_the_other_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def fail(*_: object, **__: object) -> None:
        raise URLError("name resolution failed")

    monkeypatch.setattr("torch.hub.urlopen", fail)
    with pytest.raises(TrainError) as error:
        initialise(network(), "imagenet")
    assert "name resolution failed" in str(error.value)
    assert "--weights FILE.safetensors, or --weights none" in str(error.value)
    assert capfd.readouterr().err == ""


def test_the_shared_weights_fit(shared_weights: Path) -> None:
    for path in sorted(shared_weights.glob("*.imagenet.safetensors")):
        initialise(network(path.name.removesuffix(".imagenet.safetensors")), str(path))
