"""The MobileNets of torchvision, as one kind of network: uint8 pixels in; features, logits out."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import MappingProxyType

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from pocketdx_runtime.manifest import Preprocessing
from pocketdx_train.errors import CheckpointError, TrainError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Architecture:
    """One torchvision model.

    Attributes:
        embedding_size: channels after global pooling.
        last: name of the final linear layer in torchvision's module.
        imagenet: name of torchvision's ImageNet weights.
    """

    embedding_size: int
    last: str
    imagenet: str


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        # Sandler et al., MobileNetV2, CVPR 2018
        "mobilenet_v2": Architecture(1280, "classifier.1", "MobileNet_V2_Weights.IMAGENET1K_V2"),
        # Howard et al., Searching for MobileNetV3, ICCV 2019
        "mobilenet_v3_small": Architecture(576, "classifier.3", "MobileNet_V3_Small_Weights.IMAGENET1K_V1"),
        "mobilenet_v3_large": Architecture(960, "classifier.3", "MobileNet_V3_Large_Weights.IMAGENET1K_V2"),
    }
)


class Network(nn.Module):
    """A MobileNet with its normalisation.

    Args:
        architecture: a key of `ARCHITECTURES`.
        classes: number of classes C.
        preprocessing: input size S, mean and standard deviation.
        dropout: probability of the classifier's dropout.

    Raises:
        TrainError: there is no such architecture.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, architecture: str, classes: int, preprocessing: Preprocessing, *, dropout: float = 0.2) -> None:
        super().__init__()
        if architecture not in ARCHITECTURES:
            raise TrainError(f"{architecture}: no such architecture; choose one of {', '.join(ARCHITECTURES)}")
        self.architecture = architecture
        self.preprocessing = preprocessing
        self.backbone = torchvision.models.get_model(architecture, weights=None, num_classes=classes)
        for layer in self.backbone.classifier:
            if isinstance(layer, nn.Dropout):
                layer.p = dropout
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, 3, 1, 1), persistent=False)

    @property
    def embedding_size(self) -> int:
        """Channels D of the pooled features."""
        return ARCHITECTURES[self.architecture].embedding_size

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Grey levels [N, 3, S, S], uint8 or float in [0, 255], to the backbone's float32 input."""
        return (pixels.float() * self.preprocessing.scale - self.mean) / self.std

    def features(self, normalised: torch.Tensor) -> torch.Tensor:
        """Globally pooled features, float32 [N, D], of normalised pictures."""
        maps: torch.Tensor = self.backbone.features(normalised)
        return maps.mean((2, 3), keepdim=True).flatten(1)

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """Logits, float32 [N, C], of pooled features."""
        logits: torch.Tensor = self.backbone.classifier(features)
        return logits

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits, float32 [N, C], of grey levels [N, 3, S, S]."""
        normalised = self.normalise(pixels).contiguous(memory_format=torch.channels_last)
        return self.classify(self.features(normalised))


def initialise(network: Network, weights: str) -> None:
    """Start `network` from pretrained weights, all but the final layer, which stays random.

    Args:
        network: changed in place.
        weights: "imagenet" (torchvision's own download), "none", or a .safetensors file with torchvision's names.

    Raises:
        TrainError: the download fails.
        CheckpointError: the file is missing, not safetensors, or of another architecture.
    """
    if weights == "none":
        return
    state = _torchvision_weights(network.architecture) if weights == "imagenet" else load_weights(Path(weights))
    last = ARCHITECTURES[network.architecture].last
    own = {name: tensor for name, tensor in network.backbone.state_dict().items() if name.startswith(f"{last}.")}
    apply_weights(network, state | own, weights)


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file.

    Raises:
        CheckpointError: it is missing or not safetensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weights file; give a .safetensors file, 'imagenet' or 'none'")
    try:
        with path.open("rb") as file:
            if file.read(2) in {b"PK", b"\x80\x02"}:  # what torch.save writes, now and in the past
                raise CheckpointError(f"{path}: a pickle, which can run code; save it again with safetensors")
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as problem:
        raise CheckpointError(f"{path}: not a whole safetensors file ({problem}); copy it again") from problem


def apply_weights(network: Network, state: Mapping[str, torch.Tensor], origin: str) -> None:
    """Put `state` (torchvision's names) into the backbone, strictly.

    Raises:
        CheckpointError: a name is missing or unknown, or a shape differs.
    """
    expected = network.backbone.state_dict()
    # torchvision counts batches; the count changes nothing and published files often lack it.
    counters = {name: tensor for name, tensor in expected.items() if name.endswith("num_batches_tracked")}
    complete = counters | dict(state)
    wrong = sorted(set(expected) ^ set(complete)) or [
        name for name in expected if expected[name].shape != complete[name].shape
    ]
    if wrong:
        raise CheckpointError(
            f"{origin}: not weights of {network.architecture} ({len(wrong)} tensors differ, such as {wrong[0]})"
        )
    network.backbone.load_state_dict(complete)


def _torchvision_weights(architecture: str) -> dict[str, torch.Tensor]:
    """The download, kept by torch below `$TORCH_HOME`. A pickle, but read by torch's unpickler for tensors alone."""
    enum = torchvision.models.get_weight(ARCHITECTURES[architecture].imagenet)
    terminal = sys.stderr.isatty()
    try:
        with nullcontext() if terminal else redirect_stderr(StringIO()):  # it announces itself
            state: dict[str, torch.Tensor] = enum.get_state_dict(
                progress=terminal, check_hash=True, weights_only=True, map_location="cpu"
            )
    except (OSError, RuntimeError) as problem:  # no network; a download that is not what was promised
        raise TrainError(
            f"imagenet: the weights of {architecture} could not be downloaded ({problem}); "
            "give a file: --weights FILE.safetensors, or --weights none"
        ) from problem
    return state
