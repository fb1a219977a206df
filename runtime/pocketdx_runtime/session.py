"""One opened model file: onnxruntime's session, and the manifest checked against the graph."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import onnxruntime as ort

from pocketdx_runtime.errors import ManifestError, ModelError, printable
from pocketdx_runtime.manifest import Manifest
from pocketdx_runtime.onnxfile import NotOnnxError, summarize

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

_FATAL = 4  # onnxruntime's log level; everything below arrives as an exception or concerns nobody who runs a model
_EXPORT = "export it again with `pocketdx export`"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of the graph.

    Attributes:
        name: as in the graph.
        dtype: NumPy's name: "uint8", "float32", ...
        shape: a number, or the name of a free dimension.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Session:
    """A model that is ready to run; safe to share between threads.

    Attributes:
        name: what the file is called in messages.
        manifest: what the file says about itself, checked against the graph.
        digest: SHA-256 of the file, 64 hexadecimal digits.
        size: of the file in bytes.
        threads: with which onnxruntime computes.
        inputs: of the graph.
        outputs: of the graph.
        engine: onnxruntime's session.
    """

    name: str
    manifest: Manifest
    digest: str
    size: int
    threads: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    engine: Any

    @classmethod
    def open(cls, data: bytes, name: str, threads: int) -> Self:
        """Check a model file and make it ready.

        Args:
            data: the whole file. Not its path: what is checked, digested and run is then the same, and
                onnxruntime has no folder from which to read other files.
            name: for messages.
            threads: with which onnxruntime computes, the calling one included; at least 1.

        Raises:
            ModelError: not ONNX, damaged, with weights in other files, or onnxruntime cannot run it.
            ManifestError: without a valid manifest, or one that does not describe this graph.
        """
        if is_ort_format(data):
            engine = _start(data, name, threads)
            manifest = Manifest.from_metadata(engine.get_modelmeta().custom_metadata_map, name)
        else:
            manifest = Manifest.from_metadata(_metadata(data, name), name)
            engine = _start(data, name, threads)
        inputs = tuple(_spec(each) for each in engine.get_inputs())
        outputs = tuple(_spec(each) for each in engine.get_outputs())
        problem = disagreement(manifest, inputs, outputs)
        if problem:
            raise ManifestError(f"{name}: {problem}; {_EXPORT}")
        digest = hashlib.sha256(data).hexdigest()
        return cls(name, manifest, digest, len(data), threads, inputs, outputs, engine)

    def run(self, pixels: NDArray[np.uint8], outputs: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Run the graph. All of it: onnxruntime's inference builds ignore ``only_execute_path_to_fetches``.

        Args:
            pixels: uint8 [N, H, W, 3], RGB, N >= 1, any H and W: the graph resizes.
            outputs: names, out of ``manifest.outputs``; at least one.

        Raises:
            ValueError: pixels of another type or shape, or no outputs.
            ModelError: an output that the model does not have, or onnxruntime failed.
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or 0 in pixels.shape:
            raise ValueError(f"pixels: expected uint8 [N, H, W, 3], got {pixels.dtype} {list(pixels.shape)}")
        self.check_outputs(outputs)
        options = ort.RunOptions()
        options.log_severity_level = _FATAL
        try:
            arrays = self.engine.run(list(outputs), {"image": pixels}, options)
        except Exception as error:  # as above
            raise ModelError(f"{self.name}: onnxruntime failed to run it: {_reason(error)}") from error
        results = dict(zip(outputs, arrays, strict=True))
        for each, array in results.items():
            expected = _expected_shapes(self.manifest)[each]
            if not _fits((len(pixels), *expected[1:]), array.shape):
                raise ModelError(f"{self.name}: output {each!r} has the shape {list(array.shape)}; {_EXPORT}")
        return results

    def check_outputs(self, outputs: Sequence[str]) -> None:
        """Refuse names of outputs that the model does not have; raises as `run`."""
        if not outputs:  # to onnxruntime this would mean all of them
            raise ValueError("outputs: name at least one")
        for each in outputs:
            if each not in self.manifest.outputs:
                has = ", ".join(self.manifest.outputs)
                raise ModelError(f"{self.name}: no output {each!r} in it, it has {has}; {_EXPORT}")


def is_ort_format(data: bytes) -> bool:
    """Whether a file is in onnxruntime's own format (`.ort`): a flatbuffer, whose identifier says so."""
    return data[4:8] == b"ORTM"


def _metadata(data: bytes, name: str) -> Mapping[str, str]:
    """Metadata properties of an ONNX file, before an engine is started."""
    if data[4:8] == b"TFL3":
        raise ModelError(f"{name}: a LiteRT file, for phones; give an .onnx or .ort file of the same bundle")
    try:
        summary = summarize(data)
    except NotOnnxError as error:
        raise ModelError(
            f"{name}: not an ONNX model, or a damaged one ({error}); "
            "give a file made by `pocketdx export`, copied whole"
        ) from None
    if summary.external_data:
        raise ModelError(f"{name}: its weights lie in other files, a model is one file; {_EXPORT}")
    return summary.metadata


def _start(data: bytes, name: str, threads: int) -> Any:
    try:
        return ort.InferenceSession(data, _session_options(threads), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base but this one
        raise ModelError(
            f"{name}: onnxruntime {ort.__version__} cannot run it ({_reason(error)}); {_remedy(data)}"
        ) from error


def _remedy(data: bytes) -> str:
    if is_ort_format(data):  # another version's, or damaged: the engine's words do not tell the two apart
        return f"copy it again; if that does not help, {_EXPORT}, beside this onnxruntime"
    return "upgrade with: pip install --upgrade onnxruntime"


def disagreement(manifest: Manifest, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str | None:
    """Say where a manifest does not describe a graph, in a few words; None when it does."""
    if not manifest.preprocessing.antialias:
        return "its preprocessing has no antialias, which this runtime cannot do"
    (image, *others) = inputs or [TensorSpec("", "", ())]
    if others or image.name != "image":
        found = ", ".join(each.name for each in inputs) or "none"
        return printable(f"expected the one input 'image', found {found}")
    size = manifest.preprocessing.size
    if image.dtype != "uint8" or not _is_nhwc(image.shape, size):
        return f"input 'image' is {_describe(image)}, expected uint8 [N, H, W, 3]"
    found_outputs = {each.name: each for each in outputs}
    for name, shape in _expected_shapes(manifest).items():
        if name not in manifest.outputs:
            continue
        output = found_outputs.get(name)
        if output is None:
            return f"its manifest lists the output {name!r}, which the graph does not have"
        if output.dtype != "float32" or not _fits(shape, output.shape):
            expected = _describe(TensorSpec(name, "float32", shape))
            return (
                f"output {name!r} is {_describe(output)}, expected {expected} after the manifest's "
                f"{len(manifest.labels)} labels and embedding size {manifest.embedding_size}"
            )
    return None


def _session_options(threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _FATAL
    # Idle threads that spin take CPU from decoding and from other callers. Measured on two busy cores, two
    # threads, MobileNetV3-small: 2.7 ms of CPU an image without, 7.5 with; batch of 8: 13.5 ms against 24.9.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _spec(node: Any) -> TensorSpec:
    dtype = str(node.type).removeprefix("tensor(").removesuffix(")")
    dtype = {"float": "float32", "double": "float64"}.get(dtype, dtype)
    shape = tuple("?" if each is None else each for each in node.shape or ())
    return TensorSpec(node.name, dtype, shape)


def _expected_shapes(manifest: Manifest) -> Mapping[str, tuple[int | str, ...]]:
    classes = len(manifest.labels)
    return {
        "logits": ("N", classes),
        "probabilities": ("N", classes),
        "embedding": ("N", manifest.embedding_size),
        "heatmap": ("N", classes, "h", "w"),
        "novelty": ("N",),
    }


def _fits(expected: Sequence[int | str], found: Sequence[int | str]) -> bool:
    """Whether the ranks are equal, and the dimensions wherever both are numbers."""
    return len(expected) == len(found) and all(
        a == b or isinstance(a, str) or isinstance(b, str) for a, b in zip(expected, found, strict=True)
    )


def _is_nhwc(shape: Sequence[int | str], size: int) -> bool:
    if len(shape) != 4:
        return False
    batch, height, width, channels = shape
    free = [isinstance(each, str) or each == size for each in (height, width)]
    return isinstance(batch, str) and all(free) and channels == 3


def _describe(spec: TensorSpec) -> str:
    return printable(f"{spec.dtype} [{', '.join(map(str, spec.shape))}]")


def _reason(error: Exception) -> str:
    """First line of an onnxruntime message, without its ``[ONNXRuntimeError] : 1 : FAIL :``."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return printable(lines[0].rsplit(" : ", 1)[-1])[:300]
