"""What a `.tflite` file tells phone libraries, and its manifest.

TensorFlow Lite Support's metadata: a flatbuffer inside the model, and a zip archive of files behind it. Android
Studio, the Task library and MediaPipe read it. Of the package only this half is used; it works beside today's
protobuf, while the package as a whole does not.
https://ai.google.dev/edge/litert/conversion/tensorflow/metadata
"""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

from pocketdx_export.deploy import FIXED_SIZE_OUTPUTS
from pocketdx_export.errors import ExportError
from pocketdx_export.noise import silenced
from pocketdx_runtime.manifest import MANIFEST_KEY, Manifest

LABELS_FILE = "labels.txt"
MANIFEST_FILE = f"{MANIFEST_KEY}.json"
_ABOUT = {
    "probabilities": "Calibrated probability of each label.",
    "embedding": "Features, of length 1: a dot product is the cosine.",
    "logits": "Raw scores.",
}


def with_metadata(content: bytes, manifest: Manifest) -> bytes:
    """Put labels, normalisation, names and the manifest into a model.

    Args:
        content: a `.tflite` file as `formats.tflite` makes it, all constants inside the flatbuffer.
        manifest: what the file says about itself.

    Raises:
        ExportError: the metadata writer refuses.
    """
    from tensorflow_lite_support.metadata.python.metadata_writers import metadata_info, metadata_writer, writer_utils

    general = metadata_info.GeneralMd(
        name=manifest.name,
        description=f"{manifest.architecture} of PocketDx, {manifest.precision}. {manifest.intended_use}",
    )
    image = metadata_info.InputImageTensorMd(
        name="image",
        description=f"RGB, resized to {manifest.preprocessing.size} x {manifest.preprocessing.size}, 0 to 1.",
        # From grey levels to 0..1. The channels' own means are in the graph: MediaPipe takes one value for all three.
        norm_mean=[0.0],
        norm_std=[255.0],
        color_space_type=_rgb(),
        tensor_type=_float32(),
    )
    with tempfile.TemporaryDirectory() as folder:
        labels, kept = Path(folder, LABELS_FILE), Path(folder, MANIFEST_FILE)
        labels.write_text("".join(f"{label}\n" for label in manifest.labels), "utf-8")
        kept.write_text(manifest.to_json(indent=2), "utf-8")
        names = writer_utils.get_output_tensor_names(bytearray(content))
        outputs = [
            metadata_info.TensorMd(
                name=name,
                description=_ABOUT[name],
                associated_files=[metadata_info.LabelFileMd(str(labels))] if name == "probabilities" else None,
                tensor_name=tensor,
            )
            for name, tensor in zip(FIXED_SIZE_OUTPUTS, names, strict=True)
        ]
        try:
            writer = metadata_writer.MetadataWriter.create_from_metadata_info(
                bytearray(content), general, [image], outputs, [str(labels), str(kept)]
            )
            with silenced():  # it warns of the manifest, which no tensor names
                return bytes(writer.populate())
        except (ValueError, OSError) as problem:
            raise ExportError(f"tflite-support cannot write the metadata ({problem})") from problem


def manifest_of(path: Path) -> Manifest:
    """The manifest in a `.tflite` file.

    Raises:
        ExportError: the file is missing, damaged, or not PocketDx's.
        ManifestError: its manifest is not valid.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            text = archive.read(MANIFEST_FILE).decode("utf-8")
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as problem:
        raise ExportError(f"{path}: no PocketDx manifest in it ({problem}); make one with `pocketdx export`") from None
    return Manifest.from_json(text, str(path))


def _rgb() -> int:
    from tensorflow_lite_support.metadata import metadata_schema_py_generated as schema

    return int(schema.ColorSpaceType.RGB)


def _float32() -> int:
    from tensorflow_lite_support.metadata import schema_py_generated as schema

    return int(schema.TensorType.FLOAT32)
