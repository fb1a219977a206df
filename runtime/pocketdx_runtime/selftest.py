"""Does this model give the full model's answers on this very machine?

A bundle carries ``golden.npz``: pictures, and what the full PyTorch model answered. The graph runs on the same
pixels here, and the answers are compared. Its keys:

- ``image_0000``, ``image_0001``, ...: uint8 [h, w, 3], of any sizes;
- one for each output: float32 [K, ...];
- ``tolerances``: a JSON string, precision -> output -> largest difference allowed.

A file of a lossy precision differs from the full model by design, and drawn pictures, unlike any that it was validated
on, say nothing of how much. For those the question is another: does this device compute what the file computed when it
was validated? So there may be, for a precision P:

- ``P/logits``, ``P/probabilities``, ...: what the file itself answered, float32 [K, ...];
- ``P/tolerances``: a JSON string, output -> largest difference allowed.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from pocketdx_runtime.conform import to_plain
from pocketdx_runtime.errors import ModelError, printable
from pocketdx_runtime.machine import Machine, describe_machine
from pocketdx_runtime.manifest import OUTPUTS
from pocketdx_runtime.output import to_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from pocketdx_runtime.model import Model


@dataclass(frozen=True, slots=True)
class OutputCheck:
    """One output against the golden values; true when it is close enough.

    Attributes:
        output: its name.
        max_difference: largest absolute difference over all pictures; NaN when an answer is not a number.
        tolerance: largest difference allowed.
    """

    output: str
    max_difference: float
    tolerance: float

    def __bool__(self) -> bool:
        return self.max_difference <= self.tolerance  # false for NaN


@dataclass(frozen=True, slots=True)
class SelfTest:
    """The outcome; its truth value is the verdict.

    Attributes:
        model: the file's name.
        digest: SHA-256 of the file.
        precision: of the model, which chooses the tolerances.
        images: how many pictures were compared.
        checks: one for each output that has golden values.
        untested: outputs of the model without golden values.
        machine: where it ran.
        reference: whose answers the golden values are, for people.
        golden_digest: SHA-256 of the golden file.
        answers: this machine's own, by output, float32 [K, ...].
    """

    model: str
    digest: str
    precision: str
    images: int
    checks: tuple[OutputCheck, ...]
    untested: tuple[str, ...]
    machine: Machine
    reference: str = "the full PyTorch model"
    golden_digest: str = ""
    answers: Mapping[str, NDArray[np.float32]] = field(default_factory=dict, repr=False)

    def __bool__(self) -> bool:
        return bool(self.checks) and all(self.checks)


@dataclass(frozen=True, slots=True)
class Golden:
    """Contents of ``golden.npz``, checked; see the module's description.

    Attributes:
        images: uint8 [h, w, 3].
        outputs: the full model's, by name.
        tolerances: for them, by precision and output.
        own: by precision, what the file itself answered, and the tolerances for that.
    """

    images: tuple[NDArray[np.uint8], ...]
    outputs: Mapping[str, NDArray[np.float32]]
    tolerances: Mapping[str, Mapping[str, float]]
    own: Mapping[str, tuple[Mapping[str, NDArray[np.float32]], Mapping[str, float]]] = field(default_factory=dict)

    def expected(self, precision: str) -> tuple[Mapping[str, NDArray[np.float32]], Mapping[str, float] | None]:
        """What a file of this precision should answer, and the tolerances (None: it is not known)."""
        return self.own[precision] if precision in self.own else (self.outputs, self.tolerances.get(precision))


def run_selftest(model: Model, golden: Path) -> SelfTest:
    """Run a model on golden pictures and compare.

    Args:
        model: the model.
        golden: a bundle's ``golden.npz``.

    Raises:
        ModelError: the golden file is missing, damaged, or of another model; or see `Model.load`.
        ManifestError: see `Model.load`.
    """
    manifest = model.manifest
    shown = printable(str(golden))
    values = read_golden(golden)
    golden_outputs, tolerances = values.expected(manifest.precision)
    if tolerances is None:
        raise ModelError(f"{shown}: no tolerances for the precision {manifest.precision!r}; {_REMEDY}")
    names = [each for each in manifest.outputs if each in golden_outputs]
    if not names:
        raise ModelError(f"{shown}: no golden values for any output of {model.name}; {_REMEDY}")
    missing = [each for each in names if each not in tolerances]
    if missing:
        raise ModelError(f"{shown}: no tolerance for {', '.join(missing)} in {manifest.precision}; {_REMEDY}")

    answers = [model.run(image[np.newaxis], names) for image in values.images]
    found = {name: np.concatenate([answer[name] for answer in answers]) for name in names}
    checks = check_outputs({name: golden_outputs[name] for name in names}, found, tolerances, (shown, model.name))
    return SelfTest(
        model=model.name,
        digest=model.digest,
        precision=manifest.precision,
        images=len(values.images),
        checks=checks,
        untested=tuple(each for each in manifest.outputs if each not in names),
        machine=describe_machine(),
        reference="this file, when it was exported" if manifest.precision in values.own else "the full PyTorch model",
        golden_digest=hashlib.sha256(golden.read_bytes()).hexdigest(),
        answers=found,
    )


def device_report(result: SelfTest) -> str:
    """JSON of a self-test with the answers themselves, for `pocketdx parity --device-report`.

    The answers are there so that whoever has the bundle judges them, and need not believe this machine's verdict.
    """
    plain = to_plain(result)
    del plain["golden_digest"]
    return to_json(
        {
            **plain,
            "sha256": result.digest,
            "golden_sha256": result.golden_digest,
            "passed": bool(result),
            "checks": [{**to_plain(check), "passed": bool(check)} for check in result.checks],
            "answers": {name: values.astype(float).tolist() for name, values in result.answers.items()},
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )


def check_outputs(
    expected: Mapping[str, NDArray[np.float32]],
    found: Mapping[str, NDArray[np.float32]],
    tolerances: Mapping[str, float],
    source: tuple[str, str],
) -> tuple[OutputCheck, ...]:
    """Compare answers with golden ones.

    Args:
        expected: by output, float32 [K, ...].
        found: the same outputs, and maybe more.
        tolerances: by output, the largest absolute difference.
        source: the golden file's and the model's name, for messages.

    Raises:
        ModelError: the answers are of another shape: the golden values belong to another model.
    """
    checks = []
    for name, wanted in expected.items():
        if found[name].shape != wanted.shape:
            raise ModelError(
                f"{source[0]}: {name} is {list(wanted.shape)}, {source[1]} gives {list(found[name].shape)}: "
                "it belongs to another model; give the golden.npz of this model's bundle"
            )
        difference = np.abs(found[name].astype(np.float64) - wanted.astype(np.float64)).max()
        checks.append(OutputCheck(name, float(difference), tolerances[name]))
    return tuple(checks)


_REMEDY = "export the bundle again with `pocketdx export`"


def read_golden(path: Path) -> Golden:
    """Read and check a ``golden.npz``; nothing in it is ever unpickled.

    Raises:
        ModelError: the file is missing, damaged or incomplete; the message names it and the array.
    """
    shown = printable(str(path))
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except OSError as error:
        raise ModelError(f"{shown}: cannot be read: {error.strerror or error}; {_REMEDY}") from None
    except (ValueError, KeyError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise ModelError(f"{shown}: not a golden file ({printable(str(error))}); {_REMEDY}") from None
    images = tuple(arrays[key] for key in sorted(arrays) if key.startswith("image_"))
    if not images:
        raise ModelError(f"{shown}: no pictures (image_0000, ...) in it; {_REMEDY}")
    for image in images:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ModelError(f"{shown}: a picture is {image.dtype} {list(image.shape)}, not RGB; {_REMEDY}")
    outputs = _outputs(arrays, "", len(images), shown)
    precisions = sorted({key.rpartition("/")[0] for key in arrays if "/" in key})
    try:
        tolerances = _parse_tolerances(arrays["tolerances"])
        own = {
            each: (_outputs(arrays, f"{each}/", len(images), shown), _parse_limits(arrays[f"{each}/tolerances"]))
            for each in precisions
        }
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{shown}: no valid tolerances in it ({printable(str(error))}); {_REMEDY}") from None
    return Golden(images, outputs, tolerances, own)


def _outputs(arrays: Mapping[str, NDArray[Any]], prefix: str, count: int, shown: str) -> dict[str, NDArray[np.float32]]:
    """The golden values whose names start with ``prefix``, checked."""
    outputs = {name: arrays[f"{prefix}{name}"] for name in OUTPUTS if f"{prefix}{name}" in arrays}
    for name, array in outputs.items():
        key = printable(f"{prefix}{name}")
        if array.dtype != np.float32 or array.ndim < 1 or len(array) != count:
            found = f"{array.dtype} {list(array.shape)}"
            raise ModelError(f"{shown}: {key} is {found}, expected float32 [{count}, ...]; {_REMEDY}")
        if not np.isfinite(array).all():
            raise ModelError(f"{shown}: {key} holds numbers that are not finite; {_REMEDY}")
    return outputs


def _parse_tolerances(array: NDArray[Any]) -> dict[str, dict[str, float]]:
    return {precision: _limits(by_output) for precision, by_output in json.loads(str(array.item())).items()}


def _parse_limits(array: NDArray[Any]) -> dict[str, float]:
    return _limits(json.loads(str(array.item())))


def _limits(by_output: Mapping[str, Any]) -> dict[str, float]:
    limits = {output: float(value) for output, value in by_output.items()}
    if not all(0 <= value < math.inf for value in limits.values()):
        raise ValueError("a tolerance is negative or not finite")
    return limits
