"""A plugin for pytest: one test for each cell of the matrix, and fixtures for one's own assertions.

    pytest --pocketdx-bundle BUNDLE --pocketdx-run RUN --pocketdx-data DATA

pytest loads this module wherever PocketDx is installed, so it imports nothing but pytest until it is asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pocketdx_export.parity import Cell, Comparison, Report
    from pocketdx_export.parity.plan import Planned

_MODE = pytest.StashKey["Parity"]()


class Parity:
    """The comparison of one session; a cell is computed once, by the test or the fixture that needs it first."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self._cells: dict[int, Cell] = {}

    def cell(self, number: int) -> Cell:
        """The cell at a position of the plan."""
        if number not in self._cells:
            self._cells[number] = self.comparison.cell(self.comparison.planned[number])
        return self._cells[number]

    def report(self) -> Report:
        """All cells."""
        return self.comparison.report([self.cell(number) for number in range(len(self.comparison.planned))])


class CellFailedError(Exception):
    """A red cell; the text is the report."""


class ParityItem(pytest.Item):
    """The test of one cell."""

    def __init__(self, *, parity: Parity, number: int, **options: Any) -> None:
        super().__init__(**options)
        self.parity, self.number = parity, number

    def runtest(self) -> None:
        """Compute the cell; skip what cannot run here, fail what is red."""
        from pocketdx_export.parity.show.terminal import matrix

        cell = self.parity.cell(self.number)
        if cell.red:
            raise CellFailedError(matrix(self.parity.comparison.report([cell])))
        if cell.not_run:
            pytest.skip(f"not run: {cell.not_run}")

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The report in place of a traceback."""
        if isinstance(excinfo.value, CellFailedError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Where the test is, for pytest's listing."""
        return self.path, None, f"parity: {self.name}"


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--pocketdx-...`."""
    group = parser.getgroup("pocketdx", "parity of exported models with the full PyTorch model")
    group.addoption("--pocketdx-bundle", type=Path, metavar="BUNDLE", help="bundle to compare; one test for each cell")
    group.addoption("--pocketdx-run", type=Path, metavar="RUN", help="run that it was exported from")
    group.addoption("--pocketdx-data", type=Path, metavar="DATA", help="labelled images")
    group.addoption("--pocketdx-split", metavar="SPLIT", help="train, val, test or all [test, if there is one]")
    group.addoption("--pocketdx-backend", action="append", default=[], metavar="NAME", help="only this one; repeatable")
    group.addoption("--pocketdx-limit", type=int, metavar="N", help="compare only so many images")
    group.addoption("--pocketdx-cache", type=Path, metavar="FOLDER", help="folder of decoded images")


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add a test for each cell of the matrix."""
    if config.getoption("--pocketdx-bundle") is None:
        return
    parity = _parity(config)
    items += [
        ParityItem.from_parent(
            session, name=_name(planned), nodeid=f"parity::{_name(planned)}", parity=parity, number=n
        )
        for n, planned in enumerate(parity.comparison.planned)
    ]


@pytest.fixture(scope="session")
def pocketdx_report(request: pytest.FixtureRequest) -> Report:
    """The whole matrix, as `pocketdx_export.parity.Report`; its truth value is the verdict."""
    return _parity(request.config).report()


@pytest.fixture(scope="session")
def pocketdx_cells(request: pytest.FixtureRequest) -> dict[tuple[str, str], Cell]:
    """The cells that ran, by names of file and backend."""
    cells = _parity(request.config).report().cells
    return {(cell.file, cell.backend): cell for cell in cells if not cell.not_run}


def _name(planned: Planned) -> str:
    return f"{planned.file.path.name}[{planned.name}]"


def _parity(config: pytest.Config) -> Parity:
    """Made once a session. What is wrong with the options ends pytest with one line and status 4, as its own do."""
    if _MODE not in config.stash:
        given = {name: config.getoption(f"--pocketdx-{name}") for name in ("bundle", "run", "data")}
        missing = [f"--pocketdx-{name}" for name, value in given.items() if value is None]
        if missing:
            raise pytest.UsageError(f"parity needs {', '.join(missing)}")
        from pocketdx_runtime.errors import PocketDxError

        try:
            config.stash[_MODE] = Parity(_comparison(config, **given))
        except PocketDxError as problem:
            raise pytest.UsageError(str(problem)) from problem
    return config.stash[_MODE]


def _comparison(config: pytest.Config, bundle: Path, run: Path, data: Path) -> Comparison:
    from pocketdx_export.bundle import Bundle
    from pocketdx_export.parity.setup import comparison_of

    return comparison_of(
        None if bundle.is_file() else Bundle.open(bundle),
        bundle,
        run,
        data,
        split=config.getoption("--pocketdx-split"),
        backends=config.getoption("--pocketdx-backend"),
        limit=config.getoption("--pocketdx-limit"),
        cache=config.getoption("--pocketdx-cache"),
        start=config.rootpath,
    )
