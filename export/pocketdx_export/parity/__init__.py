"""Parity: is what runs on the device the model that was validated?"""

from pocketdx_export.parity.anyfile import AnyReport, compare
from pocketdx_export.parity.files import ModelFile, files_of
from pocketdx_export.parity.levels.clinic import Clinic
from pocketdx_export.parity.matrix import Comparison, compare_file, compare_files
from pocketdx_export.parity.report import Cell, Check, Report
from pocketdx_export.parity.tolerances import TOLERANCES, Tolerances, ToleranceTable

__all__ = [
    "TOLERANCES",
    "AnyReport",
    "Cell",
    "Check",
    "Clinic",
    "Comparison",
    "ModelFile",
    "Report",
    "ToleranceTable",
    "Tolerances",
    "compare",
    "compare_file",
    "compare_files",
    "files_of",
]
