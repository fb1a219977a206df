"""`pocketdx serve`; FastAPI and uvicorn are imported only when it runs, as `pocketdx --help` imports this."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, NoReturn

import click

from pocketdx_serve.settings import Settings

if TYPE_CHECKING:
    from types import FrameType

_DEFAULT = Settings()


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
def serve(
    models: tuple[str, ...],
    host: str,
    port: int,
    threads: int | None,
    queue: int,
    deadline: float,
    max_bytes: int,
    max_pixels: int,
    max_images: int,
) -> None:
    """Serve MODEL, an .onnx file, over HTTP; or several, the first being the default.

    POST images to /v1/diagnose or /v1/embed; /docs describes the rest. ?model=NAME chooses one of several: its
    name is that of its file without ".onnx", or give MODEL as NAME=FILE.
    """
    # Until uvicorn takes over. As process 1 of a container there is no default action for SIGTERM.
    signal.signal(signal.SIGTERM, _leave)
    settings = Settings(
        threads=threads,
        queue=queue,
        deadline=deadline,
        max_bytes=max_bytes,
        max_held=max(_DEFAULT.max_held, max_bytes),
        max_pixels=max_pixels,
        max_images=max_images,
    )

    from pocketdx_runtime.model import Model
    from pocketdx_serve.models import named

    # Before FastAPI is imported and a port taken: a wrong path is answered at once.
    opened = {name: Model(path, threads=1).load() for name, path in named(models).items()}

    from pocketdx_serve.app import create_app
    from pocketdx_serve.logs import configure
    from pocketdx_serve.server import listen, run

    with listen(host, port) as sock:
        configure()
        run(create_app(opened, settings), sock)


def _leave(_signal: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(0)
