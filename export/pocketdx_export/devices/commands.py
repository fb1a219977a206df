"""`pocketdx devices`: what can be tested here without the device, and how to make it ready."""

from __future__ import annotations

import json

import click


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def devices(context: click.Context, as_json: bool) -> None:
    """List what runs exported files here, or why not.

    \b
    pocketdx devices
    pocketdx devices setup arm64 node browser
    """
    if context.invoked_subcommand is not None:
        return
    from pocketdx_export.backends import BACKENDS

    rows = [(backend, backend.absent()) for backend in BACKENDS]
    if as_json:
        content = [
            {"name": each.name, "formats": each.formats, "shown": each.shown, "available": why is None, "reason": why}
            for each, why in rows
        ]
        click.echo(json.dumps(content, indent=2))
        return
    width = max(len(each.name) for each, _ in rows)
    formats = max(len(", ".join(each.formats)) for each, _ in rows)
    for each, why in rows:
        click.echo(f"{each.name:{width}}  {', '.join(each.formats):{formats}}  {each.shown}")
        if why is not None:
            click.echo(f"{'':{width}}  {'':{formats}}  not available: {why}")


@devices.command()
@click.argument("names", metavar="arm64|task_library|node|browser...", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Make it anew even when it is ready.")
def setup(names: tuple[str, ...], force: bool) -> None:
    """Make devices ready, in the cache folder.

    It takes about half a minute each, needs no root, and leaves the machine itself as it is. The cache folder is
    $POCKETDX_CACHE, or ~/.cache/pocketdx.
    """
    from pocketdx_export.devices.setups import DEVICES
    from pocketdx_export.errors import ExportError

    by_name = {device.name: device for device in DEVICES}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise click.UsageError(f"no such device: {', '.join(unknown)}; choose from: {', '.join(by_name)}")
    failures = []
    for name in dict.fromkeys(names):
        home = by_name[name].home()
        if not force and home.absent() is None:
            click.echo(f"{name}: ready")
            continue
        try:
            home.set_up(lambda line, name=name: click.echo(f"{name}: {line} ...", err=True))  # type: ignore[misc]
            click.echo(f"{name}: ready")
        except ExportError as problem:
            failures.append(str(problem))
    for failure in failures[:-1]:
        click.echo(f"error: {failure}", err=True)
    if failures:
        raise ExportError(failures[-1])
