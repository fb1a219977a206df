"""`pocketdx serve` and `audit`; FastAPI is imported only when one runs, as `pocketdx --help` imports this."""

from __future__ import annotations

import json
import re
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from pocketdx_runtime.errors import printable
from pocketdx_serve.errors import ServeError
from pocketdx_serve.settings import Settings

if TYPE_CHECKING:
    from types import FrameType

    from pocketdx_serve.audit import AuditLog

_DEFAULT = Settings()
_ORIGIN: Final = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+")


@click.command()
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free one.")
@click.option("--threads", type=click.IntRange(1), help="Images worked on at a time.  [default: the CPUs granted]")
@click.option(
    "--queue", type=click.IntRange(0), default=_DEFAULT.queue, show_default=True, help="Images that may wait."
)
@click.option(
    "--deadline",
    type=click.FloatRange(0, min_open=True),
    default=_DEFAULT.deadline,
    show_default=True,
    help="Seconds until a request is given up.",
)
@click.option(
    "--max-bytes",
    type=click.IntRange(1),
    default=_DEFAULT.max_bytes,
    show_default=True,
    help="Of one request.",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(1),
    default=_DEFAULT.max_pixels,
    show_default=True,
    help="Of one image.",
)
@click.option(
    "--max-images",
    type=click.IntRange(1),
    default=_DEFAULT.max_images,
    show_default=True,
    help="In one request.",
)
@click.option(
    "--keys", type=click.Path(path_type=Path), metavar="FILE", help="API keys, one a line; read again when changed."
)
@click.option(
    "--rate", type=click.FloatRange(0, min_open=True), metavar="IMAGES", help="A second, for each key.  [default: any]"
)
@click.option("--cors", multiple=True, metavar="ORIGIN", help="Let pages of ORIGIN ask; may be repeated.")
@click.option("--metrics-port", type=click.IntRange(0, 65535), help="Serve /metrics there instead; 0: any free one.")
@click.option("--metrics-host", metavar="HOST", help="Address of --metrics-port.  [default: that of --host]")
@click.option("--audit", type=click.Path(path_type=Path), metavar="FILE", help="Record who asked what; needs a key.")
@click.option(
    "--audit-key", type=click.Path(path_type=Path), metavar="FILE", help="Its key.  [default: $POCKETDX_AUDIT_KEY]"
)
def serve(
    models: tuple[str, ...],
    host: str,
    port: int,
    keys: Path | None,
    cors: tuple[str, ...],
    metrics_port: int | None,
    metrics_host: str | None,
    audit: Path | None,
    audit_key: Path | None,
    **limits: Any,
) -> None:
    """Serve MODEL, an .onnx file, over HTTP; or several, the first being the default.

    POST images to /v1/diagnose or /v1/embed; /docs describes the rest. ?model=NAME chooses one of several: its
    name is that of its file without ".onnx", or give MODEL as NAME=FILE. Files that change are taken up.

    Without --keys (or keys in $POCKETDX_API_KEYS) everybody is let in: listen beyond this machine only with them,
    and behind something that speaks TLS.
    """
    # Until uvicorn takes over. As process 1 of a container there is no default action for SIGTERM.
    signal.signal(signal.SIGTERM, _leave)
    settings = Settings(max_held=max(_DEFAULT.max_held, limits["max_bytes"]), **limits)
    check_origins(cors)
    if metrics_host and metrics_port is None:
        raise ServeError("--metrics-host says nothing without --metrics-port")
    if audit_key and not audit:
        raise ServeError("--audit-key says nothing without --audit")

    from pocketdx_runtime.model import Model
    from pocketdx_serve.models import named

    # Before FastAPI is imported and a port taken: a wrong path is answered at once.
    opened = {name: Model(path, threads=1).load() for name, path in named(models).items()}

    from pocketdx_serve.app import create_app
    from pocketdx_serve.keys import KeyRing
    from pocketdx_serve.logs import configure
    from pocketdx_serve.server import listen, run

    ring = KeyRing.chosen(keys)
    if ring is None and settings.rate is not None:
        raise ServeError("--rate counts for each API key; give --keys FILE")
    with listen(host, port) as sock:
        configure()
        app = create_app(
            opened,
            settings,
            keys=ring,
            audit=_audit_log(audit, audit_key),
            cors=cors,
            metrics=metrics_port is None,
        )
        if metrics_port is not None:
            app.state.service.metrics.serve(metrics_host or host, metrics_port)
        run(app, sock)


def _audit_log(path: Path | None, key: Path | None) -> AuditLog | None:
    if path is None:
        return None
    from pocketdx_serve.audit import AuditKey, AuditLog

    return AuditLog(path, AuditKey.chosen(key))


@click.group()
def audit() -> None:
    """Look after the audit log of `pocketdx serve --audit`."""


@audit.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--key", type=click.Path(path_type=Path), metavar="FILE", help="[default: $POCKETDX_AUDIT_KEY]")
@click.option("--expect", metavar="NUMBER:MAC", help="A line that has to be there still, as printed earlier.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(file: Path, key: Path | None, expect: str | None, as_json: bool) -> None:
    """Check that FILE is whole and unchanged; exit status 1 if it is not.

    Keep the line that it prints where nobody can change it, and give it back with --expect the next time: then
    not even who could change all files of the server can shorten the log unseen.
    """
    from pocketdx_serve.audit import AuditKey
    from pocketdx_serve.audit import verify as verify_log

    outcome = verify_log(file, AuditKey.chosen(key), _expected(expect))
    if as_json:
        click.echo(json.dumps({"whole": bool(outcome), **asdict(outcome)}))
    elif outcome:
        click.echo(f"{outcome.lines} lines, whole and unchanged; --expect {outcome.lines}:{outcome.mac}")
    else:
        click.echo(f"CHANGED: {outcome.problem}; the {outcome.lines} lines before are as they were written")
    sys.exit(0 if outcome else 1)


def _expected(text: str | None) -> tuple[int, str] | None:
    if text is None:
        return None
    number, _, mac = text.partition(":")
    if not number.isdigit() or len(mac) != 64:
        raise ServeError(f"--expect {printable(text)}: give NUMBER:MAC as `pocketdx audit verify` printed it")
    return int(number), mac


def check_origins(origins: tuple[str, ...]) -> None:
    """Return if each is an origin, or "*".

    Raises:
        ServeError: one is not.
    """
    for origin in origins:
        if origin != "*" and _ORIGIN.fullmatch(origin) is None:
            raise ServeError(f"--cors {printable(origin)}: give an origin, as https://clinic.example, without a path")


def _leave(_signal: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(0)
