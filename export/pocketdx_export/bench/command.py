"""`pocketdx bench`. For an `.onnx` or `.ort` file the runtime alone suffices."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pocketdx_export.bench.measure import Subject


@click.command(
    epilog="\b\nExamples:\n"
    "  pocketdx bench bundle --chart bench.png\n"
    "  pocketdx bench bundle/model.fp32.onnx bundle/model.int8.onnx --json"
)
@click.argument("paths", metavar="BUNDLE|MODEL...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--rounds", type=click.IntRange(min=5), default=100, show_default=True, help="How often each is timed.")
@click.option("--seed", default=0, show_default=True, help="Of the order in each round.")
@click.option("--chart", type=click.Path(path_type=Path), help="Picture (.png) to write: latency and size as bars.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
def bench(paths: tuple[Path, ...], rounds: int, seed: int, chart: Path | None, as_json: bool) -> None:
    """Measure size, load time, memory and latency of model files.

    Each file runs in a process of its own, on one CPU and on all that are granted, in turns with the others. Ratios
    are to the fp32 ONNX file: the bundle's, the one among the MODELs, or the one beside a single MODEL.
    """
    from pocketdx_export.bench.measure import measure
    from pocketdx_export.bench.report import draw

    if chart is not None:
        import matplotlib as mpl  # noqa: F401  # before minutes are spent
    subjects = [subject for path in paths for subject in _subjects(path)]
    reference = _reference(subjects)
    report = measure(subjects, reference, rounds=rounds, seed=seed, progress=_progress)
    if chart is not None:
        draw(report, chart)
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else report.table())


def _subjects(path: Path) -> list[Subject]:
    """The files of a bundle, or the one file that was named."""
    if path.is_dir() and path.suffix != ".mlpackage":
        from pocketdx_export.bundle import Bundle

        return [_subject(file) for _, file in Bundle.open(path).files]
    return [_subject(path)]


def _subject(path: Path) -> Subject:
    from pocketdx_export.backends import backends_for
    from pocketdx_export.bench.measure import Subject
    from pocketdx_export.targets import format_of
    from pocketdx_runtime.model import Model

    file_format = format_of(path)
    if file_format in ("onnx", "ort"):
        model = Model(path, threads=1)
        return Subject(path, file_format, model.size, model.manifest)
    from pocketdx_export.bundle import size_of
    from pocketdx_export.formats import manifest_in

    manifest = manifest_in(file_format, path)
    return Subject(path, file_format, size_of(path), manifest, backends_for(file_format)[0].absent() or "")


def _reference(subjects: list[Subject]) -> Subject | None:
    """The fp32 ONNX file among the subjects, or beside them."""

    def is_reference(each: Subject) -> bool:
        return each.format == "onnx" and each.manifest.precision == "fp32"

    found = next((each for each in subjects if is_reference(each)), None)
    if found is not None:
        return found
    beside = next(iter(sorted(subjects[0].path.parent.glob("*.fp32.onnx"))), None)
    if beside is None:
        return None
    other = _subject(beside)
    same = other.manifest.weights_digest == subjects[0].manifest.weights_digest
    return other if same and is_reference(other) else None


def _progress(done: int, of: int) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r{done} of {of} rounds" + ("\n" if done == of else ""), err=True, nl=False)
