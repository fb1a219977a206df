"""`pocketdx export` and `pocketdx demo`. Torch and onnx are imported when a command runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the bundle; must not exist.")
@click.option("--format", "formats", multiple=True, help="Only this format; may be repeated. [default: all]")
@click.option("--precision", "precisions", multiple=True, help="Only this precision; may be repeated. [default: all]")
@click.option("--data", type=click.Path(path_type=Path), help="The run's labelled images; int8 is calibrated on them.")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder of decoded images. [default: ~/.cache/pocketdx]")
@click.option(
    "--budget",
    is_flag=False,
    flag_value="auc=0.002,agreement=0.99",
    default="auc=0.002,agreement=0.99",
    show_default=True,
    help="What int8 may cost on validation images; `none` quantizes every block without a search.",
)
@click.option("--qat", is_flag=True, help="Fine-tune for int8 where it misses the budget (needs --data; minutes).")
@click.option("--name", help="Of the model, for people. [default: the run's folder]")
@click.option("--force", is_flag=True, help="Replace the bundle that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def export(
    run: Path,
    out: Path,
    formats: tuple[str, ...],
    precisions: tuple[str, ...],
    data: Path | None,
    cache: Path | None,
    budget: str,
    qat: bool,
    name: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Turn a RUN into a bundle of model files.

    Each file is run on golden inputs before it counts as exported.

    \b
    pocketdx export run --out bundle
    """
    from pocketdx_export.targets import choose_targets
    from pocketdx_runtime.files import check_free

    targets = choose_targets(formats, precisions, has_data=data is not None)
    check_free(out, overwrite=force)

    from pocketdx_export.bundle import export_run
    from pocketdx_export.quantize.budget import Budget
    from pocketdx_train.run import Run

    bundle = export_run(
        Run.open(run),
        out,
        targets,
        name=name,
        data=data,
        cache=cache,
        force=force,
        budget=Budget.parse(budget),
        qat=qat,
        say=lambda line: click.echo(line, err=as_json),
    )
    if as_json:
        files = {target.name: str(path) for target, path in bundle.files}
        about = {"bundle": str(out), "files": files, "failed": bundle.failed, "model": bundle.manifest.to_dict()}
        click.echo(json.dumps(about, indent=2))
    else:
        click.echo(f"\nThe bundle is in {out}; next: pocketdx parity {out} --against {run} --data DATA")
    if bundle.failed:
        click.echo(f"error: not exported: {', '.join(bundle.failed)}; the reasons are in {out}/manifest.json", err=True)
        sys.exit(2)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("pocketdx-demo"), show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of the images and the training.")
@click.option("--force", is_flag=True, help="Replace the demo that is there.")
def demo(out: Path, seed: int, force: bool) -> None:
    """Run the whole job on generated images.

    Generate, train, export, verify, use; in a few minutes.
    """
    from pocketdx_runtime.files import check_free

    check_free(out, overwrite=force)

    from pocketdx_export.demo import next_steps, run_demo

    done = run_demo(out, seed=seed, force=force, show_progress=sys.stderr.isatty(), say=click.echo)
    click.echo(next_steps(done))
    sys.exit(0 if done.parity else 1)
