"""``pocketdx predict``, ``embed``, ``inspect`` and ``selftest``.

What is slow to import is imported by the command that needs it: ``pocketdx --help`` loads this module.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager

    from pocketdx_runtime.errors import ImageError
    from pocketdx_runtime.model import Model

_T = TypeVar("_T")

_PATH = click.Path(path_type=Path)
_model = click.argument("model", type=_PATH)
_images = click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=_PATH)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
_threads = click.option("--threads", type=click.IntRange(min=1), help="CPUs to use; default and most: those granted.")


@click.command(
    epilog="\b\nExamples:\n"
    "  pocketdx predict model.onnx chest.jpg\n"
    "  pocketdx predict model.onnx ward-3/ --json > answers.json"
)
@_model
@_images
@_json
@_threads
@click.pass_context
def predict(ctx: click.Context, model: Path, images: tuple[Path, ...], as_json: bool, threads: int | None) -> None:
    """Diagnose images: files, or folders of them.

    An image that cannot be read is reported; the others are answered, and the exit status is 2.
    """
    from pocketdx_runtime.errors import ImageError, printable
    from pocketdx_runtime.output import to_json

    opened = _open(model, threads)
    files = _find(images)
    manifest = opened.manifest
    width = max(map(len, ("label", *manifest.labels)))
    results: list[dict[str, Any]] = []
    errors: list[ImageError] = []
    if not as_json:
        click.echo(f"{'label':<{width}}  probability  file")
    for file, answer in zip(files, opened.diagnose_each(files), strict=True):
        if isinstance(answer, ImageError):
            _report(answer, errors)
        elif as_json:
            results.append({"file": str(file), **_fields(answer)})
        else:
            click.echo(f"{answer.label:<{width}}  {answer.probability:>11.4f}  {printable(str(file))}")
    if as_json:
        about = {**_about(opened), "labels": manifest.labels, "intended_use": manifest.intended_use}
        click.echo(to_json({"model": about, "results": results, "errors": _error_fields(errors)}))
    _finish(ctx, errors, len(files))


@click.command(
    epilog="\b\nExamples:\n"
    "  pocketdx embed model.onnx ward-3/ --out ward-3.npz\n"
    "  pocketdx embed model.onnx chest.jpg --json"
)
@_model
@_images
@click.option("--out", type=_PATH, help="File (.npz) to write: embedding float32 [N, D], files [N].")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@_json
@_threads
@click.pass_context
def embed(
    ctx: click.Context,
    model: Path,
    images: tuple[Path, ...],
    out: Path | None,
    force: bool,
    as_json: bool,
    threads: int | None,
) -> None:
    """Turn images into vectors of length 1: their dot product is their similarity.

    An image that cannot be read is reported and left out, and the exit status is 2.
    """
    from pocketdx_runtime.errors import ImageError
    from pocketdx_runtime.files import check_free
    from pocketdx_runtime.output import to_json

    if out is None and not as_json:
        raise click.UsageError("give --out FILE.npz, or --json to print the vectors")
    if out is not None:
        check_free(out, overwrite=force)
    opened = _open(model, threads)
    files = _find(images)
    good: list[Path] = []
    vectors: list[Any] = []
    errors: list[ImageError] = []
    with _progress(opened.embed_each(files), len(files), "embedding") as rows:
        for file, row in zip(files, rows, strict=True):
            if isinstance(row, ImageError):
                _report(row, errors)
            else:
                good.append(file)
                vectors.append(row)
    if out is not None and good:
        _write_npz(out, opened, good, vectors, overwrite=force)
    if as_json:
        each = [{"file": str(file), "embedding": row} for file, row in zip(good, vectors, strict=True)]
        click.echo(to_json({"model": _about(opened), "results": each, "errors": _error_fields(errors)}))
    elif good:
        click.echo(f"{out}: {len(good)} x {opened.manifest.embedding_size}")
    _finish(ctx, errors, len(files))


@click.command(epilog="\b\nExample:\n  pocketdx inspect model.onnx")
@_model
@_json
def inspect(model: Path, as_json: bool) -> None:
    """Show what a model file says about itself."""
    from pocketdx_runtime.inspection import describe
    from pocketdx_runtime.output import columns, to_json

    opened = _open(model, 1)
    if as_json:
        tensors = {"inputs": opened.inputs, "outputs": opened.outputs}
        click.echo(to_json({**_about(opened), **tensors, "manifest": opened.manifest}))
    else:
        click.echo(columns(describe(opened)))


@click.command(
    epilog="\b\nExamples:\n"
    "  pocketdx selftest BUNDLE/model.onnx\n"
    "  pocketdx selftest model.onnx --golden golden.npz --json\n"
    "  pocketdx selftest BUNDLE/model.onnx --out phone.json"
)
@_model
@click.option("--golden", type=_PATH, help="Golden inputs and answers; default: golden.npz beside the model.")
@click.option("--out", type=_PATH, help="File (.json) to write, for `pocketdx parity --device-report`.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@_json
@_threads
@click.pass_context
def selftest(
    ctx: click.Context,
    model: Path,
    golden: Path | None,
    out: Path | None,
    force: bool,
    as_json: bool,
    threads: int | None,
) -> None:
    """Check that a model gives the full model's answers on this machine.

    Exit status 1 when a difference is above its tolerance.
    """
    from pocketdx_runtime.files import check_free, write_atomically
    from pocketdx_runtime.output import columns, to_json
    from pocketdx_runtime.selftest import device_report, run_selftest

    if out is not None:
        check_free(out, overwrite=force)
    result = run_selftest(_open(model, threads), golden or model.with_name("golden.npz"))
    if out is not None:
        write_atomically(out, device_report(result).encode(), overwrite=force)
    if as_json:
        checks = [{**_fields(check), "passed": bool(check)} for check in result.checks]
        fields = {name: value for name, value in _fields(result).items() if name != "answers"}
        click.echo(to_json({**fields, "checks": checks, "passed": bool(result)}))
    else:
        machine = result.machine
        versions = ", ".join(f"{name} {version}" for name, version in machine.software.items())
        click.echo(f"{machine.cpu} ({machine.architecture}; {' '.join(machine.flags)}), {machine.system}")
        click.echo(f"{machine.cpus} CPUs granted; {versions}")
        click.echo(f"{result.model}, {result.precision}, {result.images} golden images")
        rows = [("output", "max difference", "tolerance", "")]
        rows += [
            (check.output, f"{check.max_difference:.2e}", f"{check.tolerance:.0e}", _verdict(bool(check)))
            for check in result.checks
        ]
        rows += [(name, "", "", "no golden values") for name in result.untested]
        click.echo(columns(rows, right=(1, 2)))
        click.echo(_verdict(bool(result)))
    if not result:
        ctx.exit(1)


def _open(path: Path, threads: int | None) -> Model:
    """Open before anything is printed or searched: a bad model is the first thing to know."""
    from pocketdx_runtime.model import Model

    return Model(path, threads=threads).load()


def _find(images: tuple[Path, ...]) -> list[Path]:
    from pocketdx_runtime.image_files import image_files

    return image_files(images)


def _about(model: Model) -> dict[str, Any]:
    return {"name": model.manifest.name, "file": str(model.path), "sha256": model.digest, "bytes": model.size}


def _fields(instance: Any) -> dict[str, Any]:
    from pocketdx_runtime.conform import to_plain

    plain: dict[str, Any] = to_plain(instance)
    return plain


def _error_fields(errors: list[ImageError]) -> list[dict[str, str]]:
    return [{"file": each.source, "reason": each.reason, "message": str(each)} for each in errors]


def _report(error: ImageError, errors: list[ImageError]) -> None:
    errors.append(error)
    click.echo(f"error: {error}", err=True)


def _finish(ctx: click.Context, errors: list[ImageError], total: int) -> None:
    if errors:
        if total > 1:
            click.echo(f"error: {len(errors)} of {total} images could not be read", err=True)
        ctx.exit(2)


def _verdict(passed: bool) -> str:
    return "passed" if passed else "FAILED"


def _progress(each: Iterable[_T], length: int, label: str) -> AbstractContextManager[Iterable[_T]]:
    """A bar on a terminal, nothing in a pipe."""
    if not sys.stderr.isatty():
        return nullcontext(each)
    return click.progressbar(each, length=length, label=label, file=sys.stderr)


def _write_npz(out: Path, model: Model, files: list[Path], vectors: list[Any], *, overwrite: bool) -> None:
    import io

    import numpy as np

    from pocketdx_runtime.files import write_atomically

    buffer = io.BytesIO()
    np.savez(
        buffer,
        embedding=np.stack(vectors),
        files=np.array([str(file) for file in files]),
        model_sha256=np.array(model.digest),
    )
    write_atomically(out, buffer.getvalue(), overwrite=overwrite)
