"""`pocketdx parity`. Torch and onnx are imported when it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pocketdx_export.bundle import Bundle
    from pocketdx_export.parity import Comparison, Report

_PASSED_ON = ("split", "backends", "tolerances", "margin", "require", "limit", "seed", "cache")
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("bundle", metavar="BUNDLE|MODEL", type=click.Path(path_type=Path))
@click.option("--against", "run", type=click.Path(path_type=Path), required=True, help="The run it was exported from.")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Labelled images, as for training.")
@click.option("--split", type=click.Choice(["train", "val", "test", "all"]), help="[default: test, if there is one]")
@click.option("--backend", "backends", multiple=True, metavar="NAME", help="Only this one; may be repeated. If it cannot run here, that is a failure. [default: all that can]")  # fmt: skip # noqa: E501
@click.option("--limit", type=click.IntRange(min=1), help="Compare only so many images, drawn at random.")
@click.option("--seed", default=0, show_default=True, help="Of that draw.")
@click.option("--tolerance", "tolerances", multiple=True, metavar="PRECISION.NAME=VALUE", help="Another limit; may be repeated.")  # fmt: skip # noqa: E501
@click.option("--margin", type=click.FloatRange(0, 1), help="Largest loss of sensitivity, specificity or AUC that is accepted. [default: 0.02]")  # fmt: skip # noqa: E501
@click.option("--require-noninferiority", "require", is_flag=True, help="Fail where that is not shown.")
@click.option("--device-report", "devices", multiple=True, type=_FILE, metavar="FILE", help="Add what `pocketdx selftest --out FILE` wrote on a device.")  # fmt: skip # noqa: E501
@click.option("--junit", type=_FILE, metavar="FILE", help="Write JUnit XML.")
@click.option("--markdown", type=_FILE, metavar="FILE", help="Write Markdown.")
@click.option("--html", type=_FILE, metavar="FILE", help="Write the HTML page with the images that are decided differently; report.html in BUNDLE has none.")  # fmt: skip # noqa: E501
@click.option("--contact-sheet", type=_FILE, metavar="FILE", help="Write a PNG of the images decided differently.")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder of decoded images. [default: ~/.cache/pocketdx]")
@click.option("--details", is_flag=True, help="Print the checks that passed, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def parity(bundle: Path, run: Path, as_json: bool, details: bool, devices: tuple[Path, ...], **options: Any) -> None:
    """Compare exported files with the full PyTorch model.

    Every file of BUNDLE, or one MODEL file, on every backend, is compared with the network of a run, from image files
    on. Exit status 1 when a tolerance is passed. In a bundle, the report is kept as parity.json and report.html.

    \b
    pocketdx parity bundle --against run --data xrays
    """
    from pocketdx_export.bundle import Bundle
    from pocketdx_export.parity import compare_files
    from pocketdx_export.parity.device_report import add_device_reports
    from pocketdx_export.parity.setup import comparison_of
    from pocketdx_export.parity.show.terminal import matrix
    from pocketdx_train.commands import decoding_progress

    opened = None if bundle.is_file() else Bundle.open(bundle)
    comparison = comparison_of(
        opened,
        bundle,
        run,
        options["data"],
        progress=decoding_progress("comparing"),
        **{name: options[name] for name in _PASSED_ON},
    )
    report = add_device_reports(compare_files(comparison), comparison, bundle, devices)
    _write(report, comparison, opened, options)
    click.echo(report.to_json() if as_json else matrix(report, details=details), nl=not as_json)
    sys.exit(0 if report else 1)


def _write(report: Report, comparison: Comparison, opened: Bundle | None, options: dict[str, Any]) -> None:
    from pocketdx_export.bundle import add_file
    from pocketdx_export.parity.show.contact_sheet import contact_sheet
    from pocketdx_export.parity.show.junit import junit
    from pocketdx_export.parity.show.markdown import markdown
    from pocketdx_export.parity.show.page import page
    from pocketdx_runtime.files import write_atomically

    sheet = contact_sheet(report, comparison.pictures)
    if options["contact_sheet"]:
        if sheet:
            write_atomically(options["contact_sheet"], sheet, overwrite=True)
        else:
            click.echo("no image is decided differently: no contact sheet", err=True)
    for path, content in (
        (options["junit"], junit(report)),
        (options["markdown"], markdown(report)),
        (options["html"], page(report, sheet)),
    ):
        if path:
            write_atomically(path, content.encode(), overwrite=True)
    # A comparison with another run says nothing of the bundle, and must not replace the one that does.
    if opened and opened.manifest.weights_digest == comparison.run.record.weights_digest:
        add_file(opened.folder, "parity.json", report.to_json())
        # A bundle is handed on, so no patient's picture goes into it.
        add_file(opened.folder, "report.html", page(report, None))
