"""From paths and options to a comparison; what can be wrong with them is found before any picture is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pocketdx_export.bundle import Bundle
from pocketdx_export.parity.config import parse_tolerances, read_config
from pocketdx_export.parity.files import ModelFile, files_of
from pocketdx_export.parity.levels.clinic import Clinic
from pocketdx_export.parity.matrix import Comparison
from pocketdx_export.parity.pictures import Progress
from pocketdx_export.parity.plan import plan
from pocketdx_export.parity.tolerances import TOLERANCES
from pocketdx_train.evaluation import choose_set
from pocketdx_train.run import Run


def comparison_of(
    bundle: Bundle | None,
    path: Path,
    run: Path,
    data: Path,
    *,
    split: str | None = None,
    backends: Sequence[str] = (),
    tolerances: Sequence[str] = (),
    margin: float | None = None,
    require: bool = False,
    limit: int | None = None,
    seed: int = 0,
    cache: Path | None = None,
    start: Path | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """A comparison; options that are not given are those of the nearest `pyproject.toml`.

    Args:
        bundle: opened; None for a single file.
        path: of the bundle, or of the file.
        run: the full model's folder.
        data: the labelled images.
        split: see `choose_set`.
        backends, margin, require, limit, seed, progress: see `Comparison` and `Clinic`.
        tolerances: "PRECISION.NAME=VALUE", more than what the table and `pyproject.toml` say.
        cache: folder of decoded images.
        start: folder at or above which `pyproject.toml` is looked for; the current one by default.

    Raises:
        PocketDxError: something cannot be read, or cannot be compared.
    """
    config = read_config(start or Path.cwd())
    table = TOLERANCES.changed({**config.tolerances, **parse_tolerances(tolerances)})
    files = files_of(bundle) if bundle else (ModelFile.at(path),)
    chosen_backends = tuple(backends) or config.backends
    plan(files, chosen_backends)
    full = Run.open(run)
    record = full.record
    chosen = choose_set(data, record.labels, record.preprocessing.size, split=split, run=full, cache=cache)
    accepted = next((each for each in (margin, config.margin) if each is not None), Clinic.margin)
    return Comparison(
        full,
        chosen,
        files,
        table,
        Clinic(accepted, require or config.require, seed),
        chosen_backends,
        limit,
        seed,
        progress,
    )
