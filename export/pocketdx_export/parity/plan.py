"""Which cells the matrix has, and which of them cannot be computed here, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pocketdx_export.backends import BACKENDS, Backend, backends_for
from pocketdx_export.errors import ParityError
from pocketdx_export.parity.files import ModelFile


@dataclass(frozen=True)
class Planned:
    """A cell to be compared.

    Attributes:
        file: the model file.
        backend: what runs it; None where nothing does.
        not_run: why there will be no result; "" where there will be one.
        asked: the user named the backend.
    """

    file: ModelFile
    backend: Backend | None
    not_run: str = ""
    asked: bool = False

    @property
    def name(self) -> str:
        """Of the backend."""
        return self.backend.name if self.backend else "none"


def plan(files: Sequence[ModelFile], names: Sequence[str]) -> tuple[Planned, ...]:
    """The cells, file by file, those that cannot run included.

    Args:
        files: to compare.
        names: of the backends that the user wants; empty for all.

    Raises:
        ParityError: a name that is no backend's, or one that runs none of the files.
    """
    known = {backend.name: backend for backend in BACKENDS}
    for name in names:
        if name not in known:
            raise ParityError(f"{name}: no such backend; there are {', '.join(known)}")
        if not any(file.format in known[name].formats for file in files):
            raise ParityError(f"{name}: runs none of {', '.join(file.path.name for file in files)}")
    absent = {backend.name: backend.absent() for backend in BACKENDS if not names or backend.name in names}
    cells: list[Planned] = []
    for file in files:
        backends = [backend for backend in backends_for(file.format) if not names or backend.name in names]
        if file.failed:
            cells.append(Planned(file, None, f"not exported: {file.failed}"))
        elif not backends and not names:
            cells.append(Planned(file, None, f"nothing runs {file.format} here"))
        else:
            cells += [Planned(file, each, absent[each.name] or "", bool(names)) for each in backends]
    return tuple(cells)
