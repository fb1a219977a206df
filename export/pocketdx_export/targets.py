"""The table of formats: what can be written, how the file is called, what it takes, where it runs."""

from __future__ import annotations

from dataclasses import dataclass

from pocketdx_export.errors import ExportError


@dataclass(frozen=True)
class Target:
    """One kind of file.

    Attributes:
        name: of the target, on the command line and in reports.
        format: "onnx", ...
        precision: "fp32", ...
        suffix: end of the file's name.
        runs_on: for people.
    """

    name: str
    format: str
    precision: str
    suffix: str
    runs_on: str

    def file_name(self, stem: str = "model") -> str:
        """Name of the file in a bundle."""
        return f"{stem}.{self.suffix}"


TARGETS: tuple[Target, ...] = (
    Target("onnx-fp32", "onnx", "fp32", "fp32.onnx", "onnxruntime: servers, Android, iOS, Windows, browsers"),
)


def choose_targets(formats: tuple[str, ...], precisions: tuple[str, ...]) -> tuple[Target, ...]:
    """The targets of the given formats and precisions; none given stands for all.

    Raises:
        ExportError: no target fits.
    """
    chosen = tuple(
        target
        for target in TARGETS
        if target.format in (formats or (target.format,)) and target.precision in (precisions or (target.precision,))
    )
    if not chosen:
        known = ", ".join(f"--format {target.format} --precision {target.precision}" for target in TARGETS)
        raise ExportError(f"no such target; choose from: {known}")
    return chosen
