"""The model card: what a reader must know before the model is used (Mitchell et al., Model Cards, FAT* 2019)."""

from __future__ import annotations

from pocketdx_runtime.manifest import Manifest
from pocketdx_train.run import Run


def model_card(manifest: Manifest, run: Run) -> str:
    """Markdown."""
    settings, spec = run.record.settings, manifest.preprocessing
    figures = "\n".join(
        f"| {name} | {each.value:.3f} | {each.low:.3f} to {each.high:.3f} |" for name, each in manifest.metrics.items()
    )
    software = ", ".join(f"{name} {number}" for name, number in manifest.software.items())
    return f"""# {manifest.name}

{manifest.intended_use}

- **Answers**: {", ".join(manifest.labels)} (one of them for each picture; the most probable)
- **Network**: {manifest.architecture}, {spec.size} x {spec.size} pixels, started from {_origin(settings.weights)}
- **Input**: a colour or grey picture of any size; the file resizes and normalises it itself
- **Probabilities**: softmax of the logits divided by {manifest.temperature:.3f}, fitted on validation images
- **Training data**: fingerprint `{manifest.data_fingerprint}`
- **Weights**: SHA-256 `{manifest.weights_digest}`
- **Made with**: {software}; seed {settings.seed}; {manifest.created}

## Figures on the test images

| figure | value | 95 % interval |
|---|---|---|
{figures}

They hold for pictures like the test images: the same kind of patients, devices and labelling. Elsewhere, test first.

## Not for

Any decision about a patient without a qualified person's own judgement. The model answers with one of its labels for
any picture at all, also for one that shows none of them.
"""


def _origin(weights: str) -> str:
    return {"none": "random weights", "imagenet": "ImageNet weights"}.get(weights, "pretrained weights from a file")
